"""The contract of `SchedulerStore`, on every implementation; the one on etcd also by raw reads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
from muster.scheduler.v1 import task_pb2

from services.common.clock import SystemClock
from services.common.core.fencing import FencingToken
from services.common.core.ids import (
    AgentId,
    CollaborationId,
    InstanceId,
    RequestId,
    ResourceName,
    Skill,
    TaskId,
)
from services.common.core.instants import Instant
from services.common.election import Leadership
from services.common.etcd.client import EtcdClient
from services.common.etcd.election import EtcdElection
from services.common.testing.election import MemoryBallot
from services.scheduler.core.course import Attempt
from services.scheduler.core.events import LockWritten
from services.scheduler.core.model import (
    AttemptRef,
    AttemptState,
    CollaborationSpec,
    CollaborationState,
    Failure,
    FailureKind,
    InstanceKey,
    LockMode,
    Payload,
    Priority,
    Submission,
    TaskKey,
    TaskState,
)
from services.scheduler.core.prediction.cells import LearnedKey
from services.scheduler.core.prediction.predictor import Predictor
from services.scheduler.core.records import (
    CollaborationRecord,
    SpecRecord,
    StoredCollaboration,
    StoredLock,
    TaskRecord,
)
from services.scheduler.store import Batch, LeadershipLostError, LockKeys, SchedulerStore
from services.scheduler.stores.etcd import EtcdStore
from services.scheduler.stores.memory import MemoryPlane, MemoryStore
from services.scheduler.wire import records, specs
from tests.conftest import Eventually
from tests.harness.etcd import EtcdHarness

C1, C2 = CollaborationId("c-1"), CollaborationId("c-2")
A = InstanceKey(AgentId("field-1"), InstanceId("0"))
TOKEN = FencingToken(5, 1)


class World(Protocol):
    """One implementation with the powers of other programs."""

    store: SchedulerStore

    async def lead(self) -> Leadership:
        """Let a new leadership follow the one before."""
        ...

    def another_store(self) -> SchedulerStore:
        """Return the store of another replica."""
        ...

    async def put_foreign(self, resource: str, claim_id: str) -> int:
        """Lock a resource as etcdctl does; return the revision."""
        ...

    async def delete(self, resource: str, claim_id: str) -> None:
        """Delete a lock's key."""
        ...


class MemoryWorld:
    def __init__(self) -> None:
        self._ballot = MemoryBallot()
        self.plane = MemoryPlane(lambda leadership: self._ballot.holds(leadership.guard))
        self.store: SchedulerStore = MemoryStore(self.plane)

    async def lead(self) -> Leadership:
        if self._ballot.leader is not None:
            await self._ballot.remove(self._ballot.leader.epoch)
        return await self._ballot.candidate().campaign(b"x")

    def another_store(self) -> SchedulerStore:
        return MemoryStore(self.plane)

    async def put_foreign(self, resource: str, claim_id: str) -> int:
        return self.plane.put_foreign(resource, claim_id).create_revision

    async def delete(self, resource: str, claim_id: str) -> None:
        self.plane.delete((ResourceName(resource), claim_id))


class EtcdWorld:
    def __init__(self, client: EtcdClient, prefix: str) -> None:
        self.client, self.prefix = client, prefix
        self.store: SchedulerStore = self.another_store()
        self._election: EtcdElection | None = None

    async def lead(self) -> Leadership:
        await self.resign()
        self._election = EtcdElection(self.client, SystemClock(), f"{self.prefix}/election/")
        return await self._election.campaign(b"x")

    async def resign(self) -> None:
        if self._election is not None:
            await self._election.resign()

    def another_store(self) -> SchedulerStore:
        return EtcdStore(self.client, self.prefix, lock_ttl_s=10)

    async def put_foreign(self, resource: str, claim_id: str) -> int:
        return await self.client.put(f"{self.prefix}/locks/{resource}/{claim_id}", b"")

    async def delete(self, resource: str, claim_id: str) -> None:
        await self.client.delete(f"{self.prefix}/locks/{resource}/{claim_id}")


