"""Paths and contents of C2SP tlog-tiles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.audit.core.tiles import (
    LEAF_BYTES_MAX,
    MalformedBundleError,
    MalformedPathError,
    TilePath,
    bundle_at,
    cut,
    decode_bundle,
    encode_bundle,
    parse_path,
    tile_at,
)

# Paths that the specification itself shows, and those at the borders.
PATHS = {
    "tile/0/000": TilePath(0, 0),
    "tile/0/x001/x234/067": TilePath(0, 1_234_067),
    "tile/0/x001/x234/067.p/1": TilePath(0, 1_234_067, 1),
    "tile/entries/000.p/255": TilePath(None, 0, 255),
    "tile/entries/999": TilePath(None, 999),
    "tile/entries/x001/000": TilePath(None, 1000),
    "tile/7/000.p/3": TilePath(7, 0, 3),
}


@pytest.mark.parametrize(("text", "path"), PATHS.items())
def test_paths_are_written_and_read(text: str, path: TilePath) -> None:
    assert str(path) == text
    assert parse_path(text) == path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "checkpoint",
        "tile/0/0",
        "tile/00/000",
        "tile/8/000",
        "tile/64/000",
        "tile/-1/000",
        "tile/0/x000/001",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/01",
        "tile/0/000.p/999",
        "tile/0/000/",
        "/tile/0/000",
        "tile/0/000\n",
        "tile/0/../../../etc/passwd",
        "tile/entries/x001/x000",
        "tile/0/001/000",
        "tile/0/" + "x999/" * 9 + "999",
        "tile/0/٠٠٠",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(MalformedPathError, match="path"):
        parse_path(text)


@given(
    st.one_of(st.none(), st.integers(0, 7)),
    st.integers(0, 2**56 - 1),
    st.integers(1, 256),
)
def test_every_path_is_read_as_written(level: int | None, index: int, width: int) -> None:
    path = TilePath(level, index, width)
    assert parse_path(str(path)) == path


@given(st.lists(st.binary(max_size=70), max_size=300))
def test_a_bundle_is_read_as_written(leaves: list[bytes]) -> None:
    assert decode_bundle(encode_bundle(leaves)) == leaves


def test_a_bundle_takes_the_longest_leaf_and_no_longer_one() -> None:
    assert decode_bundle(encode_bundle([b"x" * LEAF_BYTES_MAX])) == [b"x" * LEAF_BYTES_MAX]
    with pytest.raises(OverflowError):
        encode_bundle([b"x" * (LEAF_BYTES_MAX + 1)])


@pytest.mark.parametrize("lost", range(1, 7))
def test_a_cut_bundle_is_refused(lost: int) -> None:
    whole = encode_bundle([b"first", b"last"])
    with pytest.raises(MalformedBundleError, match="leaf 1"):
        decode_bundle(whole[: len(whole) - lost + (lost == 6)])


def test_a_tile_is_as_wide_as_the_tree_makes_it() -> None:
    assert tile_at(0, 0, 7) == TilePath(0, 0, 7)
    assert tile_at(0, 1, 512) == TilePath(0, 1, 256)
    assert tile_at(1, 0, 70_000) == TilePath(1, 0, 256)
    assert tile_at(1, 1, 70_000) == TilePath(1, 1, 17)
    assert bundle_at(273, 70_000) == TilePath(None, 273, 112)
    with pytest.raises(ValueError, match="no tile 1"):
        tile_at(0, 1, 256)


@pytest.mark.parametrize("path", PATHS.values())
def test_the_smallest_tree_with_a_tile_has_it(path: TilePath) -> None:
    level = path.level or 0
    assert tile_at(level, path.index, path.size_min).width == path.width
    if path.size_min > 1:
        with pytest.raises(ValueError, match="no tile"):  # noqa: PT012
            narrower = tile_at(level, path.index, path.size_min - 1)
            if narrower.width < path.width:
                raise ValueError("no tile that wide")


def test_a_full_tile_can_be_cut_to_an_older_width() -> None:
    hashes, leaves = bytes(range(256)) * 32, [bytes([n]) * n for n in range(256)]
    assert cut(TilePath(0, 5), hashes, 3) == hashes[:96]
    assert decode_bundle(cut(TilePath(None, 5), encode_bundle(leaves), 3)) == leaves[:3]
