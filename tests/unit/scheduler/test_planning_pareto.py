"""Plans to choose from: none dominates another, the earliest end is among them, more search never loses."""

from __future__ import annotations

import itertools
import random

import pytest

from services.scheduler.core.planning.pareto import Choice, Objectives, Search, Worth, jain, judge, spread
from services.scheduler.core.planning.portfolio import best_of_classics
from services.scheduler.core.planning.problem import Problem, whole_agents
from services.scheduler.core.planning.schedule import Schedule, Slot
from services.scheduler.core.planning.validate import check
from tests.unit.scheduler.planning_problems import random_problem


def random_worth(problem: Problem, seed: int) -> Worth:
    draw = random.Random(seed)
    agents = problem.agents
    return Worth(
        quality=tuple(tuple(draw.random() for _ in agents) for _ in problem.tasks),
        cost_per_hour=tuple(draw.choice([0.0, 1.0, 5.0]) for _ in agents),
    )


def searched(problem: Problem, worth: Worth, steps: int, seed: int = 0) -> Search:
    search = Search(problem, worth, seed=seed)
    for _ in range(steps):
        search.step()
    return search


@pytest.mark.parametrize("seed", range(12))
def test_every_plan_is_valid_and_none_dominates_another(seed: int) -> None:
    problem = random_problem(seed)
    worth = random_worth(problem, seed)
    front = searched(problem, worth, 120).front(8)
    assert 1 <= len(front) <= 8
    for choice in front:
        check(problem, choice.schedule)
        assert choice.objectives == judge(problem, worth, choice.schedule)
    for one, other in itertools.permutations(front, 2):
        assert not one.objectives.dominates(other.objectives)
        assert one.objectives != other.objectives


@pytest.mark.parametrize("seed", range(6))
def test_a_single_plan_is_the_one_that_ends_first(seed: int) -> None:
    problem = random_problem(seed)
    worth = random_worth(problem, seed)
    search = searched(problem, worth, 150)
    [only] = search.front(1)
    assert only.objectives.makespan_ms <= best_of_classics(problem).makespan_ms
    assert only.objectives.makespan_ms == search.front(32)[0].objectives.makespan_ms


def test_searching_on_never_loses_the_best_of_any_objective() -> None:
    problem = random_problem(3)
    worth = random_worth(problem, 3)
    search = Search(problem, worth)
    best: list[float] = [float("inf")] * 4
    for _ in range(300):
        search.step()
        now = [
            min(column) for column in zip(*(c.objectives.losses() for c in search.front(128)), strict=True)
        ]
        assert all(after <= before for after, before in zip(now, best, strict=True))
        best = now


def test_the_same_seed_finds_the_same() -> None:
    problem = random_problem(5)
    worth = random_worth(problem, 5)
    assert searched(problem, worth, 80).front(6) == searched(problem, worth, 80).front(6)


def test_a_dear_fast_agent_and_a_cheap_slow_one_are_both_offered() -> None:
    problem = Problem(((10, 40), (10, 40)), slots_from_ms=whole_agents(2))
    worth = Worth(quality=((1.0, 1.0), (1.0, 1.0)), cost_per_hour=(3600.0 * 1000 * 9, 3600.0 * 1000))
    ends = {c.objectives.makespan_ms: c.objectives.cost for c in searched(problem, worth, 100).front(8)}
    # Both on the fast one, both on the cheap one; one on each costs more than the latter and ends no earlier.
    assert ends[20] == pytest.approx(180)
    assert ends[80] == pytest.approx(80)


def test_when_there_is_no_choice_the_search_says_that_it_is_done() -> None:
    problem = Problem(((10,), (20,)), slots_from_ms=whole_agents(1))
    search = Search(problem, Worth(((1.0,), (1.0,)), (0.0,)))
    steps = sum(1 for _ in iter(search.step, False))
    assert 0 < steps < 100
    assert [choice.objectives.makespan_ms for choice in search.front(3)] == [30]


def test_dominance_wants_somewhere_better_and_nowhere_worse() -> None:
    one = Objectives(10, 0.5, 1.0, 0.5)
    assert not one.dominates(one)
    assert one._replace(quality=0.6).dominates(one)
    assert one._replace(fairness=0.6).dominates(one)
    assert one._replace(cost=0.5).dominates(one)
    assert one._replace(makespan_ms=9).dominates(one)
    assert not one._replace(makespan_ms=9, cost=2.0).dominates(one)


def test_what_is_shown_keeps_the_extremes() -> None:
    choices = [
        Choice(Objectives(10 + n, n / 10, 10.0 - n, 0.5), Schedule((Slot(0, 0, 0, 10 + n),)))
        for n in range(10)
    ]
    kept = spread(choices, 3)
    assert choices[0] in kept
    assert choices[9] in kept
    assert len(kept) == 3
    assert spread(choices, 1) == [choices[0]]
    assert spread(choices, 20) == choices


def test_jains_index() -> None:
    assert jain([1.0, 1.0, 1.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain([0.0, 0.0]) == 1.0
