"""Locks in the agent's code, against a stand-in scheduler: grants, refusals, losses, withdrawals."""

from __future__ import annotations

import asyncio
import threading

import pytest
from muster.common.v1 import fencing_pb2
from muster.scheduler.v1 import task_pb2, work_pb2

from agent_client import Agent, LockLostError, ResourceHeldError, Task, UnavailableError
from services.common.core.errors import Reason, ServiceError
from services.common.rpc.status import to_status
from tests.conftest import Eventually
from tests.integration.agent_client.fake_plane import FakePlane


@pytest.fixture
def agent(plane: FakePlane) -> Agent:
    made = Agent("field-1", ["plan"], home=plane.home)
    made.handler("nothing")(lambda task: None)
    return made


def asked(plane: FakePlane) -> list[work_pb2.LockRequest]:
    return [ask for frame in plane.work.frames for ask in frame.lock_requests]


def released(plane: FakePlane) -> list[work_pb2.LockRelease]:
    return [drop for frame in plane.work.frames for drop in frame.lock_releases]


def grant(plane: FakePlane, ask: work_pb2.LockRequest, number: int = 5) -> None:
    locks = [
        work_pb2.HeldLock(resource=claim.resource, token=fencing_pb2.FencingToken(epoch=1, number=number))
        for claim in ask.claims
    ]
    plane.work.say(
        work_pb2.WorkResponse(
            lock_grants=[work_pb2.LockGrant(lock_request_id=ask.lock_request_id, locks=locks)]
        )
    )


def revoke(plane: FakePlane, resource: str, number: int = 5) -> None:
    lock = work_pb2.HeldLock(resource=resource, token=fencing_pb2.FencingToken(epoch=1, number=number))
    plane.work.say(
        work_pb2.WorkResponse(lock_revocations=[work_pb2.LockRevocation(lock=lock, reason="preempted")])
    )


