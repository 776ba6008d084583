"""A new leader takes over what the store holds, whole or torn."""

from __future__ import annotations

import pytest

from services.common.core.errors import Reason
from services.common.core.ids import ResourceName
from services.scheduler.core.book import Settings
from services.scheduler.core.effects import Assign, DeleteLock, GrantLocks, SaveTask
from services.scheduler.core.events import (
    ForeignLock,
    LockRequested,
    ResultReport,
    StreamId,
    Ticked,
    WorkOpened,
)
from services.scheduler.core.model import (
    AttemptState,
    CollaborationState,
    Failure,
    FailureKind,
    Payload,
    ResourceClaim,
    RetryPolicy,
    TaskState,
)
from services.scheduler.core.running.results import aggregate
from services.scheduler.core.state import SchedulerState
from tests.unit.scheduler.scheduler_stage import Stage, ack_errors, assigned, key, only, task

SETTINGS = Settings(takeover_grace_ms=5_000, gone_grace_ms=1_000)


def test_running_attempts_are_adopted_and_never_started_twice() -> None:
    stage = Stage(SETTINGS)
    stage.agent("a", slots=2)
    stage.submit(task("x"), task("y", "x"))
    ref = stage.ref("x")
    stage.take_over()
    assert stage.task("x").attempts[-1].token == ref.token
    b = stage.agent("b")
    assert assigned(stage.pass_time(4_000)) == []
    a = stage.link("a", 1, held=(ref,))
    assert assigned(stage.pass_time(8_000)) == []
    # The token is of the older epoch, and as good as new.
    a = stage.link("a", 1, held=(ref,))
    effects = stage.frame(a, results=(ResultReport(ref, Payload("", b"x")),), credits=1)
    assert ack_errors(effects) == [None]
    assert len(assigned(effects)) == 1
    assert stage.task("y").attempts[-1].token.epoch == stage.epoch
    assert b


def test_what_nobody_comes_back_for_goes_to_others_after_the_grace() -> None:
    stage = Stage(SETTINGS)
    stage.agent("a")
    stage.submit(task("t"))
    stage.take_over()
    stage.agent("b")
    assert assigned(stage.pass_time(4_999)) == []
    assert assigned(stage.pass_time(1)) == ["t"]
    assert stage.task("t").attempts[-1].token.number == 2


@pytest.mark.parametrize("known_before", [True, False])
def test_who_is_gone_according_to_the_registry_is_waited_for_less(known_before: bool) -> None:
    stage = Stage(SETTINGS)
    stage.agent("a")
    stage.submit(task("t"))
    if known_before:
        stage.know("a", "work", gone=True)
    stage.take_over()
    stage.agent("b")
    if not known_before:
        stage.know("a", "work", gone=True)
    assert assigned(stage.pass_time(999)) == []
    assert assigned(stage.pass_time(1)) == ["t"]


def test_a_session_that_the_registry_lost_does_not_cost_an_attempt_that_still_runs() -> None:
    stage = Stage(SETTINGS)
    stage.agent("a")
    stage.submit(task("t"))
    ref = stage.ref("t")
    stage.take_over()
    stage.know("a", "work", incarnation=2)
    stage.pass_time(900)
    stream = stage.link("a", 1, incarnation=2, held=(ref,))
    assert ack_errors(stage.frame(stream, results=(ResultReport(ref, Payload("", b"x")),))) == [None]


def test_a_result_that_was_committed_and_not_acked_is_acked_by_the_next_leader() -> None:
    stage = Stage(SETTINGS)
    stream = stage.agent("a")
    stage.submit(task("t"))
    ref = stage.ref("t")
    stage.finish(stream, "t")
    stage.take_over()
    stream = stage.link("a", 1, held=(ref,))
    assert ack_errors(stage.frame(stream, results=(ResultReport(ref, Payload("", b"t")),))) == [None]


def test_order_states_and_generations_are_as_they_were() -> None:
    stage = Stage(SETTINGS)
    stream = stage.agent("a", slots=3)
    stage.submit(task("x"), task("y"), task("z"))
    stage.finish(stream, "z", "x")
    stage.finish(stream, "y")
    before = stage.collaboration()
    stage.take_over()
    after = stage.collaboration()
    assert after is not before
    assert after.state is CollaborationState.COMPLETED
    assert after.generation == before.generation
    assert aggregate(after) == aggregate(before)
    assert list(after.members) == ["a"]
    assert after.history.since(0) is None
    assert after.history.since(after.generation) == []


