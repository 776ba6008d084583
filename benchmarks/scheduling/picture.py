"""The Gantt chart of docs/scheduling.md: one workflow on one fleet, planned by HEFT and by us."""

from __future__ import annotations

from pathlib import Path

from benchmarks.scheduling.workflows import load, on_fleet
from services.scheduler.core.planning.gantt import Chart, critical_tasks, draw
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
        title = f"{name}: {schedule.makespan_ms / 1000:.1f} s"
        charts.append(Chart(title, schedule, frozenset(critical_tasks(problem, schedule))))
    return draw(problem, charts, workflow.task_names)
