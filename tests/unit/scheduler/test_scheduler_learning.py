"""What the plane learns from what ends: predicted with the attempt, kept in few writes, taken over."""

from __future__ import annotations

from typing import Any

import pytest

from services.scheduler.core.course import Predicted
from services.scheduler.core.effects import SaveLearned
from services.scheduler.core.events import ResultReport, StreamId
from services.scheduler.core.model import Failure, FailureKind, RetryPolicy
from services.scheduler.core.prediction.learning import SAVE_INTERVAL_MS, SAVED_MAX
from tests.unit.scheduler.scheduler_stage import Stage, only, task


def test_an_attempt_says_how_long_it_was_expected_to_run() -> None:
    stage = Stage()
    stream = stage.agent("field-1")
    stage.submit(task("t", estimated_duration_ms=700))
    first = stage.task("t").attempts[0].predicted
    assert first is not None
    assert first.mean_ms == 700
    assert first.low_ms < 300 < 1_500 < first.high_ms
    assert first.observations == 0
    stage.finish(stream, "t")
    # It stays as it was: what was predicted is compared with what came.
    assert stage.task("t").attempts[0].predicted == first


def run(stage: Stage, stream: StreamId, name: str, ms: int, **more: Any) -> Predicted:
    """Let one task run for so long; return what had been expected."""
    stage.submit(task("t", **more), request_id=name)
    stage.frame(stream, started=(stage.ref("t", name),))
    stage.pass_time(ms)
    stage.finish(stream, "t", request_id=name)
    predicted = stage.task("t", name).attempts[0].predicted
    assert predicted is not None
    return predicted


def test_what_was_seen_is_expected_by_type_and_survives_a_takeover() -> None:
    stage = Stage()
    stream = stage.agent("field-1")
    for number in range(12):
        run(stage, stream, f"survey-{number}", 200, task_type="survey")
    expected = run(stage, stream, "one-more", 200, task_type="survey")
    assert expected.mean_ms == pytest.approx(200, rel=0.1)
    assert expected.observations > 10
    assert run(stage, stream, "other", 200, task_type="other").mean_ms > 300
    stage.pass_time(10 * SAVE_INTERVAL_MS)
    stage.take_over()
    stream = stage.agent("field-1")
    assert run(stage, stream, "after", 200, task_type="survey").mean_ms == pytest.approx(200, rel=0.1)


def test_a_critical_path_counts_expected_durations_not_declared_ones() -> None:
    stage = Stage()
    stream = stage.agent("field-1")
    for number in range(20):
        run(stage, stream, f"slow-{number}", 9_000, task_type="slow")
    stage.submit(task("a", task_type="slow"), task("b", skill="dive"), request_id="two")
    assert stage.task("a", "two").rank_ms > 5 * stage.task("b", "two").rank_ms


def test_failures_and_time_outs_count_against_the_agent_and_losses_do_not() -> None:
    stage = Stage()
    stream = stage.agent("field-1", slots=4)
    once = RetryPolicy(attempt_max=1)
    predictor = stage.state.book.predictor
    before = predictor.success("field-1", "work")
    stage.submit(task("lost", retry=once), request_id="lost")
    stage.unlink(stream)
    stage.pass_time(5_000)
    assert predictor.success("field-1", "work") == before
    stream = stage.link("field-1", 4)
    stage.finish(stream, "lost", request_id="lost")
    better = predictor.success("field-1", "work")
    assert better > before
    stage.submit(task("failed", retry=once), request_id="failed")
    failure = Failure(FailureKind.TRANSIENT, "BROKEN")
    stage.frame(stream, results=(ResultReport(stage.ref("failed", "failed"), failure),), credits=1)
    worse = predictor.success("field-1", "work")
    assert worse < better
    stage.submit(task("late", retry=once, attempt_timeout_ms=50), request_id="late")
    stage.pass_time(60)
    assert predictor.success("field-1", "work") < worse


def test_what_was_learned_is_written_seldom_and_in_bounded_parts() -> None:
    stage = Stage(validate=False)
    stream = stage.agent("field-1", slots=50)
    names = [f"t{number}" for number in range(2 * SAVED_MAX)]
    effects = []
    for name in names:
        effects += stage.submit(task("t", task_type=name), request_id=name)
        effects += stage.finish(stream, "t", request_id=name)
    assert not only(effects, SaveLearned), "never a write per result"
    rounds = [only(effects, SaveLearned) for effects in stage.ticks(20 * SAVE_INTERVAL_MS)]
    rounds = [saves for saves in rounds if saves]
    assert [len(saves) for saves in rounds] == [SAVED_MAX, SAVED_MAX, 1]
    assert stage.state.book.learned_timer is None
    assert {key.name for key in stage.store.learned} == {*names, "field-1"}
