"""The Gantt chart of docs/scheduling.md: one workflow on one fleet, planned by HEFT and by us."""

from __future__ import annotations

from pathlib import Path

from agent_client.gantt import Bar, Chart, draw
from benchmarks.scheduling.workflows import load, on_fleet
from services.scheduler.core.planning.arrangement import Arrangement
from services.scheduler.core.planning.lists import heft
from services.scheduler.core.planning.search import plan, steps
from services.scheduler.core.planning.validate import check

_WORKFLOW, _AGENTS, _RATIO, _DRAW = "epigenomics-chameleon-hep-1seq-50k-001", 4, 1.0, 0
_STEPS = 20_000


def gantt(data: Path) -> str:
    """Return the SVG; the same data gives the same picture."""
    workflow = load(data / "wfinstances" / f"{_WORKFLOW}.json")
    problem = on_fleet(workflow, _AGENTS, _RATIO, _DRAW)
    charts = []
    for name, schedule in (("HEFT", heft(problem)), ("Muster", plan(problem, steps(_STEPS)).schedule)):
        check(problem, schedule)
        critical = frozenset(Arrangement(problem, schedule).critical())
        bars = [
            Bar(f"agent {at.agent}", workflow.task_names[task], at.start_ms, at.finish_ms, task in critical)
            for task, at in enumerate(schedule.slots)
        ]
        rows = [f"agent {agent}" for agent in problem.agents]
        charts.append(Chart(f"{name}: {schedule.makespan_ms / 1000:.1f} s", bars, rows))
    return draw(charts)
