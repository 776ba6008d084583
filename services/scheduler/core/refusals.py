"""The errors that more than one decision gives."""

from __future__ import annotations

from services.common.core.errors import Reason, ServiceError
from services.scheduler.core.book import Book
from services.scheduler.core.model import AttemptRef


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
