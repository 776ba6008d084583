"""Where a ready task waits: the placement index, the lock table, its retry delay or a pause; never in two."""

from __future__ import annotations

from services.common.core.instants import Instant
from services.scheduler.core.book import Settings, Step
from services.scheduler.core.course import Place, Task
from services.scheduler.core.model import CollaborationState, SchedulingPolicy
from services.scheduler.core.running import lateness
from services.scheduler.core.timers import TimerKind


def enter_queue(step: Step, task: Task) -> None:
    """Let a task wait for an agent, or for its collaboration to be resumed when that is paused."""
    if task.collaboration.state is CollaborationState.SUSPENDED:
        task.place = Place.PAUSE
        lateness.watch(step, task)
        return
    task.place = Place.QUEUE
    book = step.book
    if task.demand.style.policy is SchedulingPolicy.PREDICTIVE and may_wait(task, book.settings):
        book.foresight.park(task, book.index)
    else:
        book.index.add_task(task)
    if task.priority <= step.book.settings.preempting_priority and task.spec.gang is None:
        step.book.urgent[task.key] = task
    lateness.watch(step, task)


def enter_delay(step: Step, task: Task, until: Instant) -> None:
    """Let a task wait until an instant, then for an agent."""
    task.place = Place.DELAY
    task.retry_time = until
    task.timer = step.book.timers.set(until, TimerKind.RETRY, task)
    lateness.watch(step, task)


def enter_locks(step: Step, task: Task) -> None:
    """Let a task that waits for an agent wait for its claims instead."""
    _leave_queue(step, task)
    task.place = Place.LOCKS


def leave(step: Step, task: Task) -> None:
    """Let a task wait nowhere; its lock request is the caller's business."""
    if task.place is Place.QUEUE:
        _leave_queue(step, task)
    elif task.place is Place.DELAY:
        step.book.timers.cancel(task.timer)
        task.timer = None
        task.retry_time = None
    task.place = Place.NOWHERE


def may_wait(task: Task, settings: Settings) -> bool:
    """Return whether a task may wait for a better agent at all.

    Not one that may take others' slots, not a gang's member, which waits for its gang, and not one with
    claims: what it claims would wait with it.
    """
    spec = task.spec
    return task.priority > settings.preempting_priority and spec.gang is None and not spec.resources


def _leave_queue(step: Step, task: Task) -> None:
    book = step.book
    if task.demand.style.policy is SchedulingPolicy.PREDICTIVE:
        if not book.foresight.unpark(task, book.index):
            book.index.remove_task(task)
        book.foresight.forget(task, book.timers)
    else:
        book.index.remove_task(task)
    book.urgent.pop(task.key, None)
