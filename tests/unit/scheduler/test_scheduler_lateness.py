"""Deadlines are warned of before they are missed: once for each crossing, and once when it is over."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.core.instants import Instant
from services.scheduler.core.book import Settings
from services.scheduler.core.changes import Change
from services.scheduler.core.effects import Effect, Publish
from services.scheduler.core.events import ResultReport
from services.scheduler.core.model import CollaborationState, Failure, FailureKind, TaskState
from services.scheduler.core.monitoring.alerts import AlertKind
from services.scheduler.core.running import lateness
from services.scheduler.core.running.deadlines import STANDING_MAX, WHOLE, DeadlineView
from tests.unit.scheduler.scheduler_stage import START, Stage, only, task

MINUTE = 60_000


def told(effects: list[Effect]) -> list[tuple[str, bool]]:
    """Return what watchers hear of deadlines: (whose, whether it stands)."""
    changes = [each.change for each in only(effects, Publish) if isinstance(each.change, Change)]
    views = [change.subject for change in changes if isinstance(change.subject, DeadlineView)]
    return [(view.warning.task_id, view.recover_time is None) for view in views]


def at(minutes: float) -> Instant:
    return Instant(START + round(minutes * MINUTE))


def slow(task_id: str, *dependencies: str, minutes: int = 10, **more: Any) -> Any:
    return task(
        task_id,
        *dependencies,
        estimated_duration_ms=minutes * MINUTE,
        attempt_timeout_ms=600 * MINUTE,
        **more,
    )


@pytest.fixture
def stage() -> Stage:
    return Stage(Settings(speculation_share=0.0, probe_interval_ms=10**9, silence_ms_max=2 * 10**9))


def alerts(stage: Stage) -> list[str]:
    return stage.state.book.observed.alerts.of(AlertKind.LATE)


def test_a_task_that_no_agent_takes_is_warned_of_when_it_is_too_late_to_begin(stage: Stage) -> None:
    assert told(stage.submit(slow("a"), deadline=at(30))) == []
    assert told(stage.pass_time(20 * MINUTE)) == []
    assert told(stage.pass_time(1)) == [(WHOLE, True)]
    [warning] = stage.collaboration().warnings
    assert (warning.cause, warning.deadline) == ("a", at(30))
    assert warning.predicted_end > at(30)
    assert alerts(stage) == ["collaboration/c-r1"]
    assert list(stage.state.book.observed.deadlines) == ["warned"]
    [entry] = [each for each in stage.entries if each.operation == "deadline.warn"]
    assert entry.attributes["late_task"] == "a"
    # Once for a crossing, and missed in the end: the failure itself says so.
    assert told(stage.pass_time(10 * MINUTE)) == []
    assert stage.collaboration().state is CollaborationState.FAILED
    assert alerts(stage) == []
    assert list(stage.state.book.observed.deadlines) == ["warned", "missed"]


def test_what_hangs_on_a_late_task_is_known_while_it_still_waits_for_it(stage: Stage) -> None:
    stage.submit(slow("a"), slow("b", "a", deadline=at(25)), slow("c"))
    assert told(stage.pass_time(5 * MINUTE)) == []
    # "b" needs ten of its minutes, and so does "a" before it.
    assert told(stage.pass_time(1)) == [("b", True)]
    assert stage.collaboration().warnings[0].cause == "a"
    assert alerts(stage) == ["task/c-r1/b"]


def test_it_is_said_once_when_it_will_be_in_time_after_all(stage: Stage) -> None:
    stage.submit(slow("a"), deadline=at(30))
    assert told(stage.pass_time(20 * MINUTE + 1)) == [(WHOLE, True)]
    stream = stage.agent("quick")
    stage.frame(stream, started=(stage.ref("a"),))
    # Nothing says yet that this agent is quicker than declared.
    assert alerts(stage) == ["collaboration/c-r1"]
    stage.pass_time(MINUTE)
    effects = stage.finish(stream, "a")
    assert told(effects) == [(WHOLE, False)]
    assert stage.collaboration().state is CollaborationState.COMPLETED
    assert alerts(stage) == []
    assert list(stage.state.book.observed.deadlines) == ["warned", "recovered"]
    assert [each.operation for each in stage.entries].count("deadline.recover") == 1


def test_the_next_task_of_a_late_chain_keeps_the_warning(stage: Stage) -> None:
    stage.submit(slow("a"), slow("b", "a"), deadline=at(25))
    stage.pass_time(5 * MINUTE + 1)
    stream = stage.agent("one")
    stage.frame(stream, started=(stage.ref("a"),))
    stage.pass_time(11 * MINUTE)
    # "a" ends after it was due; "b" is late now, and that is no news.
    assert told(stage.finish(stream, "a")) == []
    lateness_now = stage.collaboration().lateness
    assert lateness_now is not None
    assert lateness_now.causes == {"b": WHOLE}


def test_a_run_that_takes_longer_than_predicted_is_warned_of_before_its_deadline(stage: Stage) -> None:
    stream = stage.agent("one")
    stage.submit(slow("a"), deadline=at(60))
    stage.frame(stream, started=(stage.ref("a"),))
    # It fits as predicted: nobody is told anything while that may still be.
    assert told(stage.pass_time(10 * MINUTE)) == []
    effects = stage.pass_time(49 * MINUTE)
    assert told(effects) == [(WHOLE, True)]
    [warning] = stage.collaboration().warnings
    assert warning.warn_time < at(59)
    assert warning.predicted_end > at(60)


def test_the_predicted_end_of_a_run_never_lies_in_the_past_and_grows(stage: Stage) -> None:
    stream = stage.agent("one")
    stage.submit(slow("a"))
    stage.frame(stream, started=(stage.ref("a"),))
    ends = []
    for _ in range(30):
        stage.pass_time(MINUTE)
        end = lateness.predicted_end(stage.state.book, stage.task("a"), stage.now)
        assert end >= stage.now
        ends.append(end)
    assert ends == sorted(ends)
    assert ends[0] == at(10)
    assert ends[-1] > at(30)


def test_small_changes_of_a_prediction_do_not_flap(stage: Stage) -> None:
    """Late by a hair, then in time by a hair: the warning stands until it is in time by the margin."""
    stage.submit(slow("a"), deadline=at(30))
    stage.pass_time(20 * MINUTE + 1)
    book, late = stage.state.book, stage.task("a")
    # Learned meanwhile: half a minute less; not yet a tenth of what it takes.
    late.due = Instant(late.due + MINUTE // 2)
    told_now = stage.batch()
    lateness_now = stage.collaboration().lateness
    assert lateness_now is not None
    assert told(told_now) == []
    assert WHOLE in lateness_now.counts
    assert lateness.predicted_end(book, late, stage.now) < late.due


def test_a_failed_task_is_no_recovery(stage: Stage) -> None:
    stage.submit(slow("a"), slow("b"), deadline=at(30))
    stage.pass_time(20 * MINUTE + 1)
    stream = stage.agent("one", slots=2)
    failure = Failure(FailureKind.PERMANENT, "BROKEN")
    effects = stage.frame(stream, results=(ResultReport(stage.ref("a"), failure),))
    assert told(effects) == []
    effects = stage.finish(stream, "b")
    assert told(effects) == []
    assert stage.task("b").state is TaskState.SUCCEEDED
    assert alerts(stage) == []


def test_a_warning_survives_a_change_of_leader_and_is_not_told_again(stage: Stage) -> None:
    stage.submit(slow("a"), deadline=at(30))
    stage.pass_time(20 * MINUTE + 1)
    before = stage.collaboration().warnings
    assert told(stage.take_over()) == []
    assert stage.collaboration().warnings == before
    assert alerts(stage) == ["collaboration/c-r1"]
    assert told(stage.pass_time(MINUTE)) == []


def test_a_cancelled_collaboration_leaves_no_alert(stage: Stage) -> None:
    stage.submit(slow("a"), deadline=at(30))
    stage.pass_time(20 * MINUTE + 1)
    assert told(stage.cancel()) == []
    assert alerts(stage) == []
    assert stage.collaboration().warnings == ()


def test_standing_warnings_of_one_collaboration_are_bounded(stage: Stage) -> None:
    count = STANDING_MAX + 10
    stage.submit(*(slow(f"t{number}", deadline=at(30)) for number in range(count)))
    told_all = told(stage.pass_time(20 * MINUTE + 1))
    assert len(told_all) == STANDING_MAX
    assert len(stage.collaboration().warnings) == STANDING_MAX


def test_a_task_without_a_deadline_has_no_timer(stage: Stage) -> None:
    stage.submit(slow("a"))
    assert stage.task("a").late_timer is None
