"""Timers fire in order and once, and cost no memory when they are cancelled."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.common.core.instants import NEVER, Instant
from services.scheduler.core.timers import TimerKind, Timers


def test_timers_fire_in_order_and_once() -> None:
    timers = Timers()
    for at in (30, 10, 20):
        timers.set(Instant(at), TimerKind.RETRY, at)
    assert timers.next_due() == 10
    assert timers.pop_due(Instant(9)) is None
    fired = []
    while (timer := timers.pop_due(Instant(25))) is not None:
        fired.append(timer.subject)
    assert fired == [10, 20]
    assert len(timers) == 1


def test_a_cancelled_timer_does_not_fire_and_may_be_cancelled_again() -> None:
    timers = Timers()
    first = timers.set(Instant(1), TimerKind.RETRY, "first")
    timers.set(Instant(2), TimerKind.RETRY, "second")
    timers.cancel(first)
    timers.cancel(first)
    timers.cancel(None)
    assert timers.next_due() == 2
    fired = timers.pop_due(Instant(5))
    assert fired is not None
    assert fired.subject == "second"
    timers.cancel(fired)
    assert timers.next_due() == NEVER
    assert len(timers) == 0


def test_a_timer_can_cancel_the_next_one_that_is_due() -> None:
    timers = Timers()
    timers.set(Instant(1), TimerKind.RETRY, "first")
    second = timers.set(Instant(1), TimerKind.RETRY, "second")
    assert timers.pop_due(Instant(1)) is not None
    timers.cancel(second)
    assert timers.pop_due(Instant(1)) is None


def test_cancelled_timers_do_not_stay_in_memory() -> None:
    timers = Timers()
    kept = timers.set(Instant(10**9), TimerKind.RETRY, "kept")
    for at in range(100_000):
        timers.cancel(timers.set(Instant(at), TimerKind.ATTEMPT_TIMEOUT, at))
    assert len(timers) == 1
    assert len(timers._heap) < 3_000
    assert timers.next_due() == kept.at


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=60))
def test_what_is_not_cancelled_fires_by_its_instant(rows: list[tuple[int, bool]]) -> None:
    timers = Timers()
    made = [timers.set(Instant(at), TimerKind.RETRY, at) for at, _ in rows]
    for timer, (_, cancelled) in zip(made, rows, strict=True):
        if cancelled:
            timers.cancel(timer)
    fired = []
    while (due := timers.pop_due(Instant(25))) is not None:
        fired.append(due.at)
    assert fired == sorted(at for at, cancelled in rows if not cancelled and at <= 25)
