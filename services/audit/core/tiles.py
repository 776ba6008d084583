"""The resources of a log as C2SP tlog-tiles names and fills them.

A *tile* holds up to 256 sibling hashes of the tree's level 8L, an *entry bundle* the leaves below one tile
of level 0. Full ones never change; a partial one (`.p/W`) exists for the tree sizes at which it is cut.
Source: https://c2sp.org/tlog-tiles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from services.audit.core.merkle import HASH_BYTES

TILE_WIDTH = 256
TILE_HEIGHT = 8
FULL_TILE_BYTES = TILE_WIDTH * HASH_BYTES
# An entry bundle gives a leaf's length in 16 bits.
LEAF_BYTES_MAX = 65_535
# Level 7 would stand above 2^56 leaves.
LEVEL_MAX = 7
_INDEX_MAX = 2**56

CHECKPOINT_PATH = "checkpoint"
_PATH = re.compile(
    r"tile/(?:(?P<entries>entries)|(?P<level>0|[1-9][0-9]?))/"
    r"(?P<index>(?:x[0-9]{3}/)*[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?\Z"
)


class MalformedPathError(ValueError):
    """A path that names no resource of a log."""


class MalformedBundleError(ValueError):
    """Bytes that are not an entry bundle."""


@dataclass(frozen=True, order=True, slots=True)
class TilePath:
    """One tile, or one entry bundle when `level` is None; partial when `width` < 256."""

    level: int | None
    index: int
    width: int = TILE_WIDTH

    def __str__(self) -> str:
        kind = "entries" if self.level is None else str(self.level)
        partial = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{kind}/{_index_path(self.index)}{partial}"

    @property
    def partial(self) -> bool:
        """Whether it is cut short by the tree's right edge."""
        return self.width < TILE_WIDTH

    @property
    def full(self) -> TilePath:
        """The path of the same tile once it is full."""
        return TilePath(self.level, self.index)

    @property
    def size_min(self) -> int:
        """The smallest tree size, in leaves, that has this tile."""
        return (self.index * TILE_WIDTH + self.width) << (TILE_HEIGHT * (self.level or 0))


def parse_path(path: str) -> TilePath:
    """Return the tile that `path` names; `MalformedPathError` for all that is not exactly a tile's path."""
    found = _PATH.match(path)
    if found is None:
        raise MalformedPathError(f"{path[:80]!r} is not a path like tile/0/000 or tile/entries/x001/234.p/17")
    level = None if found["entries"] else int(found["level"])
    index = int(found["index"].replace("x", "").replace("/", ""))
    width = int(found["width"] or TILE_WIDTH)
    tile = TilePath(level, index, width)
    # Comparing with the canonical form refuses leading groups of zeros and a full width written as partial.
    if str(tile) != path or width > TILE_WIDTH or (level or 0) > LEVEL_MAX or index >= _INDEX_MAX:
        raise MalformedPathError(f"{path[:80]!r} is not the canonical path of a tile")
    return tile


def tile_at(level: int, index: int, size: int) -> TilePath:
    """Return tile `index` of `level` as a tree of `size` leaves has it; ValueError when it has none."""
    width = min(TILE_WIDTH, (size >> (TILE_HEIGHT * level)) - index * TILE_WIDTH)
    if width <= 0:
        raise ValueError(f"a tree of {size} leaves has no tile {index} on level {level}")
    return TilePath(level, index, width)


def bundle_at(index: int, size: int) -> TilePath:
    """Return entry bundle `index` as a tree of `size` leaves has it; ValueError when it has none."""
    return TilePath(None, index, tile_at(0, index, size).width)


def encode_bundle(leaves: Iterable[bytes]) -> bytes:
    """Return the leaves, each after its length as a big-endian uint16; OverflowError over 65,535 bytes."""
    return b"".join([len(leaf).to_bytes(2, "big") + leaf for leaf in leaves])


def decode_bundle(data: bytes) -> list[bytes]:
    """Return the leaves of a bundle, or of any run of leaves in that form; `MalformedBundleError` if cut."""
    leaves: list[bytes] = []
    at, end = 0, len(data)
    while at < end:
        start = at + 2
        at = start + int.from_bytes(data[at:start], "big")
        if at > end or start > end:
            raise MalformedBundleError(f"leaf {len(leaves)} of the bundle is cut short")
        leaves.append(data[start:at])
    return leaves


def cut(tile: TilePath, data: bytes, width: int) -> bytes:
    """Return the first `width` hashes or leaves of `data`, which is the content of `tile`."""
    if tile.level is not None:
        return data[: width * HASH_BYTES]
    return encode_bundle(decode_bundle(data)[:width])


def _index_path(index: int) -> str:
    groups = f"{index % 1000:03d}"
    while index := index // 1000:
        groups = f"x{index % 1000:03d}/{groups}"
    return groups
