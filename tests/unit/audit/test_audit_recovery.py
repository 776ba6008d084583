"""What is on disk becomes the log again, or is refused with the contradiction."""

from collections.abc import Mapping, Sequence

import pytest

from services.audit.core.checkpoint import TreeHead
from services.audit.core.journal import DamagedJournalError, Segment
from services.audit.core.model import Batch, Producer, Recovered
from services.audit.core.recovery import recover, relevant_segments
from services.audit.core.tiles import TilePath
from services.audit.core.tree import ContradictionError, Tree, grow

P = Producer("broker", "broker-1", "spool")
Q = Producer("registry", "registry-1", "spool")


def leaves(first: int, end: int) -> tuple[bytes, ...]:
    return tuple(b"leaf %d" % n for n in range(first, end))


def segment(
    first: int, *ends: int, cursors: Mapping[Producer, int] | None = None, torn: bool = False
) -> Segment:
    batches, at = [], first
    for end in ends:
        batches.append(Batch(at, leaves(at, end), {P: end}))
        at = end
    return Segment(first, cursors if cursors is not None else {P: first}, tuple(batches), torn)


def found(size: int, *segments: Segment) -> Recovered:
    files = dict(grow(Tree(), leaves(0, size)).files)
    root = grow(Tree(), leaves(0, size)).tree.root()
    named = [(str(at), one) for at, one in enumerate(segments)]
    return recover(b"note", TreeHead(size, root), named, files.__getitem__)


def test_durable_leaves_beyond_the_checkpoint_are_pending() -> None:
    log = found(300, segment(250, 280, 320))
    assert log.tree.size == 300
    assert log.pending == leaves(300, 320)
    assert log.cursors == {P: 320}
    assert log.checkpoint == b"note"


@pytest.mark.parametrize("size", [0, 7, 256, 300])
def test_a_log_that_was_drained_has_nothing_pending(size: int) -> None:
    log = found(size, segment(size, cursors={P: size}))
    assert log.pending == ()
    assert log.cursors == {P: size}


def test_segments_continue_each_other() -> None:
    log = found(5, segment(0, 3, 10), segment(10), segment(10, 12, cursors={Q: 9, P: 10}))
    assert log.pending == leaves(5, 12)
    assert list(log.cursors) == [Q, P]


def test_what_a_later_segment_supersedes_never_happened() -> None:
    # The commit of 10..12 failed, nobody knows whether it is on disk; the next segment starts at 10 again.
    failed = Segment(
        0, {}, (Batch(0, leaves(0, 10), {P: 10}), Batch(10, (b"unacked",) * 2, {P: 12})), torn=False
    )
    log = found(5, failed, segment(10, 11))
    assert log.pending == leaves(5, 11)
    assert log.cursors == {P: 11}


@pytest.mark.parametrize(
    ("firsts", "size", "needed"),
    [([0], 0, 0), ([0, 10, 20], 15, 1), ([0, 10, 20], 20, 2), ([0, 10, 10], 10, 2), ([10, 20], 10, 0)],
)
def test_segments_of_published_leaves_only_are_not_needed(
    firsts: Sequence[int], size: int, needed: int
) -> None:
    assert relevant_segments(firsts, size) == needed


def test_a_journal_that_does_not_reach_back_is_refused() -> None:
    with pytest.raises(ContradictionError, match="no journal segment reaches back to leaf 5"):
        relevant_segments([7, 9], 5)
    with pytest.raises(ContradictionError, match="starts at leaf 7, after the checkpoint's 5"):
        found(5, segment(7, 9))


def test_a_journal_that_ends_before_the_checkpoint_is_refused() -> None:
    with pytest.raises(ContradictionError, match="ends at leaf 250, before the checkpoint's 300"):
        found(300, segment(200, 250))


def test_a_hole_between_segments_is_refused() -> None:
    with pytest.raises(DamagedJournalError, match="1 starts at leaf 12, but the leaves before it end at 10"):
        found(5, segment(0, 10), segment(12, 13))


def test_a_journal_of_another_log_is_refused() -> None:
    other = Segment(298, {}, (Batch(298, (b"other", b"leaves", b"here"), {}),), torn=False)
    with pytest.raises(ContradictionError, match="disagree about the leaves before 300"):
        found(300, other)


def test_tiles_that_contradict_the_checkpoint_are_refused() -> None:
    files = dict(grow(Tree(), leaves(0, 300)).files)
    with pytest.raises(ContradictionError, match="300 leaves have root"):
        recover(b"note", TreeHead(300, bytes(32)), [("0", segment(300))], files.__getitem__)


def test_a_missing_tile_is_said_by_the_reader() -> None:
    def missing(path: TilePath) -> bytes:
        raise FileNotFoundError(str(path))

    with pytest.raises(FileNotFoundError, match=r"tile/entries/001\.p/44"):
        recover(b"note", TreeHead(300, bytes(32)), [("0", segment(300))], missing)
