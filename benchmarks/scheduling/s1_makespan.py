"""Makespan against HEFT on real workflows: 96 cells of workflow, fleet and communication.

A cell is a workflow × {4, 16} agents × communication/computation {0.1, 1}; its ratio is the geometric mean
over the drawn fleets, and the figure is the geometric mean over cells. The budget counts from nothing: the
classic heuristics are part of it. Every schedule passes the independent validator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.figures import Figure, Param
from benchmarks.programs import ROOT
from benchmarks.scheduling import workflows
from benchmarks.scheduling.budget import cpu_seconds
from benchmarks.scheduling.kept import Kept, Values, fingerprint
from benchmarks.scheduling.options import Options
from benchmarks.scheduling.workflows import Workflow, load_all, on_fleet
from benchmarks.turns import say
from services.scheduler.core.planning.portfolio import CLASSICS
from services.scheduler.core.planning.problem import Problem
from services.scheduler.core.planning.search import plan
from services.scheduler.core.planning.validate import check

FLEETS, RATIOS, DRAWS = (4, 16), (0.1, 1.0), 5
# The budget, in seconds for 100 tasks.
SECONDS, SECONDS_QUICK = 2.0, 0.2
PLANNERS = ROOT / "services" / "scheduler" / "core" / "planning"


@dataclass(frozen=True, slots=True)
class Makespans:
    """What one problem took, each as a share of HEFT's."""

    ours: float
    cpop: float
    classics: float
    bound: float


def run(options: Options) -> Iterator[Figure]:
    """Measure every cell; with `quick` on one fleet each, and with a tenth of the budget."""
    seconds = options.seconds or (SECONDS_QUICK if options.quick else SECONDS)
    draws = options.draws or (1 if options.quick else DRAWS)
    code = fingerprint(PLANNERS, Path(workflows.__file__))
    cells: list[Makespans] = []
    for workflow in load_all(options.data / "wfinstances"):
        for agents in FLEETS:
            for ratio in RATIOS:
                found = [
                    _once(options.kept, code, seconds, (workflow, agents, ratio, draw))
                    for draw in range(draws)
                ]
                cells.append(_mean_of(found))
                cell = cells[-1]
                say(
                    f"{workflow.name} × {agents}, {ratio}: {cell.ours:.4f} of HEFT; CPOP {cell.cpop:.4f},"
                    f" best classic {cell.classics:.4f}, nothing below {cell.bound:.4f}"
                )
    params: dict[str, Param] = {
        "cells": len(cells),
        "draws": draws,
        "cpu_seconds_per_100_tasks": seconds,
        "cells_worse_than_HEFT_or_CPOP": sum(cell.ours > min(1.0, cell.cpop) for cell in cells),
        "worst_cell": round(max(cell.ours for cell in cells), 4),
        "best_cell": round(min(cell.ours for cell in cells), 4),
        "lower_bound": round(mean(cell.bound for cell in cells), 4),
        "planner": code,
    }
    ours = mean(cell.ours for cell in cells)
    params["four_digits"] = round(ours, 4)
    rows = {
        "HEFT": 1.0,
        "CPOP": mean(cell.cpop for cell in cells),
        "best of 7 classics": mean(cell.classics for cell in cells),
    }
    for peer, value in rows.items():
        name = "makespan of the plan, geometric mean of cells, as a share of HEFT's"
        yield Figure("S1", name, ours, "of HEFT", peer, value, more_is_better=False, params=params)


def _once(kept: Kept, code: str, seconds: float, case: tuple[Workflow, int, float, int]) -> Makespans:
    workflow, agents, ratio, draw = case

    def measure() -> Values:
        return asdict(measured(on_fleet(workflow, agents, ratio, draw), seconds))

    found = kept.once(("S1", workflow.name, agents, ratio, draw, seconds, code), measure)
    return Makespans(*(float(found[name] or 0) for name in ("ours", "cpop", "classics", "bound")))


def measured(problem: Problem, seconds: float) -> Makespans:
    """Plan one problem, check everything, and compare."""
    found = plan(problem, cpu_seconds(seconds * len(problem.tasks) / 100))
    check(problem, found.schedule)
    classics = {name: planner(problem) for name, planner in CLASSICS.items()}
    for schedule in classics.values():
        check(problem, schedule)
    heft = classics["HEFT"].makespan_ms
    return Makespans(
        found.schedule.makespan_ms / heft,
        classics["CPOP"].makespan_ms / heft,
        min(schedule.makespan_ms for schedule in classics.values()) / heft,
        found.bound_ms / heft,
    )


def mean(values: Iterable[float]) -> float:
    """Return the geometric mean."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def _mean_of(found: list[Makespans]) -> Makespans:
    return Makespans(
        mean(one.ours for one in found),
        mean(one.cpop for one in found),
        mean(one.classics for one in found),
        mean(one.bound for one in found),
    )
