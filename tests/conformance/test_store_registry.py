"""One suite for every `FleetStore`: in memory and on a real etcd."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Protocol

import pytest

from services.common.clock import SystemClock
from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import AgentId, InstanceId, Skill
from services.common.core.instants import Instant
from services.common.etcd.client import EtcdClient
from services.registry.core.effects import Change, PresencePut
from services.registry.core.events import AgentSnapshot, PresenceSeen, RecordSeen
from services.registry.core.model import (
    NO_LEASE,
    AgentRecord,
    AgentState,
    Instance,
    LeaseId,
    Load,
    SkillLevel,
)
from services.registry.store import Applied, FleetChanges, FleetSnapshot, FleetStore
from services.registry.stores.etcd import EtcdStore
from services.registry.stores.memory import MemoryStore, Shelf
from tests.harness.etcd import EtcdHarness

PATIENCE_S = 20.0
NOW = Instant(1_700_000_000_123)
A, B = AgentId("a-agent"), AgentId("b-agent")
ZERO, ONE = InstanceId("0"), InstanceId("1")


class Rig(Protocol):
    """What the suite needs besides stores."""

    def store(self) -> FleetStore:
        """Return another replica's view."""
        ...

    async def end_lease(self, lease_id: LeaseId) -> None:
        """End a lease as if it had not been renewed."""
        ...

    async def incarnation(self, agent_id: AgentId, instance_id: InstanceId) -> int | None:
        """Return what an incarnation key says."""
        ...


class MemoryRig:
    def __init__(self) -> None:
        self._shelf = Shelf()

    def store(self) -> FleetStore:
        return MemoryStore(self._shelf)

    async def end_lease(self, lease_id: LeaseId) -> None:
        self._shelf.end_lease(lease_id)

    async def incarnation(self, agent_id: AgentId, instance_id: InstanceId) -> int | None:
        return self._shelf.incarnations.get((agent_id, instance_id))


class EtcdRig:
    def __init__(self, client: EtcdClient, prefix: str) -> None:
        self._client, self._prefix = client, prefix

    def store(self) -> FleetStore:
        return EtcdStore(self._client, SystemClock(), self._prefix, ttl_s=5)

    async def end_lease(self, lease_id: LeaseId) -> None:
        await self._client.lease_revoke(lease_id)

    async def incarnation(self, agent_id: AgentId, instance_id: InstanceId) -> int | None:
        kv = await self._client.get(f"{self._prefix}/registry/incarnations/{agent_id}/{instance_id}")
        return None if kv is None else int(kv.value)


@pytest.fixture(params=["memory", "etcd"])
async def rig(request: pytest.FixtureRequest, etcd: EtcdHarness, etcd_prefix: str) -> AsyncIterator[Rig]:
    if request.param == "memory":
        yield MemoryRig()
        return
    async with etcd.client() as client:
        yield EtcdRig(client, etcd_prefix)


def record(
    agent_id: AgentId = A, *, generation: int = 1, state: AgentState = AgentState.READY, names: str = "0"
) -> AgentRecord:
    skills = (SkillLevel(Skill("maps"), 0.5),)
    load = Load(2, 1, 0.25, 1 << 30, True, 7, Instant(NOW - 5))
    instances = tuple(
        Instance(InstanceId(name), 3, state, NOW, load, NOW, NOW, skills, (("zone", "北"),), 250, 2)
        for name in names
    )
    return AgentRecord(agent_id, NOW, skills, generation, instances)


def change(
    new: AgentRecord | None, expect: int = 0, lease_id: LeaseId = NO_LEASE, agent_id: AgentId = A
) -> Change:
    return Change(agent_id if new is None else new.agent_id, expect, new, lease_id)


async def applied(store: FleetStore, *changes: Change) -> int:
    """Commit changes that must all happen; return the revision of the last."""
    outcomes = await store.commit(changes)
    revisions = [outcome.revision for outcome in outcomes if isinstance(outcome, Applied)]
    assert len(revisions) == len(changes), outcomes
    return revisions[-1]


