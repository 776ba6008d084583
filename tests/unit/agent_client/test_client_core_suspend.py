"""The agent's count of slots and savepoints while attempts make room."""

from __future__ import annotations

from agent_client.core.records import AttemptRef, FencingToken, Payload, Stopped, Succeeded, Suspended
from agent_client.core.work import Suspend, WorkCore, WorkFrame

NOW = 0
POINT, NEWER = Payload("", b"1"), Payload("", b"2")


def attempt(task: str = "t", number: int = 1) -> AttemptRef:
    return AttemptRef("c", task, FencingToken(1, number))


def running(slots: int = 1) -> WorkCore:
    core = WorkCore(slots)
    core.opened()
    core.take_frame(NOW)
    core.assigned(attempt())
    core.started(attempt())
    core.take_frame(NOW)
    return core


def frame(core: WorkCore) -> WorkFrame:
    return core.take_frame(NOW) or WorkFrame()


def test_the_slot_is_the_coordinators_at_once_and_is_not_granted_twice() -> None:
    core = running()
    ask = core.suspend_asked(attempt(), reason="why", grace_ms=5)
    assert ask == [Suspend(attempt(), "why", 5)]
    assert core.suspend_asked(attempt("other"), reason="", grace_ms=5) == []
    core = running()
    core.suspend_asked(attempt(), reason="why", grace_ms=5)
    assert frame(core).credits == 0
    core.assigned(attempt("urgent"))
    core.ended(attempt(), Suspended(POINT))
    assert frame(core) == WorkFrame(results=[(attempt(), Suspended(POINT))])
    core.ended(attempt("urgent"), Succeeded(POINT))
    assert frame(core).credits == 1


def test_slots_are_counted_anew_on_a_new_stream() -> None:
    core = running()
    core.suspend_asked(attempt(), reason="why", grace_ms=5)
    core.closed()
    core.opened()
    assert frame(core).credits == 0
    # Asked again: one more slot for the coordinator, and the handler was told before.
    assert core.suspend_asked(attempt(), reason="why", grace_ms=5) == []
    core.ended(attempt(), Suspended(None))
    assert frame(core).credits == 0


def test_one_savepoint_is_on_its_way_and_the_newest_follows() -> None:
    core = running()
    assert core.saved(attempt(), POINT) == 1
    assert frame(core).savepoints == [(attempt(), POINT)]
    assert core.saved(attempt(), Payload("", b"skipped")) == 2
    assert core.saved(attempt(), NEWER) == 3
    assert frame(core).savepoints == []
    assert core.save_acked(attempt()) == 1
    assert frame(core).savepoints == [(attempt(), NEWER)]
    assert core.save_acked(attempt()) == 3
    assert core.save_acked(attempt()) == 0


def test_a_savepoint_is_sent_again_after_a_broken_link() -> None:
    core = running()
    core.saved(attempt(), POINT)
    frame(core)
    core.closed()
    core.opened()
    assert frame(core).savepoints == [(attempt(), POINT)]


def test_what_was_saved_last_travels_with_the_end() -> None:
    core = running()
    core.saved(attempt(), POINT)
    frame(core)
    core.saved(attempt(), NEWER)
    core.ended(attempt(), Stopped())
    assert frame(core).results == [(attempt(), Suspended(NEWER))]
    assert core.saved(attempt(), POINT) == 0