async def test_a_lock_gives_its_token_and_is_released(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    async with agent:
        await agent.wait_ready()
        entered = asyncio.Event()

        async def use() -> str:
            async with agent.lock("bridge-3", "road-1", shared=True, wait=2.5) as held:
                entered.set()
                return f"{held.token} {sorted(held.tokens)} {held.lost}"

        using = asyncio.create_task(use())
        await eventually(lambda: asked(plane))
        ask = asked(plane)[0]
        assert [(claim.resource, claim.mode) for claim in ask.claims] == [
            ("bridge-3", task_pb2.LOCK_MODE_SHARED),
            ("road-1", task_pb2.LOCK_MODE_SHARED),
        ]
        assert 0 < ask.wait_max.ToMilliseconds() <= 2_500
        assert not ask.HasField("attempt")
        assert not entered.is_set()
        grant(plane, ask)
        assert await using == "1.5 ['bridge-3', 'road-1'] False"
        await eventually(lambda: released(plane))
        assert [lock.resource for lock in released(plane)[0].locks] == ["bridge-3", "road-1"]


async def test_a_refusal_says_who_holds_it(plane: FakePlane, agent: Agent, eventually: Eventually) -> None:
    """L4, the client's side."""
    async with agent:
        await agent.wait_ready()

        async def use() -> None:
            async with agent.lock("bridge-3", wait=0):
                pytest.fail("entered without the lock")

        using = asyncio.create_task(use())
        await eventually(lambda: asked(plane))
        assert asked(plane)[0].wait_max.ToMilliseconds() == 0
        assert asked(plane)[0].HasField("wait_max")
        error = ServiceError(
            Reason.RESOURCE_HELD,
            "held by agent/field-2",
            metadata={"holder": "agent/field-2", "until": "2026-07-01T12:00:00Z"},
        )
        plane.work.say(
            work_pb2.WorkResponse(
                lock_refusals=[
                    work_pb2.LockRefusal(
                        lock_request_id=asked(plane)[0].lock_request_id, error=to_status(error)
                    )
                ]
            )
        )
        with pytest.raises(ResourceHeldError) as caught:
            await using
        assert (caught.value.holder, caught.value.until) == ("agent/field-2", "2026-07-01T12:00:00Z")


async def test_the_loss_of_a_lock_interrupts_the_body(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    async with agent:
        await agent.wait_ready()
        inside = asyncio.Event()

        async def use() -> None:
            async with agent.lock("bridge-3") as held:
                inside.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    assert held.lost

        using = asyncio.create_task(use())
        await eventually(lambda: asked(plane))
        grant(plane, asked(plane)[0])
        await inside.wait()
        revoke(plane, "bridge-3")
        with pytest.raises(LockLostError, match="preempted"):
            await using
        assert not using.cancelled()


async def test_somebody_elses_cancellation_is_not_swallowed(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    async with agent:
        await agent.wait_ready()
        inside = asyncio.Event()

        async def use() -> None:
            async with agent.lock("bridge-3"):
                inside.set()
                await asyncio.Event().wait()

        using = asyncio.create_task(use())
        await eventually(lambda: asked(plane))
        grant(plane, asked(plane)[0])
        await inside.wait()
        using.cancel()
        with pytest.raises(asyncio.CancelledError):
            await using
        await eventually(lambda: released(plane))


async def test_a_wait_that_is_cancelled_withdraws_the_wish(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    async with agent:
        await agent.wait_ready()

        async def use() -> None:
            async with agent.lock("bridge-3"):
                pytest.fail("entered although nobody waits")

        using = asyncio.create_task(use())
        await eventually(lambda: asked(plane))
        ask = asked(plane)[0]
        using.cancel()
        with pytest.raises(asyncio.CancelledError):
            await using
        await eventually(lambda: released(plane))
        assert not released(plane)[0].locks
        # The grant was on its way already: it is given back.
        grant(plane, ask)
        await eventually(lambda: len(released(plane)) == 2)
        assert [lock.resource for lock in released(plane)[1].locks] == ["bridge-3"]


async def test_locks_work_in_threads_and_belong_to_their_attempt(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    inside = threading.Event()

    @agent.handler("plan")
    def plan(task: Task) -> str:
        with task.lock("bridge-3") as held:
            inside.set()
            while not held.lost:
                task.wait_cancelled(0.001)
        return "not reached"

    async with agent:
        await agent.wait_ready()
        attempt = plane.assign("t")
        await eventually(lambda: asked(plane))
        assert asked(plane)[0].attempt == attempt
        grant(plane, asked(plane)[0])
        await eventually(inside.is_set)
        revoke(plane, "bridge-3")
        await eventually(lambda: plane.results)
    assert plane.results[0].failure.reason == "LOCK_LOST"
    assert plane.results[0].failure.kind == task_pb2.FAILURE_KIND_TRANSIENT


async def test_wishes_and_locks_cross_a_lost_stream(
    plane: FakePlane, agent: Agent, eventually: Eventually
) -> None:
    async with agent:
        await agent.wait_ready()
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with agent.lock("bridge-3"):
                inside.set()
                await go_on.wait()

        async def wish() -> str:
            async with agent.lock("road-1") as held:
                return str(held.token)

        holding, wishing = asyncio.create_task(hold()), asyncio.create_task(wish())
        await eventually(lambda: len(asked(plane)) == 2)
        grant(plane, asked(plane)[0])
        await inside.wait()
        plane.work.say(ServiceError(Reason.SHUTTING_DOWN, "bye"))
        await eventually(lambda: len(plane.scheduler.streams) == 2)
        assert [lock.resource for lock in plane.work.hello.held_locks] == ["bridge-3"]
        await eventually(lambda: asked(plane))
        assert [claim.resource for claim in asked(plane)[0].claims] == ["road-1"]
        grant(plane, asked(plane)[0], number=8)
        assert await wishing == "1.8"
        go_on.set()
        await holding


async def test_a_wish_ends_in_time_without_any_scheduler(plane: FakePlane, agent: Agent) -> None:
    plane.leader = ""
    async with agent:
        with pytest.raises(UnavailableError, match="no scheduler was reachable"):
            async with agent.lock("bridge-3", wait=0.05):
                pytest.fail("entered without the lock")


async def test_a_lock_object_is_used_once(plane: FakePlane, agent: Agent) -> None:
    plane.leader = ""
    async with agent:
        lock = agent.lock("bridge-3", wait=0)
        for error in (UnavailableError, RuntimeError):
            with pytest.raises(error):
                async with lock:
                    pytest.fail("entered without the lock")
        with pytest.raises(ValueError, match="at least one resource"):
            agent.lock()


async def test_whoever_waits_when_the_agent_leaves_is_told(plane: FakePlane, agent: Agent) -> None:
    plane.leader = ""

    async def use() -> None:
        async with agent.lock("bridge-3"):
            pytest.fail("entered without the lock")

    async with agent:
        using = asyncio.create_task(use())
        await asyncio.sleep(0)
    with pytest.raises(UnavailableError, match="has left the plane"):
        await using
