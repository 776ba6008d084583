"""Which agent gets a task under each policy, why, and what can not be met at all."""

from __future__ import annotations

from random import Random

import pytest

from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import AgentId, CollaborationId, InstanceId, Skill, TaskId
from services.scheduler.core.effects import Accepted, Assign
from services.scheduler.core.events import AgentsChanged, AgentView, InstanceView, StreamId, WorkFrame
from services.scheduler.core.explain import explain
from services.scheduler.core.model import (
    CollaborationSpec,
    PolicyWeights,
    SchedulingPolicy,
    UnknownSkillPolicy,
)
from services.scheduler.core.placing.matching import best_match
from services.scheduler.core.placing.placement import plan
from services.scheduler.core.queries import find_task
from tests.unit.scheduler.scheduler_stage import Stage, answer, gang, only, task

PRIORITY, ROUND_ROBIN, LEAST_LOADED, BEST_MATCH, MULTI_OBJECTIVE, PREDICTIVE = SchedulingPolicy


def agent(
    stage: Stage,
    name: str,
    level: float = 1.0,
    slots: int = 1,
    cost: float = 0.0,
    gpu: int = 0,
    skill: str = "work",
) -> None:
    capacities = (("gpu_milli", gpu),) if gpu else ()
    view = InstanceView(InstanceId("0"), 1, False, ((Skill(skill), level),), capacities, cost)
    known = AgentView(AgentId(name), frozenset({Skill(skill)}), (view,))
    stage.batch(AgentsChanged("agents", 0.5, (known,)))
    stage.link(name, slots)


def chosen(stage: Stage, count: int = 1, **spec: object) -> list[str]:
    effects = stage.submit(*(task(f"t{number}") for number in range(count)), **spec)  # type: ignore[arg-type]
    return [str(given.attempt.instance.agent_id) for given in only(effects, Assign)]


def test_round_robin_gives_everybody_a_turn_before_anybody_a_second() -> None:
    stage = Stage()
    for number, name in enumerate(("a", "b", "c")):
        agent(stage, name, level=0.2 + 0.3 * number, slots=2)
    order = chosen(stage, 6, policy=ROUND_ROBIN)
    assert sorted(order[:3]) == sorted(order[3:]) == ["a", "b", "c"]


def test_least_loaded_looks_at_the_load_alone() -> None:
    stage = Stage()
    agent(stage, "expert", level=1.0, slots=2)
    agent(stage, "novice", level=0.1, slots=8)
    assert chosen(stage, 5, policy=LEAST_LOADED).count("novice") == 4


def test_best_match_gives_the_largest_sum_of_levels() -> None:
    """One by one, the first task would take the agent that the second one needs."""
    stage = Stage()
    for name, levels in (("x", {"dig": 0.9, "fly": 0.8}), ("y", {"dig": 0.8, "fly": 0.1})):
        skills = tuple((Skill(each), level) for each, level in levels.items())
        view = InstanceView(InstanceId("0"), 1, False, skills)
        known = AgentView(AgentId(name), frozenset(Skill(each) for each in levels), (view,))
        stage.batch(AgentsChanged("agents", 0.5, (known,)))
    stage.submit(task("d", skill="dig"), task("f", skill="fly"), policy=BEST_MATCH)
    streams = [stage.link(name, slots=0) for name in ("x", "y")]
    stage.batch(*(offer(stream) for stream in streams))
    assert stage.task("d").attempts[-1].instance.agent_id == "y"
    assert stage.task("f").attempts[-1].instance.agent_id == "x"


def offer(stream: StreamId) -> WorkFrame:
    return WorkFrame("offer", stream, 0.5, credits=1)


