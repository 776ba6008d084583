"""A second attempt beside a slow one: within a budget, one result, never where running twice does harm."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.core.errors import Reason
from services.common.core.ids import AgentId, InstanceId, Skill
from services.common.core.instants import Instant
from services.scheduler.core.book import Settings
from services.scheduler.core.effects import AckSavepoint, Assign, CancelAttempt
from services.scheduler.core.events import (
    AgentsChanged,
    AgentView,
    InstanceView,
    LockRequested,
    ResultReport,
    SavepointReport,
    StreamId,
)
from services.scheduler.core.model import (
    AttemptState,
    Failure,
    FailureKind,
    Payload,
    ResourceClaim,
    Speculation,
    TaskState,
)
from services.scheduler.core.running.work_budget import WorkBudget
from tests.unit.scheduler.scheduler_stage import Stage, ack_errors, assigned, only, task

#: While nothing is learned a prediction is wide: a lower quantile keeps these courses short.
SETTINGS = Settings(straggle_quantile=0.9, probe_interval_ms=60_000, silence_ms_max=600_000)
#: Longer than that quantile of a task that declares 100 ms.
SLOW_MS = 5_000
NOW = Instant(1_000)


def slow(settings: Settings | None = None, **more: Any) -> tuple[Stage, StreamId, StreamId]:
    """Return a stage with work in the budget, where "t" runs at one agent and another one is free."""
    stage = Stage(settings or SETTINGS)
    first = stage.agent("a")
    stage.state.book.budget.done(10_000_000, stage.now)
    stage.submit(task("t", estimated_duration_ms=100, **more))
    stage.frame(first, started=(stage.ref("t"),))
    return stage, first, stage.agent("b")


def result(stage: Stage, stream: StreamId, number: int, data: bytes = b"x") -> list[Any]:
    ref = stage.task("t").ref(next(each for each in stage.task("t").attempts if each.token.number == number))
    return stage.frame(stream, results=(ResultReport(ref, Payload("", data)),), credits=1)


def test_a_slow_attempt_gets_a_second_one_at_another_agent() -> None:
    stage, _, second = slow()
    [assignment] = only(stage.pass_time(SLOW_MS), Assign)
    assert assignment.stream == second
    assert assignment.attempt.speculative
    found = stage.task("t")
    assert [attempt.state for attempt in found.attempts] == [AttemptState.RUNNING, AttemptState.ASSIGNED]
    assert found.state is TaskState.RUNNING
    assert [entry.operation for entry in stage.entries].count("task.speculate") == 1


def test_both_attempts_are_told_that_what_they_saved_or_something_newer_is_durable() -> None:
    stage, first, second = slow()
    stage.pass_time(SLOW_MS)
    found = stage.task("t")
    slow_one, second_one = (found.ref(attempt) for attempt in found.attempts)
    stage.frame(second, started=(second_one,))
    stage.frame(first, savepoints=(SavepointReport(slow_one, Payload("", b"1")),))
    assert not only(
        stage.frame(first, savepoints=(SavepointReport(slow_one, Payload("", b"2")),)), AckSavepoint
    )
    assert not only(
        stage.frame(second, savepoints=(SavepointReport(second_one, Payload("", b"3")),)), AckSavepoint
    )
    acks = only(stage.pass_time(1_000), AckSavepoint)
    assert {(ack.stream, ack.attempt) for ack in acks} == {(first, slow_one), (second, second_one)}
    saved = stage.store.tasks[found.key].savepoint
    assert saved is not None
    assert saved.payload.data == b"3"


def test_an_attempt_is_told_of_its_savepoint_also_when_the_other_one_ends_first() -> None:
    stage, first, second = slow()
    stage.pass_time(SLOW_MS)
    found = stage.task("t")
    slow_one, second_one = (found.ref(attempt) for attempt in found.attempts)
    stage.frame(second, started=(second_one,))
    stage.frame(first, savepoints=(SavepointReport(slow_one, Payload("", b"1")),))
    stage.frame(second, savepoints=(SavepointReport(second_one, Payload("", b"2")),))
    failure = Failure(FailureKind.TRANSIENT, "no fuel")
    effects = stage.frame(first, results=(ResultReport(slow_one, failure),), credits=1)
    assert [ack.attempt for ack in only(effects, AckSavepoint)] == [second_one]


@pytest.mark.parametrize("winner", [1, 2])
def test_the_first_result_counts_and_the_other_attempt_is_fenced(winner: int) -> None:
    stage, first, second = slow()
    stage.pass_time(SLOW_MS)
    streams = {1: first, 2: second}
    effects = result(stage, streams[winner], winner, b"winner")
    [cancel] = only(effects, CancelAttempt)
    assert (cancel.stream, cancel.attempt.token.number) == (streams[3 - winner], 3 - winner)
    late = result(stage, streams[3 - winner], 3 - winner, b"loser")
    [error] = ack_errors(late)
    assert error is not None
    assert error.reason is Reason.STALE_FENCING_TOKEN
    done = stage.task("t")
    assert done.result == Payload("", b"winner")
    assert sum(attempt.state is AttemptState.SUCCEEDED for attempt in done.attempts) == 1
    assert stage.collaboration().state.name == "COMPLETED"


@pytest.mark.parametrize(
    "more",
    [
        {"speculation": Speculation.NEVER},
        {"locks": ["bridge"]},
    ],
)
def test_what_must_not_run_twice_does_not(more: dict[str, Any]) -> None:
    stage, _, _ = slow(**more)
    assert only(stage.pass_time(SLOW_MS), Assign) == []


def test_what_holds_a_lock_does_not_run_twice() -> None:
    stage, first, _ = slow()
    claims = (ResourceClaim("bridge"),)  # type: ignore[arg-type]  # a name is a name
    stage.frame(first, lock_requests=(LockRequested(1, claims, None, stage.ref("t")),))
    assert only(stage.pass_time(SLOW_MS), Assign) == []


def test_nothing_runs_twice_without_work_to_pay_for_it_or_when_it_is_switched_off() -> None:
    stage, _, _ = slow(Settings(speculation_share=0.0))
    assert only(stage.pass_time(SLOW_MS), Assign) == []
    stage = Stage(SETTINGS)
    first = stage.agent("a")
    stage.submit(task("t", estimated_duration_ms=100))
    stage.frame(first, started=(stage.ref("t"),))
    stage.agent("b")
    assert only(stage.pass_time(SLOW_MS), Assign) == []


def test_ready_tasks_come_first() -> None:
    stage, _, second = slow()
    stage.submit(task("x"), request_id="r2")
    assert only(stage.pass_time(SLOW_MS), Assign) == []
    effects = stage.finish(second, "x", request_id="r2")
    assert assigned(effects) == ["t"]


def test_a_failure_of_the_second_costs_no_try_and_the_first_goes_on() -> None:
    stage, first, second = slow()
    stage.pass_time(SLOW_MS)
    ref = stage.ref("t")
    failure = Failure(FailureKind.PERMANENT, "HANDLER_REFUSED")
    stage.frame(second, results=(ResultReport(ref, failure),))
    found = stage.task("t")
    assert (found.state, found.failure_count) == (TaskState.RUNNING, 0)
    result(stage, first, 1)
    assert stage.collaboration().state.name == "COMPLETED"


def test_the_second_goes_on_when_the_first_is_lost() -> None:
    stage, first, second = slow()
    stage.pass_time(SLOW_MS)
    stage.unlink(first)
    stage.pass_time(stage.settings.reconnect_grace_ms)
    found = stage.task("t")
    assert [attempt.state for attempt in found.attempts] == [AttemptState.LOST, AttemptState.ASSIGNED]
    result(stage, second, 2)
    assert stage.collaboration().state.name == "COMPLETED"


def test_both_attempts_survive_a_change_of_leader() -> None:
    stage, _, _ = slow()
    stage.pass_time(SLOW_MS)
    found = stage.task("t")
    refs = [found.ref(attempt) for attempt in found.attempts]
    stage.take_over()
    first = stage.link("a", 0, held=(refs[0],))
    second = stage.link("b", 0, held=(refs[1],))
    assert len(stage.task("t").open_attempts) == 2
    result(stage, second, 2)
    assert stage.task("t").state is TaskState.SUCCEEDED
    [error] = ack_errors(result(stage, first, 1))
    assert error is not None


def test_a_second_one_that_is_slow_as_well_makes_way_for_a_third() -> None:
    stage, _, second = slow()
    stage.pass_time(SLOW_MS)
    stage.frame(second, started=(stage.ref("t"),))
    stage.agent("c")
    states = [attempt.state for attempt in stage.task("t").attempts]
    assert states == [AttemptState.RUNNING, AttemptState.CANCELLED, AttemptState.ASSIGNED]
    assert stage.task("t").attempts[-1].instance.agent_id == "c"
    assert stage.task("t").excused_count == 1


def test_an_assignment_that_is_not_started_moves_when_another_agent_could() -> None:
    stage = Stage(SETTINGS)
    first = stage.agent("a")
    stage.submit(task("t", estimated_duration_ms=100))
    second = stage.agent("b")
    effects = stage.pass_time(SLOW_MS)
    assert [cancel.stream for cancel in only(effects, CancelAttempt)] == [first]
    [assignment] = only(effects, Assign)
    assert assignment.stream == second
    assert not assignment.attempt.speculative


class TestBudget:
    def test_second_attempts_take_their_share_and_no_more(self) -> None:
        budget = WorkBudget(0.05, 600_000)
        assert not budget.allows(1, NOW)
        budget.done(1_000, NOW)
        assert budget.allows(50, NOW)
        assert not budget.allows(51, NOW)
        budget.reserve(50, NOW)
        assert not budget.allows(1, NOW)

    def test_what_was_taken_counts_and_not_what_was_expected(self) -> None:
        budget = WorkBudget(0.05, 600_000)
        budget.done(1_000, NOW)
        budget.reserve(50, NOW)
        budget.settle(50, 10, NOW)
        assert budget.allows(40, NOW)
        assert not budget.allows(41, NOW)

    def test_work_fades(self) -> None:
        budget = WorkBudget(0.05, 1_000)
        budget.done(1_000, NOW)
        assert not budget.allows(20, Instant(NOW + 1_000))
        assert budget.allows(18, Instant(NOW + 1_000))


def test_the_attempt_that_lost_is_learned_from_as_one_that_would_have_taken_longer() -> None:
    stage, _, second = slow()
    stage.pass_time(SLOW_MS)
    stage.frame(second, started=(stage.task("t").ref(stage.task("t").attempts[1]),))
    stage.pass_time(100)
    result(stage, second, 2)
    predictor = stage.state.book.predictor
    assert predictor.agents["a"].pairs["work"].count == 1
    assert predictor.estimate("a", "work", 100).mean_ms > 2 * predictor.estimate("b", "work", 100).mean_ms


def test_second_attempts_take_no_more_of_a_capacity_than_there_is() -> None:
    """Two that are helped at once see what the other has taken; found by the simulation, seed 5894."""
    stage = Stage(Settings(speculation_share=100.0, straggle_quantile=0.6))
    needs = (("gpu", 1),)
    for name, amount in (("a", 2), ("b", 1)):
        view = InstanceView(InstanceId("0"), 1, False, ((Skill("work"), 1.0),), (("gpu", amount),))
        agents = (AgentView(AgentId(name), frozenset([Skill("work")]), (view,)),)
        stage.batch(AgentsChanged("agents", 0.5, agents))
    stream = stage.link("a", slots=2)
    assert len(assigned(stage.submit(task("x", needs=needs), task("y", needs=needs)))) == 2
    stage.frame(stream, started=(stage.ref("x"), stage.ref("y")))
    stage.pass_time(10_000)
    stage.state.book.budget.done(1_000_000, stage.now)
    stage.link("b", slots=2)
    helped = [
        each for each in ("x", "y") for attempt in stage.task(each).open_attempts if attempt.speculative
    ]
    assert len(helped) == 1, helped
