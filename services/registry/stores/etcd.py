"""The fleet in etcd.

Keys, below `<key_prefix>/registry/`:

    agents/<agent_id>                   the record; every change of an agent compares its mod revision
    presence/<agent_id>/<instance_id>   who is there; under the lease of the replica that holds the session
    incarnations/<agent_id>/<instance>  the newest incarnation in decimal: a condition that other services can
                                        put into their own transactions
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from services.common import logs
from services.common.clock import Clock
from services.common.core.errors import ServiceError
from services.common.core.ids import AgentId, InstanceId
from services.common.etcd.client import EtcdClient
from services.common.etcd.follow import Snapshot, follow
from services.common.etcd.ops import TXN_OPERATIONS_MAX, Compare, Delete, Get, KeyValue, Operation, Put
from services.common.etcd.session import sessions
from services.registry import wire
from services.registry.core.effects import Change
from services.registry.core.events import AgentSnapshot, PresenceSeen, RecordSeen
from services.registry.core.model import NO_LEASE, AgentRecord, Held, LeaseId
from services.registry.store import Applied, FleetChanges, FleetSnapshot, Outcome

# Bytes of values in one transaction; etcd refuses a request of more than 1.5 MiB.
_TXN_BYTES_MAX = 1_000_000
# Changes tried one by one at the same time, after a transaction of several found a conflict.
_SINGLES_MAX = 32

_log = logs.get("registry.store")


@dataclass(frozen=True, slots=True)
class _Write:
    """One change in etcd's words."""

    change: Change
    compares: tuple[Compare, ...]
    operations: tuple[Operation, ...]
    size_bytes: int

    @property
    def operation_count(self) -> int:
        return max(len(self.compares), len(self.operations))


