"""The classic heuristics side by side, and the best that one of them finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from services.scheduler.core.planning import lists, waves
from services.scheduler.core.planning.problem import Problem
from services.scheduler.core.planning.schedule import Schedule

Planner = Callable[[Problem], Schedule]

#: Name -> planner; of equally good schedules the first one's is kept.
CLASSICS: Mapping[str, Planner] = {
    "HEFT": lists.heft,
    "CPOP": lists.cpop,
    "PEFT": lists.peft,
    "MinMin": waves.min_min,
    "MaxMin": waves.max_min,
    "Sufferage": waves.sufferage,
    "FastestNode": lists.fastest_agent,
}


def best_of_classics(problem: Problem) -> Schedule:
    """Return the schedule of the shortest makespan that a classic heuristic finds."""
    return min((planner(problem) for planner in CLASSICS.values()), key=lambda found: found.makespan_ms)
