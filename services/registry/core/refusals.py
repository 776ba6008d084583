"""Why a session is not opened or a link is ended, each with what to do next."""

from __future__ import annotations

from services.common.core.errors import Reason, ServiceError
from services.registry.core.model import Limits
from services.registry.core.sessions import Session


def fenced(session: Session, incarnation: int) -> ServiceError:
    """A newer incarnation of the instance is live."""
    return ServiceError(
        Reason.INCARNATION_FENCED,
        f"{session.subject} runs as incarnation {incarnation} now, this is {session.incarnation}; stop this "
        "process, or give each copy an instance_id of its own",
        metadata={"incarnation": str(incarnation)},
    )


def superseded(session: Session) -> ServiceError:
    """The session went on over a newer link."""
    return ServiceError(
        Reason.PEER_SILENT, f"{session.subject} resumed its session over a newer stream; this one is closed"
    )


def lost(session: Session, limits: Limits) -> ServiceError:
    """The lease ended."""
    return ServiceError(
        Reason.PEER_SILENT,
        f"no heartbeat of {session.subject} for {limits.lease_ttl_ms} ms, so it was declared lost; open a "
        "new session",
    )


def gone(session: Session) -> ServiceError:
    """The store says that the session is over, or knows nothing of it."""
    return ServiceError(
        Reason.PEER_SILENT, f"the session of {session.subject} was ended elsewhere; open a new session"
    )


def misnumbered(expected: int, given: int) -> ServiceError:
    """A heartbeat came out of order."""
    return ServiceError(
        Reason.MALFORMED_FRAME,
        f"heartbeat.sequence_number is {given}, expected {expected}: number the heartbeats of each stream "
        "1, 2, 3 …",
    )


def too_often(limits: Limits) -> ServiceError:
    """Heartbeats came faster than they may."""
    return ServiceError(
        Reason.QUOTA_EXCEEDED,
        f"more than {limits.heartbeats_per_second_max} heartbeats a second; keep to the welcome's "
        "heartbeat_interval, then resume",
        metadata={"limit": "heartbeats_per_second_max"},
        retry_after_ms=1_000,
    )


def too_many(limit: str, value: int, *, retry_after_ms: int) -> ServiceError:
    """A bound of this registry is reached."""
    return ServiceError(
        Reason.QUOTA_EXCEEDED,
        f"this registry holds {value}, the most that its setting {limit} allows; try another replica, "
        "or later",
        metadata={"limit": limit},
        retry_after_ms=retry_after_ms,
    )


def store_failed(message: str) -> ServiceError:
    """The commit of an open had no answer."""
    return ServiceError(
        Reason.STORE_UNAVAILABLE, f"the session may not be open: {message}", retry_after_ms=1_000
    )
