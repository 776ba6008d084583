"""What the registry tells the audit log of each operation on sessions."""

from __future__ import annotations

from services.common.core.entries import EntryDraft, Outcome
from services.common.core.errors import Reason
from services.common.core.ids import AgentId
from services.common.core.instants import Instant
from services.registry.core.model import AgentState
from services.registry.core.sessions import Session
from services.registry.core.slot import Opening

REGISTRY = "service/registry"


def opened(opening: Opening, now: Instant) -> EntryDraft:
    """A session was opened or resumed."""
    session = opening.session
    return EntryDraft(
        now,
        f"agent/{session.agent_id}",
        "session.resume" if opening.resumed else "session.open",
        session.subject,
        cause_id=opening.pending.cause,
        attributes={
            "incarnation": str(session.incarnation),
            "reconnects": str(session.reconnects),
            "skills": " ".join(skill.name for skill in session.skills),
        },
    )


def fenced(opening: Opening, now: Instant) -> EntryDraft:
    """An incarnation ended because a newer one opened."""
    return EntryDraft(
        now,
        REGISTRY,
        "session.fenced",
        opening.session.subject,
        cause_id=opening.pending.cause,
        attributes={
            "incarnation": str(opening.fenced_incarnation),
            "newer_incarnation": str(opening.session.incarnation),
        },
    )


def ended(session: Session, cause: str, now: Instant) -> EntryDraft:
    """A session ended by farewell or by silence."""
    farewell = session.state is AgentState.OFFLINE
    return EntryDraft(
        now,
        f"agent/{session.agent_id}" if farewell else REGISTRY,
        "session.close" if farewell else "session.lost",
        session.subject,
        cause_id=cause,
        attributes={"incarnation": str(session.incarnation)},
    )


def refused(agent_id: AgentId, instance_id: str, reason: Reason, cause: str, now: Instant) -> EntryDraft:
    """A session was not opened."""
    subject = f"agent/{agent_id}/{instance_id[:64]}" if instance_id else f"agent/{agent_id}"
    return EntryDraft(
        now, f"agent/{agent_id}", "session.open", subject, Outcome.REFUSED, reason, cause_id=cause
    )
