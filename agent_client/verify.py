"""Check the audit log without trusting it: signature, inclusion, consistency, and the whole log.

Everything here is computed from bytes that the caller brings; nothing is fetched. It shares no code with
the audit service, so the two test each other. Formats: C2SP signed-note, tlog-checkpoint and tlog-tiles;
proofs are checked by the algorithms of RFC 9162 sections 2.1.3.2 and 2.1.4.2.

A check returns what it established or raises a `VerificationError` whose class says what is wrong:

    key = VerifierKey.parse("muster.internal/audit+b4a5c4e1+AXk...")
    checkpoint = verify_checkpoint(note, key)
    verify_inclusion(leaf, index, proof, checkpoint)

    whole = LogVerification(checkpoint)
    for path in whole.wanted():
        whole.feed(path, read(path))  # from a directory, or GetTile
    report = whole.finish()
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_HASH_BYTES = 32
_TILE_WIDTH = 256
_TILE_HEIGHT = 8
_ED25519 = 1
_EMPTY_ROOT = sha256(b"").digest()


class VerificationError(Exception):
    """Something about the log cannot be believed; the subclass says what."""


class MalformedKeyError(VerificationError):
    """The verifier key is not of the form `<name>+<hash>+<key>`."""


class MalformedCheckpointError(VerificationError):
    """The checkpoint is not a signed note of origin, size and root."""


class OriginError(VerificationError):
    """The checkpoint is of another log."""


class SignatureError(VerificationError):
    """The checkpoint carries no valid signature by the key."""


class MalformedProofError(VerificationError):
    """The proof has the wrong number of hashes, or they have the wrong length."""


class InclusionError(VerificationError):
    """The leaf is not in the tree at that index."""


class ConsistencyError(VerificationError):
    """The newer tree does not continue the older one: the log was rewritten or forked."""


class MalformedTileError(VerificationError):
    """A tile or an entry bundle does not have the form that its path promises."""


class TileError(VerificationError):
    """A tile holds other hashes than the entries give."""


class RootError(VerificationError):
    """The entries hash to another root than the checkpoint's: they were changed, lost or reordered."""


class IncompleteError(VerificationError):
    """The check was ended before all resources of the log were given."""


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """The public key of a log, with the name it signs under."""

    name: str
    # The first four bytes of SHA-256(name || LF || 0x01 || public key).
    key_id: bytes
    # The raw Ed25519 key, 32 bytes.
    public_key: bytes

    def __str__(self) -> str:
        encoded = base64.b64encode(bytes([_ED25519]) + self.public_key).decode()
        return f"{self.name}+{self.key_id.hex()}+{encoded}"

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Return the key of a `<name>+<hash>+<key>` string; `MalformedKeyError` when it is none."""
        name, _, rest = text.strip().partition("+")
        hexed, _, encoded = rest.partition("+")
        blob = _base64(encoded.encode())
        if not name or blob is None or len(blob) != 1 + _HASH_BYTES or blob[0] != _ED25519:
            raise MalformedKeyError("expected <name>+<hash>+<key> with an Ed25519 key (type 1)")
        key_id = sha256(name.encode() + b"\n" + blob).digest()[:4]
        if hexed != key_id.hex():
            raise MalformedKeyError(f"the key hash is {hexed[:16]!r}, but name and key give {key_id.hex()}")
        return cls(name, key_id, blob[1:])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head that a log signed."""

    origin: str
    # Number of leaves.
    size: int
    # 32 bytes.
    root: bytes


@dataclass(frozen=True, slots=True)
class LogReport:
    """What the check of a whole log established."""

    checkpoint: Checkpoint
    # How many tiles of hashes were compared with the entries.
    tiles: int
    # Bytes of all leaves together.
    leaf_bytes: int