@pytest.fixture(params=["memory", "etcd"])
async def world(request: pytest.FixtureRequest, etcd: EtcdHarness, etcd_prefix: str) -> AsyncIterator[World]:
    if request.param == "memory":
        yield MemoryWorld()
        return
    async with etcd.client() as client:
        made = EtcdWorld(client, etcd_prefix)
        yield made
        await made.resign()


def spec_record(name: CollaborationId, count: int = 2, text: str = "") -> SpecRecord:
    rows = [
        task_pb2.TaskSpec(task_id=f"t{number}", required_skills=["dig"], description=text)
        for number in range(count)
    ]
    tasks = tuple(specs.task_spec(row, "tasks") for row in rows)
    spec = CollaborationSpec(
        tasks, "flood", "response", Priority.HIGH, Instant(9_000), shared_context=Payload("a/b", b"river")
    )
    submission = Submission("operator/admin", RequestId("r"), spec, b"hash")
    return SpecRecord(name, submission, Instant(1_000), 7)


def header(name: CollaborationId, generation: int = 1, **more: Any) -> CollaborationRecord:
    record = CollaborationRecord(name, CollaborationState.ACTIVE, generation, None, "chief", None)
    return record._replace(**more)


def task_record(name: str = "t0", **more: Any) -> TaskRecord:
    failure = Failure(FailureKind.TRANSIENT, "HANDLER_RAISED", "no signal")
    attempt = Attempt(TOKEN, A, 3, AttemptState.FAILED, Instant(10), "why", Instant(11), Instant(12), failure)
    record = TaskRecord(
        TaskId(name), TaskState.READY, 4, 9, (attempt,), 1, 1, None, None, Instant(8), None, Instant(99), "r"
    )
    return record._replace(**more)


def lock(resource: str, claim_id: str = "claim-1", **more: Any) -> StoredLock:
    row = StoredLock(
        ResourceName(resource), claim_id, LockMode.EXCLUSIVE, A, None, False, Priority.NORMAL, Instant(5), 5
    )
    return row._replace(**more)


def whole(name: CollaborationId = C1) -> Batch:
    return Batch(
        {name: spec_record(name)}, {name: header(name)}, {TaskKey(name, TaskId("t0")): task_record()}
    )


async def test_what_was_committed_is_loaded(world: World) -> None:
    leadership = await world.lead()
    await world.store.load(leadership)
    await world.store.commit(whole(), leadership)
    [found] = (await world.another_store().load(await world.lead())).collaborations
    assert found.spec == spec_record(C1)
    assert found.record == header(C1)
    assert found.tasks == (task_record(),)


async def test_newer_values_replace_older_ones_and_specs_stay(world: World) -> None:
    leadership = await world.lead()
    await world.store.commit(whole(), leadership)
    failure = Failure(FailureKind.PERMANENT, "CANCELLED", "enough")
    ended = header(C1, 8, state=CollaborationState.CANCELLED, end_time=Instant(77), failure=failure)
    done = task_record(state=TaskState.SUCCEEDED, result=Payload("x/y", bytes(60_000)), end_time=Instant(70))
    await world.store.commit(Batch({}, {C1: ended}, {TaskKey(C1, TaskId("t0")): done}), leadership)
    [found] = (await world.store.load(leadership)).collaborations
    assert (found.record, found.tasks) == (ended, (done,))
    assert len(found.spec.submission.spec.tasks) == 2


async def test_an_empty_result_is_a_result(world: World) -> None:
    leadership = await world.lead()
    batch = whole()
    batch.tasks[TaskKey(C1, TaskId("t0"))] = task_record(result=Payload())
    await world.store.commit(batch, leadership)
    [found] = (await world.store.load(leadership)).collaborations
    assert found.tasks[0].result == Payload()


async def test_a_commit_may_be_repeated(world: World) -> None:
    leadership = await world.lead()
    batch = whole()
    batch.put_locks = [lock("bridge"), lock("road")]
    first = await world.store.commit(batch, leadership)
    assert await world.store.commit(batch, leadership) == first
    stored = await world.store.load(leadership)
    assert len(stored.collaborations) == 1
    assert {row.revision for row in stored.locks} == {first[0].revision}


