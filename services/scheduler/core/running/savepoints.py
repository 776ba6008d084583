"""Savepoints: from where another attempt of a task could go on, as its handler says while it runs.

The newest one of a task counts, whichever attempt saved it and whatever becomes of that attempt. What is in
it is its handler's business, so that of two attempts side by side (`speculation`) the one that saved last
counts, which need not be the one that is further: when both are lost, what is done again may be more by the
distance between them. That is rare and bounded by one attempt's work, and no rule by attempt numbers avoids
it: the second one may have begun from an older savepoint than the first one writes next. It is kept
with the task's record and is handed to the next attempt's agent; it goes when the task ends. An agent has one
savepoint per attempt on its way at most, so that what it may cost is bounded by `savepoint_interval_ms`: one
that comes earlier waits, in memory and not acked, until its turn.
"""

from __future__ import annotations

from services.common.core.instants import after
from services.scheduler.core.book import Step
from services.scheduler.core.course import Attempt, Savepoint, Task
from services.scheduler.core.effects import AckSavepoint
from services.scheduler.core.events import SavepointReport, StreamId
from services.scheduler.core.instances import Instance
from services.scheduler.core.model import Payload
from services.scheduler.core.refusals import stale_token
from services.scheduler.core.timers import TimerKind


def save(step: Step, instance: Instance, stream: StreamId, report: SavepointReport) -> None:
    """Take in a savepoint, and ack it when it is durable; refuse what a void token says (guarantee T2)."""
    ref = report.attempt
    task = instance.held.get(ref.task_key)
    attempt = None if task is None else task.at(instance.key)
    if task is None or attempt is None or attempt.token != ref.token:
        step.effects.append(AckSavepoint(stream, ref, stale_token(step.book, ref)))
        return
    before = task.savepoint
    if attempt.token.number not in task.savepoint_unacked:
        task.savepoint_unacked += (attempt.token.number,)
    keep(step, task, attempt, report.savepoint)
    if task.savepoint_timer is not None:
        return
    if before is not None:
        due = after(before.save_time, step.book.settings.savepoint_interval_ms)
        if due > step.now:
            task.savepoint_timer = step.book.timers.set(due, TimerKind.SAVEPOINT, task)
            return
    settle(step, task)


def keep(step: Step, task: Task, attempt: Attempt, payload: Payload | None) -> None:
    """Let the task's next attempt begin from `payload`; None changes nothing. The caller makes it durable."""
    if payload is None:
        return
    task.savepoint = Savepoint(attempt.token.number, step.now, payload)
    instance = step.book.instance_of(attempt)
    if instance is not None:
        # Less would be lost now if this attempt made room for another.
        step.book.victims.put(task, attempt, instance)


def settle(step: Step, task: Task) -> None:
    """Make the newest savepoint durable, and tell the agents that wait for one."""
    task.savepoint_timer = None
    step.task_changed(task)
    acknowledge(step, task)


def acknowledge(step: Step, task: Task) -> None:
    """Tell the agents that wait for a savepoint that it is durable; the caller makes it so.

    Of two attempts side by side both are told: what the later one saved counts for both.
    """
    unacked, task.savepoint_unacked = task.savepoint_unacked, ()
    for attempt in task.open_attempts:
        instance = step.book.instance_of(attempt)
        if attempt.token.number in unacked and instance is not None and instance.stream is not None:
            step.effects.append(AckSavepoint(instance.stream, task.ref(attempt), None))