def verify_note(note: bytes, key: VerifierKey) -> bytes:
    """Return the text of a signed note that `key` signed.

    Signatures by other keys are ignored, as the format wants. Raises `MalformedCheckpointError` or
    `SignatureError`.
    """
    text, found, block = note.rpartition(b"\n\n")
    text += b"\n"
    if not found or not block.endswith(b"\n"):
        raise MalformedCheckpointError("not a signed note: no blank line before its signatures")
    prefix = "\N{EM DASH} ".encode()
    verified = False
    for line in block[:-1].split(b"\n"):
        name, separator, encoded = line.removeprefix(prefix).partition(b" ")
        blob = _base64(encoded)
        if not line.startswith(prefix) or not name or not separator or blob is None or len(blob) < 5:
            raise MalformedCheckpointError(f"not a signature line: {line[:80]!r}")
        if name != key.name.encode() or blob[:4] != key.key_id:
            continue
        if verified:
            raise MalformedCheckpointError(f"{key.name} signed twice with the same key")
        try:
            Ed25519PublicKey.from_public_bytes(key.public_key).verify(blob[4:], text)
        except InvalidSignature:
            raise SignatureError(
                f"the signature by {key.name} does not verify: the text was changed"
            ) from None
        verified = True
    if not verified:
        raise SignatureError(f"no signature by {key.name} with key {key.key_id.hex()}")
    return text


def verify_checkpoint(note: bytes, key: VerifierKey, *, origin: str | None = None) -> Checkpoint:
    """Return the tree head of a checkpoint that `key` signed; `origin` defaults to the key's name.

    Raises `MalformedCheckpointError`, `SignatureError` or `OriginError`.
    """
    lines = verify_note(note, key).split(b"\n")
    if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
        raise MalformedCheckpointError("a checkpoint has three lines: origin, size and root")
    named, size, root = lines[0].decode(errors="replace"), lines[1], _base64(lines[2])
    if root is None or len(root) != _HASH_BYTES:
        raise MalformedCheckpointError("the third line is not a base64 hash of 32 bytes")
    if not size.isdigit() or len(size) > 19 or (size[0] == 0x30 and size != b"0"):
        raise MalformedCheckpointError("the second line is not a decimal tree size")
    wanted = key.name if origin is None else origin
    if named != wanted:
        raise OriginError(f"the checkpoint is of the log {named!r}, not {wanted!r}")
    return Checkpoint(named, int(size), root)


def hash_leaf(leaf: bytes) -> bytes:
    """Return the leaf hash of RFC 6962."""
    return sha256(b"\x00" + leaf).digest()


def verify_inclusion(leaf: bytes, index: int, proof: Sequence[bytes], checkpoint: Checkpoint) -> None:
    """Check that `leaf` is at `index` (from 0) of the checkpoint's tree.

    Raises `InclusionError`, or `MalformedProofError` when the proof cannot be one for this place.
    """
    if not 0 <= index < checkpoint.size:
        raise InclusionError(f"leaf {index} is not in a tree of {checkpoint.size} leaves")
    _check_hashes(proof)
    root = hash_leaf(leaf)
    for sibling, on_left in _climb(index, checkpoint.size - 1, proof):
        root = _parent(sibling, root) if on_left else _parent(root, sibling)
    if root != checkpoint.root:
        raise InclusionError(f"the proof for leaf {index} leads to another root than the checkpoint's")


def verify_consistency(old: Checkpoint, new: Checkpoint, proof: Sequence[bytes]) -> None:
    """Check that the tree of `new` holds that of `old` as its beginning, unchanged.

    Raises `OriginError`, `ConsistencyError`, or `MalformedProofError` when the proof cannot be one for
    these sizes.
    """
    if old.origin != new.origin:
        raise OriginError(f"the checkpoints are of two logs: {old.origin!r} and {new.origin!r}")
    if old.size > new.size:
        raise ConsistencyError(f"the log shrank from {old.size} to {new.size} leaves")
    _check_hashes(proof)
    if old.size in (0, new.size):
        _check_nothing_to_prove(old, new, proof)
        return
    # A perfect old tree is itself the first hash; the proof leaves it out.
    hashes = [old.root, *proof] if old.size & (old.size - 1) == 0 else list(proof)
    if not hashes:
        raise MalformedProofError(f"an empty proof from {old.size} to {new.size} leaves")
    position, last = old.size - 1, new.size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old_root = new_root = hashes[0]
    for sibling, on_left in _climb(position, last, hashes[1:]):
        if on_left:
            old_root, new_root = _parent(sibling, old_root), _parent(sibling, new_root)
        else:
            new_root = _parent(new_root, sibling)
    if old_root != old.root:
        raise ConsistencyError(f"the proof does not lead to the older root of {old.size} leaves")
    if new_root != new.root:
        raise ConsistencyError(f"the proof does not lead to the newer root of {new.size} leaves")


