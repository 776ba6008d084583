"""Two replicas: who leads, what a standby says, what survives the leader."""

from __future__ import annotations

import asyncio

import grpc
from muster.scheduler.v1 import collaboration_pb2 as collaboration_pb
from muster.scheduler.v1 import scheduler_service_pb2 as pb

from services.common.core.errors import Reason
from services.common.etcd.client import EtcdClient
from services.common.etcd.directory import COORDINATOR_ELECTION
from tests.conftest import Eventually
from tests.integration.scheduler.conftest import StartPlane
from tests.integration.scheduler.scheduler_plane import Plane, refused, submission, task


async def depose(plane: Plane) -> None:
    """Take the leader's key away, as the end of its lease does; wait for a leader if there is none."""
    prefix = f"{plane.prefix}/{COORDINATOR_ELECTION}"
    async with asyncio.timeout(20):
        while not (rows := (await plane.client.get_prefix(prefix)).kvs):
            await asyncio.sleep(0.01)  # sleeps: between two looks at etcd
    oldest = min(rows, key=lambda row: row.create_revision)
    await plane.client.delete(oldest.key)


async def other(plane: Plane, name: str, eventually: Eventually) -> str:
    """Wait until another replica than `name` leads; return which."""
    await eventually(lambda: any(app.replica.leads for key, app in plane.apps.items() if key != name))
    return next(key for key, app in plane.apps.items() if key != name and app.replica.leads)


async def test_a_standby_names_the_coordinator(start_plane: StartPlane, eventually: Eventually) -> None:
    plane = await start_plane("one", "two")
    leader = await plane.leader()
    [standby] = {"one", "two"} - {leader}
    stub = await plane.stub(replica=standby)
    replica = plane.apps[standby].replica
    await eventually(lambda: replica.not_coordinator().metadata["coordinator"])
    for ask in (
        lambda: stub.SubmitCollaboration(submission()),
        lambda: stub.ListLocks(pb.ListLocksRequest()),
        lambda: stub.Submit().read(),
    ):
        async with refused() as errors:
            await ask()  # type: ignore[no-untyped-call]  # the stubs are not typed
        assert errors[0].reason is Reason.NOT_COORDINATOR
        assert errors[0].metadata["coordinator"] == plane.apps[leader].address


async def test_streams_end_and_work_goes_on_under_the_next_leader(
    start_plane: StartPlane, eventually: Eventually
) -> None:
    plane = await start_plane("one", "two")
    first = await plane.leader()
    stub = await plane.stub()
    agent = await plane.agent("field-1", slots=2)
    answer = await stub.SubmitCollaboration(submission(task("x"), task("y", "x"), name="flood"))
    running = await agent.assignment("x")
    watch = stub.WatchCollaborations(pb.WatchCollaborationsRequest(collaboration_id=answer.collaboration_id))
    seen = (await watch.read()).events[0].generation
    await depose(plane)
    assert (await agent.wait_ended()).reason is Reason.NOT_COORDINATOR
    second = await other(plane, first, eventually)
    # What it did meanwhile counts under its old token.
    await agent.link(await plane.stub("agent/field-1", second), slots=1, held=[running.attempt])
    await agent.finish(running, b"meanwhile")
    assert await agent.ack(running.attempt) is None
    following = await agent.assignment("y")
    assert following.inputs["x"].data == b"meanwhile"
    assert following.attempt.token.epoch > running.attempt.token.epoch
    await agent.finish(following)
    assert await agent.ack(following.attempt) is None
    stub = await plane.stub(replica=second)
    call = stub.WatchCollaborations(
        pb.WatchCollaborationsRequest(collaboration_id=answer.collaboration_id, from_generation=seen)
    )
    events = (await call.read()).events
    call.cancel()
    assert events[-1].generation > seen
    found = await stub.GetCollaboration(pb.GetCollaborationRequest(collaboration_id=answer.collaboration_id))
    assert found.collaboration.state == collaboration_pb.COLLABORATION_STATE_COMPLETED
    assert all(len(each.attempts) == 1 for each in found.collaboration.tasks), "nothing was done twice"
    repeated = await stub.SubmitCollaboration(
        pb.SubmitCollaborationRequest(
            request_id=found.collaboration.request_id,
            collaboration=submission(task("x"), task("y", "x"), name="flood").collaboration,
        )
    )
    assert repeated.already_accepted