async def test_an_older_leadership_writes_and_reads_nothing(world: World) -> None:
    old = await world.lead()
    await world.store.commit(whole(C1), old)
    new = await world.lead()
    batch = whole(C2)
    batch.put_locks = [lock("bridge")]
    with pytest.raises(LeadershipLostError):
        await world.store.commit(batch, old)
    with pytest.raises(LeadershipLostError):
        await world.store.load(old)
    stored = await world.another_store().load(new)
    assert [each.spec.collaboration_id for each in stored.collaborations] == [C1]
    assert not stored.locks


async def test_a_small_collaboration_is_loaded_as_it_was_committed_last(world: World) -> None:
    leadership = await world.lead()
    key, record = TaskKey(C1, TaskId("t0")), spec_record(C1, count=1)
    await world.store.commit(Batch({C1: record}, {C1: header(C1)}), leadership)
    assert (await world.store.load(leadership)).collaborations == (
        StoredCollaboration(record, header(C1), ()),
    )
    await world.store.commit(Batch({C1: record}, {C1: header(C1, 5)}, {key: task_record()}), leadership)
    assert (await world.another_store().load(await world.lead())).collaborations == (
        StoredCollaboration(record, header(C1, 5), (task_record(),)),
    )


async def test_a_large_collaboration_is_committed_in_parts(world: World) -> None:
    leadership = await world.lead()
    record = spec_record(C1, count=300, text="x" * 4_000)
    tasks = {TaskKey(C1, TaskId(f"t{number}")): task_record(f"t{number}") for number in range(300)}
    await world.store.commit(Batch({C1: record}, {C1: header(C1)}, tasks), leadership)
    [found] = (await world.store.load(leadership)).collaborations
    assert found.spec == record
    assert {row.task_id for row in found.tasks} == {f"t{number}" for number in range(300)}


async def test_many_collaborations_in_one_batch(world: World) -> None:
    leadership = await world.lead()
    batch = Batch()
    for number in range(200):
        name = CollaborationId(f"c-{number}")
        batch.specs[name], batch.collaborations[name] = spec_record(name), header(name)
        batch.tasks[TaskKey(name, TaskId("t1"))] = task_record("t1")
    await world.store.commit(batch, leadership)
    assert len((await world.store.load(leadership)).collaborations) == 200


async def test_what_belongs_to_no_collaboration_is_deleted_by_the_next_leader(world: World) -> None:
    leadership = await world.lead()
    orphan = whole(C2)
    orphan.collaborations.clear()
    await world.store.commit(orphan, leadership)
    await world.store.commit(whole(C1), leadership)
    assert [each.spec.collaboration_id for each in (await world.store.load(leadership)).collaborations] == [
        C1
    ]
    # Gone, and not only passed over: a collaboration of that name begins from nothing.
    await world.store.commit(Batch({C2: spec_record(C2)}, {C2: header(C2)}), leadership)
    stored = {
        each.spec.collaboration_id: each for each in (await world.store.load(leadership)).collaborations
    }
    assert stored[C2].tasks == ()


async def test_a_forgotten_collaboration_is_gone(world: World) -> None:
    leadership = await world.lead()
    await world.store.commit(whole(C1), leadership)
    await world.store.commit(whole(C2), leadership)
    await world.store.commit(Batch(forgotten={C1: None}), leadership)
    assert [each.spec.collaboration_id for each in (await world.store.load(leadership)).collaborations] == [
        C2
    ]


# Locks.


async def test_a_locks_token_is_its_keys_create_revision(world: World) -> None:
    leadership = await world.lead()
    ref = AttemptRef(C1, TaskId("t0"), TOKEN)
    batch = whole()
    batch.put_locks = [
        lock("bridge", "one", attempt=ref, declared=True),
        lock("road", "one", attempt=ref, declared=True),
        lock("boat", "two", mode=LockMode.SHARED),
    ]
    written = {row.claim_id: row for row in await world.store.commit(batch, leadership)}
    assert written["one"].beaten_by == written["two"].beaten_by == ()
    stored = {str(row.resource): row for row in (await world.store.load(leadership)).locks}
    assert stored["bridge"] == lock(
        "bridge", "one", attempt=ref, declared=True, revision=written["one"].revision
    )
    assert stored["road"].revision == written["one"].revision
    assert (stored["boat"].mode, stored["boat"].revision) == (LockMode.SHARED, written["two"].revision)


