"""Makespan against HEFT on real workflows: 96 cells of workflow, fleet and communication.

A cell is a workflow × {4, 16} agents × communication/computation {0.1, 1}; its ratio is the geometric mean
over the drawn fleets. Ours is what the planner finds; every schedule passes the independent validator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.figures import Figure
from benchmarks.scheduling.options import Options
from benchmarks.scheduling.workflows import load_all, on_fleet
from benchmarks.turns import say
from services.scheduler.core.planning.portfolio import CLASSICS
from services.scheduler.core.planning.problem import Problem
from services.scheduler.core.planning.validate import check

FLEETS, RATIOS, DRAWS = (4, 16), (0.1, 1.0), 5
PEERS = ("HEFT", "CPOP")


def run(options: Options) -> Iterator[Figure]:
    """Measure every cell, or with `quick` every cell with one draw."""
    workflows = load_all(options.data / "wfinstances")
    draws = 1 if options.quick else DRAWS
    best: list[float] = []
    for workflow in workflows:
        for agents in FLEETS:
            for ratio in RATIOS:
                cell = [_classic_ratio(on_fleet(workflow, agents, ratio, draw)) for draw in range(draws)]
                best.append(_mean(cell))
                say(f"{workflow.name} x {agents}, {ratio}: {best[-1]:.3f} of HEFT")
    params = {"cells": len(best), "draws": draws, "workflows": len(workflows)}
    yield Figure(
        "S1",
        "best of the classic heuristics, makespan against HEFT",
        _mean(best),
        "of HEFT",
        "HEFT",
        1.0,
        more_is_better=False,
        params=params,
    )


def _classic_ratio(problem: Problem) -> float:
    found = {name: planner(problem) for name, planner in CLASSICS.items()}
    for schedule in found.values():
        check(problem, schedule)
    return min(schedule.makespan_ms for schedule in found.values()) / found["HEFT"].makespan_ms


def _mean(values: Sequence[float] | Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))
