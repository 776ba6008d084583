"""The Merkle tree hash of RFC 6962 section 2.1 (the same as RFC 9162 section 2.1), by compact ranges.

A *compact range* is the list of the roots of the perfect subtrees that cover a run of leaves, left to
right. Every hash of the tree, its root and each hash of a proof, is a fold of one; so the tree itself
never has to be held, only its right edge.

Hashes travel concatenated (`bytes` of 32 * n), which is also how a tile stores them.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

HASH_BYTES = 32
# MTH({}) of RFC 6962: the hash of nothing.
EMPTY_ROOT = sha256(b"").digest()


def leaf_hash(leaf: bytes) -> bytes:
    """Return the hash of one leaf: SHA-256(0x00 || leaf)."""
    return sha256(b"\x00" + leaf).digest()


def leaf_hashes(leaves: Iterable[bytes]) -> bytes:
    """Return the concatenated hashes of `leaves`, in order."""
    return b"".join([sha256(b"\x00" + leaf).digest() for leaf in leaves])


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node: SHA-256(0x01 || left || right)."""
    return sha256(b"\x01" + left + right).digest()


def perfect_root(hashes: bytes) -> bytes:
    """Return the root over 2^k sibling hashes, k >= 0; ValueError for any other count."""
    count = len(hashes) // HASH_BYTES
    if len(hashes) % HASH_BYTES or not count or count & (count - 1):
        raise ValueError(f"{len(hashes)} bytes are not 2^k hashes of {HASH_BYTES} bytes")
    while len(hashes) > HASH_BYTES:
        hashes = b"".join(
            [sha256(b"\x01" + hashes[at : at + 64]).digest() for at in range(0, len(hashes), 2 * HASH_BYTES)]
        )
    return hashes


def compact_range(hashes: bytes) -> list[bytes]:
    """Return the roots of the perfect subtrees over n sibling hashes, widest first.

    Holds for siblings that start at a multiple of the widest subtree, as those of a tile do.
    """
    count = len(hashes) // HASH_BYTES
    roots, start = [], 0
    for height in reversed(range(count.bit_length())):
        if count >> height & 1:
            end = start + (HASH_BYTES << height)
            roots.append(perfect_root(hashes[start:end]))
            start = end
    return roots


def fold(roots: Iterable[bytes]) -> bytes:
    """Return the hash over a compact range: its roots joined from the right; of none, `EMPTY_ROOT`."""
    backwards = reversed(list(roots))
    total = next(backwards, None)
    if total is None:
        return EMPTY_ROOT
    for root in backwards:
        total = node_hash(root, total)
    return total
