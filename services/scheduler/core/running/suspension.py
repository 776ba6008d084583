"""An attempt makes room for more urgent work: it is asked to save and stop, and its slot is used at once.

The order of commits. The attempt is SUSPENDING, and what gets its slot is assigned, in one commit: both go
out together, and a leader that dies before it has told nobody anything. From then on
  - the agent reports Suspended, with or without a savepoint: committed, then acked; the task is SUSPENDED;
  - or a result or failure, which counts as if nothing had been asked: it came before the suspension;
  - or nothing in time: the attempt is fenced, and what was not saved is lost. What it reports later is
    refused with STALE_FENCING_TOKEN.
A new leader finds the attempt SUSPENDING, asks again as soon as the agent is linked, and counts the grace
anew; an agent that dies loses the attempt like any other, and the task goes on from its newest savepoint.
"""

from __future__ import annotations

from services.common.core.instants import Instant, after
from services.scheduler.core.book import Step
from services.scheduler.core.course import Attempt, Task
from services.scheduler.core.effects import SuspendAttempt
from services.scheduler.core.instances import Instance
from services.scheduler.core.machine import ATTEMPT, AttemptInput
from services.scheduler.core.running import outcomes
from services.scheduler.core.timers import TimerKind


def ask(step: Step, task: Task, attempt: Attempt, instance: Instance, why: str) -> None:
    """Ask a linked agent to save and stop an attempt; its slot may be assigned from now on."""
    until = after(step.now, step.book.settings.suspend_grace_ms)
    state = ATTEMPT.next(task.key, attempt.state, AttemptInput.ASK_SUSPEND)
    attempt = attempt._replace(state=state, suspend_time=until)
    task.replace(attempt)
    step.book.victims.put(task, attempt, instance)
    _watch(step, task, attempt, until)
    step.task_changed(task)
    _tell(step, task, attempt, instance, why)


def ask_again(step: Step, task: Task, attempt: Attempt, instance: Instance) -> None:
    """Repeat the request on a new link: it may not have been heard, and slots are counted anew."""
    _tell(step, task, attempt, instance, "it was asked before the link broke")


def watch_again(step: Step, task: Task, attempt: Attempt) -> None:
    """Count the grace anew under a new leader; `gone_grace_ms` more, in which its agent may come back."""
    settings = step.book.settings
    until = after(step.now, settings.suspend_grace_ms + settings.gone_grace_ms)
    attempt = attempt._replace(suspend_time=until)
    task.replace(attempt)
    _watch(step, task, attempt, until)


def take_away(step: Step, subject: tuple[Task, int]) -> None:
    """The grace is over: the attempt is fenced."""
    task, number = subject
    attempt = next(each for each in task.open_attempts if each.token.number == number)
    outcomes.suspend(step, task, attempt, "it did not stop within its grace")


def _watch(step: Step, task: Task, attempt: Attempt, until: Instant) -> None:
    number = attempt.token.number
    step.book.timers.cancel(task.watches.get(number))
    task.watches[number] = step.book.timers.set(until, TimerKind.SUSPEND_GRACE, (task, number))


def _tell(step: Step, task: Task, attempt: Attempt, instance: Instance, why: str) -> None:
    if instance.stream is None or attempt.suspend_time is None:
        return
    if not instance.draining:
        instance.credits += 1
    step.book.index.touch(instance)
    left_ms = max(0, attempt.suspend_time - step.now)
    step.effects.append(SuspendAttempt(instance.stream, task.ref(attempt), why, left_ms))
