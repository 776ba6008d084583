"""Attempts: tokens, results, retries, losses, time-outs, streams that come and go."""

from __future__ import annotations

import pytest

from services.common.core.errors import Reason
from services.common.core.ids import CollaborationId, TaskId
from services.scheduler.core.book import Settings
from services.scheduler.core.effects import (
    AckResult,
    Assign,
    CancelAttempt,
    CloseStream,
    EndLease,
    Probe,
    Publish,
    Welcome,
)
from services.scheduler.core.events import (
    Cancelled,
    ProgressReport,
    ResultReport,
    StreamId,
    WorkClosed,
    WorkFrame,
    WorkOpened,
)
from services.scheduler.core.model import (
    AttemptState,
    CollaborationState,
    Failure,
    FailureKind,
    Payload,
    RetryPolicy,
    TaskState,
)
from tests.unit.scheduler.scheduler_stage import Stage, ack_errors, assigned, key, only, task, token

TRANSIENT = Failure(FailureKind.TRANSIENT, "HANDLER_RAISED", "no signal")
PERMANENT = Failure(FailureKind.PERMANENT, "HANDLER_REFUSED", "no such place")


def report(
    stage: Stage, stream: StreamId, outcome: Payload | Failure | Cancelled, name: str = "t"
) -> list[object]:
    return [*stage.frame(stream, results=(ResultReport(stage.ref(name), outcome),), credits=1)]


def test_a_result_is_acked_once_it_is_final_and_a_repetition_again() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("t"))
    ref = stage.ref("t")
    assert ack_errors(stage.finish(stream, "t")) == [None]
    again = stage.frame(stream, results=(ResultReport(ref, Payload("", b"other")),))
    assert ack_errors(again) == [None]
    result = stage.task("t").result
    assert result is not None
    assert result.data == b"t"


def test_a_token_that_is_not_the_current_one_is_refused_with_the_holder() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("t"))
    for ref in (token(stage.ref("t"), number=9), token(stage.ref("t"), epoch=1)):
        [error] = ack_errors(stage.frame(stream, results=(ResultReport(ref, Payload()),)))
        assert error is not None
        assert error.reason is Reason.STALE_FENCING_TOKEN
        assert error.metadata == {"holder": "a/0", "token": "7.1"}
    assert stage.task("t").state is TaskState.ASSIGNED
    assert stage.entries[-1].reason == "STALE_FENCING_TOKEN"


def test_another_agent_cannot_report_for_the_holder() -> None:
    stage = Stage()
    stage.agent("a")
    stage.submit(task("t"))
    other = stage.agent("b")
    [error] = ack_errors(stage.finish(other, "t"))
    assert error is not None
    assert error.reason is Reason.STALE_FENCING_TOKEN
    assert stage.task("t").state is TaskState.ASSIGNED


def test_a_result_for_what_does_not_exist_says_so() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("t"))
    ref = stage.ref("t")
    for wrong, reason in (
        (ref._replace(collaboration_id=CollaborationId("c-none")), Reason.COLLABORATION_NOT_FOUND),
        (ref._replace(task_id=TaskId("none")), Reason.TASK_NOT_FOUND),
    ):
        [error] = ack_errors(stage.frame(stream, results=(ResultReport(wrong, Payload()),)))
        assert error is not None
        assert error.reason is reason


def test_a_start_makes_it_run_and_a_void_one_is_stopped() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("t"))
    effects = stage.frame(stream, started=(stage.ref("t"), token(stage.ref("t"), number=5)))
    assert stage.task("t").state is TaskState.RUNNING
    assert [stop.attempt.token.number for stop in only(effects, CancelAttempt)] == [5]
    generation = stage.task("t").generation
    stage.frame(stream, started=(stage.ref("t"),))
    assert stage.task("t").generation == generation


def test_a_start_that_comes_with_its_result_is_noted_without_a_change_of_its_own() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("t"))
    generation, ref = stage.task("t").generation, stage.ref("t")
    stage.now += 30  # type: ignore[assignment]
    stage.frame(stream, started=(ref,), results=(ResultReport(ref, Payload()),))
    assert stage.task("t").generation == generation + 1
    assert stage.task("t").attempts[-1].start_time == stage.now


def test_progress_is_live_and_costs_no_write() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("t"))
    effects = stage.frame(stream, progress=(ProgressReport(stage.ref("t"), 0.4, "digging"),))
    [publish] = only(effects, Publish)
    assert publish.change[3:5] == (0.4, "digging")
    assert len(effects) == 1
    assert (stage.task("t").progress, stage.task("t").stage) == (0.4, "digging")
    stage.frame(stream, progress=(ProgressReport(token(stage.ref("t"), number=7), 0.9, "lying"),))
    assert stage.task("t").progress == 0.4


