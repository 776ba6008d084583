"""What an agent says about its attempts: started, progress, result. Only the current token counts."""

from __future__ import annotations

from collections.abc import Collection

from services.common.core.entries import Outcome
from services.scheduler.core.book import Step
from services.scheduler.core.changes import Progress
from services.scheduler.core.course import Attempt, Task
from services.scheduler.core.effects import AckResult, CancelAttempt, Publish
from services.scheduler.core.events import Cancelled, ProgressReport, ResultReport, StreamId, Suspended
from services.scheduler.core.instances import Instance
from services.scheduler.core.model import AttemptRef, AttemptState, Failure, Payload
from services.scheduler.core.prediction import learning
from services.scheduler.core.refusals import stale_token
from services.scheduler.core.running import attempts, outcomes, savepoints


def start(
    step: Step, instance: Instance, stream: StreamId, ref: AttemptRef, ended: Collection[AttemptRef]
) -> None:
    """The handler of an attempt runs, or ran if it is among `ended`; a void one is asked to stop."""
    current = _current(instance, ref)
    if current is None:
        step.effects.append(CancelAttempt(stream, ref, "this attempt is no longer the current one"))
        return
    attempts.start(step, *current, ended=ref in ended)


def progress(step: Step, instance: Instance, report: ProgressReport) -> None:
    """Note how far an attempt is; what a void one says is passed over."""
    current = _current(instance, report.attempt)
    if current is None:
        return
    task, _ = current
    task.progress, task.stage = report.progress, report.stage
    number = report.attempt.token.number
    step.effects.append(Publish(Progress(*task.key, number, report.progress, report.stage, step.now)))


def result(step: Step, instance: Instance, stream: StreamId, report: ResultReport) -> None:
    """Commit how an attempt ended, and ack; refuse what a void token says (guarantees T2, T3)."""
    ref, outcome = report.attempt, report.outcome
    current = _current(instance, ref)
    if current is None:
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
    task, attempt = current
    # An attempt that went on from a savepoint says nothing of how long the task takes.
    whole = attempt.token.number == 1 or task.savepoint is None
    match outcome:
        case Payload():
            ended = outcomes.succeed(step, task, attempt, outcome)
            if whole:
                learning.learn(step, task, ended)
        case Failure():
            outcomes.fail(step, task, attempt, outcome)
            learning.learn(step, task, task.find(ref.token) or attempt)
        case Suspended(saved):
            savepoints.keep(step, task, attempt, saved)
            _stopped(step, task, attempt)
        case Cancelled():
            _stopped(step, task, attempt)
    step.effects.append(AckResult(stream, ref, None))


def _stopped(step: Step, task: Task, attempt: Attempt) -> None:
    """The agent stopped an attempt without a result: it was asked to make room, or it gives it back."""
    if attempt.state is AttemptState.SUSPENDING:
        outcomes.suspend(step, task, attempt)
    else:
        outcomes.give_back(step, task, attempt)


def _current(instance: Instance, ref: AttemptRef) -> tuple[Task, Attempt] | None:
    """Return the task and its open attempt that `instance` holds under exactly this token."""
    task = instance.held.get(ref.task_key)
    attempt = None if task is None else task.at(instance.key)
    return None if task is None or attempt is None or attempt.token != ref.token else (task, attempt)


def _repeated(step: Step, instance: Instance, report: ResultReport) -> bool:
    """Return whether this outcome was committed before: its ack was lost, and the agent says it again."""
    task = step.book.task(report.attempt)
    if task is None:
        return False
    attempt = task.find(report.attempt.token)
    if attempt is None or attempt.instance != instance.key:
        return False
    match report.outcome:
        case Payload():
            return attempt.state is AttemptState.SUCCEEDED
        case Failure():
            return attempt.state is AttemptState.FAILED
        case Cancelled() | Suspended():
            return attempt.state in (AttemptState.CANCELLED, AttemptState.SUSPENDED)
