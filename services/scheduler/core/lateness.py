"""When a task will end as far as can be predicted, and who is told when that is too late."""

from __future__ import annotations

from services.common.core.instants import Instant
from services.scheduler.core.book import Book
from services.scheduler.core.course import Task
from services.scheduler.core.model import TaskState


def predicted_end(book: Book, task: Task, now: Instant) -> Instant:
    """Return when a task that has not ended will end at the earliest, without any waiting.

    One that runs goes on from its start; another needs its whole duration, after the slowest open chain of
    what it depends on.
    """
    if (newest := task.current) is not None:
        begun = newest.assign_time if newest.start_time is None else newest.start_time
        return max(now, Instant(begun + duration_ms(book, task)))
    start = now
    if task.state is TaskState.PENDING:
        start = _dependencies_end(book, task, now)
    elif task.retry_time is not None:
        start = max(now, task.retry_time)
    return Instant(start + duration_ms(book, task))


def duration_ms(book: Book, task: Task) -> int:
    """Return how long a task is predicted to take where it runs, or as it declares."""
    estimate, spec = book.index.pools.estimate, task.spec
    newest = task.current
    if estimate is None or newest is None:
        return spec.estimated_duration_ms
    task_type = spec.task_type or spec.required_skills[0]
    return max(1, round(estimate(newest.instance.agent_id, task_type, spec.estimated_duration_ms)))


def _dependencies_end(book: Book, task: Task, now: Instant) -> Instant:
    """Return when the last open dependency will have ended; every task of the chain is looked at once."""
    tasks = task.collaboration.tasks
    ends: dict[str, Instant] = {}
    walk = [task]
    while walk:
        last = walk[-1]
        waits = [tasks[name] for name in last.spec.dependencies if name not in ends and not tasks[name].ended]
        if waits and last.state is TaskState.PENDING:
            walk += waits
            continue
        walk.pop()
        if last is task or last.key.task_id in ends:
            continue
        if last.state is TaskState.PENDING:
            begin = max((ends[name] for name in last.spec.dependencies if name in ends), default=now)
            ends[last.key.task_id] = Instant(begin + duration_ms(book, last))
        else:
            ends[last.key.task_id] = predicted_end(book, last, now)
    return max((ends[name] for name in task.spec.dependencies if name in ends), default=now)
