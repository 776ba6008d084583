"""The registry's decisions: what follows from each thing that can happen.

Pure: `step(event, now)` returns effects and is the only thing that changes state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from services.common.core.errors import ServiceError
from services.common.core.ids import AgentId, InstanceId
from services.common.core.instants import Instant
from services.registry.core import events, notes, refusals
from services.registry.core.admission import admit_hello, load_violations, violations_error
from services.registry.core.effects import Ack, Effect, Reload
from services.registry.core.fleet import Fleet
from services.registry.core.machine import Input
from services.registry.core.model import NO_LEASE, AgentRecord, AgentState, Limits
from services.registry.core.slot import PendingOpen, Slot

Seen = events.RecordSeen | events.PresenceSeen


class Registry:
    """One replica's core."""

    def __init__(self, replica_id: str, limits: Limits) -> None:
        self._limits = limits
        # Read only for everybody else.
        self.fleet = Fleet(replica_id, limits)
        self._steps: dict[type, Callable[[Any, Instant], list[Effect]]] = {
            events.HeartbeatReceived: self._on_heartbeat,
            events.OpenRequested: self._on_open,
            events.LinkRefused: self._on_link_refused,
            events.DrainRequested: self._on_drain,
            events.FarewellReceived: self._on_farewell,
            events.LinkCut: self._on_link_cut,
            events.Tick: self._on_tick,
            events.Committed: self._on_committed,
            events.Conflicted: self._on_conflicted,
            events.CommitFailed: self._on_commit_failed,
            events.Reloaded: self._on_reloaded,
            events.Observed: self._on_observed,
            events.Loaded: self._on_loaded,
            events.LeaseGranted: self._on_lease_granted,
            events.LeaseEnded: self._on_lease_ended,
            events.CoordinatorSeen: self._on_coordinator,
        }

    # Read only.

    @property
    def session_count(self) -> int:
        """Live sessions that this replica times, with or without a link."""
        return len(self.fleet.deadlines)

    @property
    def link_count(self) -> int:
        """Links with a session."""
        return len(self.fleet.links)

    @property
    def agent_count(self) -> int:
        """Agents with a record."""
        return len(self.fleet.index)

    @property
    def settled(self) -> bool:
        """Whether nothing is on its way to the store."""
        return all(slot.settled for slot in self.fleet.slots.values())

    def instance_counts(self) -> dict[AgentState, int]:
        """Return how many instances are in each state, as committed."""
        return {state: self.fleet.index.states[state] for state in AgentState}

    def next_deadline(self) -> Instant:
        """Return when a `Tick` is needed."""
        return self.fleet.deadlines.next()

    def agent(self, agent_id: AgentId, now: Instant) -> AgentRecord | None:
        """Return an agent as it is published, or None."""
        return self.fleet.agent(agent_id, now)

    def agents_after(self, last: str, skill: str) -> Iterator[AgentId]:
        """Yield the agents that have `skill` (empty: all) and come after `last`, by name."""
        return self.fleet.index.after(last, skill)

    # The one mutating method.

    def step(self, event: events.Event, now: Instant) -> list[Effect]:
        """Take in one event and return what follows from it."""
        return self._steps[type(event)](event, now)

    # From agents.

    def _on_heartbeat(self, event: events.HeartbeatReceived, now: Instant) -> list[Effect]:
        fleet = self.fleet
        session = fleet.links.get(event.link)
        if session is None or not session.state.live:
            # The link's end is on its way to the agent.
            return []
        if event.sequence_number != session.heartbeat_number + 1:
            error = refusals.misnumbered(session.heartbeat_number + 1, event.sequence_number)
            return fleet.end_link(session, error, event.cause)
        if bad := load_violations(event.load, "heartbeat.load"):
            return fleet.end_link(session, violations_error(bad), event.cause)
        if not session.heartbeat_admitted(now, self._limits):
            return fleet.end_link(session, refusals.too_often(self._limits), event.cause)
        before = session.state
        session.heartbeat_number = event.sequence_number
        session.round_trip_us = event.round_trip_us
        session.report(event.load, now, fleet.epoch, self._limits)
        expires = session.lease_expire_time(fleet.floor, self._limits)
        effects: list[Effect] = [Ack(event.link, event.sequence_number, expires)]
        if session.state is not before:
            if before is AgentState.SUSPECT:
                fleet.arm(session)
            effects += fleet.reconcile(fleet.slots[session.agent_id], now, event.cause)
        return effects

    def _on_open(self, event: events.OpenRequested, now: Instant) -> list[Effect]:
        fleet = self.fleet
        try:
            hello = admit_hello(event.agent_id, event.hello)
            self._check_room(event.agent_id, hello.instance_id)
        except ServiceError as error:
            return fleet.refuse(
                event.agent_id, event.hello.instance_id, event.link, error, cause=event.cause, now=now
            )
        slot = fleet.slot(event.agent_id)
        session = slot.sessions.get(hello.instance_id)
        if session is not None and fleet.resumable(slot, session, hello.resume_session_id):
            # A sign of life, even if the store can not confirm the resume for a while.
            session.renewed = max(now, session.renewed)
        pending = PendingOpen(event.cause, event.link, hello)
        slot.waiting.append(pending)
        fleet.opens[event.link] = slot, pending
        return fleet.reconcile(slot, now, event.cause)

    def _on_link_refused(self, event: events.LinkRefused, now: Instant) -> list[Effect]:
        return [notes.refused(event.agent_id, "", event.reason, event.cause, now)]

    def _on_drain(self, event: events.DrainRequested, now: Instant) -> list[Effect]:
        fleet = self.fleet
        session = fleet.links.get(event.link)
        if session is None or not session.state.live:
            return []
        session.draining = True
        session.renewed = max(now, session.renewed)
        session.move(Input.DRAINING, now)
        fleet.arm(session)
        return fleet.reconcile(fleet.slots[session.agent_id], now, event.cause)

    def _on_farewell(self, event: events.FarewellReceived, now: Instant) -> list[Effect]:
        fleet = self.fleet
        session = fleet.links.get(event.link)
        if session is None or not session.state.live:
            return []
        session.move(Input.FAREWELL, now)
        fleet.deadlines.disarm((session.agent_id, session.instance_id))
        # The link is closed when the farewell is committed.
        return fleet.reconcile(fleet.slots[session.agent_id], now, event.cause)

    def _on_link_cut(self, event: events.LinkCut, _now: Instant) -> list[Effect]:
        fleet = self.fleet
        session = fleet.links.pop(event.link, None)
        if session is not None:
            session.link = None
        if event.link in fleet.opens:
            slot, pending = fleet.opens.pop(event.link)
            pending.link = None
            if pending in slot.waiting:
                slot.waiting.remove(pending)
            fleet.tidy(slot)
        return []

    # From the clock.

    def _on_tick(self, event: events.Tick, now: Instant) -> list[Effect]:
        fleet = self.fleet
        touched: dict[AgentId, Slot] = {}
        effects: list[Effect] = []
        for (agent_id, instance_id), at in fleet.deadlines.due(now):
            if now - at > self._limits.pause_ms_max:
                # This process did not run when it should have. The heartbeats of that time may still wait
                # in the sockets, so silence proves nothing: every lease begins anew.
                fleet.floor = now
            slot = fleet.slots[agent_id]
            session = slot.sessions[instance_id]
            if session.deadline(fleet.floor, self._limits) > now:
                fleet.arm(session)
            elif session.state is AgentState.SUSPECT:
                session.move(Input.LEASE_EXPIRED, now)
                effects += fleet.end_link(session, refusals.lost(session, self._limits), event.cause)
                touched[agent_id] = slot
            else:
                session.move(Input.HEARTBEATS_LATE, now)
                fleet.arm(session)
                touched[agent_id] = slot
        for slot in touched.values():
            effects += fleet.reconcile(slot, now, event.cause)
        return effects

    # From the store.

    def _on_committed(self, event: events.Committed, now: Instant) -> list[Effect]:
        fleet = self.fleet
        slot = fleet.slots[event.agent_id]
        flight, slot.flight = slot.flight, None
        assert flight is not None  # noqa: S101  # a commit answers a flight
        before = slot.record
        slot.install_commit(flight, event.revision)
        effects: list[Effect] = []
        for opening in flight.openings:
            effects += fleet.begin(slot, opening, flight.change.lease_id, now)
        for put in flight.change.present:
            if (session := slot.sessions.get(put.instance_id)) is not None:
                session.presence_lease = flight.change.lease_id
        for session in flight.ending:
            del slot.sessions[session.instance_id]
            effects.append(notes.ended(session, flight.cause, now))
            # After a farewell; of a lost session the link is closed already.
            effects += fleet.end_link(session, None, flight.cause)
        return effects + fleet.take_in(slot, before, now, event.cause)

    def _on_conflicted(self, event: events.Conflicted, now: Instant) -> list[Effect]:
        slot = self.fleet.slots[event.snapshot.agent_id]
        self.fleet.ground(slot)
        before = slot.record
        slot.install(event.snapshot)
        return self.fleet.take_in(slot, before, now, event.cause)

    def _on_commit_failed(self, event: events.CommitFailed, now: Instant) -> list[Effect]:
        slot = self.fleet.slots[event.agent_id]
        self.fleet.ground(slot)
        # Whether the change happened is unknown: nothing is drafted before the agent was read again. An
        # agent that waits is told now; if its session was committed, it opens a newer one.
        slot.stale = True
        waiting, slot.waiting = slot.waiting, []
        effects: list[Effect] = [Reload(event.cause, event.agent_id)]
        for pending in waiting:
            if pending.link is not None:
                error = refusals.store_failed(event.message)
                instance_id = pending.hello.instance_id
                effects += self.fleet.refuse(
                    slot.agent_id, instance_id, pending.link, error, cause=pending.cause, now=now
                )
        return effects

    def _on_reloaded(self, event: events.Reloaded, now: Instant) -> list[Effect]:
        slot = self.fleet.slots[event.snapshot.agent_id]
        slot.stale = False
        before = slot.record
        slot.install(event.snapshot)
        return self.fleet.take_in(slot, before, now, event.cause)

    def _on_observed(self, event: events.Observed, now: Instant) -> list[Effect]:
        seen: dict[AgentId, list[Seen]] = {}
        for change in event.changes:
            seen.setdefault(change.agent_id, []).append(change)
        return self._take_in_all(seen, now, event.cause)

    def _on_loaded(self, event: events.Loaded, now: Instant) -> list[Effect]:
        seen: dict[AgentId, list[Seen]] = {}
        for agent_id, slot in self.fleet.slots.items():
            # What is not there any more; what is, follows and replaces this.
            seen[agent_id] = [events.RecordSeen(agent_id, event.revision, None)]
            seen[agent_id] += [
                events.PresenceSeen(agent_id, name, event.revision, None) for name in slot.presence
            ]
        for snapshot in event.agents:
            there = seen.setdefault(snapshot.agent_id, [])
            there.append(events.RecordSeen(snapshot.agent_id, snapshot.record_revision, snapshot.record))
            there += [events.PresenceSeen(snapshot.agent_id, *one) for one in snapshot.presence]
        return self._take_in_all(seen, now, event.cause)

    def _on_lease_granted(self, event: events.LeaseGranted, now: Instant) -> list[Effect]:
        self.fleet.lease_id = event.lease_id
        effects: list[Effect] = []
        for slot in self.fleet.slots.values():
            if slot.sessions or slot.waiting:
                effects += self.fleet.reconcile(slot, now, event.cause)
        return effects

    def _on_lease_ended(self, _event: events.LeaseEnded, _now: Instant) -> list[Effect]:
        self.fleet.lease_id = NO_LEASE
        return []

    def _on_coordinator(self, event: events.CoordinatorSeen, _now: Instant) -> list[Effect]:
        self.fleet.epoch = max(self.fleet.epoch, event.epoch)
        return []

    def _check_room(self, agent_id: AgentId, instance_id: InstanceId) -> None:
        fleet, limits = self.fleet, self._limits
        slot = fleet.slots.get(agent_id)
        if slot is None and len(fleet.slots) >= limits.agents_max:
            raise refusals.too_many("agents_max", limits.agents_max, retry_after_ms=60_000)
        if slot is not None and len(slot.waiting) >= limits.instances_live_max:
            raise refusals.too_many("instances_live_max", limits.instances_live_max, retry_after_ms=1_000)
        replaces = slot is not None and instance_id in slot.sessions
        if not replaces and self.session_count + len(fleet.opens) >= limits.sessions_max:
            raise refusals.too_many("sessions_max", limits.sessions_max, retry_after_ms=limits.lease_ttl_ms)

    def _take_in_all(self, seen: dict[AgentId, list[Seen]], now: Instant, cause: str) -> list[Effect]:
        effects: list[Effect] = []
        for agent_id, changes in seen.items():
            slot = self.fleet.slot(agent_id)
            slot.keep_unseen(changes)
            effects += self.fleet.take_in(slot, slot.record, now, cause)
        return effects
