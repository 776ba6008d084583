"""Urgent work takes the slot of less urgent work, which saves, is suspended, and goes on later."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.core.errors import Reason, ServiceError
from services.scheduler.core.book import Settings
from services.scheduler.core.effects import (
    AckSavepoint,
    Assign,
    CancelAttempt,
    Effect,
    SuspendAttempt,
)
from services.scheduler.core.events import Cancelled, ResultReport, SavepointReport, StreamId, Suspended
from services.scheduler.core.model import (
    AttemptRef,
    AttemptState,
    Failure,
    FailureKind,
    Payload,
    Priority,
    TaskState,
)
from tests.unit.scheduler.scheduler_stage import (
    EMERGENCY,
    HIGH,
    LOW,
    NORMAL,
    Stage,
    ack_errors,
    assigned,
    key,
    only,
    task,
)

SETTINGS = Settings(suspend_grace_ms=2_000, savepoint_interval_ms=1_000)
POINT = Payload("text/plain", b"half-way")


def running(
    stage: Stage, stream: StreamId, name: str, request_id: str, priority: Priority = LOW
) -> AttemptRef:
    """Let an agent run a task of its own collaboration."""
    stage.submit(task(name, priority=priority, estimated_duration_ms=600_000), request_id=request_id)
    ref = stage.ref(name, request_id)
    stage.frame(stream, started=(ref,))
    return ref


def emergency(stage: Stage, name: str = "fire", request_id: str = "now", **more: Any) -> list[Effect]:
    return stage.submit(task(name, priority=EMERGENCY, **more), request_id=request_id)


def suspended(stage: Stage, stream: StreamId, ref: AttemptRef, point: Payload | None = POINT) -> list[Effect]:
    return stage.frame(stream, results=(ResultReport(ref, Suspended(point)),))


def entries(stage: Stage, operation: str) -> list[dict[str, str]]:
    return [dict(entry.attributes) for entry in stage.entries if entry.operation == operation]


@pytest.fixture
def stage() -> Stage:
    return Stage(SETTINGS)


def test_an_emergency_gets_the_slot_in_the_same_commit_as_the_request_to_make_room(stage: Stage) -> None:
    stream = stage.agent("a")
    victim = running(stage, stream, "slow", "r1")
    effects = emergency(stage)
    [ask] = only(effects, SuspendAttempt)
    assert (ask.attempt, ask.grace_ms) == (victim, 2_000)
    assert assigned(effects) == ["fire"]
    assert stage.task("slow").attempts[-1].state is AttemptState.SUSPENDING
    # Both are in what a new leader would read.
    assert stage.store.tasks[stage.task("fire", "now").key].state is TaskState.ASSIGNED
    assert stage.store.tasks[stage.task("slow").key].attempts[-1].state is AttemptState.SUSPENDING


def test_what_was_suspended_goes_on_from_its_savepoint_under_a_new_token(stage: Stage) -> None:
    stream = stage.agent("a")
    victim = running(stage, stream, "slow", "r1")
    emergency(stage)
    assert ack_errors(suspended(stage, stream, victim)) == [None]
    assert stage.task("slow").state is TaskState.SUSPENDED
    effects = stage.finish(stream, "fire", request_id="now")
    [assignment] = only(effects, Assign)
    assert assignment.task.key.task_id == "slow"
    assert assignment.attempt.token > victim.token
    assert assignment.task.savepoint is not None
    assert assignment.task.savepoint.payload == POINT
    assert entries(stage, "task.resume")[0]["savepoint_of_attempt"] == "1"
    stage.finish(stream, "slow")
    assert stage.collaboration().state.name == "COMPLETED"
    assert stage.task("slow").savepoint is None


def test_a_result_that_comes_before_the_suspension_counts(stage: Stage) -> None:
    stream = stage.agent("a")
    running(stage, stream, "slow", "r1")
    emergency(stage)
    assert ack_errors(stage.finish(stream, "slow", slots=0)) == [None]
    assert stage.task("slow").state is TaskState.SUCCEEDED


def test_a_result_that_comes_after_the_suspension_is_stale(stage: Stage) -> None:
    stream = stage.agent("a")
    victim = running(stage, stream, "slow", "r1")
    emergency(stage)
    suspended(stage, stream, victim)
    late = stage.frame(stream, results=(ResultReport(victim, Payload("", b"late")),))
    [error] = ack_errors(late)
    assert isinstance(error, ServiceError)
    assert error.reason is Reason.STALE_FENCING_TOKEN
    assert stage.task("slow").state is TaskState.SUSPENDED


def test_a_repeated_suspension_is_acked_again(stage: Stage) -> None:
    stream = stage.agent("a")
    victim = running(stage, stream, "slow", "r1")
    emergency(stage)
    suspended(stage, stream, victim)
    assert ack_errors(suspended(stage, stream, victim)) == [None]


def test_who_does_not_stop_in_time_is_fenced_and_keeps_what_it_saved_before(stage: Stage) -> None:
    stream = stage.agent("a")
    victim = running(stage, stream, "slow", "r1")
    stage.frame(stream, savepoints=(SavepointReport(victim, POINT),))
    emergency(stage)
    effects = stage.pass_time(2_000)
    assert [cancel.attempt for cancel in only(effects, CancelAttempt)] == [victim]
    assert stage.task("slow").state is TaskState.SUSPENDED
    saved = stage.task("slow").savepoint
    assert saved is not None
    assert saved.payload == POINT


@pytest.mark.parametrize("outcome", [Cancelled(), Suspended(None)])
def test_a_stop_without_a_savepoint_suspends_as_well(stage: Stage, outcome: Cancelled | Suspended) -> None:
    stream = stage.agent("a")
    victim = running(stage, stream, "slow", "r1")
    emergency(stage)
    stage.frame(stream, results=(ResultReport(victim, outcome),))
    assert stage.task("slow").state is TaskState.SUSPENDED
    assert stage.task("slow").savepoint is None


def test_a_failure_while_it_is_asked_counts_as_a_failure(stage: Stage) -> None:
    stream = stage.agent("a")
    victim = running(stage, stream, "slow", "r1")
    emergency(stage)
    failure = Failure(FailureKind.PERMANENT, "HANDLER_REFUSED")
    stage.frame(stream, results=(ResultReport(victim, failure),))
    assert stage.task("slow").state is TaskState.FAILED


@pytest.mark.parametrize("priority", [EMERGENCY, HIGH])
def test_only_less_urgent_work_makes_room(stage: Stage, priority: Priority) -> None:
    stream = stage.agent("a")
    running(stage, stream, "busy", "r1", priority)
    effects = emergency(stage)
    assert len(only(effects, SuspendAttempt)) == (priority is HIGH)


def test_high_waits_its_turn_unless_configured() -> None:
    for preempting, asked in ((EMERGENCY, 0), (HIGH, 1)):
        stage = Stage(Settings(preempting_priority=preempting))
        stream = stage.agent("a")
        running(stage, stream, "slow", "r1")
        effects = stage.submit(task("soon", priority=HIGH), request_id="r2")
        assert len(only(effects, SuspendAttempt)) == asked


def test_a_free_agent_is_better_than_a_victim(stage: Stage) -> None:
    running(stage, stage.agent("a"), "slow", "r1")
    stage.agent("b")
    effects = emergency(stage)
    assert only(effects, SuspendAttempt) == []
    assert assigned(effects) == ["fire"]


def test_the_least_work_is_lost(stage: Stage) -> None:
    first, second, third = stage.agent("a"), stage.agent("b"), stage.agent("c")
    oldest = running(stage, first, "oldest", "r1")
    stage.pass_time(4_000)
    running(stage, second, "older", "r2")
    stage.pass_time(4_000)
    running(stage, third, "newest", "r3")
    stage.pass_time(4_000)
    # The one that ran longest has lost least since it saved.
    stage.frame(first, savepoints=(SavepointReport(oldest, POINT),))
    effects = [emergency(stage, request_id=f"now{number}") for number in range(3)]
    asked = [ask.attempt.task_id for each in effects for ask in only(each, SuspendAttempt)]
    assert asked == ["oldest", "newest", "older"]
    assert [entry["lost_ms"] for entry in entries(stage, "task.preempt")] == ["0", "4000", "8000"]


def test_a_lower_class_weighs_less(stage: Stage) -> None:
    running(stage, stage.agent("a"), "normal", "r1", NORMAL)
    running(stage, stage.agent("b"), "low", "r2", LOW)
    stage.pass_time(1_000)
    [ask] = only(emergency(stage), SuspendAttempt)
    assert ask.attempt.task_id == "low"


def test_what_ends_soon_is_spared_while_there_is_another(stage: Stage) -> None:
    stage.agent("a")
    stage.agent("b")
    stage.submit(task("short", priority=LOW, estimated_duration_ms=1_000), request_id="r1")
    stage.pass_time(100)
    stage.submit(task("long", priority=LOW, estimated_duration_ms=60_000), request_id="r2")
    stage.pass_time(600)
    [ask] = only(emergency(stage), SuspendAttempt)
    assert ask.attempt.task_id == "long"
    [second] = only(emergency(stage, request_id="now2"), SuspendAttempt)
    assert second.attempt.task_id == "short"


def test_never_more_than_needed(stage: Stage) -> None:
    for name in "abcd":
        running(stage, stage.agent(name), name, f"r{name}")
    effects = stage.submit(
        task("fire", priority=EMERGENCY), task("flood", priority=EMERGENCY), request_id="now"
    )
    assert len(only(effects, SuspendAttempt)) == 2
    assert sorted(assigned(effects)) == ["fire", "flood"]
    # Nothing more, however often it is looked at.
    assert only(stage.pass_time(1_000), SuspendAttempt) == []


def test_only_suitable_agents_give_a_slot(stage: Stage) -> None:
    digger = stage.agent("a", "dig")
    running_digger = stage.submit(task("hole", skill="dig", priority=LOW), request_id="r1")
    assert assigned(running_digger) == ["hole"]
    stage.agent("b", "fly")
    stage.submit(task("tour", skill="fly", priority=LOW), request_id="r2")
    [ask] = only(emergency(stage, skill="dig"), SuspendAttempt)
    assert ask.stream == digger
    assert only(emergency(stage, "look", "now2", skill="see"), SuspendAttempt) == []


def test_named_agents_only_give_a_slot(stage: Stage) -> None:
    running(stage, stage.agent("a"), "x", "r1")
    stage.pass_time(1_000)
    running(stage, stage.agent("b"), "y", "r2")
    [ask] = only(emergency(stage, required_agents=(key("a").agent_id,)), SuspendAttempt)
    assert ask.attempt.task_id == "x"


def test_an_agent_that_does_not_know_of_it_is_left_alone(stage: Stage) -> None:
    stage.know("a", "work")
    stream = stage.link("a", suspendable=False)
    running(stage, stream, "slow", "r1")
    assert only(emergency(stage), SuspendAttempt) == []


def test_a_draining_or_unlinked_agent_gives_no_slot(stage: Stage) -> None:
    first, second = stage.agent("a"), stage.agent("b")
    running(stage, first, "x", "r1")
    running(stage, second, "y", "r2")
    stage.frame(first, drain=True)
    stage.unlink(second)
    assert only(emergency(stage), SuspendAttempt) == []


def test_a_savepoint_is_durable_before_it_is_acked_and_not_more_often_than_allowed(stage: Stage) -> None:
    stream = stage.agent("a")
    ref = running(stage, stream, "slow", "r1")
    first = stage.frame(stream, savepoints=(SavepointReport(ref, Payload("", b"1")),))
    assert [ack.error for ack in only(first, AckSavepoint)] == [None]
    saved = stage.store.tasks[stage.task("slow").key].savepoint
    assert saved is not None
    assert saved.payload.data == b"1"
    second = stage.frame(stream, savepoints=(SavepointReport(ref, Payload("", b"2")),))
    assert only(second, AckSavepoint) == []
    later = stage.pass_time(1_000)
    assert [ack.error for ack in only(later, AckSavepoint)] == [None]
    saved = stage.store.tasks[stage.task("slow").key].savepoint
    assert saved is not None
    assert saved.payload.data == b"2"


def test_a_savepoint_of_a_void_attempt_is_stale(stage: Stage) -> None:
    stream = stage.agent("a")
    ref = running(stage, stream, "slow", "r1")
    stage.cancel()
    [ack] = only(stage.frame(stream, savepoints=(SavepointReport(ref, POINT),)), AckSavepoint)
    assert ack.error is not None
    assert ack.error.reason is Reason.STALE_FENCING_TOKEN


def test_a_savepoint_outlives_its_agent(stage: Stage) -> None:
    stream = stage.agent("a")
    ref = running(stage, stream, "slow", "r1")
    stage.frame(stream, savepoints=(SavepointReport(ref, POINT),))
    stage.unlink(stream)
    stage.pass_time(SETTINGS.reconnect_grace_ms)
    stage.know("b", "work")
    stage.link("b")
    saved = stage.task("slow").savepoint
    assert stage.task("slow").attempts[-1].instance == key("b")
    assert saved is not None
    assert saved.payload == POINT


def test_a_suspension_is_no_loss_and_no_failure(stage: Stage) -> None:
    stage = Stage(Settings(loss_max=1))
    stream = stage.agent("a")
    running(stage, stream, "slow", "r1")
    for number in range(5):
        emergency(stage, request_id=f"now{number}")
        suspended(stage, stream, stage.ref("slow"))
        stage.finish(stream, "fire", request_id=f"now{number}")
        stage.frame(stream, started=(stage.ref("slow"),))
    found = stage.task("slow")
    assert (found.state, found.excused_count, found.failure_count) == (TaskState.RUNNING, 5, 0)


def test_locks_are_free_once_it_is_suspended(stage: Stage) -> None:
    stream = stage.agent("a")
    stage.submit(task("slow", priority=LOW, locks=["bridge"], estimated_duration_ms=60_000), request_id="r1")
    other = stage.agent("b")
    victim = stage.ref("slow")
    stage.frame(other, drain=True)
    emergency(stage)
    suspended(stage, stream, victim)
    assert stage.state.book.locks.snapshot() == []
    stage.finish(stream, "fire", request_id="now")
    assert stage.task("slow").state is TaskState.ASSIGNED


# Leaders come and go.


def test_a_new_leader_asks_again_and_takes_what_was_saved(stage: Stage) -> None:
    stream = stage.agent("a")
    victim = running(stage, stream, "slow", "r1")
    emergency(stage)
    fire = stage.ref("fire", "now")
    stage.take_over()
    assert stage.task("slow").attempts[-1].state is AttemptState.SUSPENDING
    stream = stage.link("a", 0, held=(victim, fire))
    assert stage.task("slow").attempts[-1].state is AttemptState.SUSPENDING
    suspended(stage, stream, victim)
    stage.finish(stream, "fire", request_id="now")
    assert stage.task("slow").attempts[-1].token.epoch == stage.epoch
    assert stage.task("slow").savepoint is not None


def test_an_agent_that_does_not_come_back_is_not_waited_for_longer_than_its_grace(stage: Stage) -> None:
    stream = stage.agent("a")
    running(stage, stream, "slow", "r1")
    emergency(stage)
    stage.take_over()
    stage.pass_time(SETTINGS.suspend_grace_ms + SETTINGS.gone_grace_ms)
    assert stage.task("slow").state is TaskState.SUSPENDED
    assert stream is not None


def test_a_suspended_task_survives_a_change_of_leader(stage: Stage) -> None:
    stream = stage.agent("a")
    victim = running(stage, stream, "slow", "r1")
    emergency(stage)
    fire = stage.ref("fire", "now")
    suspended(stage, stream, victim)
    stage.take_over()
    assert stage.task("slow").state is TaskState.SUSPENDED
    stream = stage.link("a", 0, held=(fire,))
    [assignment] = only(stage.finish(stream, "fire", request_id="now"), Assign)
    assert assignment.task.key.task_id == "slow"
    assert assignment.task.savepoint is not None
    assert assignment.task.savepoint.payload == POINT


def test_a_leader_that_dies_before_its_commit_has_suspended_nobody(stage: Stage) -> None:
    stream = stage.agent("a")
    victim = running(stage, stream, "slow", "r1")
    stage.torn_batch(lambda _: 0, stage.submission(task("fire", priority=EMERGENCY), request_id="now"))
    stage.take_over()
    stage.link("a", 0, held=(victim,))
    assert stage.task("slow").attempts[-1].state is AttemptState.RUNNING


def test_an_agent_that_dies_while_it_saves_loses_only_what_it_had_not_saved(stage: Stage) -> None:
    stream = stage.agent("a")
    victim = running(stage, stream, "slow", "r1")
    stage.frame(stream, savepoints=(SavepointReport(victim, POINT),))
    emergency(stage)
    stage.know("a", "work", incarnation=2)
    stage.link("a", 2, incarnation=2)
    slow = stage.task("slow")
    assert slow.state is TaskState.ASSIGNED
    assert [attempt.state for attempt in slow.attempts] == [AttemptState.LOST, AttemptState.ASSIGNED]
    assert slow.savepoint is not None
    assert slow.savepoint.payload == POINT


# Draining.


def test_what_a_draining_agent_has_not_started_moves(stage: Stage) -> None:
    first = stage.agent("a", slots=2)
    stage.submit(task("x"), task("y"))
    stage.frame(first, started=(stage.ref("x"),))
    stage.agent("b", slots=2)
    moved = stage.ref("y")
    effects = stage.frame(first, drain=True)
    assert [cancel.attempt for cancel in only(effects, CancelAttempt)] == [moved]
    assert assigned(effects) == ["y"]
    assert stage.task("y").attempts[-1].instance == key("b")
    assert stage.task("x").attempts[-1].instance == key("a")
