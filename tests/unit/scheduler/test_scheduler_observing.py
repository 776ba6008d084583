"""Alerts of a leadership, its notes for the metrics, and agents' profiles."""

from __future__ import annotations

import pytest

from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import AgentId, CollaborationId, TaskId
from services.scheduler.core.course import Collaboration
from services.scheduler.core.effects import Effect
from services.scheduler.core.events import AssessRequested, ReplyId, StreamId
from services.scheduler.core.monitoring.observing import LOOK_INTERVAL_MS, standing_counts
from services.scheduler.core.profiles import profile
from tests.unit.scheduler.scheduler_stage import Stage, answer, task


def alive(stage: Stage, stream: StreamId, ms: int) -> list[Effect]:
    """Let time pass while an agent shows that it lives."""
    effects: list[Effect] = []
    for _ in range(0, ms, 5_000):
        effects += stage.pass_time(5_000)
        stage.frame(stream)
    return effects


def alerts(stage: Stage) -> dict[str, str]:
    return {alert.subject: alert.message for alert in stage.state.book.observed.alerts.standing.values()}


def recorded(stage: Stage, operation: str) -> list[str]:
    return [entry.subject for entry in stage.entries if entry.operation == operation]


def test_an_attempt_that_runs_far_too_long_is_an_alert_until_it_ends() -> None:
    stage = Stage()
    stream = stage.agent("field-1")
    stage.submit(task("t"))
    stage.frame(stream, started=(stage.ref("t"),))
    alive(stage, stream, 25_000)
    assert not alerts(stage)
    alive(stage, stream, 300_000)
    assert [*alerts(stage)] == ["task/c-r1/t"]
    assert "field-1/0" in alerts(stage)["task/c-r1/t"]
    assert standing_counts(stage.state.book)["STUCK_TASK"] == 1
    stage.finish(stream, "t")
    alive(stage, stream, 2 * LOOK_INTERVAL_MS)
    assert not alerts(stage)
    assert recorded(stage, "alert.raise") == recorded(stage, "alert.clear") == ["task/c-r1/t"]


def test_an_attempt_that_is_never_begun_is_an_alert() -> None:
    stage = Stage()
    stream = stage.agent("field-1")
    stage.submit(task("t"))
    alive(stage, stream, 75_000)
    assert "has not begun" in alerts(stage)["task/c-r1/t"]


def test_an_agent_whose_link_comes_and_goes_is_an_alert() -> None:
    stage = Stage()
    stage.know("field-1", "work")
    for _ in range(5):
        stream = stage.link("field-1")
        stage.unlink(stream)
    assert [*alerts(stage)] == ["agent/field-1/0"]
    stage.pass_time(700_000)
    assert not alerts(stage)


def test_a_queue_that_grows_for_minutes_is_an_alert() -> None:
    stage = Stage(validate=False)
    number = 0
    for _ in range(40):
        for _ in range(3):
            number += 1
            stage.submit(task("t"), request_id=f"r{number}")
        stage.pass_time(LOOK_INTERVAL_MS)
    assert [*alerts(stage)] == ["queue"]
    assert "more agents" in alerts(stage)["queue"]


def test_predictions_that_are_off_again_and_again_are_an_alert() -> None:
    stage = Stage(validate=False)
    stream = stage.agent("field-1")
    for number in range(90):
        name = f"r{number}"
        stage.submit(task("t", task_type="survey"), request_id=name)
        stage.frame(stream, started=(stage.ref("t", name),))
        stage.pass_time(200 if number < 60 else 9_000)
        stage.finish(stream, "t", request_id=name)
        if alerts(stage):
            break
    assert 60 <= number < 75
    assert "longer than predicted" in alerts(stage)["type/survey"]


def test_nothing_is_looked_at_when_nothing_is_there() -> None:
    stage = Stage()
    stream = stage.agent("field-1")
    stage.submit(task("t"))
    stage.finish(stream, "t")
    stage.unlink(stream)
    stage.pass_time(60_000)
    assert stage.state.book.observed.timer is None


def test_each_stage_of_a_task_is_noted_for_the_metrics() -> None:
    stage = Stage()
    stream = stage.agent("field-1")
    stage.submit(task("a"), task("b", "a"))
    for name in ("a", "b"):
        stage.frame(stream, started=(stage.ref(name),))
        stage.pass_time(300)
        stage.finish(stream, name)
    observed = stage.state.book.observed
    found = dict(observed.stages)
    assert {name for name, _ in observed.stages} == {"ready", "assigned", "started", "done", "collaboration"}
    assert found["ready"] == 300
    assert found["done"] == 300
    assert found["collaboration"] == 600
    assert len(observed.misses) == 2


def test_a_profile_says_what_was_declared_what_was_learned_and_how_sure_that_is() -> None:
    stage = Stage()
    stage.know("field-1", "work", "dive", level=0.6)
    stream = stage.link("field-1", 2)
    blank = profile(stage.state.book, AgentId("field-1"))
    assert {row.skill: row.declared_level for row in blank.skills} == {"dive": 0.6, "work": 0.6}
    assert blank.skills[1].proficiency.mean == pytest.approx(0.6)
    assert not blank.types
    assert blank.learned is None
    for number in range(15):
        name = f"r{number}"
        stage.submit(task("t", task_type="survey"), request_id=name)
        stage.frame(stream, started=(stage.ref("t", name),))
        stage.pass_time(250)
        stage.finish(stream, "t", request_id=name)
    found = profile(stage.state.book, AgentId("field-1"))
    before, after = blank.skills[1].proficiency, found.skills[1].proficiency
    assert after.mean > 0.85 > before.mean
    assert after.high - after.low < (before.high - before.low) / 2
    [kind] = found.types
    assert kind.task_type == "survey"
    assert kind.predicted.mean_ms == pytest.approx(250, rel=0.15)
    assert kind.run_count == 15
    assert kind.quality is None
    assert kind.success.low < kind.success.mean < kind.success.high
    [link] = found.links
    assert link.free == 2


def test_an_agent_nobody_heard_of_has_no_profile() -> None:
    with pytest.raises(ServiceError, match="ghost") as caught:
        profile(Stage().state.book, AgentId("ghost"))
    assert caught.value.reason is Reason.AGENT_NOT_FOUND


def assess(stage: Stage, score: float, name: str = "t") -> list[Effect]:
    event = AssessRequested(
        "assess", CollaborationId("c-r1"), TaskId(name), score, "thorough", "operator/admin", ReplyId(99)
    )
    return stage.batch(event)


def test_a_result_that_is_judged_moves_the_agents_quality() -> None:
    stage = Stage()
    stream = stage.agent("field-1")
    stage.submit(task("t", task_type="survey"), task("u"))
    refused = answer(assess(stage, 1.0))
    assert isinstance(refused, ServiceError)
    assert refused.reason is Reason.WRONG_STATE
    unknown = answer(assess(stage, 1.0, "x"))
    assert isinstance(unknown, ServiceError)
    assert unknown.reason is Reason.TASK_NOT_FOUND
    stage.finish(stream, "t")
    for _ in range(10):
        assert isinstance(answer(assess(stage, 0.2)), Collaboration)
    [kind] = [row for row in profile(stage.state.book, AgentId("field-1")).types if row.task_type == "survey"]
    assert kind.quality is not None
    assert kind.quality.mean < 0.4
    assert kind.judgements == pytest.approx(10, rel=0.1)
    scores = [entry.attributes.get("score") for entry in stage.entries if entry.operation == "task.assess"]
    assert scores == [None, None, *["0.200"] * 10]
