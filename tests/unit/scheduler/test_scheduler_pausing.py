"""A paused collaboration begins nothing, and goes on where it was when it is resumed."""

from __future__ import annotations

import pytest

from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import CollaborationId
from services.common.core.instants import Instant
from services.scheduler.core.book import Settings
from services.scheduler.core.course import Place
from services.scheduler.core.effects import Assign, Effect, SuspendAttempt
from services.scheduler.core.events import PauseRequested, ReplyId, ResultReport, ResumeRequested, Suspended
from services.scheduler.core.model import (
    CollaborationState,
    Failure,
    FailureKind,
    Payload,
    RetryPolicy,
    TaskState,
)
from services.scheduler.core.queries import find, waiting_for
from tests.unit.scheduler.scheduler_stage import START, Stage, answer, assigned, gang, only, task

SUSPENDED = CollaborationState.SUSPENDED


@pytest.fixture
def stage() -> Stage:
    return Stage(Settings(probe_interval_ms=10**9, silence_ms_max=2 * 10**9))


def pause(stage: Stage, *, suspend: bool = False, request_id: str = "r1") -> list[Effect]:
    name = CollaborationId(f"c-{request_id}")
    return stage.batch(PauseRequested("pause", name, "operator/admin", "wait", suspend, ReplyId(1)))


def resume(stage: Stage, request_id: str = "r1") -> list[Effect]:
    name = CollaborationId(f"c-{request_id}")
    return stage.batch(ResumeRequested("resume", name, "operator/admin", "", ReplyId(2)))


def test_nothing_new_begins_and_what_runs_goes_on(stage: Stage) -> None:
    stream = stage.agent("a", slots=1)
    stage.submit(task("one"), task("two"), task("three", "one"))
    pause(stage)
    assert stage.collaboration().state is SUSPENDED
    assert assigned(stage.finish(stream, "one")) == []
    assert stage.task("one").state is TaskState.SUCCEEDED
    assert [stage.task(name).place for name in ("two", "three")] == [Place.PAUSE, Place.PAUSE]
    assert "paused" in waiting_for(stage.state.book, stage.task("two"))
    # Another one's work is not kept from the agent.
    assert assigned(stage.submit(task("other"), request_id="r2")) == ["other"]
    stage.finish(stream, "other", request_id="r2")
    assert assigned(resume(stage)) == ["two"]
    assert stage.collaboration().state is CollaborationState.ACTIVE
    operations = [entry.operation for entry in stage.entries]
    assert operations.count("collaboration.pause") == operations.count("collaboration.resume") == 1


def test_one_that_had_not_begun_is_as_it_was(stage: Stage) -> None:
    stage.submit(task("one"))
    pause(stage)
    assert stage.batch() == []
    resume(stage)
    assert stage.collaboration().state is CollaborationState.INITIALIZING
    stage.agent("a")
    assert stage.task("one").state is TaskState.ASSIGNED


def test_a_second_pause_and_a_second_resume_change_nothing(stage: Stage) -> None:
    stage.submit(task("one"))
    for order, state in ((pause, SUSPENDED), (resume, CollaborationState.INITIALIZING)):
        order(stage)
        generation = stage.collaboration().generation
        assert answer(order(stage)) is stage.collaboration()
        assert (stage.collaboration().state, stage.collaboration().generation) == (state, generation)


@pytest.mark.parametrize("order", [pause, resume])
def test_one_that_has_ended_or_is_unknown_is_refused(stage: Stage, order: object) -> None:
    assert callable(order)
    unknown = answer(order(stage))
    assert isinstance(unknown, ServiceError)
    assert unknown.reason is Reason.COLLABORATION_NOT_FOUND
    stage.submit(task("one"))
    stage.cancel()
    error = answer(order(stage))
    assert isinstance(error, ServiceError)
    assert (error.reason, error.metadata["state"]) == (Reason.WRONG_STATE, "CANCELLED")


def test_it_may_end_while_it_is_paused(stage: Stage) -> None:
    stream = stage.agent("a")
    stage.submit(task("one"))
    pause(stage)
    stage.finish(stream, "one")
    assert stage.collaboration().state is CollaborationState.COMPLETED
    stage.submit(task("two"), request_id="r2")
    pause(stage, request_id="r2")
    stage.cancel("r2")
    assert stage.collaboration("r2").state is CollaborationState.CANCELLED


def test_what_runs_saves_and_stops_when_that_is_asked_for(stage: Stage) -> None:
    stream = stage.agent("a", slots=2)
    stage.submit(task("one"), *gang("pair", size=2))
    stage.frame(stream, started=(stage.ref("one"),))
    effects = pause(stage, suspend=True)
    assert [ask.attempt for ask in only(effects, SuspendAttempt)] == [stage.ref("one")]
    stage.frame(stream, results=(ResultReport(stage.ref("one"), Suspended(Payload("", b"half"))),))
    assert (stage.task("one").state, stage.task("one").place) == (TaskState.SUSPENDED, Place.PAUSE)
    [again] = only(resume(stage), Assign)
    assert again.task.savepoint is not None
    assert again.task.savepoint.payload.data == b"half"


def test_a_retry_waits_for_the_end_of_the_pause(stage: Stage) -> None:
    stream = stage.agent("a")
    stage.submit(task("one", retry=RetryPolicy(backoff_ms=100)))
    failure = Failure(FailureKind.TRANSIENT, "BROKEN")
    stage.frame(stream, results=(ResultReport(stage.ref("one"), failure),), credits=1)
    pause(stage)
    assert assigned(stage.pass_time(60_000)) == []
    assert stage.task("one").place is Place.PAUSE
    assert assigned(resume(stage)) == ["one"]


def test_a_place_in_the_line_of_a_lock_is_given_up(stage: Stage) -> None:
    stream = stage.agent("a", slots=4)
    stage.submit(task("holder", locks=("bridge",)))
    stage.submit(task("next", locks=("bridge",)), task("then", locks=("bridge",)), request_id="r2")
    stage.submit(task("last", locks=("bridge",)), request_id="r3")
    pause(stage, request_id="r2")
    assert assigned(stage.finish(stream, "holder")) == ["last"]
    stage.finish(stream, "last", request_id="r3")
    assert assigned(resume(stage, "r2")) == ["next"]


def test_deadlines_go_on_and_age_begins_anew(stage: Stage) -> None:
    stage.submit(task("one", deadline=Instant(START + 100_000)), task("two"))
    pause(stage)
    stage.pass_time(90_000)
    ready = stage.now
    resume(stage)
    assert stage.task("two").ready_time == ready
    pause(stage)
    stage.pass_time(20_000)
    failure = stage.task("one").failure
    assert failure is not None
    assert failure.reason == "DEADLINE_PASSED"


def test_a_pause_survives_a_change_of_leader(stage: Stage) -> None:
    stage.agent("a")
    stage.submit(task("one"), task("two"))
    pause(stage)
    stage.take_over()
    assert stage.collaboration().state is SUSPENDED
    assert stage.task("two").place is Place.PAUSE
    stream = stage.link("a", held=(stage.ref("one"),), slots=1)
    assert stage.task("two").place is Place.PAUSE
    stage.finish(stream, "one", slots=0)
    assert assigned(resume(stage)) == ["two"]


def test_an_order_about_no_collaboration_names_the_field() -> None:
    with pytest.raises(ServiceError, match="collaboration_id: is empty") as error:
        find(Stage().state.book, CollaborationId(""))
    assert error.value.reason is Reason.INVALID_FIELD
    assert [violation.field for violation in error.value.violations] == ["collaboration_id"]