class EtcdStore:
    """One replica's view; `services.registry.store.FleetStore` is the contract."""

    def __init__(self, client: EtcdClient, clock: Clock, key_prefix: str, *, ttl_s: int) -> None:
        self._client, self._clock, self._ttl_s = client, clock, ttl_s
        self._prefix = f"{key_prefix}/registry/"

    async def commit(self, changes: Sequence[Change]) -> list[Outcome]:
        """Try each change: many in one transaction; one by one where one of them conflicts."""
        outcomes: dict[AgentId, Outcome] = {}
        for group in _groups(self._write(change) for change in changes):
            if len(group) == 1 or not await self._commit_together(group, outcomes):
                for start in range(0, len(group), _SINGLES_MAX):
                    singles = group[start : start + _SINGLES_MAX]
                    answers = await asyncio.gather(*(self._commit_alone(write) for write in singles))
                    outcomes |= {
                        write.change.agent_id: answer for write, answer in zip(singles, answers, strict=True)
                    }
        return [outcomes[change.agent_id] for change in changes]

    async def load(self, agent_id: AgentId) -> AgentSnapshot:
        """Return one agent as it is now."""
        result = await self._client.txn([], self._gets(agent_id))
        return self._snapshot(agent_id, result.revision, result.rows(0).kvs, result.rows(1).kvs)

    async def follow(self) -> AsyncGenerator[FleetSnapshot | FleetChanges, None]:
        """Yield everything, then every change, for ever."""
        async with contextlib.aclosing(follow(self._client, self._prefix)) as steps:
            async for step in steps:
                if isinstance(step, Snapshot):
                    yield self._everything(step)
                    continue
                changes = tuple(
                    change
                    for event in step.events
                    if (change := self._seen(event.kv, deleted=event.deleted)) is not None
                )
                if changes:
                    yield FleetChanges(step.revision, changes)

    async def leases(self) -> AsyncGenerator[LeaseId, None]:
        """Yield leases, for ever."""
        async with contextlib.aclosing(sessions(self._client, self._clock, ttl_s=self._ttl_s)) as live:
            async for session in live:
                yield LeaseId(session.lease_id)
                await session.lost.wait()
                yield NO_LEASE

    async def _commit_together(self, group: Sequence[_Write], outcomes: dict[AgentId, Outcome]) -> bool:
        """Return whether the whole group is answered; False when one of its conditions does not hold."""
        compares = [compare for write in group for compare in write.compares]
        operations = [operation for write in group for operation in write.operations]
        outcome: Outcome
        try:
            result = await self._client.txn(compares, operations)
            if not result.succeeded:
                return False
            # Commit point: every change of the group is durable, whatever happens to this process.
            outcome = Applied(result.revision)
        except ServiceError as error:
            outcome = error
        outcomes |= {write.change.agent_id: outcome for write in group}
        return True

    async def _commit_alone(self, write: _Write) -> Outcome:
        agent_id = write.change.agent_id
        try:
            result = await self._client.txn(write.compares, write.operations, self._gets(agent_id))
        except ServiceError as error:
            return error
        if result.succeeded:
            return Applied(result.revision)
        return self._snapshot(agent_id, result.revision, result.rows(0).kvs, result.rows(1).kvs)

    def _write(self, change: Change) -> _Write:
        agent_id = change.agent_id
        compares = [Compare.unchanged_since(self._record_key(agent_id), change.expect_record)]
        compares += [
            Compare.unchanged_since(self._presence_key(agent_id, name), revision)
            for name, revision in change.expect_presence
        ]
        puts: list[Put] = []
        if change.record is not None:
            puts.append(Put(self._record_key(agent_id), wire.encode_record(change.record)))
        for put in change.present:
            value = wire.encode_presence(agent_id, put)
            puts.append(Put(self._presence_key(agent_id, put.instance_id), value, change.lease_id))
        for name, incarnation in change.incarnations:
            puts.append(Put(self._incarnation_key(agent_id, name), str(incarnation).encode("ascii")))
        deletes = [Delete(self._presence_key(agent_id, name)) for name in change.absent]
        deletes += [Delete(self._incarnation_key(agent_id, name)) for name in change.forgotten]
        size = sum(len(put.value) for put in puts)
        return _Write(change, tuple(compares), (*puts, *deletes), size)

    def _gets(self, agent_id: AgentId) -> tuple[Get, Get]:
        return Get(self._record_key(agent_id)), Get(f"{self._prefix}presence/{agent_id}/", prefix=True)

    def _everything(self, snapshot: Snapshot) -> FleetSnapshot:
        records: dict[AgentId, list[KeyValue]] = {}
        presence: dict[AgentId, list[KeyValue]] = {}
        for kv in snapshot.kvs:
            kind, agent_id, _ = self._parse(kv.key)
            if kind == "agents":
                records.setdefault(agent_id, []).append(kv)
            elif kind == "presence":
                presence.setdefault(agent_id, []).append(kv)
        agents = tuple(
            self._snapshot(agent_id, snapshot.revision, records.get(agent_id, ()), presence.get(agent_id, ()))
            for agent_id in sorted(records.keys() | presence.keys())
        )
        return FleetSnapshot(snapshot.revision, agents)

    def _snapshot(
        self, agent_id: AgentId, revision: int, records: Iterable[KeyValue], presence: Iterable[KeyValue]
    ) -> AgentSnapshot:
        record, record_revision = None, 0
        for kv in records:
            record, record_revision = self._record(kv), kv.mod_revision
        held = tuple(
            (self._parse(kv.key)[2], kv.mod_revision, one)
            for kv in presence
            if (one := self._held(kv)) is not None
        )
        return AgentSnapshot(agent_id, revision, record, record_revision, held)

    def _seen(self, kv: KeyValue, *, deleted: bool) -> RecordSeen | PresenceSeen | None:
        kind, agent_id, instance_id = self._parse(kv.key)
        if kind == "agents":
            return RecordSeen(agent_id, kv.mod_revision, None if deleted else self._record(kv))
        if kind == "presence":
            return PresenceSeen(agent_id, instance_id, kv.mod_revision, None if deleted else self._held(kv))
        return None

    def _record(self, kv: KeyValue) -> AgentRecord | None:
        try:
            return wire.decode_record(kv.value)
        except ValueError as error:
            # One key that somebody spoiled must not stop the registry. The agent is unknown until it opens
            # its next session, which writes a new record over this one.
            _log.error("an agent's record can not be read; treated as absent", key=kv.key, why=str(error))
            return None

    def _held(self, kv: KeyValue) -> Held | None:
        try:
            return wire.decode_presence(kv.value, LeaseId(kv.lease_id))
        except ValueError as error:
            _log.error("a presence key can not be read; treated as absent", key=kv.key, why=str(error))
            return None

    def _parse(self, key: str) -> tuple[str, AgentId, InstanceId]:
        kind, _, rest = key.removeprefix(self._prefix).partition("/")
        agent_id, _, instance_id = rest.partition("/")
        return kind, AgentId(agent_id), InstanceId(instance_id)

    def _record_key(self, agent_id: AgentId) -> str:
        return f"{self._prefix}agents/{agent_id}"

    def _presence_key(self, agent_id: AgentId, instance_id: InstanceId) -> str:
        return f"{self._prefix}presence/{agent_id}/{instance_id}"

    def _incarnation_key(self, agent_id: AgentId, instance_id: InstanceId) -> str:
        return f"{self._prefix}incarnations/{agent_id}/{instance_id}"


def _groups(writes: Iterable[_Write]) -> Iterator[list[_Write]]:
    """Yield the writes in groups that fit into one transaction each."""
    group: list[_Write] = []
    operations, size = 0, 0
    for write in writes:
        operations += write.operation_count
        size += write.size_bytes
        if group and (operations > TXN_OPERATIONS_MAX or size > _TXN_BYTES_MAX):
            yield group
            group, operations, size = [], write.operation_count, write.size_bytes
        group.append(write)
    if group:
        yield group