@contextlib.asynccontextmanager
async def lease_of(store: FleetStore) -> AsyncIterator[LeaseId]:
    async with contextlib.aclosing(store.leases()) as leases:
        yield await anext(leases)


class Follower:
    """Applies what a store tells to a plain picture."""

    def __init__(self, store: FleetStore) -> None:
        self.records: dict[AgentId, tuple[int, AgentRecord]] = {}
        self.presence: dict[tuple[AgentId, InstanceId], int] = {}
        self.revisions: list[int] = []
        self._steps = store.follow()

    async def close(self) -> None:
        await self._steps.aclose()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._take(await anext(self._steps))

    async def first(self) -> FleetSnapshot:
        async with asyncio.timeout(PATIENCE_S):
            step = await anext(self._steps)
        assert isinstance(step, FleetSnapshot)
        self._take(step)
        return step

    def _take(self, step: FleetSnapshot | FleetChanges) -> None:
        self.revisions.append(step.revision)
        if isinstance(step, FleetSnapshot):
            self.records = {
                one.agent_id: (one.record_revision, one.record)
                for one in step.agents
                if one.record is not None
            }
            self.presence = {
                (one.agent_id, name): held.incarnation
                for one in step.agents
                for name, _, held in one.presence
            }
            return
        for seen in step.changes:
            if isinstance(seen, RecordSeen):
                assert seen.record is not None
                self.records[seen.agent_id] = seen.revision, seen.record
            elif isinstance(seen, PresenceSeen) and seen.held is not None:
                self.presence[seen.agent_id, seen.instance_id] = seen.held.incarnation
            else:
                self.presence.pop((seen.agent_id, seen.instance_id), None)


@pytest.fixture
async def follower(rig: Rig) -> AsyncIterator[Follower]:
    made = Follower(rig.store())
    yield made
    await made.close()


async def test_what_is_committed_is_loaded_as_it_was(rig: Rig) -> None:
    store = rig.store()
    revision = await applied(store, change(record()))
    snapshot = await rig.store().load(A)
    assert (snapshot.record, snapshot.record_revision, snapshot.presence) == (record(), revision, ())
    assert snapshot.read_revision >= revision


async def test_an_unknown_agent_has_no_record(rig: Rig) -> None:
    snapshot = await rig.store().load(B)
    assert (snapshot.agent_id, snapshot.record, snapshot.record_revision) == (B, None, 0)


async def test_a_change_on_an_older_record_changes_nothing_and_returns_the_newer_one(rig: Rig) -> None:
    here, there = rig.store(), rig.store()
    async with lease_of(here) as lease:
        old = await applied(here, change(record()))
        new = await applied(there, change(record(generation=2), old))
        late = replace(
            change(record(generation=9), old, lease),
            present=(PresencePut(ZERO, 9, 9),),
            incarnations=((ZERO, 9),),
        )
        (refused,) = await here.commit([late])
        assert isinstance(refused, AgentSnapshot)
        assert (refused.record, refused.record_revision, refused.presence) == (record(generation=2), new, ())
        assert await rig.incarnation(A, ZERO) is None


async def test_a_first_record_is_written_once(rig: Rig) -> None:
    await applied(rig.store(), change(record()))
    (refused,) = await rig.store().commit([change(record(generation=5))])
    assert isinstance(refused, AgentSnapshot)
    assert refused.record == record()


async def test_a_conflict_in_a_group_stops_only_its_own_change(rig: Rig) -> None:
    store = rig.store()
    agents = [AgentId(f"agent-{n:03}") for n in range(100)]
    await applied(store, change(record(agents[50])))
    outcomes = await store.commit([change(record(agent)) for agent in agents])
    assert [isinstance(outcome, Applied) for outcome in outcomes] == [n != 50 for n in range(100)]
    assert isinstance(outcomes[50], AgentSnapshot)


async def test_a_large_group_is_committed_whole(rig: Rig, follower: Follower) -> None:
    store = rig.store()
    agents = [AgentId(f"agent-{n:04}") for n in range(500)]
    # Big ones too: more than one etcd request may hold together.
    big = tuple(SkillLevel(Skill(f"{n:02}" + "s" * 60)) for n in range(64))
    changes = [change(replace(record(agent), skills=big)) for agent in agents]
    async with asyncio.timeout(PATIENCE_S):
        await applied(store, *changes)
    await follower.until(lambda: len(follower.records) == 500)


