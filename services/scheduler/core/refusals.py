"""The errors that more than one decision gives."""

from __future__ import annotations

from services.common.core.entries import Outcome
from services.common.core.errors import Reason, ServiceError
from services.scheduler.core.book import Book, Step
from services.scheduler.core.course import Collaboration
from services.scheduler.core.effects import Answer
from services.scheduler.core.events import CancelRequested, PauseRequested, ResumeRequested
from services.scheduler.core.model import AttemptRef, CollaborationState

Order = CancelRequested | PauseRequested | ResumeRequested


def stale_token(book: Book, ref: AttemptRef) -> ServiceError:
    """Return the error for an attempt that may not act (any more): who holds the newest token, and which."""
    if ref.collaboration_id not in book.collaborations:
        return ServiceError(
            Reason.COLLABORATION_NOT_FOUND,
            f"collaboration {ref.collaboration_id} is not known (any more): drop this attempt",
        )
    task = book.task(ref)
    if task is None:
        return ServiceError(
            Reason.TASK_NOT_FOUND,
            f"collaboration {ref.collaboration_id} has no task {ref.task_id}: drop this attempt",
        )
    newest = task.newest
    holder = "" if newest is None else str(newest.instance)
    token = "" if newest is None else str(newest.token)
    return ServiceError(
        Reason.STALE_FENCING_TOKEN,
        f"attempt {ref} is not the current one: drop it",
        metadata={"holder": holder, "token": token},
    )


def ordered(
    step: Step, event: Order, operation: str, nothing: str, *, repeated: CollaborationState | None = None
) -> Collaboration | None:
    """Return the collaboration that an order is about; refuse the order and return None if it cannot be.

    It is unknown, or it has ended: then the error says that there is `nothing` to do, unless it ended in the
    state `repeated`, which is what the order wants.
    """
    name = event.collaboration_id
    collaboration = step.book.collaborations.get(name)
    if collaboration is None:
        error = ServiceError(Reason.COLLABORATION_NOT_FOUND, f"collaboration {name} is not known (any more)")
    elif collaboration.ended and collaboration.state is not repeated:
        error = ServiceError(
            Reason.WRONG_STATE,
            f"collaboration {name} has ended: {nothing}",
            metadata={"state": collaboration.state.name},
        )
    else:
        return collaboration
    step.entry(operation, f"collaboration/{name}", event.actor, outcome=Outcome.REFUSED, reason=error.reason)
    step.effects.append(Answer(event.reply, error))
    return None
