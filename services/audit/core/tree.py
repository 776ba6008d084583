"""The growing tree: what its right edge is, and which tiles appear when leaves are added.

Pure and incremental: adding n leaves costs about 2n hashes whatever the tree's size. The files of one
growth together with those before are everything a reader of the new tree size needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.audit.core.merkle import HASH_BYTES, compact_range, fold, leaf_hashes, perfect_root
from services.audit.core.tiles import (
    FULL_TILE_BYTES,
    TILE_HEIGHT,
    TILE_WIDTH,
    MalformedBundleError,
    TilePath,
    bundle_at,
    decode_bundle,
    encode_bundle,
    tile_at,
)


class ContradictionError(Exception):
    """The log on disk is not whole, or not one log: it must not be continued. The message says why."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree by its right edge."""

    # Number of leaves.
    size: int = 0
    # By tile level: the hashes of its last, partial tile; empty bytes where the tile is full.
    edges: tuple[bytes, ...] = ()
    # The last, partial entry bundle in its encoded form.
    bundle: bytes = b""

    def __repr__(self) -> str:
        return f"Tree(size={self.size}, root={self.root().hex()[:12]})"

    def root(self) -> bytes:
        """Return the root hash, 32 bytes."""
        return fold(root for edge in reversed(self.edges) for root in compact_range(edge))


@dataclass(frozen=True, slots=True)
class Growth:
    """A larger tree, and what must be durable before anyone is told of it."""

    tree: Tree
    # Content of each new tile and bundle, full and partial, leaves first.
    files: tuple[tuple[TilePath, bytes], ...]

    @property
    def completed(self) -> tuple[TilePath, ...]:
        """The full tiles among the files: their partial forms are no longer needed afterwards."""
        return tuple(path for path, _ in self.files if not path.partial)


def grow(tree: Tree, leaves: Sequence[bytes]) -> Growth:
    """Return `tree` with `leaves` added at its end."""
    if not leaves:
        return Growth(tree, ())
    size = tree.size + len(leaves)
    bundle, files = _grow_bundles(tree, leaves)
    edges: list[bytes] = []
    carried, level = leaf_hashes(leaves), 0
    while carried or level < len(tree.edges):
        row = (tree.edges[level] if level < len(tree.edges) else b"") + carried
        changed, carried = bool(carried), b""
        index = tree.size >> (TILE_HEIGHT * (level + 1))
        for start in range(0, len(row) - FULL_TILE_BYTES + 1, FULL_TILE_BYTES):
            tile = row[start : start + FULL_TILE_BYTES]
            files.append((TilePath(level, index), tile))
            carried += perfect_root(tile)
            index += 1
        edge = row[len(row) - len(row) % FULL_TILE_BYTES :]
        # A level that nothing was carried up to still has the partial tile of an earlier growth.
        if edge and changed:
            files.append((TilePath(level, index, len(edge) // HASH_BYTES), edge))
        edges.append(edge)
        level += 1
    return Growth(Tree(size, tuple(edges), bundle), tuple(files))


def _grow_bundles(tree: Tree, leaves: Sequence[bytes]) -> tuple[bytes, list[tuple[TilePath, bytes]]]:
    files = []
    held, bundle, index = tree.size % TILE_WIDTH, tree.bundle, tree.size // TILE_WIDTH
    at = 0
    while at < len(leaves):
        taken = leaves[at : at + TILE_WIDTH - held]
        at += len(taken)
        width, bundle = held + len(taken), bundle + encode_bundle(taken)
        files.append((TilePath(None, index, width), bundle))
        if width == TILE_WIDTH:
            held, bundle, index = 0, b"", index + 1
    return bundle, files


def edge_paths(size: int) -> tuple[TilePath, ...]:
    """Return the partial bundle and tiles that make up the right edge of a tree of `size` leaves."""
    paths = []
    if size % TILE_WIDTH:
        paths.append(bundle_at(size // TILE_WIDTH, size))
    level = 0
    while size >> (TILE_HEIGHT * level):
        count = size >> (TILE_HEIGHT * level)
        if count % TILE_WIDTH:
            paths.append(tile_at(level, count // TILE_WIDTH, size))
        level += 1
    return tuple(paths)


def restore(size: int, root: bytes, read: Callable[[TilePath], bytes]) -> Tree:
    """Return the tree of a checkpoint from its stored tiles.

    Raises `ContradictionError` when the tiles have another root, or when the last entry bundle is not what
    the tiles were made of; `read` says itself when a tile is missing.
    """
    levels = -(-size.bit_length() // TILE_HEIGHT)
    edges, bundle = [b""] * levels, b""
    for path in edge_paths(size):
        data = read(path)
        if path.level is None:
            bundle = data
        elif len(data) != path.width * HASH_BYTES:
            raise ContradictionError(f"{path} holds {len(data)} bytes and not {path.width} hashes")
        else:
            edges[path.level] = data
    tree = Tree(size, tuple(edges), bundle)
    if tree.root() != root:
        raise ContradictionError(
            f"the tiles of {size} leaves have root {tree.root().hex()}, not {root.hex()}"
        )
    try:
        agrees = not edges or leaf_hashes(decode_bundle(bundle)) == edges[0]
    except MalformedBundleError:
        agrees = False
    if not agrees:
        raise ContradictionError(f"the last entry bundle of {size} leaves does not hash to its tile")
    return tree
