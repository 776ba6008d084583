"""A fleet store in memory: the reference implementation, for simulation and tests.

`Shelf` is the store that several replicas share; it is plain and synchronous, so that simulations of the
core can use it without an event loop. `MemoryStore` is one replica's view of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import AgentId, InstanceId
from services.registry.core.effects import Change
from services.registry.core.events import AgentSnapshot, PresenceSeen, RecordSeen
from services.registry.core.model import NO_LEASE, AgentRecord, Held, LeaseId
from services.registry.store import Applied, FleetChanges, FleetSnapshot, Outcome


class Shelf:
    """Records, presence and incarnations with revisions, as etcd keeps them."""

    def __init__(self) -> None:
        self.revision = 1
        self.records: dict[AgentId, tuple[int, AgentRecord]] = {}
        self.presence: dict[AgentId, dict[InstanceId, tuple[int, Held]]] = {}
        self.incarnations: dict[tuple[AgentId, InstanceId], int] = {}
        self.leases: set[LeaseId] = set()
        # Every change since the beginning, one item for each revision.
        self.history: list[FleetChanges] = []
        self._leases_granted = 0
        self._moved = asyncio.Event()

    def grant(self) -> LeaseId:
        """Return a new lease."""
        self._leases_granted += 1
        lease_id = LeaseId(self._leases_granted)
        self.leases.add(lease_id)
        return lease_id

    def end_lease(self, lease_id: LeaseId) -> None:
        """End a lease and delete its presence keys, as one change."""
        self.leases.discard(lease_id)
        keys = [
            (agent_id, name)
            for agent_id, instances in self.presence.items()
            for name, (_, held) in instances.items()
            if held.lease_id == lease_id
        ]
        if not keys:
            self._wake()
            return
        self.revision += 1
        for agent_id, name in keys:
            del self.presence[agent_id][name]
        self._publish(tuple(PresenceSeen(*key, self.revision, None) for key in keys))

    def apply(self, change: Change) -> Applied | AgentSnapshot:
        """Make one change, or return the agent as it is."""
        agent_id = change.agent_id
        if change.present and change.lease_id not in self.leases:
            raise ServiceError(Reason.LOCK_LOST, f"lease {change.lease_id} has ended")
        record_revision = self.records[agent_id][0] if agent_id in self.records else 0
        presence = self.presence.setdefault(agent_id, {})
        unmet = record_revision != change.expect_record or any(
            presence.get(name, (0, None))[0] != revision for name, revision in change.expect_presence
        )
        if unmet:
            return self.snapshot(agent_id)
        self.revision += 1
        seen: list[RecordSeen | PresenceSeen] = []
        if change.record is not None:
            self.records[agent_id] = self.revision, change.record
            seen.append(RecordSeen(agent_id, self.revision, change.record))
        for put in change.present:
            held = Held(put.incarnation, put.reconnects, change.lease_id)
            presence[put.instance_id] = self.revision, held
            seen.append(PresenceSeen(agent_id, put.instance_id, self.revision, held))
        gone = [name for name in change.absent if presence.pop(name, None) is not None]
        seen += [PresenceSeen(agent_id, name, self.revision, None) for name in gone]
        for name, incarnation in change.incarnations:
            self.incarnations[agent_id, name] = incarnation
        for name in change.forgotten:
            self.incarnations.pop((agent_id, name), None)
        self._publish(tuple(seen))
        return Applied(self.revision)

    def snapshot(self, agent_id: AgentId) -> AgentSnapshot:
        """Return one agent."""
        revision, record = self.records.get(agent_id, (0, None))
        presence = self.presence.get(agent_id, {}).items()
        held = tuple((name, changed, one) for name, (changed, one) in presence)
        return AgentSnapshot(agent_id, self.revision, record, revision, held)

    def everything(self) -> FleetSnapshot:
        """Return every agent."""
        return FleetSnapshot(self.revision, tuple(self.snapshot(agent_id) for agent_id in self.records))

    async def wait_moved(self) -> None:
        """Return after the next change or end of a lease."""
        await self._moved.wait()

    def _publish(self, seen: tuple[RecordSeen | PresenceSeen, ...]) -> None:
        self.history.append(FleetChanges(self.revision, seen))
        self._wake()

    def _wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()


class MemoryStore:
    """One replica's view of a shelf; `services.registry.store.FleetStore` is the contract."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        """Try each change."""
        outcomes: list[Outcome] = []
        for change in changes:
            try:
                outcomes.append(self.shelf.apply(change))
            except ServiceError as error:
                outcomes.append(error)
        return outcomes

    async def load(self, agent_id: AgentId) -> AgentSnapshot:
        """Return one agent as it is now."""
        return self.shelf.snapshot(agent_id)

    async def follow(self) -> AsyncGenerator[FleetSnapshot | FleetChanges, None]:
        """Yield everything, then every change."""
        place = len(self.shelf.history)
        yield self.shelf.everything()
        while True:
            while place < len(self.shelf.history):
                place += 1
                yield self.shelf.history[place - 1]
            await self.shelf.wait_moved()

    async def leases(self) -> AsyncGenerator[LeaseId, None]:
        """Yield leases; a test ends one with `Shelf.end_lease`."""
        while True:
            lease_id = self.shelf.grant()
            try:
                yield lease_id
                while lease_id in self.shelf.leases:
                    await self.shelf.wait_moved()
            finally:
                self.shelf.end_lease(lease_id)
            yield NO_LEASE
