"""The search keeps every rule, is never worse than what it began with, and repeats itself from a seed."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.core.planning.arrangement import Arrangement
from services.scheduler.core.planning.bounds import lower_bounds
from services.scheduler.core.planning.portfolio import CLASSICS, best_of_classics
from services.scheduler.core.planning.problem import Problem
from services.scheduler.core.planning.search import improve, plan, steps
from services.scheduler.core.planning.timeline import Draft
from services.scheduler.core.planning.validate import check
from tests.unit.scheduler.planning_problems import heft_paper, random_problem


def optimum_ms(problem: Problem) -> int:
    """Every order times every lane; small problems only."""
    best = best_of_classics(problem).makespan_ms
    for order in itertools.permutations(problem.tasks):
        place = {task: index for index, task in enumerate(order)}
        if any(place[d.before] > place[d.after] for d in problem.dependencies):
            continue
        for lanes in itertools.product(*([lane for lane, _ in c] for c in problem.lanes.choices)):
            draft = Draft(problem, insertion=False)
            for task in order:
                draft.place(task, draft.options(task, [lanes[task]])[0])
            best = min(best, draft.schedule().makespan_ms)
    return best


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 5))
def test_it_is_valid_and_no_worse_than_each_classic(seed: int, tasks: int, agents: int) -> None:
    problem = random_problem(seed, tasks, agents)
    found = plan(problem, steps(40), seed)
    check(problem, found.schedule)
    assert found.bound_ms <= found.schedule.makespan_ms
    for planner in CLASSICS.values():
        assert found.schedule.makespan_ms <= planner(problem).makespan_ms


@pytest.mark.parametrize("seed", range(12))
def test_small_problems_are_solved(seed: int) -> None:
    problem = random_problem(seed, tasks=5, agents=2)
    best = optimum_ms(problem)
    assert lower_bounds(problem).best_ms <= best
    assert plan(problem, steps(300), seed).schedule.makespan_ms == best


def test_a_published_example_is_beaten() -> None:
    """HEFT finds 80, the best known is 73."""
    assert plan(heft_paper(), steps(3000)).schedule.makespan_ms == 73


def test_the_same_seed_gives_the_same_schedule() -> None:
    problem = random_problem(3, tasks=40, agents=4)
    one, other = plan(problem, steps(200), 5), plan(problem, steps(200), 5)
    assert one == other


def test_without_budget_the_incumbent_is_the_answer() -> None:
    problem = random_problem(3, tasks=20)
    start = best_of_classics(problem)
    assert improve(problem, start, steps(1)).schedule.makespan_ms <= start.makespan_ms
    assert improve(problem, start, lambda _: 1.0).schedule.makespan_ms == start.makespan_ms


def test_the_best_possible_ends_the_search() -> None:
    problem = Problem(((5,), (7,)), slots_from_ms=((3,),))
    found = plan(problem, steps(10**9))
    assert (found.is_optimal, found.schedule.makespan_ms) == (True, 15)


def test_no_task_is_a_plan_too() -> None:
    assert plan(Problem((), slots_from_ms=((0,),)), steps(10)).schedule.makespan_ms == 0


@pytest.mark.parametrize("seed", range(25))
def test_the_length_of_a_chain_is_known_before_a_task_is_put(seed: int) -> None:
    """What makes the search fast is exact: whatever is moved, forecast and sweep agree."""
    draw = random.Random(seed)
    problem = random_problem(seed, tasks=2 + seed, agents=1 + seed % 5)
    now = Arrangement(problem, CLASSICS["HEFT"](problem))
    for _ in range(40):
        moved = draw.sample(list(problem.tasks), draw.randint(1, min(4, len(problem.tasks))))
        now.set_afloat(moved)
        now.update()
        for task in moved:
            choices = problem.lanes.choices[task]
            lanes = draw.sample(choices, draw.randint(1, len(choices)))
            rest_ms, was = now.makespan_ms, now.position[task]
            place = now.best_place(task, lanes, soon=draw.random() < 0.5)
            now.put(task, place)
            now.update(min(was, place.position), max(was, place.position))
        assert now.makespan_ms == max(rest_ms, place.chain_ms)
        partly = now.finish[:], now.late[:]
        now.update()
        assert (now.finish, now.late) == partly
        check(problem, now.schedule())
        now.sort(now.late.__getitem__)
        now.update()
        assert (now.finish, now.late) == partly