def test_retry_delays_and_failure_counts_go_on() -> None:
    stage = Stage(SETTINGS)
    stream = stage.agent("a")
    stage.submit(task("t", retry=RetryPolicy(2, 10_000)))
    failure = Failure(FailureKind.TRANSIENT, "HANDLER_RAISED")
    stage.frame(stream, results=(ResultReport(stage.ref("t"), failure),), credits=1)
    stage.pass_time(1_000)
    stage.take_over()
    stream = stage.link("a", 1)
    assert assigned(stage.pass_time(3_999)) == []
    assert assigned(stage.pass_time(1)) == ["t"]
    stage.frame(stream, results=(ResultReport(stage.ref("t"), failure),))
    assert stage.task("t").state is TaskState.FAILED


def test_attempt_timeouts_count_from_the_assignment() -> None:
    stage = Stage(SETTINGS)
    stage.agent("a")
    stage.submit(task("t", attempt_timeout_ms=8_000))
    ref = stage.ref("t")
    stage.pass_time(6_000)
    stage.take_over()
    stage.link("a", 0, held=(ref,))
    stage.pass_time(2_000)
    assert stage.task("t").attempts[0].state is AttemptState.TIMED_OUT


def test_a_repeated_request_finds_its_collaboration_after_a_takeover() -> None:
    stage = Stage(SETTINGS)
    stage.submit(task("t"))
    stage.take_over()
    effects = stage.submit(task("t"))
    assert not only(effects, SaveTask)
    assert stage.collaboration().generation == 1


def test_locks_are_adopted_with_their_tokens() -> None:
    stage = Stage(SETTINGS)
    stream = stage.agent("a")
    stage.submit(task("t", locks=("bridge",)))
    [grant] = only(
        stage.frame(
            stream, lock_requests=(LockRequested(1, (ResourceClaim(ResourceName("road")),), None, None),)
        ),
        GrantLocks,
    )
    ref, [declared] = stage.ref("t"), stage.state.book.lock_uses[stage.task("t").lock_id].held_locks  # type: ignore[index]
    stage.take_over()
    assert len(stage.state.book.lock_uses) == 2
    effects = stage.batch(WorkOpened("hello", StreamId(9), key("a"), 1, (ref,), (*grant.locks, declared)))
    assert not only(effects, DeleteLock)
    assert {lock for use in stage.state.book.lock_uses.values() for lock in use.held_locks} == {
        *grant.locks,
        declared,
    }
    stage.finish(StreamId(9), "t")
    assert [name for name, _ in stage.store.locks] == ["road"]


def test_locks_of_those_who_do_not_come_back_end_with_the_grace() -> None:
    stage = Stage(SETTINGS)
    stream = stage.agent("a")
    stage.frame(stream, lock_requests=(LockRequested(1, (ResourceClaim(ResourceName("road")),)),))
    stage.take_over()
    assert stage.store.locks
    stage.pass_time(5_000)
    assert not stage.store.locks


def test_keys_whose_attempt_is_over_are_deleted() -> None:
    stage = Stage(SETTINGS)
    stage.agent("a")
    stage.submit(task("t", locks=("bridge",)))
    row = dict(stage.store.locks)
    stage.cancel()
    stage.store.locks.update(row)
    effects = stage.take_over()
    assert [gone.resource for gone in only(effects, DeleteLock)] == ["bridge"]


def test_an_attempt_without_its_locks_is_lost() -> None:
    stage = Stage(SETTINGS)
    stage.agent("a")
    stage.submit(task("t", locks=("bridge",)))
    stage.store.locks.clear()
    stage.take_over()
    assert stage.task("t").attempts[0].state is AttemptState.LOST
    assert stage.task("t").state is TaskState.READY


