"""The state of one replica, and the moves that its reactions to events are made of.

What is wanted (sessions) and what is committed (records) are kept apart. `reconcile` drafts the difference
as one change per agent; at most one is on its way; whatever its outcome, the rest is drafted again from what
is known then. So a conflict, a timeout or a lost etcd lease needs no case of its own.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from services.common.core.errors import ServiceError
from services.common.core.ids import AgentId, InstanceId
from services.common.core.instants import Instant, after
from services.registry.core import notes, refusals
from services.registry.core.deadlines import Deadlines
from services.registry.core.draft import Draft
from services.registry.core.effects import Changed, Commit, Effect, EndLink, RefuseOpen, Welcome
from services.registry.core.matching import AgentIndex
from services.registry.core.model import (
    NO_LEASE,
    AgentRecord,
    Instance,
    LeaseId,
    Limits,
    LinkId,
    session_id_of,
)
from services.registry.core.sessions import Session
from services.registry.core.slot import Opening, PendingOpen, Slot

# Replicas that adopt the same sessions do it at instants that differ by up to this share of the lease, so
# that the first one's verdict reaches the others before they reach their own.
_STAGGER_SHARE = 10


class Fleet:
    """Every agent that this replica knows. Owned by `Registry`."""

    def __init__(self, replica_id: str, limits: Limits) -> None:
        self.replica_id = replica_id
        self.limits = limits
        self.slots: dict[AgentId, Slot] = {}
        # Of the committed records.
        self.index = AgentIndex()
        # Links with a session, and links that wait for one.
        self.links: dict[LinkId, Session] = {}
        self.opens: dict[LinkId, tuple[Slot, PendingOpen]] = {}
        # Every live session is armed, and nothing else.
        self.deadlines: Deadlines[tuple[AgentId, InstanceId]] = Deadlines()
        # The lease of this replica's presence keys; without one nothing is committed.
        self.lease_id: LeaseId = NO_LEASE
        # The newest leadership known.
        self.epoch = 0
        # Counts as a renewal of every session.
        self.floor = Instant(0)

    def agent(self, agent_id: AgentId, now: Instant) -> AgentRecord | None:
        """Return an agent as it is published: what is committed, with the newest reports known here."""
        slot = self.slots.get(agent_id)
        if slot is None or slot.record is None:
            return None
        horizon = now - self.limits.ended_retention_ms
        shown = tuple(
            self._freshened(slot, one)
            for one in slot.record.instances
            if one.state.live or one.lease_expire_time >= horizon
        )
        return replace(slot.record, instances=shown)

    def slot(self, agent_id: AgentId) -> Slot:
        """Return the agent's slot, made if need be."""
        slot = self.slots.get(agent_id)
        if slot is None:
            slot = self.slots[agent_id] = Slot(agent_id)
        return slot

    def tidy(self, slot: Slot) -> None:
        """Forget a slot that holds nothing."""
        if slot.empty:
            self.slots.pop(slot.agent_id, None)

    def arm(self, session: Session) -> None:
        """See to it that the session's next deadline is noticed."""
        key = (session.agent_id, session.instance_id)
        self.deadlines.arm(key, session.deadline(self.floor, self.limits))

    def resumable(self, slot: Slot, session: Session, session_id: str) -> bool:
        """Whether `session_id` is this session's."""
        current = slot.record.instance(session.instance_id) if slot.record else None
        if slot.record is None or current is None or not session.state.live:
            return False
        return session_id == session_id_of(slot.agent_id, slot.record.register_time, current)

    def refuse(
        self,
        agent_id: AgentId,
        instance_id: str,
        link: LinkId,
        error: ServiceError,
        *,
        cause: str,
        now: Instant,
    ) -> list[Effect]:
        """Tell a link that it gets no session."""
        self.opens.pop(link, None)
        note = notes.refused(agent_id, instance_id, error.reason, cause, now)
        return [note, RefuseOpen(cause, link, error)]

    def end_link(self, session: Session, error: ServiceError | None, cause: str) -> list[Effect]:
        """Close the session's link, if it has one; the session itself goes on until its lease ends."""
        link, session.link = session.link, None
        if link is None:
            return []
        del self.links[link]
        return [EndLink(cause, link, error)]

    def begin(self, slot: Slot, opening: Opening, lease_id: LeaseId, now: Instant) -> list[Effect]:
        """Make the session of a committed open real, and end the one in its place."""
        session, pending = opening.session, opening.pending
        effects: list[Effect] = []
        old = slot.sessions.pop(session.instance_id, None)
        if old is not None and not old.state.live:
            effects.append(notes.ended(old, pending.cause, now))
        if old is not None:
            same = old.incarnation == session.incarnation
            error = refusals.superseded(old) if same else refusals.fenced(old, session.incarnation)
            effects += self.end_link(old, error, pending.cause)
        if opening.fenced_incarnation:
            effects.append(notes.fenced(opening, now))
        effects.append(notes.opened(opening, now))
        slot.sessions[session.instance_id] = session
        # The lease begins with the welcome: the commit's time is not taken from it.
        session.renewed = max(now, session.renewed)
        session.presence_lease = lease_id
        self.arm(session)
        if pending.link is None:
            # Nobody hears the welcome; the agent comes again, or the lease ends.
            return effects
        del self.opens[pending.link]
        session.link = pending.link
        self.links[pending.link] = session
        effects.append(
            Welcome(pending.cause, pending.link, opening.session_id, session.incarnation, opening.resumed)
        )
        return effects

    def ground(self, slot: Slot) -> None:
        """Take a change that did not (certainly) happen out of the air; its opens wait again."""
        flight, slot.flight = slot.flight, None
        if flight is not None:
            waiting = [opening.pending for opening in flight.openings if opening.pending.link is not None]
            slot.waiting[:0] = waiting

    def take_in(self, slot: Slot, before: AgentRecord | None, now: Instant, cause: str) -> list[Effect]:
        """Follow up on what became known about an agent whose record was `before`."""
        if slot.settled:
            slot.take_unseen()
        effects: list[Effect] = []
        if slot.record is not before:
            self.index.replace(before, slot.record)
            effects.append(Changed(slot.agent_id))
        if slot.settled:
            effects += self._settle(slot, now, cause)
            effects += self.reconcile(slot, now, cause)
        self.tidy(slot)
        return effects

    def reconcile(self, slot: Slot, now: Instant, cause: str) -> list[Effect]:
        """Send what is wanted and not committed on its way, unless a change is on its way already."""
        if not slot.settled or self.lease_id == NO_LEASE:
            return []
        draft = Draft(
            slot, now, floor=self.floor, lease_id=self.lease_id, epoch=self.epoch, limits=self.limits
        )
        effects: list[Effect] = []
        waiting, slot.waiting = slot.waiting, []
        for pending in waiting:
            try:
                if not draft.open(pending):
                    slot.waiting.append(pending)
            except ServiceError as error:
                if pending.link is not None:
                    instance_id = pending.hello.instance_id
                    effects += self.refuse(
                        slot.agent_id, instance_id, pending.link, error, cause=pending.cause, now=now
                    )
        for session in slot.sessions.values():
            draft.follow(session)
        slot.flight = draft.flight(cause)
        if slot.flight is not None:
            effects.append(Commit(cause, slot.flight.change))
        return effects

    def _settle(self, slot: Slot, now: Instant, cause: str) -> list[Effect]:
        """Make the sessions fit what is committed: drop what others ended, adopt what nobody holds."""
        effects: list[Effect] = []
        for session in list(slot.sessions.values()):
            current = slot.record.instance(session.instance_id) if slot.record else None
            if current is None or not current.state.live:
                error = refusals.gone(session)
            elif session.superseded_by(current):
                newer = current.incarnation > session.incarnation
                error = (
                    refusals.fenced(session, current.incarnation) if newer else refusals.superseded(session)
                )
            elif not session.owned and slot.held_elsewhere(session.instance_id, self.lease_id):
                # Its holder's replica had only lost its lease.
                error = refusals.superseded(session)
            else:
                session.follow(current)
                continue
            del slot.sessions[session.instance_id]
            self.deadlines.disarm((session.agent_id, session.instance_id))
            effects += self.end_link(session, error, cause)
        if slot.record is not None:
            for instance in slot.record.instances:
                name = instance.instance_id
                if (
                    instance.state.live
                    and name not in slot.sessions
                    and not slot.held_elsewhere(name, self.lease_id)
                ):
                    self._adopt(slot, instance, now)
        return effects

    def _adopt(self, slot: Slot, instance: Instance, now: Instant) -> None:
        """Time a session that no live replica times: it is resumed somewhere within the lease, or lost."""
        digest = hashlib.sha256(f"{self.replica_id}\0{slot.agent_id}".encode()).digest()
        stagger_ms = int.from_bytes(digest[:4], "big") % (self.limits.lease_ttl_ms // _STAGGER_SHARE + 1)
        session = Session.adopt(slot.agent_id, instance, after(now, stagger_ms))
        slot.sessions[instance.instance_id] = session
        self.arm(session)

    def _freshened(self, slot: Slot, instance: Instance) -> Instance:
        session = slot.sessions.get(instance.instance_id)
        if session is None or not session.state.live or session.superseded_by(instance):
            return instance
        # Not the state: that is published when it is committed.
        return replace(session.snapshot(self.floor, self.limits), state=instance.state)
