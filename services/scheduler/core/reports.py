"""What an agent says about its attempts: started, progress, result. Only the current token counts."""

from __future__ import annotations

from collections.abc import Collection

from services.common.core.entries import Outcome
from services.scheduler.core import attempts, learning, outcomes
from services.scheduler.core.book import Step
from services.scheduler.core.course import Attempt, Progress, Task
from services.scheduler.core.effects import AckResult, CancelAttempt, Publish
from services.scheduler.core.events import Cancelled, ProgressReport, ResultReport, StreamId
from services.scheduler.core.instances import Instance
from services.scheduler.core.model import AttemptRef, AttemptState, Failure, Payload
from services.scheduler.core.refusals import stale_token


def start(
    step: Step, instance: Instance, stream: StreamId, ref: AttemptRef, ended: Collection[AttemptRef]
) -> None:
    """The handler of an attempt runs, or ran if it is among `ended`; a void one is asked to stop."""
    task = _current(instance, ref)
    if task is None:
        step.effects.append(CancelAttempt(stream, ref, "this attempt is no longer the current one"))
        return
    attempts.start(step, task, task.attempts[-1], ended=ref in ended)


def progress(step: Step, instance: Instance, report: ProgressReport) -> None:
    """Note how far an attempt is; what a void one says is passed over."""
    task = _current(instance, report.attempt)
    if task is None:
        return
    task.progress, task.stage = report.progress, report.stage
    number = report.attempt.token.number
    step.effects.append(Publish(Progress(*task.key, number, report.progress, report.stage, step.now)))


def result(step: Step, instance: Instance, stream: StreamId, report: ResultReport) -> None:
    """Commit how an attempt ended, and ack; refuse what a void token says (guarantees T2, T3)."""
    ref, outcome = report.attempt, report.outcome
    task = _current(instance, ref)
    if task is None:
        error = None if _repeated(step, instance, report) else stale_token(step.book, ref)
        if error is not None:
            step.entry(
                "task.succeed" if isinstance(outcome, Payload) else "task.fail",
                f"task/{ref.collaboration_id}/{ref.task_id}",
                f"agent/{instance.key.agent_id}",
                outcome=Outcome.REFUSED,
                reason=error.reason,
                collaboration_id=ref.collaboration_id,
                cause_id=str(ref),
            )
        step.effects.append(AckResult(stream, ref, error))
        return
    if isinstance(outcome, Payload):
        outcomes.succeed(step, task, task.attempts[-1], outcome)
        learning.learn(step, task, task.attempts[-1])
    elif isinstance(outcome, Failure):
        outcomes.fail(step, task, outcome)
        learning.learn(step, task, task.attempts[-1])
    else:
        outcomes.give_back(step, task)
    step.effects.append(AckResult(stream, ref, None))


def _current(instance: Instance, ref: AttemptRef) -> Task | None:
    """Return the task of which `instance` holds the current attempt under exactly this token."""
    task = instance.held.get(ref.task_key)
    return task if task is not None and task.attempts[-1].token == ref.token else None


def _repeated(step: Step, instance: Instance, report: ResultReport) -> bool:
    """Return whether this outcome was committed before: its ack was lost, and the agent says it again."""
    task = step.book.task(report.attempt)
    if task is None:
        return False
    attempt = _find(task, report.attempt)
    if attempt is None or attempt.instance != instance.key:
        return False
    match report.outcome:
        case Payload():
            return attempt.state is AttemptState.SUCCEEDED
        case Failure():
            return attempt.state is AttemptState.FAILED
        case Cancelled():
            return attempt.state is AttemptState.CANCELLED


def _find(task: Task, ref: AttemptRef) -> Attempt | None:
    return next((attempt for attempt in reversed(task.attempts) if attempt.token == ref.token), None)
