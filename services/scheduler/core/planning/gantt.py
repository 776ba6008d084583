"""Draws schedules as one self-contained SVG: a row for each slot, a bar for each task, one axis for all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from services.scheduler.core.planning.arrangement import Arrangement
from services.scheduler.core.planning.problem import Problem
from services.scheduler.core.planning.schedule import Schedule

_WIDTH, _LEFT, _RIGHT = 960, 90, 16
_ROW, _GAP, _TITLE, _AXIS = 18, 4, 26, 26
_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#444}.title{font-weight:600;font-size:13px}"
    ".row{fill:#8881}.task{fill:#6b9bd1}.critical{fill:#d9822b}.axis{stroke:#8886;stroke-width:1}"
    "rect{shape-rendering:crispEdges}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}.row{fill:#fff1}}"
)


@dataclass(frozen=True, slots=True)
class Chart:
    """One schedule to draw, under a title."""

    title: str
    schedule: Schedule
    #: Tasks that are drawn in the second colour.
    marked: Collection[int] = ()


def critical_tasks(problem: Problem, schedule: Schedule) -> list[int]:
    """Return the tasks that decide the makespan: on a chain of data, slots and resources without slack."""
    return Arrangement(problem, schedule).critical()


def draw(
    problem: Problem,
    charts: Sequence[Chart],
    task_names: Sequence[str] | None = None,
    agent_names: Sequence[str] | None = None,
) -> str:
    """Return the SVG. Bars show their task, start and end when pointed at; all charts have one scale."""
    tasks = task_names or [f"task {task}" for task in problem.tasks]
    agents = agent_names or [f"agent {agent}" for agent in problem.agents]
    span_ms = max((chart.schedule.makespan_ms for chart in charts), default=0) or 1
    scale = (_WIDTH - _LEFT - _RIGHT) / span_ms
    rows = [(agent, slot) for agent in problem.agents for slot in range(len(problem.slots_from_ms[agent]))]
    parts, top = list[str](), 0
    for chart in charts:
        parts.append(f'<text class="title" x="{_LEFT}" y="{top + 17}">{_escaped(chart.title)}</text>')
        top += _TITLE
        for index, (agent, slot) in enumerate(rows):
            y = top + index * (_ROW + _GAP)
            name = agents[agent] if len(problem.slots_from_ms[agent]) == 1 else f"{agents[agent]}.{slot}"
            width = _WIDTH - _LEFT - _RIGHT
            parts.append(f'<rect class="row" x="{_LEFT}" y="{y}" width="{width}" height="{_ROW}"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{_escaped(name[:14])}</text>')
        place = {row: top + index * (_ROW + _GAP) for index, row in enumerate(rows)}
        for task, at in enumerate(chart.schedule.slots):
            kind = "critical" if task in chart.marked else "task"
            # A hair of room between neighbours, so that they can be told apart.
            width_px = max(0.6, (at.finish_ms - at.start_ms) * scale - 0.6)
            parts.append(
                f'<rect class="{kind}" x="{_LEFT + at.start_ms * scale:.1f}" y="{place[at.agent, at.slot]}"'
                f' width="{width_px:.1f}" height="{_ROW}"><title>{_escaped(tasks[task])}:'
                f" {at.start_ms}–{at.finish_ms} ms</title></rect>"
            )
        top += len(rows) * (_ROW + _GAP)
    parts += _axis(span_ms, scale, top)
    height = top + _AXIS
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}"'
        f' height="{height}" role="img"><style>{_STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _axis(span_ms: int, scale: float, bottom: int) -> list[str]:
    """Return ticks at 1, 2 or 5 times a power of ten, at most ten of them."""
    step = next(
        factor * 10**power
        for power in range(20)
        for factor in (1, 2, 5)
        if span_ms / (factor * 10**power) <= 10
    )
    parts = []
    for instant in range(0, span_ms + 1, step):
        x = _LEFT + instant * scale
        text = f"{instant / 1000:g} s" if step >= 100 else f"{instant} ms"
        parts.append(f'<line class="axis" x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>')
    return parts
