"""The state table, row by row, and what a report says."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from services.common.core.instants import Instant
from services.common.core.machine import InvalidTransitionError
from services.registry.core.machine import TABLE, Input, probe_seen_after, read_report
from services.registry.core.model import BEST_FIRST, AgentState, Limits, Load

NOW = Instant(1_700_000_000_000)
LIMITS = Limits()
GOOD = Load(slots=2, slots_used=0, work_stream_open=True, coordinator_epoch=7, last_probe_time=NOW)


@pytest.mark.parametrize(("state", "given"), list(itertools.product(AgentState, Input)))
def test_every_pair_moves_to_a_state_or_is_refused_with_its_story(state: AgentState, given: Input) -> None:
    if TABLE.allows(state, given):
        assert TABLE.next("agent/x/0", state, given) in AgentState
        return
    with pytest.raises(
        InvalidTransitionError, match=f"agent/x/0: {given.name} is not allowed in {state.name}"
    ):
        TABLE.next("agent/x/0", state, given, ("before",))


def test_every_state_can_be_reached_and_a_new_incarnation_starts_from_every_state() -> None:
    reached, frontier = {TABLE.start}, {TABLE.start}
    while frontier:
        frontier = {target for state, _, target in TABLE.rows() if state in frontier} - reached
        reached |= frontier
    assert reached == set(AgentState) == set(BEST_FIRST)
    assert all(TABLE.next("x", state, Input.OPENED) is AgentState.JOINING for state in AgentState)


def test_only_silence_loses_an_instance_and_only_a_farewell_sends_it_offline() -> None:
    assert {(s, g) for s, g, t in TABLE.rows() if t is AgentState.LOST} == {
        (AgentState.SUSPECT, Input.LEASE_EXPIRED)
    }
    assert {g for _, g, t in TABLE.rows() if t is AgentState.OFFLINE} == {Input.FAREWELL}


def test_what_ended_stays_ended_except_for_a_new_incarnation() -> None:
    for state in AgentState:
        if not state.live:
            assert {g for s, g, _ in TABLE.rows() if s is state} == {Input.OPENED}


def test_a_draining_instance_never_becomes_ready_by_a_report() -> None:
    for given in (Input.SLOT_FREE, Input.SLOTS_FULL, Input.WORK_CUT):
        assert not TABLE.allows(AgentState.DRAINING, given)


@pytest.mark.parametrize(
    ("load", "probe_seen", "epoch", "expected"),
    [
        (GOOD, NOW, 7, Input.SLOT_FREE),
        (GOOD, Instant(NOW - LIMITS.probe_window_ms), 7, Input.SLOT_FREE),
        (GOOD, Instant(NOW - LIMITS.probe_window_ms - 1), 7, Input.WORK_CUT),
        (GOOD, None, 7, Input.WORK_CUT),
        (replace(GOOD, work_stream_open=False), NOW, 7, Input.WORK_CUT),
        (replace(GOOD, slots_used=2), NOW, 7, Input.SLOTS_FULL),
        (replace(GOOD, slots=0), NOW, 7, Input.SLOTS_FULL),
        # Its work stream ends at a leader that is deposed; one that this replica has not heard of is fine.
        (GOOD, NOW, 8, Input.WORK_CUT),
        (GOOD, NOW, 6, Input.SLOT_FREE),
        (replace(GOOD, coordinator_epoch=0), NOW, 8, Input.SLOT_FREE),
    ],
)
def test_ready_means_reachable(load: Load, probe_seen: Instant | None, epoch: int, expected: Input) -> None:
    assert read_report(load, probe_seen, NOW, epoch, LIMITS) is expected


class TestProbes:
    """The window is judged by the registry's clock, whatever the agent's says."""

    def test_the_first_answer_is_believed_but_not_into_the_future(self) -> None:
        fast = replace(GOOD, last_probe_time=Instant(NOW + 3_600_000))
        slow = replace(GOOD, last_probe_time=Instant(NOW - 3_600_000))
        assert probe_seen_after(Load(), None, fast, NOW) == NOW
        assert probe_seen_after(Load(), None, slow, NOW) == NOW - 3_600_000

    def test_an_advance_counts_from_its_arrival(self) -> None:
        slow = replace(GOOD, last_probe_time=Instant(NOW - 3_600_000))
        later = replace(slow, last_probe_time=Instant(NOW - 3_599_000))
        assert probe_seen_after(slow, Instant(NOW - 3_600_000), later, NOW) == NOW

    def test_without_an_advance_the_window_runs_out(self) -> None:
        assert probe_seen_after(GOOD, Instant(NOW - 9), GOOD, Instant(NOW + 5)) == NOW - 9

    def test_no_answer_is_no_answer(self) -> None:
        assert probe_seen_after(GOOD, NOW, Load(), NOW) is None
