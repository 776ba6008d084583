"""Pages of collaborations: what a list asks for, and how much of it one answer holds."""

from __future__ import annotations

from collections.abc import Iterator

from muster.scheduler.v1 import scheduler_service_pb2 as pb

from services.common.core.errors import invalid
from services.scheduler.core.course import Collaboration
from services.scheduler.core.model import CollaborationState
from services.scheduler.wire import views

_DEFAULT = 100
_MAX = 1_000
#: A page is not begun anew after this many bytes: with the largest collaboration it stays below 4 MiB.
_BYTES = 512 * 1024


def size_of(request: pb.ListCollaborationsRequest) -> int:
    """Return how many collaborations are asked for; raises INVALID_FIELD."""
    size = request.page.page_size or _DEFAULT
    if size > _MAX:
        raise invalid("page.page_size", f"is {size}: ask for at most {_MAX}")
    return size


def states(request: pb.ListCollaborationsRequest) -> frozenset[CollaborationState]:
    """Return the states that are asked for, none for all; raises INVALID_FIELD."""
    try:
        return frozenset(CollaborationState(number) for number in request.states)
    except ValueError as error:
        raise invalid("states", f"{error}: use states that the proto names") from error


def before(token: str) -> int | None:
    """Return the arrival that a page token names, None for the first page; raises INVALID_FIELD."""
    if not token:
        return None
    if not token.isascii() or not token.isdigit():
        raise invalid("page.page_token", "is not one that this service gave: leave it empty to begin anew")
    return int(token)


def page(found: Iterator[Collaboration], size: int) -> pb.ListCollaborationsResponse:
    """Return up to `size` collaborations, fewer when they are large, and where to go on."""
    response = pb.ListCollaborationsResponse()
    size_bytes = arrival = 0
    for collaboration in found:
        if len(response.collaborations) == size or size_bytes > _BYTES:
            response.page.next_page_token = str(arrival)
            break
        message = views.collaboration_message(collaboration.view())
        size_bytes += message.ByteSize()
        arrival = collaboration.arrival
        response.collaborations.append(message)
    return response