@pytest.mark.parametrize("seed", range(30))
def test_a_matching_is_the_best_of_all_that_serve_the_most_and_the_first(seed: int) -> None:
    random = Random(seed)
    slots, count = random.randint(1, 4), random.randint(1, 4)
    choices = [
        [(slot, random.random()) for slot in range(slots) if random.random() < 0.6] for _ in range(count)
    ]

    def every(number: int, free: frozenset[int]) -> list[tuple[tuple[int, ...], float]]:
        """Return (who is placed, sum of scores) of each way to place the tasks from `number` on."""
        if number == count:
            return [((), 0.0)]
        found = every(number + 1, free)
        for slot, score in choices[number]:
            if slot in free:
                found += [
                    ((number, *placed), score + rest) for placed, rest in every(number + 1, free - {slot})
                ]
        return found

    ways = every(0, frozenset(range(slots)))
    best = max(ways, key=lambda way: (len(way[0]), [-each for each in way[0]], way[1]))
    found = best_match(choices)
    placed = tuple(number for number, position in enumerate(found) if position is not None)
    score = sum(choices[number][found[number] or 0][1] for number in placed)
    assert placed == best[0]
    assert score == pytest.approx(best[1])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (PolicyWeights(cost=1.0), "cheap"),
        (PolicyWeights(quality=1.0), "expert"),
        (PolicyWeights(fairness=1.0), "idle"),
        (PolicyWeights(quality=1.0, cost=0.1), "expert"),
        (PolicyWeights(finish_time=1.0), "quick"),
    ],
)
def test_multiple_objectives_are_weighed(weights: PolicyWeights, expected: str) -> None:
    stage = Stage()
    agent(stage, "cheap", level=0.3, slots=1, cost=1.0)
    agent(stage, "expert", level=0.9, slots=1, cost=9.0)
    agent(stage, "idle", level=0.3, slots=1, cost=9.0)
    agent(stage, "quick", level=0.3, slots=1, cost=9.0)
    # Everybody but "idle" has work already.
    for name in ("cheap", "expert", "quick"):
        stage.submit(task("t", required_agents=(name,)), request_id=name)
        [linked] = [each for each in stage.state.book.instances.values() if each.key.agent_id == name]
        assert linked.stream is not None
        stage.frame(linked.stream, credits=1)
    stage.state.book.index.pools.estimate = lambda name, _, ms, __: ms / 4 if name == "quick" else float(ms)
    [effect] = only(stage.submit(task("t"), request_id="r", policy=MULTI_OBJECTIVE, weights=weights), Assign)
    assert effect.attempt.instance.agent_id == expected
    assert effect.attempt.explanation.startswith("MULTI_OBJECTIVE: ")


@pytest.mark.parametrize("policy", [PRIORITY, ROUND_ROBIN, LEAST_LOADED])
@pytest.mark.parametrize("seed", range(10))
def test_a_wave_is_the_same_as_choosing_anew_for_every_task(policy: SchedulingPolicy, seed: int) -> None:
    """The sort of slots is a shortcut: a plan for each task alone must find the same agents."""
    random = Random(seed)
    fleet = [(f"a{number}", random.choice((0.3, 0.6, 0.9)), random.randint(1, 4)) for number in range(8)]
    count = random.randint(1, 25)

    def build() -> Stage:
        stage = Stage()
        for name, level, slots in fleet:
            agent(stage, name, level, slots)
        return stage

    whole, one = build(), build()
    together = chosen(whole, count, policy=policy)
    apart = [
        each for number in range(count) for each in chosen(one, 1, request_id=f"r{number}", policy=policy)
    ]
    if policy is ROUND_ROBIN:
        assert together == apart
    else:
        # Equal scores may go to either of two; what they are worth is the same.
        assert scores_of(whole) == scores_of(one)


def scores_of(stage: Stage) -> list[str]:
    whys = [entry.attributes["why"] for entry in stage.entries if entry.operation == "task.assign"]
    return sorted(why.split(" = ")[1].split(",")[0] for why in whys)


def test_a_plan_takes_no_slot_twice_and_keeps_to_capacities() -> None:
    stage = Stage()
    agent(stage, "a", slots=4, gpu=1_000)
    agent(stage, "b", slots=1, gpu=4_000)
    effects = stage.submit(*(task(f"t{number}", needs=(("gpu_milli", 500),)) for number in range(6)))
    agents = [given.attempt.instance.agent_id for given in only(effects, Assign)]
    assert sorted(agents) == ["a", "a", "b"]
    snapshot = stage.state.book.index.snapshot(100, stage.now)
    assert snapshot is None or plan(snapshot) == []


