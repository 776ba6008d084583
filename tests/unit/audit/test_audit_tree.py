"""The tree grows in steps of any size to the same tiles and the same root."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.audit.core.merkle import leaf_hashes
from services.audit.core.tiles import TilePath, decode_bundle, encode_bundle, tile_at
from services.audit.core.tree import ContradictionError, Tree, edge_paths, grow, restore
from tests.unit.audit.audit_reference import naive_root


def leaves_of(count: int, first: int = 0) -> list[bytes]:
    return [b"leaf %d" % n * (n % 5) for n in range(first, first + count)]


def grown(steps: Sequence[int]) -> tuple[Tree, dict[TilePath, bytes], list[bytes]]:
    tree, leaves = Tree(), list[bytes]()
    files: dict[TilePath, bytes] = {}
    for step in steps:
        added = leaves_of(step, len(leaves))
        growth = grow(tree, added)
        tree = growth.tree
        leaves += added
        files.update(growth.files)
    return tree, files, leaves


@settings(max_examples=60)
@given(st.lists(st.integers(0, 700), max_size=5))
def test_any_steps_lead_to_the_same_tree_and_tiles(steps: list[int]) -> None:
    tree, files, leaves = grown(steps)
    once, files_once, _ = grown([sum(steps)])
    assert tree == once
    assert tree.size == len(leaves)
    assert tree.root() == naive_root(leaves)
    # Every file that a reader of this size needs is there, with the same content however it came about.
    assert {path: files[path] for path in files_once} == files_once


@settings(max_examples=40)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=6))
def test_every_step_brings_what_its_size_needs(steps: list[int]) -> None:
    tree = Tree()
    files: dict[TilePath, bytes] = {}
    for step in steps:
        growth = grow(tree, leaves_of(step, tree.size))
        tree = growth.tree
        files.update(growth.files)
        assert restore(tree.size, tree.root(), files.__getitem__) == tree
        for path in edge_paths(tree.size):
            assert path in files


def test_three_levels_of_tiles() -> None:
    tree, files, leaves = grown([65_536, 300])
    assert [len(edge) // 32 for edge in tree.edges] == [44, 1, 1]
    assert files[TilePath(1, 0)] == b"".join(
        grow(Tree(), leaves[n * 256 : n * 256 + 256]).tree.root() for n in range(256)
    )
    assert files[TilePath(2, 0, 1)] == grow(Tree(), leaves[:65_536]).tree.root()
    assert restore(tree.size, tree.root(), files.__getitem__) == tree
    assert edge_paths(65_536) == (TilePath(2, 0, 1),)


def test_bundles_hold_the_leaves_below_each_tile() -> None:
    _, files, leaves = grown([200, 200, 200])
    for index in range(3):
        path = tile_at(0, index, 600)
        bundle = decode_bundle(files[TilePath(None, index, path.width)])
        assert bundle == leaves[index * 256 : (index + 1) * 256]
        assert leaf_hashes(bundle) == files[path]


def test_nothing_added_changes_nothing() -> None:
    tree, _, _ = grown([5])
    growth = grow(tree, [])
    assert growth.tree == tree
    assert growth.files == ()


def test_the_full_tiles_of_a_growth_are_named() -> None:
    tree, _, _ = grown([200])
    assert grow(tree, leaves_of(400, 200)).completed == (
        TilePath(None, 0),
        TilePath(None, 1),
        TilePath(0, 0),
        TilePath(0, 1),
    )


@pytest.mark.parametrize("size", [1, 5, 255, 257, 700])
def test_an_edge_with_any_byte_changed_is_refused(size: int) -> None:
    tree, files, _ = grown([size])
    for path in edge_paths(size):
        for at in range(0, len(files[path]), 7):
            damaged = bytearray(files[path])
            damaged[at] ^= 1 << at % 8
            with pytest.raises(ContradictionError):
                restore(size, tree.root(), {**files, path: bytes(damaged)}.__getitem__)


def test_a_shortened_edge_is_refused() -> None:
    tree, files, leaves = grown([300])
    with pytest.raises(ContradictionError, match="44 hashes"):
        restore(300, tree.root(), lambda path: files[path][:-1])
    short = {**files, TilePath(None, 1, 44): encode_bundle(leaves[256:299])}
    with pytest.raises(ContradictionError, match="bundle"):
        restore(300, tree.root(), short.__getitem__)


def test_a_tree_shows_itself_in_one_line() -> None:
    tree, _, _ = grown([3])
    assert repr(tree) == f"Tree(size=3, root={tree.root().hex()[:12]})"
