"""What the registry tells the audit log of each operation on sessions."""

from __future__ import annotations

from services.common.core.errors import Reason
from services.common.core.ids import AgentId
from services.registry.core.effects import Note
from services.registry.core.model import AgentState
from services.registry.core.sessions import Session
from services.registry.core.slot import Opening

REGISTRY = "service/registry"


def opened(opening: Opening) -> Note:
    """A session was opened or resumed."""
    session = opening.session
    return Note(
        "session.resume" if opening.resumed else "session.open",
        f"agent/{session.agent_id}",
        session.subject,
        opening.pending.cause,
        attributes={
            "incarnation": str(session.incarnation),
            "reconnects": str(session.reconnects),
            "skills": " ".join(skill.name for skill in session.skills)[:1_024],
        },
    )


def fenced(opening: Opening) -> Note:
    """An incarnation ended because a newer one opened."""
    return Note(
        "session.fenced",
        REGISTRY,
        opening.session.subject,
        opening.pending.cause,
        attributes={
            "incarnation": str(opening.fenced_incarnation),
            "newer_incarnation": str(opening.session.incarnation),
        },
    )


def ended(session: Session, cause: str) -> Note:
    """A session ended by farewell or by silence."""
    farewell = session.state is AgentState.OFFLINE
    return Note(
        "session.close" if farewell else "session.lost",
        f"agent/{session.agent_id}" if farewell else REGISTRY,
        session.subject,
        cause,
        attributes={"incarnation": str(session.incarnation)},
    )


def refused(agent_id: AgentId, instance_id: str, reason: Reason, cause: str) -> Note:
    """A session was not opened."""
    subject = f"agent/{agent_id}/{instance_id[:64]}" if instance_id else f"agent/{agent_id}"
    return Note("session.open", f"agent/{agent_id}", subject, cause, refusal=reason)
