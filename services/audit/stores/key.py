"""The log's private key: one file, made once, at the log's inception."""

from __future__ import annotations

import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from services.audit.store import LogUnusableError
from services.audit.stores.disk import Disk, write_new

_SHARED = stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP


class Ed25519Signer:
    """A `Signer` whose private key is in this process."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self._public_key = private_key.public_key()

    def __repr__(self) -> str:
        return f"Ed25519Signer(public_key={self.public_key.hex()})"

    @property
    def public_key(self) -> bytes:
        """The raw public key, 32 bytes."""
        return self._public_key.public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Return the signature, 64 bytes."""
        return self._private_key.sign(message)

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Return whether `signature` is this key's over `message`."""
        try:
            self._public_key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


def create_key(disk: Disk, path: Path) -> Ed25519Signer:
    """Make a new key and its file (PEM, mode 0600), durable on return; its directory must be there."""
    private_key = Ed25519PrivateKey.generate()
    pem = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    temporary = path.with_name(path.name + ".temporary")
    write_new(disk, temporary, pem)
    disk.rename(temporary, path)
    disk.sync_directory(path.parent)
    return Ed25519Signer(private_key)


def load_key(disk: Disk, path: Path) -> Ed25519Signer:
    """Return the key of a file; `LogUnusableError` when it is missing, no key, or open to others."""
    try:
        pem, mode = disk.read(path), disk.mode(path)
    except FileNotFoundError:
        raise LogUnusableError(
            f"the log's key {path} is missing: restore it from its backup; without it the log cannot go on"
        ) from None
    if mode & _SHARED:
        raise LogUnusableError(f"the log's key {path} can be read or changed by others: chmod 600 {path}")
    try:
        private_key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        private_key = None
    if not isinstance(private_key, Ed25519PrivateKey):
        raise LogUnusableError(f"{path} holds no unencrypted Ed25519 private key in PEM form")
    return Ed25519Signer(private_key)