async def test_tokens_grow(world: World) -> None:
    leadership = await world.lead()
    [first] = await world.store.commit(Batch(put_locks=[lock("bridge", "one")]), leadership)
    handed_on = Batch(put_locks=[lock("bridge", "two")], deleted_locks=[(ResourceName("bridge"), "one")])
    [second] = await world.store.commit(handed_on, leadership)
    assert second.revision > first.revision
    assert second.beaten_by == ()
    assert [row.claim_id for row in (await world.store.load(leadership)).locks] == ["two"]


async def test_an_older_key_of_another_program_beats_a_new_lock(world: World) -> None:
    leadership = await world.lead()
    revision = await world.put_foreign("bridge", "694d")
    batch = Batch(put_locks=[lock("bridge", "one"), lock("road", "one"), lock("boat", "two")])
    written = {row.claim_id: row for row in await world.store.commit(batch, leadership)}
    [winner] = written["one"].beaten_by
    assert (winner.resource, winner.claim_id, winner.create_revision) == ("bridge", "694d", revision)
    assert written["two"].beaten_by == ()


async def test_a_younger_key_of_another_program_does_not(world: World) -> None:
    leadership = await world.lead()
    await world.store.commit(Batch(put_locks=[lock("bridge", "one")]), leadership)
    await world.put_foreign("bridge", "694d")
    [again] = await world.store.commit(Batch(put_locks=[lock("bridge", "one")]), leadership)
    assert again.beaten_by == ()
    [seen] = (await world.store.load(leadership)).foreign
    assert (seen.resource, seen.claim_id) == ("bridge", "694d")


async def test_changes_of_keys_are_told(world: World, eventually: Eventually) -> None:
    leadership = await world.lead()
    await world.put_foreign("road", "before")
    await world.store.commit(Batch(put_locks=[lock("bridge", "one"), lock("bridge", "two")]), leadership)
    await world.store.load(leadership)
    seen: list[LockKeys] = []

    async def follow() -> None:
        async with contextlib.aclosing(world.store.watch_locks()) as changes:
            async for keys in changes:
                seen.append(keys)  # noqa: PERF401  # it is looked at while it grows

    following = asyncio.create_task(follow())
    try:
        # Changes between `load` and the watch are not lost.
        await world.delete("bridge", "one")
        await world.put_foreign("bridge", "694d")
        await eventually(lambda: {row.claim_id for keys in seen for row in keys.foreign} >= {"694d"})
        await world.delete("bridge", "694d")
        await world.store.commit(Batch(deleted_locks=[(ResourceName("bridge"), "two")]), leadership)
        gone = {("bridge", "one"), ("bridge", "two"), ("bridge", "694d")}
        await eventually(lambda: {key for keys in seen for key in keys.deleted} >= gone)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_the_end_of_a_lease_ends_the_locks_of_its_instance_only(
    world: World, eventually: Eventually
) -> None:
    leadership = await world.lead()
    keeping = asyncio.create_task(world.store.keep_leases())
    try:
        other = InstanceKey(AgentId("field-2"), InstanceId("0"))
        batch = Batch(put_locks=[lock("bridge", "one"), lock("road", "two", instance=other)])
        await world.store.commit(batch, leadership)
        world.store.end_lease(A)

        async def left() -> bool:
            locks = (await world.another_store().load(leadership)).locks
            return [row.resource for row in locks] == ["road"]

        await eventually(left)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_a_new_leader_goes_on_with_the_leases_that_it_finds(
    world: World, eventually: Eventually
) -> None:
    leadership = await world.lead()
    await world.store.commit(Batch(put_locks=[lock("bridge", "one")]), leadership)
    leadership = await world.lead()
    store = world.another_store()
    await store.load(leadership)
    await store.commit(Batch(put_locks=[lock("road", "two")]), leadership)
    keeping = asyncio.create_task(store.keep_leases())
    store.end_lease(A)

    async def all_gone() -> bool:
        return not (await store.load(leadership)).locks

    try:
        await eventually(all_gone)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


