"""Proofs out of tiles are those of RFC 6962, for every place of small trees and some of larger ones."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.audit.core.proofs import consistency_runs, hash_runs, inclusion_runs, tiles_of
from services.audit.core.tiles import TilePath
from services.audit.core.tree import Tree, grow
from tests.unit.audit.audit_reference import LEAVES, naive_consistency, naive_inclusion

# From the published vectors for the eight standard leaves: (index, size) or (old, new) -> hashes.
H = {
    "leaf1": "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "leaf4": "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    "2-4": "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "4-6": "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
    "6-8": "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    "0-4": "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4-8": "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
}
INCLUSION = {
    (0, 1): [],
    (0, 8): ["leaf1", "2-4", "4-8"],
    (5, 8): ["leaf4", "6-8", "0-4"],
}
CONSISTENCY = {
    (1, 1): [],
    (1, 8): ["leaf1", "2-4", "4-8"],
    (6, 8): ["4-6", "6-8", "0-4"],
    (2, 5): ["2-4", "leaf4"],
}


def tiles(leaves: list[bytes]) -> dict[TilePath, bytes]:
    return dict(grow(Tree(), leaves).files)


def inclusion(index: int, leaves: list[bytes]) -> list[bytes]:
    return hash_runs(inclusion_runs(index, len(leaves)), len(leaves), tiles(leaves).__getitem__)


def consistency(old: int, leaves: list[bytes]) -> list[bytes]:
    return hash_runs(consistency_runs(old, len(leaves)), len(leaves), tiles(leaves).__getitem__)


@pytest.mark.parametrize(("place", "names"), INCLUSION.items())
def test_published_audit_paths(place: tuple[int, int], names: list[str]) -> None:
    index, size = place
    assert [one.hex() for one in inclusion(index, LEAVES[:size])] == [H[name] for name in names]


@pytest.mark.parametrize(("sizes", "names"), CONSISTENCY.items())
def test_published_consistency_proofs(sizes: tuple[int, int], names: list[str]) -> None:
    old, new = sizes
    assert [one.hex() for one in consistency(old, LEAVES[:new])] == [H[name] for name in names]


def test_every_proof_of_small_trees() -> None:
    leaves = [b"%d" % n for n in range(40)]
    for size in range(1, 41):
        for index in range(size):
            assert inclusion(index, leaves[:size]) == naive_inclusion(index, leaves[:size])
            old = index + 1
            assert consistency(old, leaves[:size]) == naive_consistency(old, leaves[:size])


@settings(max_examples=25)
@given(st.data())
def test_proofs_across_tile_levels(data: st.DataObject) -> None:
    size = data.draw(st.integers(257, 1_500))
    index = data.draw(st.integers(0, size - 1))
    leaves = [b"%d" % n for n in range(size)]
    assert inclusion(index, leaves) == naive_inclusion(index, leaves)
    assert consistency(index + 1, leaves) == naive_consistency(index + 1, leaves)


@settings(max_examples=25)
@given(st.data())
def test_the_tiles_of_a_proof_are_known_before_it_is_hashed(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 1_500))
    old = data.draw(st.integers(1, size))
    files = tiles([b"%d" % n for n in range(size)])
    for runs in (inclusion_runs(old - 1, size), consistency_runs(old, size)):
        needed = tiles_of(runs, size)
        hash_runs(runs, size, {path: files[path] for path in needed}.__getitem__)


def test_a_proof_reads_few_tiles_of_a_large_tree() -> None:
    # 2^40 leaves: 5 levels of tiles.
    assert len(tiles_of(inclusion_runs(123_456_789_012, 2**40), 2**40)) <= 5
    assert len(tiles_of(consistency_runs(2**39 + 12_345, 2**40), 2**40)) <= 10


@pytest.mark.parametrize(("index", "size"), [(0, 0), (1, 1), (-1, 5), (5, 5)])
def test_a_leaf_outside_the_tree_has_no_proof(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="not in a tree"):
        inclusion_runs(index, size)


@pytest.mark.parametrize(("old", "new"), [(2, 1), (-1, 5)])
def test_a_tree_that_is_not_older_has_no_proof(old: int, new: int) -> None:
    with pytest.raises(ValueError, match="no older tree"):
        consistency_runs(old, new)


@pytest.mark.parametrize(("old", "new"), [(0, 7), (7, 7)])
def test_nothing_is_proved_where_nothing_is_to_be(old: int, new: int) -> None:
    assert consistency_runs(old, new) == []