async def test_presence_hangs_on_the_lease(rig: Rig, follower: Follower) -> None:
    store = rig.store()
    async with contextlib.aclosing(store.leases()) as leases:
        lease = await anext(leases)
        put = replace(
            change(record(names="01"), 0, lease),
            present=(PresencePut(ZERO, 3, 2), PresencePut(ONE, 3, 0)),
            incarnations=((ZERO, 3), (ONE, 3)),
        )
        revision = await applied(store, put)
        snapshot = await store.load(A)
        assert {(name, changed) for name, changed, _ in snapshot.presence} == {
            (ZERO, revision),
            (ONE, revision),
        }
        held = {name: one for name, _, one in snapshot.presence}
        assert (held[ZERO].incarnation, held[ZERO].reconnects, held[ZERO].lease_id) == (3, 2, lease)
        assert await rig.incarnation(A, ZERO) == 3
        await follower.until(lambda: len(follower.presence) == 2)
        await rig.end_lease(lease)
        await follower.until(lambda: not follower.presence)
        # The owner is told, and gets a new one.
        async with asyncio.timeout(PATIENCE_S):
            assert await anext(leases) == NO_LEASE
            assert await anext(leases) not in (NO_LEASE, lease)
    assert (await store.load(A)).record == record(names="01")


async def test_closing_the_leases_ends_presence_at_once(rig: Rig, follower: Follower) -> None:
    store = rig.store()
    async with lease_of(store) as lease:
        await applied(store, replace(change(record(), 0, lease), present=(PresencePut(ZERO, 3, 0),)))
        await follower.until(lambda: len(follower.presence) == 1)
    await follower.until(lambda: not follower.presence)


async def test_presence_under_an_ended_lease_fails_and_changes_nothing(rig: Rig) -> None:
    store = rig.store()
    async with lease_of(store) as lease:
        await rig.end_lease(lease)
        (outcome,) = await store.commit(
            [replace(change(record(), 0, lease), present=(PresencePut(ZERO, 3, 0),))]
        )
        assert isinstance(outcome, ServiceError)
        assert (await store.load(A)).record is None


async def test_presence_moves_to_the_lease_of_whoever_wrote_last(rig: Rig, follower: Follower) -> None:
    here, there = rig.store(), rig.store()
    async with lease_of(here) as old, lease_of(there) as new:
        first = await applied(here, replace(change(record(), 0, old), present=(PresencePut(ZERO, 3, 0),)))
        await applied(
            there,
            replace(change(record(generation=2), first, new), present=(PresencePut(ZERO, 3, 1),)),
        )
        await rig.end_lease(old)
        ((_, _, held),) = (await here.load(A)).presence
        assert (held.reconnects, held.lease_id) == (1, new)
    await follower.until(lambda: A in follower.records and not follower.presence)


@pytest.mark.parametrize("known", ["absent", "present"])
async def test_a_verdict_depends_on_the_presence_it_was_drafted_from(rig: Rig, known: str) -> None:
    store = rig.store()
    async with lease_of(store) as lease:
        revision = await applied(store, change(record()))
        presence = 0
        if known == "present":
            put = replace(change(None, revision, lease), present=(PresencePut(ZERO, 3, 0),))
            presence = await applied(store, put)
        lost = replace(
            change(record(generation=2, state=AgentState.LOST), revision),
            expect_presence=((ZERO, presence),),
            absent=(ZERO,),
        )
        # Somebody writes the presence key, without a change of the record.
        await applied(store, replace(change(None, revision, lease), present=(PresencePut(ZERO, 3, 1),)))
        (refused,) = await store.commit([lost])
        assert isinstance(refused, AgentSnapshot)
        assert refused.record == record()
        ((_, now, _),) = refused.presence
        await applied(store, replace(lost, expect_presence=((ZERO, now),)))
        snapshot = await store.load(A)
        assert snapshot.presence == ()
        assert snapshot.record == record(generation=2, state=AgentState.LOST)


