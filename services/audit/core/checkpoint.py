"""The signed tree head: C2SP tlog-checkpoint text inside a C2SP signed note, with Ed25519.

Pure: what is signed and how it is written. The signature itself comes from a `Signer`, since it needs the
log's private key. Sources: https://c2sp.org/tlog-checkpoint, https://c2sp.org/signed-note.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from services.audit.core.merkle import HASH_BYTES

# Signature type of the signed note: Ed25519 over the note's text.
_ED25519 = b"\x01"
_KEY_ID_BYTES = 4
_DASH = "\N{EM DASH} "
# A key name must not hold spaces or a plus sign; an origin is used as one.
_ORIGIN = re.compile(r"[^\s+]{1,255}\Z")
_SIZE = re.compile(r"(?:0|[1-9][0-9]{0,18})\Z")


class MalformedCheckpointError(ValueError):
    """Bytes that are not a checkpoint of this log."""


class Signer(Protocol):
    """The log's key: signs, and can check what it signed before."""

    @property
    def public_key(self) -> bytes:
        """The raw Ed25519 public key, 32 bytes."""

    def sign(self, message: bytes) -> bytes:
        """Return the signature, 64 bytes."""

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Return whether `signature` is this key's over `message`."""


@dataclass(frozen=True, slots=True)
class TreeHead:
    """What a checkpoint says about the tree."""

    # Number of leaves.
    size: int
    # 32 bytes.
    root: bytes


def valid_origin(origin: str) -> bool:
    """Return whether `origin` can name a log: 1 to 255 characters, no space and no plus sign."""
    return _ORIGIN.match(origin) is not None


def verifier_key(origin: str, public_key: bytes) -> str:
    """Return the key that others verify with, in the form `<origin>+<hash>+<key>`."""
    encoded = base64.b64encode(_ED25519 + public_key).decode()
    return f"{origin}+{_key_id(origin, public_key).hex()}+{encoded}"


def sign(origin: str, head: TreeHead, signer: Signer) -> bytes:
    """Return the signed note that publishes `head`."""
    text = _text(origin, head)
    blob = _key_id(origin, signer.public_key) + signer.sign(text)
    return text + f"\n{_DASH}{origin} {base64.b64encode(blob).decode()}\n".encode()


def open_own(note: bytes, origin: str, signer: Signer) -> TreeHead:
    """Return the head of a checkpoint which this log itself signed before.

    Raises `MalformedCheckpointError` unless the note is byte for byte what `sign` would write, apart from
    the signature, and the signature is this key's.
    """
    text, found, signatures = note.rpartition(b"\n\n")
    text += b"\n"
    head = _parse_text(text, origin)
    prefix = f"{_DASH}{origin} ".encode()
    if not found or not signatures.startswith(prefix) or not signatures.endswith(b"\n"):
        raise MalformedCheckpointError(f"the checkpoint carries no signature by {origin}")
    try:
        blob = base64.b64decode(signatures[len(prefix) : -1], validate=True)
    except ValueError:
        raise MalformedCheckpointError("the checkpoint's signature is not base64") from None
    # base64 leaves two bits of the last character unread; a flipped one is a changed file all the same.
    if base64.b64encode(blob) != signatures[len(prefix) : -1]:
        raise MalformedCheckpointError("the checkpoint's signature is not canonical base64")
    key_id, signature = blob[:_KEY_ID_BYTES], blob[_KEY_ID_BYTES:]
    if key_id != _key_id(origin, signer.public_key):
        raise MalformedCheckpointError(
            "the checkpoint was signed with another key than the log's key file holds"
        )
    if not signer.verifies(text, signature):
        raise MalformedCheckpointError("the checkpoint's signature does not verify")
    return head


def _text(origin: str, head: TreeHead) -> bytes:
    return f"{origin}\n{head.size}\n{base64.b64encode(head.root).decode()}\n".encode()


def _parse_text(text: bytes, origin: str) -> TreeHead:
    try:
        named, size, root, end = text.decode().split("\n")
        head = TreeHead(int(size), base64.b64decode(root, validate=True))
    except ValueError:
        raise MalformedCheckpointError("the checkpoint is not origin, size and root on three lines") from None
    if named != origin:
        raise MalformedCheckpointError(f"the checkpoint is of the log {named!r}, not {origin!r}")
    if end or not _SIZE.match(size) or len(head.root) != HASH_BYTES or _text(origin, head) != text:
        raise MalformedCheckpointError("the checkpoint's size or root is not in canonical form")
    return head


def _key_id(name: str, public_key: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + _ED25519 + public_key).digest()[:_KEY_ID_BYTES]
