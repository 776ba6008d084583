"""The standing plan: what is asked of a search, and what of its answer counts: nothing that is not better."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.core.ids import CollaborationId, TaskId
from services.scheduler.core.book import Settings
from services.scheduler.core.effects import SearchPlan
from services.scheduler.core.events import PlanFound, StreamId
from services.scheduler.core.model import SchedulingPolicy, TaskKey
from services.scheduler.core.planning.rolling import Improved, better, carry_over, places_of
from services.scheduler.core.planning.search import steps
from services.scheduler.core.planning.validate import check
from tests.unit.scheduler.scheduler_stage import START, Stage, only, task

SPEED_MS = {"fast": 1_000, "middle": 2_000, "slow": 8_000}


def waiting(settings: Settings | None = None) -> tuple[Stage, dict[str, StreamId], SearchPlan]:
    """Return a stage on which tasks wait by the forecast, and the search that was asked for."""
    stage = Stage(settings)
    streams = {name: stage.agent(name) for name in SPEED_MS}
    for name, ms in SPEED_MS.items():
        for _ in range(12):
            stage.state.book.predictor.finished(name, "work", 1_000, ms, now=START, skill="work")
    stage.submit(task("a"), task("b"), request_id="r1", policy=SchedulingPolicy.PREDICTIVE)
    effects = stage.submit(
        *(task(f"t{number}", estimated_duration_ms=600 + 150 * number) for number in range(4)),
        task("end", "t0", "t1"),
        request_id="r2",
        policy=SchedulingPolicy.PREDICTIVE,
    )
    [asked] = only(effects, SearchPlan)
    return stage, streams, asked


def found(asked: SearchPlan, made: Improved) -> PlanFound:
    return PlanFound("plan", asked.number, places_of(made.before), places_of(made.after))


def outcomes(stage: Stage) -> list[str]:
    return [outcome for outcome, _ in stage.state.book.foresight.plan.outcomes]


def worst(asked: SearchPlan) -> Improved:
    """Return the opposite of a search: everything goes to the agent that was fastest least."""
    problem = asked.problem
    slowest = max(problem.agents, key=lambda agent: sum(row[agent] or 0 for row in problem.duration_ms))
    bad = carry_over(problem, [(number, slowest) for number in problem.tasks])
    check(problem, bad)
    return Improved(better(problem, None, steps(50)).after, bad)


def test_a_search_is_asked_for_while_tasks_wait_one_at_a_time() -> None:
    stage, _, asked = waiting()
    assert len(asked.problem.duration_ms) == 5
    assert len(asked.problem.dependencies) == 2
    assert asked.places is None
    assert asked.budget_ms == stage.settings.plan_budget_ms
    # Slots are free from when the attempts on them are expected to end.
    assert sorted(len(slots) for slots in asked.problem.slots_from_ms) == [1, 1, 1]
    assert any(slots[0] > 0 for slots in asked.problem.slots_from_ms)
    assert not only(stage.pass_time(10_000), SearchPlan)
    assert outcomes(stage) == ["asked"]


def test_what_is_better_is_adopted_and_what_is_worse_is_not() -> None:
    stage, _, asked = waiting()
    good = better(asked.problem, None, steps(300))
    stage.batch(found(asked, Improved(worst(asked).after, good.after)))
    assert outcomes(stage) == ["asked", "adopted"]
    adopted = dict(stage.state.book.foresight.plan.places)
    assert len(adopted) == 5
    stage.pass_time(stage.settings.plan_interval_ms)
    [again] = only(stage.submit(task("x"), request_id="r3", policy=SchedulingPolicy.PREDICTIVE), SearchPlan)
    assert again.places is not None
    assert any(place is not None for place in again.places)
    stage.batch(found(again, worst(again)))
    assert outcomes(stage)[-1] == "refused"
    assert stage.state.book.foresight.plan.places == adopted


def test_an_equal_plan_is_refused() -> None:
    stage, _, asked = waiting()
    same = better(asked.problem, None, steps(1)).before
    stage.batch(found(asked, Improved(same, same)))
    assert outcomes(stage) == ["asked", "refused"]
    assert stage.state.book.foresight.plan.places == {}


def test_what_is_stale_is_dropped_before_it_is_judged() -> None:
    stage, streams, asked = waiting()
    good = better(asked.problem, None, steps(300))
    # Since it was asked a task has started and an agent left.
    stage.finish(streams["fast"], "a", request_id="r1")
    stage.unlink(streams["slow"])
    stage.batch(found(asked, Improved(worst(asked).after, good.after)))
    places = stage.state.book.foresight.plan.places
    assert all(instance.agent_id != "slow" for _, instance in places.values())
    assert all(not stage.state.book.task(key).attempts for key in places)  # type: ignore[union-attr]


def test_an_answer_to_another_question_or_none_changes_nothing() -> None:
    stage, _, asked = waiting()
    stage.batch(PlanFound("plan", asked.number + 1, None, None))
    assert stage.state.book.foresight.plan.asked is not None
    stage.batch(PlanFound("plan", asked.number, None, None))
    assert outcomes(stage) == ["asked", "failed"]
    # All that it was about is over.
    stage.pass_time(stage.settings.plan_interval_ms)
    [again] = only(stage.submit(task("x"), request_id="r3", policy=SchedulingPolicy.PREDICTIVE), SearchPlan)
    stage.cancel("r2")
    stage.cancel("r3")
    stage.batch(found(again, better(again.problem, None, steps(10))))
    assert outcomes(stage)[-1] == "late"


def test_without_a_budget_nothing_is_asked() -> None:
    stage = Stage(Settings(plan_budget_ms=0))
    for name in SPEED_MS:
        stage.agent(name)
    tasks: list[Any] = [task(f"t{number}") for number in range(9)]
    effects = stage.submit(*tasks, policy=SchedulingPolicy.PREDICTIVE)
    assert not only(effects, SearchPlan)


@pytest.mark.parametrize(("ms", "chosen"), [(1_200, "other"), (4_000, "fast")])
def test_the_standing_plan_is_followed_where_that_costs_the_task_little(ms: int, chosen: str) -> None:
    stage = Stage()
    for name, each in (("fast", 1_000), ("other", ms)):
        stage.agent(name)
        for _ in range(12):
            stage.state.book.predictor.finished(name, "work", 1_000, each, now=START, skill="work")
    [other] = [each for each in stage.state.book.instances if each.agent_id == "other"]
    key = TaskKey(CollaborationId("c-r1"), TaskId("t"))
    stage.state.book.foresight.plan.places = {key: (0, other)}
    stage.submit(task("t"), policy=SchedulingPolicy.PREDICTIVE)
    assert stage.task("t").attempts[0].instance.agent_id == chosen