@dataclass
class Raw:
    client: EtcdClient
    prefix: str

    async def keys(self) -> list[str]:
        rows = await self.client.get_prefix(f"{self.prefix}/")
        return [kv.key.removeprefix(self.prefix) for kv in rows.kvs if "/election/" not in kv.key]


async def test_on_etcd_keys_are_where_the_proto_says(etcd_client: EtcdClient, etcd_prefix: str) -> None:
    world = EtcdWorld(etcd_client, etcd_prefix)
    leadership = await world.lead()
    batch = whole()
    batch.put_locks = [lock("bridge", "one")]
    [written] = await world.store.commit(batch, leadership)
    assert await Raw(etcd_client, etcd_prefix).keys() == [
        "/collaborations/c-1",
        "/locks/bridge/one",
        "/tasks/c-1/spec/00000",
        "/tasks/c-1/state/t0",
    ]
    key = await etcd_client.get(f"{etcd_prefix}/locks/bridge/one")
    assert key is not None
    assert key.create_revision == written.revision
    assert key.lease_id
    assert b'"agent":"field-1"' in key.value
    await world.resign()


async def test_on_etcd_a_small_collaboration_is_one_key_and_follows_what_an_older_version_kept(
    etcd_client: EtcdClient, etcd_prefix: str
) -> None:
    world, raw = EtcdWorld(etcd_client, etcd_prefix), Raw(etcd_client, etcd_prefix)
    leadership = await world.lead()
    key, record = TaskKey(C1, TaskId("t0")), spec_record(C1, count=1)
    # As it was kept before: each half of the task in a key of its own, without which nothing is known.
    await etcd_client.put(f"{etcd_prefix}/tasks/c-1/spec/00000", records.encode_specs(record)[0])
    await etcd_client.put(f"{etcd_prefix}/tasks/c-1/state/t0", records.encode_task(task_record()))
    await etcd_client.put(f"{etcd_prefix}/collaborations/c-1", records.encode_collaboration(header(C1)))
    before = StoredCollaboration(record, header(C1), (task_record(),))
    assert (await world.store.load(leadership)).collaborations == (before,)
    done = task_record(state=TaskState.SUCCEEDED, result=Payload("a/b", b"x"), end_time=Instant(70))
    await world.store.commit(Batch({C1: record}, {C1: header(C1, 9)}, {key: done}), leadership)
    after = StoredCollaboration(record, header(C1, 9), (done,))
    assert (await world.store.load(leadership)).collaborations == (after,)
    await world.store.commit(Batch({C2: spec_record(C2, count=1)}, {C2: header(C2)}), leadership)
    assert [name for name in await raw.keys() if "c-2" in name] == ["/collaborations/c-2"]
    await world.store.commit(Batch(forgotten={C1: None, C2: None}), leadership)
    assert await raw.keys() == []
    await world.resign()


async def test_on_etcd_nothing_is_left_of_what_was_forgotten(
    etcd_client: EtcdClient, etcd_prefix: str
) -> None:
    world, raw = EtcdWorld(etcd_client, etcd_prefix), Raw(etcd_client, etcd_prefix)
    leadership = await world.lead()
    small, names = CollaborationId("c-small"), [CollaborationId(f"c-{number}") for number in range(4)]
    for name in names:
        await world.store.commit(whole(name), leadership)
    await world.store.commit(Batch({small: spec_record(small, count=1)}, {small: header(small)}), leadership)
    await world.store.commit(Batch(forgotten={names[0]: None, small: None}), leadership)
    # A leadership knows what the one before has written, and deletes what that had not finished.
    orphan = whole(names[1])
    await world.store.commit(Batch(forgotten={names[1]: None}), leadership)
    await world.store.commit(Batch(orphan.specs, {}, orphan.tasks), leadership)
    leadership = await world.lead()
    await world.store.load(leadership)
    assert {key.split("/")[2] for key in await raw.keys()} == {"c-2", "c-3"}
    await world.store.commit(Batch(forgotten={names[2]: None}), leadership)
    await world.store.commit(Batch(forgotten={names[3]: None}), leadership)
    assert await raw.keys() == []
    await world.resign()


