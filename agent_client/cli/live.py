"""A collaboration as it goes: a display that redraws itself on a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agent_client.cli.output import Output, clock, visible
from agent_client.views import CollaborationInfo, DeadlineWarning, Gap, Progress, TaskInfo
from agent_client.watching import Event

STYLES = {
    "PENDING": "dim",
    "READY": "yellow",
    "ASSIGNED": "cyan",
    "RUNNING": "cyan bold",
    "SUSPENDED": "yellow bold",
    "SUCCEEDED": "green",
    "COMPLETED": "green bold",
    "FAILED": "red bold",
    "CANCELLED": "magenta",
}
BAR_WIDTH = 16


class LiveView:
    """Shows the events of one collaboration: `with LiveView(output) as view: view.show(event)`."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._collaboration: CollaborationInfo | None = None
        self._tasks: dict[str, TaskInfo] = {}
        self._progress: dict[str, Progress] = {}
        self._warnings: dict[str, DeadlineWarning] = {}
        self._live = Live(console=output.console, auto_refresh=False) if output.live else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, event: Event) -> None:
        """Show one event."""
        match event.change:
            case CollaborationInfo():
                self._collaboration = event.change
                self._warnings = {warning.task_id: warning for warning in event.change.warnings}
            case TaskInfo():
                self._tasks[event.change.id] = event.change
                self._progress.pop(event.change.id, None)
            case Progress():
                self._progress[event.change.task_id] = event.change
            case DeadlineWarning(task_id=whose):
                self._warnings.pop(whose, None)
                if event.change.stands:
                    self._warnings[whose] = event.change
            case Gap():
                self._tasks.clear()
        if self._live is not None:
            self._live.update(self._picture(), refresh=True)
        elif self._output.as_json:
            self._output.json(_plain(event))
        else:
            text = _line(event)
            if text:
                self._output.line(text)

    def _picture(self) -> RenderableType:
        head = Text()
        if self._collaboration is not None:
            state = self._collaboration.state
            head.append(f"{self._collaboration.name}  ", style="bold")
            head.append(state, style=STYLES.get(state, ""))
            done = sum(task.state == "SUCCEEDED" for task in self._tasks.values())
            head.append(f"  {done}/{self._collaboration.task_count} tasks")
        table = Table(box=None, pad_edge=False)
        for column in ("TASK", "STATE", "AGENT", "", "STAGE"):
            table.add_column(column)
        for task in self._tasks.values():
            report = self._progress.get(task.id)
            share = 1.0 if task.state == "SUCCEEDED" else report.fraction if report else task.progress
            stage = report.stage if report else task.waiting_for or task.stage
            table.add_row(
                task.id,
                Text(task.state, style=STYLES.get(task.state, "")),
                task.agent + (f" (try {task.attempt_number})" if task.attempt_number > 1 else ""),
                ProgressBar(total=1.0, completed=share, width=BAR_WIDTH),
                Text(visible(stage), style="dim"),
            )
        late = [Text(f"late: {_deadline(each)}", style="yellow bold") for each in self._warnings.values()]
        return Group(head, table, *late)


def _line(event: Event) -> str:
    at = clock(event.time)
    match event.change:
        case CollaborationInfo() as change:
            why = f"  {change.failure}" if change.failure else ""
            return f"{at}  {change.state:<12} {change.name}{why}"
        case TaskInfo() as change:
            who = f"by {change.agent}" if change.agent else change.waiting_for
            again = f" (try {change.attempt_number})" if change.attempt_number > 1 else ""
            why = f"  {change.failure}" if change.failure else ""
            return f"{at}  {change.state:<12} {change.id:<22} {who}{again}{why}".rstrip()
        case DeadlineWarning() as change:
            return f"{at}  {'LATE' if change.stands else 'IN TIME':<12} {_deadline(change)}"
        case Gap() as change:
            return f"{at}  events up to generation {change.to_generation} are no longer kept"
        case _:
            # Progress would drown what matters where lines are not redrawn.
            return ""


def _deadline(warning: DeadlineWarning) -> str:
    whose = f"task {warning.task_id}" if warning.task_id else "the collaboration"
    if not warning.stands:
        return f"{whose} is predicted to meet its deadline {clock(warning.deadline)} after all"
    return (
        f"{whose} is predicted to end at {clock(warning.predicted_end)}, after its deadline "
        f"{clock(warning.deadline)}, because of {warning.cause_task_id}"
    )


def _plain(event: Event) -> dict[str, object]:
    base: dict[str, object] = {
        "collaboration_id": event.collaboration_id,
        "generation": event.generation,
        "time": None if event.time is None else event.time.isoformat(),
    }
    match event.change:
        case CollaborationInfo() as change:
            return {**base, "collaboration": change.to_dict()}
        case TaskInfo() as change:
            return {**base, "task": change.to_dict()}
        case Progress() as change:
            report = {"task_id": change.task_id, "progress": change.fraction, "stage": change.stage}
            return {**base, "progress": report}
        case DeadlineWarning() as change:
            return {**base, "deadline_warning": change.to_dict()}
        case _:
            return {**base, "gap": True}