async def test_a_replica_that_leaves_hands_over_at_once(
    start_plane: StartPlane, eventually: Eventually
) -> None:
    plane = await start_plane("one", "two", election_ttl_s=30, lock_ttl_s=60)
    first = await plane.leader()
    stub = await plane.stub()
    answer = await stub.SubmitCollaboration(submission())
    loop = asyncio.get_running_loop()
    began = loop.time()
    await plane.stop_replica(first)
    second = await other(plane, first, eventually)
    assert loop.time() - began < 15, "the lease was given up, not waited for"
    found = await (await plane.stub(replica=second)).GetCollaboration(
        pb.GetCollaborationRequest(collaboration_id=answer.collaboration_id)
    )
    assert found.collaboration.generation == answer.generation


async def test_a_deposed_leader_campaigns_again(start_plane: StartPlane, eventually: Eventually) -> None:
    plane = await start_plane("one")
    stub = await plane.stub()
    await stub.SubmitCollaboration(submission())
    for _ in range(3):
        await depose(plane)

        async def answers() -> bool:
            try:
                return (
                    len((await stub.ListCollaborations(pb.ListCollaborationsRequest())).collaborations) == 1
                )
            except grpc.aio.AioRpcError:
                return False

        await eventually(answers)


async def test_requests_in_flight_are_answered_one_way_or_the_other(
    start_plane: StartPlane, eventually: Eventually
) -> None:
    plane = await start_plane("one", "two")
    first = await plane.leader()
    stub = await plane.stub()
    call = stub.Submit()
    accepted: set[str] = set()
    sent = [f"r{number}" for number in range(2_000)]

    async def read() -> None:
        try:
            async for frame in call:
                accepted.update(row.request_id for row in frame.outcomes if row.HasField("accepted"))
        except grpc.aio.AioRpcError:
            pass

    reading = asyncio.create_task(read())
    try:
        for start in range(0, len(sent), 100):
            rows = [submission(request_id=name) for name in sent[start : start + 100]]
            await call.write(pb.SubmitRequest(submissions=rows))
            if start == 1_000:
                await depose(plane)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass
    await reading
    second = await other(plane, first, eventually)
    stub = await plane.stub(replica=second)
    kept: set[str] = set()
    request = pb.ListCollaborationsRequest()
    request.page.page_size = 1_000
    while True:
        page = await stub.ListCollaborations(request)
        kept |= {each.request_id for each in page.collaborations}
        request.page.page_token = page.page.next_page_token
        if not request.page.page_token:
            break
    assert accepted <= kept, "acknowledged and lost"


async def test_a_restarted_etcd_is_waited_for(
    certificates: object, own_etcd: object, tmp_path: object, eventually: Eventually
) -> None:
    plane = Plane(certificates, own_etcd, "/muster", tmp_path, election_ttl_s=8)  # type: ignore[arg-type]
    try:
        await plane.start("one")
        stub = await plane.stub()
        agent = await plane.agent("field-1", slots=2)
        await stub.SubmitCollaboration(submission(task("x"), task("y", "x")))
        assignment = await agent.assignment("x")
        plane.etcd.kill()
        await agent.finish(assignment)
        await plane.etcd.restart()
        link_lost = agent.error
        if link_lost is None:
            following = asyncio.create_task(agent.assignment("y"))
            ended = asyncio.create_task(agent.wait_ended())
            await asyncio.wait({following, ended}, return_when=asyncio.FIRST_COMPLETED)
            for waiting in (following, ended):
                waiting.cancel()
            await asyncio.gather(following, ended, return_exceptions=True)
        if agent.error is not None:
            # The lease ran out meanwhile: the same replica leads again, and knows everything.
            await agent.link(await plane.stub("agent/field-1"), slots=2, held=[assignment.attempt])
            await agent.finish(assignment)
        assert (await agent.assignment("y")).inputs["x"].data == b"done"
    finally:
        await plane.stop()


async def raw_keys(client: EtcdClient, prefix: str) -> list[str]:
    return [row.key.removeprefix(prefix) for row in (await client.get_prefix(prefix)).kvs]


async def test_ended_collaborations_leave_etcd(start_plane: StartPlane, eventually: Eventually) -> None:
    plane = await start_plane(retention_ms=300)
    stub = await plane.stub()
    agent = await plane.agent("field-1")
    await stub.SubmitCollaboration(submission())
    await agent.finish(await agent.assignment("t"))

    async def gone() -> bool:
        return not await raw_keys(plane.client, f"{plane.prefix}/tasks/") and not await raw_keys(
            plane.client, f"{plane.prefix}/collaborations/"
        )

    await eventually(gone)