async def test_on_etcd_a_lease_that_ran_out_is_granted_anew(
    etcd_client: EtcdClient, etcd_prefix: str
) -> None:
    world = EtcdWorld(etcd_client, etcd_prefix)
    leadership = await world.lead()
    await world.store.commit(Batch(put_locks=[lock("bridge", "one")]), leadership)
    key = await etcd_client.get(f"{etcd_prefix}/locks/bridge/one")
    assert key is not None
    await etcd_client.lease_revoke(key.lease_id)
    written = await world.store.commit(Batch(put_locks=[lock("road", "two")]), leadership)
    assert isinstance(written[0], LockWritten)
    assert [row.resource for row in (await world.store.load(leadership)).locks] == ["road"]
    await world.resign()


async def test_what_was_learned_is_kept_replaced_and_deleted_and_fenced(world: World) -> None:
    agent, survey = LearnedKey("agents", "field-1"), LearnedKey("types", "survey.v2")
    predictor = Predictor()
    for number in range(20):
        predictor.finished("field-1", "survey.v2", 1_000, 900 + number, now=Instant(5_000 + number))
        predictor.ended("field-1", "survey.v2", ("dive",), success=number > 1, now=Instant(6_000))
    predictor.judged("field-1", "survey.v2", 0.5, Instant(6_000))
    older = await world.lead()
    first = {key: predictor.value(key) for key in (agent, survey)}
    await world.store.commit(Batch(learned=dict(first)), older)
    assert dict((await world.another_store().load(older)).learned) == first
    predictor.finished("field-1", "survey.v2", 1_000, 5_000, now=Instant(9_000))
    newer = predictor.value(survey)
    batch = Batch(learned={agent: None, survey: newer})
    # A batch that is committed again has the effect of one.
    for _ in range(2):
        await world.store.commit(batch, older)
    stored = (await world.another_store().load(older)).learned
    assert stored == ((survey, newer),)
    leadership = await world.lead()
    with pytest.raises(LeadershipLostError):
        await world.store.commit(Batch(learned=dict(first)), older)
    assert (await world.store.load(leadership)).learned == stored


async def test_on_etcd_a_learned_record_that_can_not_be_read_is_passed_over(
    etcd_client: EtcdClient, etcd_prefix: str
) -> None:
    world = EtcdWorld(etcd_client, etcd_prefix)
    leadership = await world.lead()
    predictor = Predictor()
    predictor.finished("a", "t", 1_000, 900, now=Instant(5_000))
    key = LearnedKey("types", "t")
    await world.store.commit(Batch(learned={key: predictor.value(key)}), leadership)
    await etcd_client.put(f"{etcd_prefix}/learned/types/broken", b"\xff\xff\xff")
    await etcd_client.put(f"{etcd_prefix}/learned/others/thing", b"")
    assert [name for name, _ in (await world.store.load(leadership)).learned] == [key]
    await world.resign()


async def test_on_etcd_a_damaged_record_does_not_keep_anybody_from_leading(
    etcd_client: EtcdClient, etcd_prefix: str
) -> None:
    world = EtcdWorld(etcd_client, etcd_prefix)
    leadership = await world.lead()
    await world.store.commit(whole(C1), leadership)
    await world.store.commit(whole(C2), leadership)
    await etcd_client.put(f"{etcd_prefix}/tasks/c-1/state/t0", b"\xff\xff\xff")
    stored = await world.store.load(leadership)
    assert [each.spec.collaboration_id for each in stored.collaborations] == [C2]
    assert Skill("dig") in stored.collaborations[0].spec.submission.spec.tasks[0].required_skills
    await world.resign()
