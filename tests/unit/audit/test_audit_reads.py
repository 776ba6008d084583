"""Repeated reads become one entry; none is forgotten."""

from hypothesis import given
from hypothesis import strategies as st

from services.audit.core.reads import WINDOWS_MAX, Read, ReadWindows, Summary
from services.common.core.instants import Instant

TILES = Read("operator/admin", "tile.read")
OTHER = Read("operator/other", "tile.read")


def test_the_first_read_is_recorded_and_the_others_are_counted() -> None:
    windows = ReadWindows(100)
    assert windows.seen(TILES, "tile/0/000", Instant(0))
    assert not windows.seen(TILES, "tile/0/001", Instant(10))
    assert not windows.seen(TILES, "tile/0/002", Instant(20))
    assert windows.seen(OTHER, "tile/0/000", Instant(20))
    assert windows.next_end() == 100
    assert windows.due(Instant(99)) == []
    assert windows.due(Instant(100)) == [
        Summary(TILES, 2, Instant(0), Instant(100), "tile/0/001", "tile/0/002")
    ]
    assert windows.next_end() == 120
    assert windows.seen(TILES, "tile/0/003", Instant(100))


def test_a_window_in_which_nothing_was_repeated_leaves_nothing() -> None:
    windows = ReadWindows(100)
    windows.seen(TILES, "x", Instant(0))
    assert windows.due(Instant(1_000)) == []
    assert windows.next_end() is None


def test_a_forgotten_window_begins_anew() -> None:
    windows = ReadWindows(100)
    windows.forget(TILES)
    assert windows.seen(TILES, "x", Instant(0))
    windows.forget(TILES)
    assert windows.seen(TILES, "x", Instant(1))


def test_a_flush_ends_all_windows() -> None:
    windows = ReadWindows(100)
    for read in (TILES, TILES, OTHER):
        windows.seen(read, "x", Instant(0))
    (summary,) = windows.flush(Instant(5))
    assert (summary.read, summary.count, summary.end) == (TILES, 1, 5)
    assert len(windows) == 0
    assert windows.flush(Instant(6)) == []


def test_the_readers_that_are_counted_are_bounded() -> None:
    windows = ReadWindows(100)
    for n in range(WINDOWS_MAX + 50):
        read = Read(f"agent/a{n}", "checkpoint.read")
        windows.seen(read, "x", Instant(0))
        windows.seen(read, "x", Instant(0))
    assert len(windows.due(Instant(0))) == 50
    assert len(windows) == WINDOWS_MAX


@given(st.lists(st.tuples(st.sampled_from([TILES, OTHER]), st.integers(0, 60)), max_size=60))
def test_every_read_is_in_one_entry(steps: list[tuple[Read, int]]) -> None:
    windows, now, recorded = ReadWindows(100), Instant(0), 0
    for read, later in steps:
        now = Instant(now + later)
        recorded += sum(summary.count for summary in windows.due(now))
        recorded += windows.seen(read, "x", now)
    recorded += sum(summary.count for summary in windows.flush(now))
    assert recorded == len(steps)