def test_a_transient_failure_is_tried_again_after_its_delay_until_the_policy_ends() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("t", retry=RetryPolicy(3, 200, 1_000)))
    assert report(stage, stream, TRANSIENT)
    assert stage.task("t").state is TaskState.READY
    # Jitter 0.5 of 200 ms.
    assert assigned(stage.pass_time(99)) == []
    assert assigned(stage.pass_time(1)) == ["t"]
    report(stage, stream, TRANSIENT)
    assert assigned(stage.pass_time(199)) == []
    assert assigned(stage.pass_time(1)) == ["t"]
    report(stage, stream, TRANSIENT)
    assert stage.task("t").state is TaskState.FAILED
    assert stage.task("t").failure == TRANSIENT
    assert [attempt.state for attempt in stage.task("t").attempts] == [AttemptState.FAILED] * 3
    assert stage.collaboration().state is CollaborationState.FAILED


def test_a_permanent_failure_is_never_tried_again() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("t"), task("after", "t"), task("beside"))
    report(stage, stream, PERMANENT)
    assert stage.task("t").state is TaskState.FAILED
    cancelled = stage.task("after")
    assert cancelled.state is TaskState.CANCELLED
    assert cancelled.failure is not None
    assert cancelled.failure.reason == "DEPENDENCY_FAILED"
    assert stage.collaboration().state is CollaborationState.ACTIVE
    stage.finish(stream, "beside")
    assert stage.collaboration().state is CollaborationState.FAILED
    failure = stage.collaboration().failure
    assert failure is not None
    assert (failure.reason, failure.message) == ("HANDLER_REFUSED", "task t: no such place")


def test_an_attempt_that_is_given_back_goes_elsewhere_and_is_no_failure() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("t", retry=RetryPolicy(1)))
    stage.agent("b")
    effects = stage.frame(stream, results=(ResultReport(stage.ref("t"), Cancelled()),))
    assert assigned(effects) == ["t"]
    assert stage.task("t").attempts[-1].instance == key("b")
    assert stage.task("t").failure_count == 0


def test_an_attempt_that_runs_too_long_is_fenced_stopped_and_tried_again() -> None:
    stage = Stage()
    stream = stage.agent("a", slots=2)
    stage.submit(task("t", attempt_timeout_ms=3_000, retry=RetryPolicy(2, 0)))
    first = stage.ref("t")
    effects = stage.pass_time(3_000)
    assert only(effects, CancelAttempt) == [
        CancelAttempt(stream, first, "the attempt ran longer than 3000 ms")
    ]
    assert stage.task("t").attempts[0].state is AttemptState.TIMED_OUT
    assert assigned(effects) == ["t"]
    [error] = ack_errors(stage.frame(stream, results=(ResultReport(first, Payload()),)))
    assert error is not None
    stage.pass_time(3_000)
    assert stage.task("t").failure is not None
    assert stage.task("t").failure.reason == "ATTEMPT_TIMED_OUT"  # type: ignore[union-attr]


def test_a_lost_agent_is_no_failure_of_its_tasks() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("t", retry=RetryPolicy(1)))
    stage.agent("b")
    stage.unlink(stream)
    assert assigned(stage.pass_time(1_999)) == []
    effects = stage.pass_time(1)
    assert assigned(effects) == ["t"]
    assert only(effects, EndLease) == [EndLease(key("a"))]
    assert stage.task("t").attempts[0].state is AttemptState.LOST
    assert stage.task("t").attempts[1].instance == key("b")
    assert key("a") not in stage.state.book.instances


def test_a_task_that_takes_every_agent_down_is_given_up() -> None:
    stage = Stage(Settings(loss_max=3))
    stage.know("a", "work")
    stage.submit(task("t"))
    for number in range(1, 5):
        stream = stage.link("a", 1, incarnation=number)
        if stage.task("t").ended:
            break
        stage.unlink(stream)
        stage.pass_time(2_000)
    failure = stage.task("t").failure
    assert failure is not None
    assert failure.reason == "AGENT_LOST"
    assert "4 attempts" in failure.message


def test_an_agent_that_comes_back_in_time_keeps_what_it_names() -> None:
    stage = Stage()
    stream = stage.agent("a", slots=2)
    stage.submit(task("x"), task("y"))
    kept, dropped = stage.ref("x"), stage.ref("y")
    stage.unlink(stream)
    stage.pass_time(1_000)
    again = stage.link("a", 1, held=(kept,))
    assert stage.task("x").attempts[-1].token == kept.token
    # It never got "y", or forgot it: at once somebody else's, here its own.
    assert stage.task("y").attempts[0].state is AttemptState.LOST
    assert stage.task("y").attempts[-1].token.number == dropped.token.number + 1
    assert ack_errors(stage.finish(again, "x")) == [None]


def test_what_an_agent_names_in_vain_is_stopped() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("t"))
    old = stage.ref("t")
    stage.cancel()
    stage.unlink(stream)
    stream = StreamId(77)
    effects = stage.batch(WorkOpened("hello", stream, key("a"), 1, (old,)))
    assert only(effects, Welcome) == [Welcome(stream)]
    assert [stop.attempt for stop in only(effects, CancelAttempt)] == [old]


