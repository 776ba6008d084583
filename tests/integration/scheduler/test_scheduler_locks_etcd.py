"""Locks as every etcd client sees them."""

from __future__ import annotations

import json

from muster.scheduler.v1 import scheduler_service_pb2 as pb
from muster.scheduler.v1 import task_pb2 as task_pb
from muster.scheduler.v1 import work_pb2 as work_pb

from services.common.core.errors import Reason
from services.common.rpc.status import from_status
from tests.conftest import Eventually
from tests.integration.scheduler.conftest import StartPlane
from tests.integration.scheduler.scheduler_plane import Agent, Plane, submission, task


def ask(number: int, *names: str, wait_ms: int | None = None) -> work_pb.LockRequest:
    claims = [task_pb.ResourceClaim(resource=name) for name in names]
    request = work_pb.LockRequest(lock_request_id=number, claims=claims)
    if wait_ms is not None:
        request.wait_max.FromMilliseconds(wait_ms)
    return request


async def grant(agent: Agent, number: int) -> work_pb.LockGrant:
    found: work_pb.LockGrant = await agent.wait(
        lambda: next((row for row in agent.all("lock_grants") if row.lock_request_id == number), None)
    )
    return found


async def keys_of(plane: Plane, resource: str) -> list[tuple[str, int, dict[str, object]]]:
    rows = (await plane.client.get_prefix(f"{plane.prefix}/locks/{resource}/")).kvs
    return [(row.key, row.create_revision, json.loads(row.value or b"{}")) for row in rows]


async def test_a_locks_token_is_the_revision_of_its_key(
    start_plane: StartPlane, eventually: Eventually
) -> None:
    plane = await start_plane()
    agent = await plane.agent("field-1")
    await agent.say(lock_requests=[ask(1, "bridge-3")])
    held = await grant(agent, 1)
    [(_, revision, value)] = await keys_of(plane, "bridge-3")
    assert held.locks[0].token.number == revision
    assert (value["mode"], value["agent"]) == ("EXCLUSIVE", "field-1")
    assert held.lease_expire_time.seconds > 0
    [listed] = (await (await plane.stub()).ListLocks(pb.ListLocksRequest(resource="bridge-3"))).locks
    assert (listed.held, listed.agent_id, listed.token) == (True, "field-1", held.locks[0].token)
    await agent.say(lock_releases=[work_pb.LockRelease(lock_request_id=1, locks=held.locks)])

    async def gone() -> bool:
        return not await keys_of(plane, "bridge-3")

    await eventually(gone)


async def test_a_tasks_locks_are_there_before_it_is_handed_over_and_gone_after_it(
    start_plane: StartPlane,
) -> None:
    plane = await start_plane()
    stub = await plane.stub()
    agent = await plane.agent("field-1", slots=2)
    await stub.SubmitCollaboration(submission(task("x", locks=["bridge-3"]), task("y", locks=["bridge-3"])))
    first = await agent.assignment("x")
    [(_, revision, value)] = await keys_of(plane, "bridge-3")
    assert (first.locks[0].resource, first.locks[0].token.number) == ("bridge-3", revision)
    assert value["attempt"] == [
        first.attempt.collaboration_id,
        "x",
        first.attempt.token.epoch,
        first.attempt.token.number,
    ]
    await agent.finish(first)
    second = await agent.assignment("y")
    assert second.locks[0].token.number > revision
    await agent.finish(second)
    assert await agent.ack(second.attempt) is None
    assert await keys_of(plane, "bridge-3") == []


async def test_another_programs_lock_excludes_us_and_is_excluded(
    start_plane: StartPlane, eventually: Eventually
) -> None:
    """`etcdctl lock <prefix>/locks/bridge-3` puts such a key and holds when it is the oldest one there."""
    plane = await start_plane()
    stub = await plane.stub()
    agent = await plane.agent("field-1", slots=2)
    foreign = f"{plane.prefix}/locks/bridge-3/694d81"
    await plane.client.put(foreign, b"")
    await stub.SubmitCollaboration(submission(task("t", locks=["bridge-3"])))
    await agent.say(lock_requests=[ask(1, "bridge-3", wait_ms=0)])
    [refusal] = await agent.wait(lambda: agent.all("lock_refusals") or None)
    error = from_status(refusal.error)
    assert error.reason is Reason.RESOURCE_HELD
    assert error.metadata["holder"] == "694d81"
    assert not agent.all("assignments")
    await plane.client.delete(foreign)
    assignment = await agent.assignment("t")
    # And the other way round: a key that comes after ours is not the oldest.
    await plane.client.put(foreign, b"")
    rows = await keys_of(plane, "bridge-3")
    oldest = min(rows, key=lambda row: row[1])
    assert oldest[1] == assignment.locks[0].token.number
    await agent.finish(assignment)
    assert await agent.ack(assignment.attempt) is None
    assert [row[0] for row in await keys_of(plane, "bridge-3")] == [foreign]


async def test_a_lock_whose_key_somebody_deletes_is_revoked(start_plane: StartPlane) -> None:
    plane = await start_plane()
    agent = await plane.agent("field-1")
    await agent.say(lock_requests=[ask(1, "bridge-3")])
    held = await grant(agent, 1)
    [(key, _, _)] = await keys_of(plane, "bridge-3")
    await plane.client.delete(key)
    [revoked] = await agent.wait(lambda: agent.all("lock_revocations") or None)
    assert revoked.lock == held.locks[0]


async def test_the_locks_of_a_dead_agent_go_to_who_waits(start_plane: StartPlane) -> None:
    plane = await start_plane()
    dead, alive = await plane.agent("field-1"), await plane.agent("field-2")
    await dead.say(lock_requests=[ask(1, "bridge-3")])
    first = await grant(dead, 1)
    await alive.say(lock_requests=[ask(1, "bridge-3")])
    [_, waiting] = await _both(plane)
    assert (waiting.held, waiting.agent_id) == (False, "field-2")
    await dead.close()
    second = await grant(alive, 1)
    assert second.locks[0].token.number > first.locks[0].token.number


async def _both(plane: Plane) -> list[pb.Lock]:
    stub = await plane.stub()
    while True:
        locks = list((await stub.ListLocks(pb.ListLocksRequest())).locks)
        if len(locks) == 2:
            return locks


async def test_locks_survive_the_leader(start_plane: StartPlane, eventually: Eventually) -> None:
    plane = await start_plane("one", "two")
    first = await plane.leader()
    agent = await plane.agent("field-1")
    await agent.say(lock_requests=[ask(1, "bridge-3")])
    held = await grant(agent, 1)
    await plane.stop_replica(first)
    assert await agent.wait_ended()
    await agent.link(await plane.stub("agent/field-1"), held_locks=held.locks)
    await agent.wait(lambda: agent.frames or None)
    [listed] = (await (await plane.stub()).ListLocks(pb.ListLocksRequest())).locks
    assert (listed.held, listed.token) == (True, held.locks[0].token)
    assert not agent.all("lock_revocations")
