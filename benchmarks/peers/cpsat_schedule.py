"""CP-SAT on scheduling problems: one JSON line in, one out, until the input ends."""

from __future__ import annotations

import json
import sys
from typing import Any

from ortools.sat.python import cp_model


def solve(problem: dict[str, Any]) -> dict[str, Any]:
    """Return the makespan found, the bound proved and the state of the search."""
    durations, model = problem["duration_ms"], cp_model.CpModel()
    horizon = problem["horizon_ms"]
    tasks, agents = range(len(durations)), range(len(durations[0]))
    start = [model.NewIntVar(0, horizon, f"s{t}") for t in tasks]
    end = [model.NewIntVar(0, horizon, f"e{t}") for t in tasks]
    on = [[model.NewBoolVar(f"x{t},{a}") for a in agents] for t in tasks]
    for t in tasks:
        model.AddExactlyOne(on[t])
        model.Add(end[t] == start[t] + sum(durations[t][a] * on[t][a] for a in agents))
    for a in agents:
        model.AddNoOverlap(
            [
                model.NewOptionalIntervalVar(start[t], durations[t][a], end[t], on[t][a], f"i{t},{a}")
                for t in tasks
            ]
        )
    for before, after, delay_ms in problem["dependencies"]:
        model.Add(start[after] >= end[before])
        for a in agents:
            for b in agents:
                if delay_ms[a][b]:
                    model.Add(start[after] >= end[before] + delay_ms[a][b]).OnlyEnforceIf(
                        [on[before][a], on[after][b]]
                    )
    makespan = model.NewIntVar(problem["bound_ms"], horizon, "makespan")
    model.AddMaxEquality(makespan, end)
    for a in agents:
        # Redundant, and what lets it prove more: the work of an agent fits into the makespan.
        model.Add(sum(durations[t][a] * on[t][a] for t in tasks) <= makespan)
    model.Minimize(makespan)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = problem["seconds"]
    solver.parameters.num_workers = problem["workers"]
    state = solver.StatusName(solver.Solve(model))
    found = state in ("OPTIMAL", "FEASIBLE")
    return {
        "state": state,
        "makespan_ms": round(solver.ObjectiveValue()) if found else None,
        "bound_ms": round(solver.BestObjectiveBound()),
        "seconds": solver.WallTime(),
    }


def main() -> None:
    """Answer every line."""
    for line in sys.stdin:
        print(json.dumps(solve(json.loads(line))), flush=True)


main()
