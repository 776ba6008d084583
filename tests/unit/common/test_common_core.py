"""The small pure parts: clocks, backoff, fencing, tables, entries."""

from __future__ import annotations

import time
from enum import Enum, auto

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.clock import SystemClock, to_datetime
from services.common.core.backoff import backoff_ms
from services.common.core.errors import TABLE, FieldViolation, Reason, ServiceError, invalid
from services.common.core.fencing import Fence, FencingToken
from services.common.core.instants import Instant, after
from services.common.core.machine import InvalidTransitionError, Table
from services.common.testing.clock import FakeClock

tokens = st.builds(FencingToken, st.integers(0, 5), st.integers(0, 5))


@given(st.integers(-5, 10_000), st.integers(1, 1_000), st.integers(1, 100_000), st.floats(0, 1))
def test_backoff_is_bounded_and_grows(failures: int, base: int, most: int, jitter: float) -> None:
    delay = backoff_ms(failures, base_ms=base, max_ms=most, jitter=jitter)
    assert 0 <= delay <= most
    assert failures >= 1 or delay == 0
    longer = backoff_ms(failures + 1, base_ms=base, max_ms=most)
    assert backoff_ms(failures, base_ms=base, max_ms=most) <= longer


def test_backoff_doubles() -> None:
    assert [backoff_ms(n, base_ms=100, max_ms=1_000) for n in range(6)] == [0, 100, 200, 400, 800, 1_000]


@given(st.lists(tokens))
def test_a_fence_never_admits_an_older_token(presented: list[FencingToken]) -> None:
    fence, newest = Fence(), FencingToken(0, 0)
    for token in presented:
        assert fence.admits(token) == (token >= newest)
        newest = max(newest, token)
        assert fence.newest == newest
        assert fence.admits(newest)


def test_a_token_of_a_later_epoch_is_newer() -> None:
    assert FencingToken(2, 1) > FencingToken(1, 99)
    assert str(FencingToken(2, 1)) == "2.1"


class Light(Enum):
    RED = auto()
    GREEN = auto()


class Press(Enum):
    GO = auto()
    STOP = auto()


LIGHTS: Table[Light, Press] = Table(
    "light", Light.RED, {(Light.RED, Press.GO): Light.GREEN, (Light.GREEN, Press.STOP): Light.RED}
)


@pytest.mark.parametrize("state", Light)
@pytest.mark.parametrize("given_input", Press)
def test_a_table_moves_or_tells_the_story(state: Light, given_input: Press) -> None:
    if LIGHTS.allows(state, given_input):
        assert LIGHTS.next("light-1", state, given_input) in Light
        return
    with pytest.raises(InvalidTransitionError, match="light-1") as raised:
        LIGHTS.next("light-1", state, given_input, story=("t0: made", "t1: pressed"))
    assert "t1: pressed" in str(raised.value)
    assert len(list(LIGHTS.rows())) == 2


def test_every_reason_has_a_row() -> None:
    assert set(TABLE) == set(Reason)
    assert [str(reason) for reason in Reason] == [reason.name for reason in Reason]


def test_an_invalid_field_is_named() -> None:
    error = invalid("tasks[2].deadline", "lies in the past")
    assert isinstance(error, ServiceError)
    assert error.violations == (FieldViolation("tasks[2].deadline", "lies in the past"),)
    assert str(error) == "INVALID_FIELD: tasks[2].deadline: lies in the past"
    assert error.row.definite


def test_the_system_clock_is_the_wall_clock_and_only_grows() -> None:
    clock = SystemClock()
    assert abs(clock.now() - time.time() * 1000) < 1_000
    readings = [clock.now() for _ in range(1_000)]
    assert readings == sorted(readings)
    assert clock.monotonic_ms() <= clock.monotonic_ms()


def test_a_stepped_wall_clock_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SystemClock()
    before = clock.now()
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert before <= clock.now() < before + 60_000


def test_the_fake_clock_stands_still_until_told() -> None:
    clock = FakeClock(1_000)
    assert clock.now() == clock.now() == 1_000
    assert clock.advance(50) == 1_050
    assert clock.monotonic_ms() == 50
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)
    jumping = FakeClock(0, auto_jump_ms=10)
    assert [jumping.now() for _ in range(3)] == [0, 10, 20]


def test_instants() -> None:
    assert after(Instant(5), 10) == 15
    assert to_datetime(Instant(1_700_000_000_000)).isoformat() == "2023-11-14T22:13:20+00:00"