def test_a_new_link_of_the_same_incarnation_replaces_the_old_one() -> None:
    stage = Stage()
    old = stage.agent("a")
    stage.submit(task("t"))
    ref = stage.ref("t")
    new = StreamId(50)
    effects = stage.batch(WorkOpened("hello", new, key("a"), 1, (ref,)))
    [closed] = only(effects, CloseStream)
    assert (closed.stream, closed.error.reason) == (old, Reason.PEER_SILENT)
    assert stage.batch(WorkFrame("late", old, 0.0, credits=5)) == []
    assert stage.batch(WorkClosed("late", old)) == []
    assert ack_errors(stage.finish(new, "t")) == [None]


def test_an_older_incarnation_is_fenced() -> None:
    stage = Stage()
    stage.know("a", "work", incarnation=5)
    stage.link("a", incarnation=5)
    effects = stage.batch(WorkOpened("hello", StreamId(9), key("a"), 4))
    [closed] = only(effects, CloseStream)
    assert closed.stream == 9
    assert closed.error.reason is Reason.INCARNATION_FENCED
    assert closed.error.metadata == {"incarnation": "5"}
    assert stage.entries[-1].reason == "INCARNATION_FENCED"
    assert len(stage.state.book.streams) == 1


def test_a_newer_incarnation_takes_over_and_adopts_what_it_names() -> None:
    stage = Stage()
    stage.agent("a", slots=2)
    stage.submit(task("x"), task("y"))
    named = stage.ref("x")
    effects = stage.batch(WorkOpened("hello", StreamId(9), key("a"), 2, (named,)))
    [closed] = only(effects, CloseStream)
    assert closed.error.reason is Reason.INCARNATION_FENCED
    assert stage.task("x").attempts[-1].token == named.token
    assert stage.task("x").attempts[-1].incarnation == 2
    assert stage.task("y").attempts[-1].state is AttemptState.LOST


@pytest.mark.parametrize(("incarnation", "gone"), [(1, True), (2, False)])
def test_the_registry_ends_the_wait_for_an_agent_that_is_gone(incarnation: int, gone: bool) -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("t"))
    stage.agent("b")
    stage.unlink(stream)
    assert assigned(stage.know("a", "work", incarnation=incarnation, gone=gone)) == ["t"]


def test_a_link_that_breaks_after_the_registry_said_gone_is_not_waited_for() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("t"))
    stage.agent("b")
    assert assigned(stage.know("a", "work", gone=True)) == []
    assert assigned(stage.unlink(stream)) == ["t"]


def test_a_newer_incarnation_at_the_registry_fences_the_link_but_leaves_time_to_come_back() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("t"))
    ref = stage.ref("t")
    effects = stage.know("a", "work", incarnation=2)
    [closed] = only(effects, CloseStream)
    assert (closed.stream, closed.error.reason) == (stream, Reason.INCARNATION_FENCED)
    stage.pass_time(1_000)
    stage.link("a", incarnation=2, held=(ref,))
    assert stage.task("t").attempts[-1].token == ref.token


def test_a_silent_link_is_probed_and_closed() -> None:
    stage = Stage(Settings(probe_interval_ms=3_000, silence_ms_max=10_000))
    stream = stage.agent("a")
    stage.submit(task("t"))
    [probe] = only(stage.pass_time(3_249), Probe)
    stage.frame(stream, probe_nonce=probe.nonce)
    assert not only(stage.pass_time(9_999), CloseStream)
    [closed] = only(stage.pass_time(3_000), CloseStream)
    assert (closed.stream, closed.error.reason) == (stream, Reason.PEER_SILENT)
    stage.pass_time(2_000)
    assert stage.task("t").attempts[-1].state is AttemptState.LOST


def test_probes_of_many_links_share_their_instants() -> None:
    stage = Stage(validate=False)
    for number in range(50):
        stage.agent(f"a{number}")
        stage.pass_time(7)
    instants = [stage.now for effects in stage.ticks(10_000) if only(effects, Probe)]
    assert len(instants) <= 2 * (1 + 50 * 7 // 250 + 1)


def test_more_credits_than_may_be_open_end_the_stream() -> None:
    stage = Stage(Settings(credit_max=10))
    stream = stage.agent("a", slots=10)
    effects = stage.frame(stream, credits=1)
    [closed] = only(effects, CloseStream)
    assert closed.error.reason is Reason.INVALID_FIELD


def test_credits_are_those_of_the_present_link() -> None:
    stage = Stage()
    stream = stage.agent("a", slots=5)
    stage.unlink(stream)
    stage.know("a", "work")
    stage.link("a", slots=0)
    assert assigned(stage.submit(task("t"))) == []


def test_only_the_newest_attempts_are_kept() -> None:
    stage = Stage(Settings(loss_max=100))
    stage.know("a", "work")
    stage.submit(task("t"))
    for number in range(1, 41):
        stage.unlink(stage.link("a", 1, incarnation=number))
        stage.pass_time(2_000)
    kept = stage.task("t").attempts
    assert len(kept) == 32
    assert kept[-1].token.number == stage.task("t").attempt_count


def test_acks_and_assignments_of_one_frame_come_back_together() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("x"), task("y", "x"))
    effects = stage.finish(stream, "x")
    kinds = [type(effect) for effect in effects if isinstance(effect, AckResult | Assign)]
    assert kinds == [AckResult, Assign]
