"""The classic heuristics give what their papers print, and valid schedules of everything else."""

from __future__ import annotations

import pytest

from services.scheduler.core.planning.portfolio import CLASSICS, best_of_classics
from services.scheduler.core.planning.validate import check
from tests.unit.scheduler.planning_problems import heft_paper, peft_paper, random_problem


@pytest.mark.parametrize(("name", "makespan_ms"), [("HEFT", 80), ("CPOP", 86)])
def test_the_example_of_the_heft_paper(name: str, makespan_ms: int) -> None:
    assert CLASSICS[name](heft_paper()).makespan_ms == makespan_ms


@pytest.mark.parametrize(("name", "makespan_ms"), [("PEFT", 122), ("HEFT", 133)])
def test_the_example_of_the_peft_paper(name: str, makespan_ms: int) -> None:
    assert CLASSICS[name](peft_paper()).makespan_ms == makespan_ms


@pytest.mark.parametrize("name", CLASSICS)
def test_every_schedule_is_valid(name: str) -> None:
    for seed in range(150):
        problem = random_problem(seed, tasks=1 + seed % 25, agents=1 + seed % 5)
        check(problem, CLASSICS[name](problem))


def test_the_best_of_them_is_no_worse_than_each() -> None:
    problem = random_problem(7, tasks=30)
    best = best_of_classics(problem).makespan_ms
    assert best == min(planner(problem).makespan_ms for planner in CLASSICS.values())
