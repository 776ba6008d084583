"""The tree hash against the published test inputs of RFC 6962's reference implementation."""

import pytest

from services.audit.core.merkle import (
    EMPTY_ROOT,
    compact_range,
    fold,
    leaf_hash,
    leaf_hashes,
    node_hash,
    perfect_root,
)
from tests.unit.audit.audit_reference import LEAVES, ROOTS, naive_root


@pytest.mark.parametrize("size", range(9))
def test_published_roots(size: int) -> None:
    root = fold(compact_range(leaf_hashes(LEAVES[:size])))
    assert root.hex() == ROOTS[size]
    assert naive_root(LEAVES[:size]).hex() == ROOTS[size]


@pytest.mark.parametrize("size", [9, 31, 63, 64, 65, 100, 127, 255, 256])
def test_a_compact_range_folds_to_the_root(size: int) -> None:
    leaves = [bytes([n % 251]) * (n % 7) for n in range(size)]
    roots = compact_range(leaf_hashes(leaves))
    assert len(roots) == size.bit_count()
    assert fold(roots) == naive_root(leaves)


def test_leaves_and_nodes_are_told_apart() -> None:
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert node_hash(left, right) != leaf_hash(left + right)


def test_an_empty_tree_has_the_hash_of_nothing() -> None:
    assert fold([]) == EMPTY_ROOT
    assert compact_range(b"") == []


@pytest.mark.parametrize("hashes", [b"", b"x" * 31, b"x" * 33, b"x" * 96])
def test_only_powers_of_two_have_a_perfect_root(hashes: bytes) -> None:
    with pytest.raises(ValueError, match="hashes"):
        perfect_root(hashes)
