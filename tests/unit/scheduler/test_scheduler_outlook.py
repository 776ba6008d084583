"""What a planner is asked: who is there, what they hold, who goes first, what is missing."""

from __future__ import annotations

import pytest

from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import AgentId
from services.scheduler.core.intake.outlook import Outlook, outlook
from services.scheduler.core.model import CollaborationSpec, LockMode, ResourceClaim, TaskSpec
from services.scheduler.core.planning.portfolio import best_of_classics
from tests.unit.scheduler.scheduler_stage import LOW, NORMAL, Stage, task


def seen(stage: Stage, *tasks: TaskSpec, **spec: object) -> Outlook:
    return outlook(stage.state.book, CollaborationSpec(tasks, **spec), stage.now)  # type: ignore[arg-type]


def test_free_slots_are_free_now_and_taken_ones_when_their_work_is_expected_to_end() -> None:
    stage = Stage()
    stage.agent("a", slots=2)
    stage.submit(task("x", estimated_duration_ms=5_000))
    stage.now += 2_000  # type: ignore[assignment]
    view = seen(stage, task("t"))
    assert view.problem.slots_from_ms == ((0, 3_000),)
    assert [str(key) for key in view.instances] == ["a/0"]
    stage.now += 60_000  # type: ignore[assignment]
    # What is overdue may end at any moment.
    assert seen(stage, task("t")).problem.slots_from_ms == ((0, 1),)


def test_nothing_changes_by_looking() -> None:
    stage = Stage()
    stage.agent("a", slots=1)
    before = repr(stage.state.book.collaborations), stage.state.book.index.waiting_count
    seen(stage, task("t"), task("u", "t"))
    assert (repr(stage.state.book.collaborations), stage.state.book.index.waiting_count) == before
    stage.state.validate()


def test_waiting_tasks_of_the_same_or_a_more_urgent_class_go_first() -> None:
    stage = Stage()
    stage.agent("a", slots=1)
    stage.submit(task("runs", estimated_duration_ms=1_000))
    stage.submit(task("waits", estimated_duration_ms=4_000), request_id="r2")
    stage.submit(task("later", estimated_duration_ms=9_000, priority=LOW), request_id="r3")
    view = seen(stage, task("t"), priority=NORMAL)
    assert view.tasks_ahead == 1
    assert view.problem.slots_from_ms == ((5_000,),)
    assert seen(stage, task("t"), priority=LOW).problem.slots_from_ms == ((14_000,),)


def test_eligibility_quality_dependencies_and_exclusive_locks() -> None:
    stage = Stage()
    stage.agent("novice", "work", level=0.4)
    stage.agent("expert", "work", "fly", level=0.9)
    stage.agent("stranger", "cook")
    shared = (ResourceClaim("road", LockMode.SHARED),)  # type: ignore[arg-type]
    view = seen(
        stage,
        task("t", estimated_duration_ms=7, locks=("bridge",)),
        task("u", "t", skill="fly", resources=shared),
        task("v", required_agents=(AgentId("novice"),)),
    )
    names = [str(key.agent_id) for key in view.instances]
    assert sorted(names) == ["expert", "novice"]
    novice, expert = names.index("novice"), names.index("expert")
    rows = view.problem.duration_ms
    assert rows[0][novice] == rows[0][expert] == 7
    assert rows[1][novice] is None
    assert rows[2][expert] is None
    assert view.worth.quality[0][novice] == pytest.approx(0.4)
    assert [(d.before, d.after) for d in view.problem.dependencies] == [(0, 1)]
    assert view.problem.locks == {0: frozenset({"bridge"})}
    assert best_of_classics(view.problem).makespan_ms == 1_007


def test_a_task_that_no_linked_agent_can_do_is_named() -> None:
    stage = Stage()
    stage.agent("a", "work")
    stage.know("away", "fly")
    with pytest.raises(ServiceError) as caught:
        seen(stage, task("t"), task("u", skill="fly"), task("v", required_agents=(AgentId("b"),)))
    error = caught.value
    assert error.reason is Reason.UNKNOWN_SKILL
    assert [violation.field for violation in error.violations] == [
        "collaboration.tasks[1].required_skills",
        "collaboration.tasks[2].required_skills",
    ]
    assert "no connected agent has all of: fly" in error.message
    assert "among b" in error.violations[1].description


def test_draining_agents_and_those_without_slots_are_left_out() -> None:
    stage = Stage()
    stream = stage.agent("leaves", slots=1)
    stage.agent("stays", slots=1)
    stage.agent("closed", slots=0)
    stage.frame(stream, drain=True)
    assert [key.agent_id for key in seen(stage, task("t")).instances] == ["stays"]