async def test_incarnations_are_forgotten_when_asked(rig: Rig) -> None:
    store = rig.store()
    revision = await applied(store, replace(change(record()), incarnations=((ZERO, 3), (ONE, 4))))
    await applied(store, replace(change(record(generation=2), revision), forgotten=(ONE,)))
    assert await rig.incarnation(A, ZERO) == 3
    assert await rig.incarnation(A, ONE) is None


async def test_followers_see_everything_then_every_change_in_order(rig: Rig, follower: Follower) -> None:
    store = rig.store()
    revision = await applied(store, change(record()))
    first = await follower.first()
    assert [(one.agent_id, one.record, one.record_revision) for one in first.agents] == [
        (A, record(), revision)
    ]
    for generation in range(2, 30):
        revision = await applied(store, change(record(generation=generation), revision))
    await applied(store, change(record(B)))
    await follower.until(lambda: B in follower.records)
    assert follower.records[A] == (revision, record(generation=29))
    assert follower.revisions == sorted(set(follower.revisions))


async def test_racing_replicas_lose_no_change(rig: Rig) -> None:
    async def grow(store: FleetStore) -> None:
        known = await store.load(A)
        for _ in range(20):
            while True:
                generation = known.record.generation + 1 if known.record else 1
                (outcome,) = await store.commit(
                    [change(record(generation=generation), known.record_revision)]
                )
                assert not isinstance(outcome, ServiceError)
                if isinstance(outcome, Applied):
                    known = replace(
                        known, record=record(generation=generation), record_revision=outcome.revision
                    )
                    break
                known = outcome

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(grow(rig.store()) for _ in range(4)))
    final = (await rig.store().load(A)).record
    assert final is not None
    assert final.generation == 80


class TestEtcdOnly:
    """What only a real store can do to us."""

    async def test_committed_survives_kill_and_restart_and_the_follower_goes_on(
        self, own_etcd: EtcdHarness, etcd_prefix: str
    ) -> None:
        async with own_etcd.client() as client:
            store = EtcdStore(client, SystemClock(), etcd_prefix, ttl_s=5)
            follower = Follower(store)
            try:
                revision = await applied(store, change(record()))
                await follower.first()
                for generation in itertools.count(2):
                    own_etcd.kill()
                    # While it is away a commit fails, it does not raise; whether it happened is unknown.
                    late = asyncio.create_task(
                        store.commit([change(record(generation=generation), revision)])
                    )
                    await own_etcd.restart()
                    (outcome,) = await late
                    snapshot = await store.load(A)
                    assert snapshot.record in (
                        record(generation=generation - 1),
                        record(generation=generation),
                    )
                    if isinstance(outcome, Applied):
                        assert snapshot.record == record(generation=generation)
                    else:
                        assert isinstance(outcome, ServiceError)
                        assert outcome.reason is Reason.STORE_UNAVAILABLE
                    if snapshot.record == record(generation=generation - 1):
                        await applied(store, change(record(generation=generation), snapshot.record_revision))
                        snapshot = await store.load(A)
                    revision = snapshot.record_revision
                    if generation == 4:
                        break
                await follower.until(lambda: follower.records[A][1].generation == 4)
            finally:
                await follower.close()

    async def test_a_spoiled_record_is_absent_until_it_is_written_anew(
        self, etcd_client: EtcdClient, etcd_prefix: str
    ) -> None:
        await etcd_client.put(f"{etcd_prefix}/registry/agents/{A}", b"\xff\xff")
        await etcd_client.put(f"{etcd_prefix}/registry/presence/{A}/0", b"\xff\xff")
        store = EtcdStore(etcd_client, SystemClock(), etcd_prefix, ttl_s=5)
        follower = Follower(store)
        first = await follower.first()
        assert [one.record for one in first.agents] == [None]
        (refused,) = await store.commit([change(record())])
        assert isinstance(refused, AgentSnapshot)
        assert (refused.record, refused.presence) == (None, ())
        await applied(store, change(record(), refused.record_revision))
        await follower.until(lambda: A in follower.records)
        await follower.close()
