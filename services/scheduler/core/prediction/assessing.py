"""What people and services say about a result, and what is learned from it."""

from __future__ import annotations

from services.common.core.entries import Outcome
from services.common.core.errors import Reason, ServiceError
from services.scheduler.core.book import Step
from services.scheduler.core.effects import Answer
from services.scheduler.core.events import AssessRequested
from services.scheduler.core.model import AttemptState, TaskState
from services.scheduler.core.prediction import learning
from services.scheduler.core.queries import find_task


def assess(step: Step, event: AssessRequested) -> None:
    """Learn how good a result is: from whoever may say so, about a task that has succeeded."""
    try:
        task = find_task(step.book, event.collaboration_id, event.task_id)
        if task.state is not TaskState.SUCCEEDED:
            raise ServiceError(
                Reason.WRONG_STATE,
                f"task {task.key} has no result that could be assessed",
                metadata={"state": task.state.name},
            )
    except ServiceError as error:
        subject = f"task/{event.collaboration_id}/{event.task_id}"
        step.entry("task.assess", subject, event.actor, outcome=Outcome.REFUSED, reason=error.reason)
        step.effects.append(Answer(event.reply, error))
        return
    winner = next(each for each in reversed(task.attempts) if each.state is AttemptState.SUCCEEDED)
    agent_id = winner.instance.agent_id
    step.book.predictor.judged(agent_id, learning.learned_type(step, task), event.score, step.now)
    learning.save_later(step)
    step.entry(
        "task.assess",
        f"task/{task.key}",
        event.actor,
        collaboration_id=task.key.collaboration_id,
        cause_id=str(task.ref(winner)),
        attributes={"score": f"{event.score:.3f}", "agent": agent_id, "why": event.comment},
    )
    step.effects.append(Answer(event.reply, task.collaboration))