def test_of_two_locks_in_conflict_the_older_stays() -> None:
    stage = Stage(SETTINGS)
    a = stage.agent("a")
    stage.frame(a, lock_requests=(LockRequested(1, (ResourceClaim(ResourceName("road")),)),))
    [(name, lock)] = stage.store.locks.items()
    stage.store.locks[name[0], "younger"] = lock._replace(claim_id="younger", revision=lock.revision + 1)
    effects = stage.take_over()
    assert [gone.claim_id for gone in only(effects, DeleteLock)] == ["younger"]


def test_a_lock_that_another_program_beat_is_deleted() -> None:
    stage = Stage(SETTINGS)
    a = stage.agent("a")
    stage.frame(a, lock_requests=(LockRequested(1, (ResourceClaim(ResourceName("road")),)),))
    stage.epoch += 10
    stage.state = SchedulerState(stage.settings, stage.epoch)
    effects = stage.batch(stage.store.recovered((ForeignLock(ResourceName("road"), "694d", 1),)))
    assert [gone.resource for gone in only(effects, DeleteLock)] == ["road"]


def test_a_torn_cancellation_is_finished() -> None:
    stage = Stage(SETTINGS)
    stage.submit(task("x"), task("y"))
    headers = dict(stage.store.headers)
    stage.cancel(reason="enough")
    stage.store.headers.update(headers)
    del stage.store.tasks["c-r1", "y"]  # type: ignore[arg-type]
    stage.take_over()
    assert stage.collaboration().state is CollaborationState.CANCELLED
    assert {each.state for each in stage.collaboration().tasks.values()} == {TaskState.CANCELLED}


def test_a_torn_end_is_finished() -> None:
    stage = Stage(SETTINGS)
    stream = stage.agent("a")
    stage.submit(task("t"))
    headers = dict(stage.store.headers)
    stage.finish(stream, "t")
    stage.store.headers.update(headers)
    stage.take_over()
    assert stage.collaboration().state is CollaborationState.COMPLETED
    assert stage.collaboration().generation > 4


def test_a_torn_begin_and_a_torn_readiness_are_finished() -> None:
    stage = Stage(SETTINGS)
    headers = {}
    stage.know("a", "work")
    stage.submit(task("x"), task("y", "x"))
    headers.update(stage.store.headers)
    stream = stage.link("a", 1)
    stage.finish(stream, "x", slots=0)
    del stage.store.tasks["c-r1", "y"]  # type: ignore[arg-type]
    stage.store.headers.update(headers)
    stage.take_over()
    assert stage.collaboration().state is CollaborationState.ACTIVE
    assert stage.collaboration().coordinator_agent == "a"
    assert stage.task("y").state is TaskState.READY


def test_a_torn_failure_takes_its_dependents_with_it() -> None:
    stage = Stage(SETTINGS)
    stream = stage.agent("a")
    stage.submit(task("x"), task("y", "x"), task("z"))
    failure = Failure(FailureKind.PERMANENT, "HANDLER_REFUSED")
    stage.frame(stream, results=(ResultReport(stage.ref("x"), failure),))
    del stage.store.tasks["c-r1", "y"]  # type: ignore[arg-type]
    stage.take_over()
    assert stage.task("y").state is TaskState.CANCELLED
    assert stage.collaboration().state is CollaborationState.ACTIVE


def test_what_is_stale_stays_stale() -> None:
    stage = Stage(SETTINGS)
    stream = stage.agent("a")
    stage.submit(task("t"))
    old = stage.ref("t")
    stage.unlink(stream)
    stage.pass_time(2_000)
    stage.take_over()
    stream = stage.link("a", 1, held=(old,))
    [error] = ack_errors(stage.frame(stream, results=(ResultReport(old, Payload()),)))
    assert error is not None
    assert error.reason is Reason.STALE_FENCING_TOKEN
    assert stage.task("t").attempts[-1].token > old.token


def test_ended_ones_are_forgotten_when_their_time_comes() -> None:
    stage = Stage(SETTINGS)
    stage.submit(task("t"))
    stage.cancel()
    stage.take_over()
    stage.pass_time(stage.settings.retention_ms)
    stage.batch(Ticked("tick", 0.0))
    assert not stage.state.book.collaborations


def test_a_second_leader_hands_over_nothing_before_its_batch_is_durable() -> None:
    stage = Stage(SETTINGS)
    stage.submit(task("t"))
    effects = stage.take_over()
    assert not only(effects, Assign)