class LogVerification:
    """The check of a whole log: every entry is hashed, every tile compared, the root recomputed.

    Memory stays small: nothing but the tree's right edge is held. `older` checkpoints are checked in
    passing: the log must have had exactly those roots at those sizes.
    """

    def __init__(self, checkpoint: Checkpoint, *, older: Sequence[Checkpoint] = ()) -> None:
        for head in older:
            if head.origin != checkpoint.origin:
                raise OriginError(f"an older checkpoint is of the log {head.origin!r}")
            if head.size > checkpoint.size:
                raise ConsistencyError(f"the log shrank from {head.size} to {checkpoint.size} leaves")
        self._checkpoint = checkpoint
        # Roots to be met, smallest size first.
        self._heads = sorted([*older, checkpoint], key=lambda head: head.size)
        # Roots of the perfect subtrees so far, widest first, each with its height.
        self._stack: list[tuple[int, bytes]] = []
        # By tile level: hashes that no tile has been compared with yet.
        self._rows: dict[int, bytearray] = {}
        self._leaves = self._leaf_bytes = self._tiles = 0
        self._paths = self._plan()
        self._next = next(self._paths, None)
        self._check_heads()

    def __repr__(self) -> str:
        return f"LogVerification({self._leaves} of {self._checkpoint.size} leaves, {self._tiles} tiles)"

    def wanted(self) -> Iterator[str]:
        """Yield the path of each resource in the order in which `feed` wants them."""
        while self._next is not None:
            before = self._next
            yield before
            if self._next == before:
                raise IncompleteError(f"{before} was asked for and not given")

    def feed(self, path: str, data: bytes) -> list[bytes]:
        """Take in one resource; return the leaves of an entry bundle, and nothing for a tile.

        Raises `MalformedTileError`, `TileError`, or `RootError` as soon as a root is seen to be wrong.
        """
        if path != self._next:
            raise IncompleteError(f"{self._next} comes next, not {path}")
        kind, _, tail = path.removeprefix("tile/").partition("/")
        width = int(tail.partition(".p/")[2] or _TILE_WIDTH)
        leaves = []
        if kind == "entries":
            leaves = _split_bundle(path, data, width)
            for leaf in leaves:
                self._add(leaf)
        else:
            self._compare(path, int(kind), data, width)
        self._next = next(self._paths, None)
        return leaves

    def finish(self) -> LogReport:
        """Return what was established; `IncompleteError` unless every resource was fed."""
        if self._next is not None:
            raise IncompleteError(f"{self._next} was not given")
        return LogReport(self._checkpoint, self._tiles, self._leaf_bytes)

    def _plan(self) -> Iterator[str]:
        """Yield bundle and tile paths; a tile follows the last bundle below it."""
        size = self._checkpoint.size
        for first in range(0, size, _TILE_WIDTH):
            reached = min(size, first + _TILE_WIDTH)
            yield _path("entries", first // _TILE_WIDTH, reached - first)
            level = 0
            while hashes := reached >> (_TILE_HEIGHT * level):
                last, width = divmod(hashes, _TILE_WIDTH)
                if reached % _TILE_WIDTH ** (level + 1) == 0:
                    yield _path(str(level), last - 1, _TILE_WIDTH)
                elif reached == size and width:
                    yield _path(str(level), last, width)
                level += 1

    def _add(self, leaf: bytes) -> None:
        height, node = 0, hash_leaf(leaf)
        self._rows.setdefault(0, bytearray()).extend(node)
        # Like adding one to a binary number: equal heights merge and carry.
        while self._stack and self._stack[-1][0] == height:
            node = _parent(self._stack.pop()[1], node)
            height += 1
            if height % _TILE_HEIGHT == 0:
                self._rows.setdefault(height // _TILE_HEIGHT, bytearray()).extend(node)
        self._stack.append((height, node))
        self._leaves += 1
        self._leaf_bytes += len(leaf)
        self._check_heads()

    def _check_heads(self) -> None:
        while self._heads and self._heads[0].size == self._leaves:
            head = self._heads.pop(0)
            if self._root() != head.root:
                raise RootError(
                    f"the first {head.size} entries hash to {self._root().hex()}, not {head.root.hex()}"
                )

    def _root(self) -> bytes:
        if not self._stack:
            return _EMPTY_ROOT
        root = self._stack[-1][1]
        for _, node in reversed(self._stack[:-1]):
            root = _parent(node, root)
        return root

    def _compare(self, path: str, level: int, data: bytes, width: int) -> None:
        if len(data) != width * _HASH_BYTES:
            raise MalformedTileError(f"{path} has {len(data)} bytes, not {width} hashes")
        row = self._rows.setdefault(level, bytearray())
        for at in range(0, len(data), _HASH_BYTES):
            if data[at : at + _HASH_BYTES] != row[at : at + _HASH_BYTES]:
                raise TileError(f"hash {at // _HASH_BYTES} of {path} is not that of the entries below it")
        del row[: len(data)]
        self._tiles += 1


def _base64(text: bytes) -> bytes | None:
    """Return the decoded bytes; None unless `text` is their one canonical encoding."""
    try:
        decoded = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return decoded if base64.b64encode(decoded) == text else None


def _parent(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def _climb(position: int, last: int, hashes: Sequence[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield each sibling on the way up from `position`, and whether it stands on the left.

    `last` is the position of the right edge on the same height.
    """
    for sibling in hashes:
        if last == 0:
            raise MalformedProofError(f"the proof has too many hashes: {len(hashes)}")
        on_left = bool(position & 1) or position == last
        yield sibling, on_left
        # A subtree at the right edge rises without a sibling until it is a right child.
        while on_left and position and not position & 1:
            position, last = position >> 1, last >> 1
        position, last = position >> 1, last >> 1
    if last:
        raise MalformedProofError(f"the proof has too few hashes: {len(hashes)}")


def _check_nothing_to_prove(old: Checkpoint, new: Checkpoint, proof: Sequence[bytes]) -> None:
    if proof:
        raise MalformedProofError(f"nothing is to be proved from {old.size} to {new.size} leaves")
    if old.root != (new.root if old.size == new.size else _EMPTY_ROOT):
        raise ConsistencyError(f"two different roots for {old.size} leaves")


def _check_hashes(proof: Sequence[bytes]) -> None:
    for at, item in enumerate(proof):
        if len(item) != _HASH_BYTES:
            raise MalformedProofError(f"hash {at} of the proof has {len(item)} bytes, not {_HASH_BYTES}")


def _path(kind: str, index: int, width: int) -> str:
    digits = f"{index:03d}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    number = "/".join([f"x{group}" for group in groups[:-1]] + groups[-1:])
    return f"tile/{kind}/{number}" + ("" if width == _TILE_WIDTH else f".p/{width}")


def _split_bundle(path: str, data: bytes, width: int) -> list[bytes]:
    leaves: list[bytes] = []
    at = 0
    while at < len(data):
        start, end = at + 2, at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end > len(data):
            raise MalformedTileError(f"{path}: entry {len(leaves)} is cut short")
        leaves.append(data[start:end])
        at = end
    if len(leaves) != width:
        raise MalformedTileError(f"{path} has {len(leaves)} entries, not {width}")
    return leaves