def test_a_decision_names_its_parts_and_the_runners_up() -> None:
    stage = Stage()
    for number in range(5):
        agent(stage, f"a{number}", level=0.5 + number / 10)
    chosen(stage)
    why = stage.task("t0").attempts[-1].explanation
    assert why.startswith(
        "PRIORITY: level 0.90 + free share 1.00 = 1.90, best of 5 free, then a3/0 1.80, a2/0 1.70"
    )
    assert "a0" not in why


def test_an_explanation_says_what_counts_and_what_keeps_others_away() -> None:
    stage = Stage()
    agent(stage, "busy")
    stage.submit(task("first"), request_id="r0")
    agent(stage, "small", gpu=100)
    stage.submit(task("t", needs=(("gpu_milli", 500),)), task("after", "t"))
    found = find_task(stage.state.book, CollaborationId("c-r1"), TaskId("t"))
    shown = explain(stage.state.book, found, stage.now)
    obstacles = {str(each.instance): each.obstacle for each in shown.candidates}
    assert obstacles == {"small/0": "gpu_milli: 500 needed, 100 left", "busy/0": obstacles["busy/0"]}
    assert "gpu_milli" in obstacles["busy/0"] or "no free slot" in obstacles["busy/0"]
    assert [fact.name for fact in shown.priority] == [
        "class", "age", "fair share", "due", "critical path", "arrival",
    ]  # fmt: skip
    assert {fact.name: fact.value for fact in shown.analysis}["level"] == "1 of 2"
    assert shown.predicted_end == stage.now + 1_000
    assert shown.waiting_for


def test_what_can_never_be_met_is_refused_at_once_or_warned_of() -> None:
    stage = Stage()
    agent(stage, "a", gpu=1_000)
    wishes = [task("big", needs=(("gpu_milli", 4_000),))], gang("g", size=3)
    for number, tasks in enumerate(wishes):
        refusal = answer(
            stage.submit(*tasks, request_id=f"f{number}", unknown_skill_policy=UnknownSkillPolicy.FAIL)
        )
        assert isinstance(refusal, ServiceError)
        assert refusal.reason is Reason.UNMEETABLE
        assert refusal.metadata["missing"] in refusal.message
        taken = answer(stage.submit(*tasks, request_id=f"w{number}"))
        assert isinstance(taken, Accepted)
        assert len(taken.warnings) == 1


@pytest.mark.parametrize(
    ("needs", "missing"),
    [
        # Somebody has as much, and not the skill.
        ((("gpu_milli", 2_000),), "2000 gpu_milli needed, the most that any agent with work has is 1000"),
        ((("gpu_milli", 900), ("ram", 9)), "no agent with work has them together"),
    ],
)
def test_needs_count_together_and_with_the_skills(needs: tuple[tuple[str, int], ...], missing: str) -> None:
    stage = Stage()
    for name, skill, capacities in (
        ("a", "work", (("gpu_milli", 1_000),)),
        ("b", "work", (("ram", 10),)),
        ("c", "fly", (("gpu_milli", 4_000),)),
    ):
        view = InstanceView(InstanceId("0"), 1, False, ((Skill(skill), 1.0),), capacities)
        agents = (AgentView(AgentId(name), frozenset([Skill(skill)]), (view,)),)
        stage.batch(AgentsChanged("agents", 0.5, agents))
    taken = answer(stage.submit(task("t", needs=needs)))
    assert isinstance(taken, Accepted)
    [warning] = taken.warnings
    assert missing in warning
    shown = explain(stage.state.book, stage.task("t"), stage.now).waiting_for
    assert all(name in shown for name, _ in needs), shown


def test_the_default_policy_is_that_of_the_settings() -> None:
    assert CollaborationSpec(()).policy is None
