"""Inclusion and consistency proofs: which hashes they are made of, and how those come out of tiles.

Method: PATH(m, D[n]) and PROOF(m, D[n]) of RFC 6962 sections 2.1.1 and 2.1.2, in two steps so that no IO
happens here: first the runs of leaves whose hashes make up the proof, then the tiles which hold them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from services.audit.core.merkle import HASH_BYTES, fold, perfect_root
from services.audit.core.tiles import TILE_HEIGHT, TILE_WIDTH, TilePath, tile_at


class Run(NamedTuple):
    """The leaves begin <= i < end, whose Merkle tree hash is one element of a proof."""

    begin: int
    end: int


def inclusion_runs(index: int, size: int) -> list[Run]:
    """Return the runs of the audit path of leaf `index` in a tree of `size` leaves, leaf to root."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size} leaves")
    runs = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + _left_width(end - begin)
        if index < middle:
            runs.append(Run(middle, end))
            end = middle
        else:
            runs.append(Run(begin, middle))
            begin = middle
    return runs[::-1]


def consistency_runs(old_size: int, new_size: int) -> list[Run]:
    """Return the runs of the proof that the first `old_size` of `new_size` leaves are unchanged.

    Empty when nothing is to be proved: equal sizes, or an empty old tree.
    """
    if not 0 <= old_size <= new_size:
        raise ValueError(f"a tree of {new_size} leaves has no older tree of {old_size} leaves")
    if old_size in (0, new_size):
        return []
    runs = []
    begin, end, whole = 0, new_size, True
    while old_size < end:
        middle = begin + _left_width(end - begin)
        if old_size <= middle:
            runs.append(Run(middle, end))
            end = middle
        else:
            runs.append(Run(begin, middle))
            begin, whole = middle, False
    # The old tree's own root is known to the verifier; any other subtree that remains is not.
    if not whole:
        runs.append(Run(begin, end))
    return runs[::-1]


def tiles_of(runs: list[Run], size: int) -> set[TilePath]:
    """Return the tiles, as a tree of `size` leaves has them, from which `runs` can be hashed."""
    return {_tile_of(level, index, size) for run in runs for level, index in _perfect_subtrees(run)}


def hash_runs(runs: list[Run], size: int, tile: Callable[[TilePath], bytes]) -> list[bytes]:
    """Return the hash of each run; `tile` gives the content of those that `tiles_of` named."""
    return [
        fold(_subtree_root(level, at, size, tile) for level, at in _perfect_subtrees(run)) for run in runs
    ]


def _left_width(width: int) -> int:
    """Return the largest power of two below `width`."""
    return 1 << (width - 1).bit_length() - 1


def _perfect_subtrees(run: Run) -> Iterator[tuple[int, int]]:
    """Yield (level, index on that level) of the perfect subtrees that cover the run, left to right.

    A run of a proof starts at a multiple of its widest subtree, so the widths only fall.
    """
    begin = run.begin
    while begin < run.end:
        level = (run.end - begin).bit_length() - 1
        yield level, begin >> level
        begin += 1 << level


def _tile_of(level: int, index: int, size: int) -> TilePath:
    tile_level, height = divmod(level, TILE_HEIGHT)
    return tile_at(tile_level, (index << height) // TILE_WIDTH, size)


def _subtree_root(level: int, index: int, size: int, tile: Callable[[TilePath], bytes]) -> bytes:
    height = level % TILE_HEIGHT
    first = (index << height) % TILE_WIDTH
    data = tile(_tile_of(level, index, size))
    return perfect_root(data[first * HASH_BYTES : (first + (1 << height)) * HASH_BYTES])
