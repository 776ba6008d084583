"""Lists, pages, watches and discovery."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from muster.common.v1 import page_pb2
from muster.registry.v1 import agent_pb2
from muster.registry.v1 import registry_service_pb2 as pb

from services.common.core.errors import Reason
from services.common.etcd.client import EtcdClient
from services.common.etcd.directory import COORDINATOR_ELECTION, coordinator_value
from tests.integration.registry.conftest import (
    LOST,
    PATIENCE_S,
    QUICK,
    READY,
    Eventually,
    Plane,
    Session,
    refused,
    working,
)


async def fleet(plane: Plane, address: str, count: int) -> list[Session]:
    """Open sessions of agents agent-000 … of which every other one can read maps."""
    sessions = [plane.session(address, f"agent-{number:03}") for number in range(count)]
    for number, session in enumerate(sessions):
        await session.open(skills=[agent_pb2.Skill(name="boats" if number % 2 else "maps")])
    return sessions


async def test_pages_of_all_agents_and_of_those_with_a_skill(plane: Plane) -> None:
    app = await plane.start()
    await fleet(plane, app.address, 7)
    stub = plane.stub(app.address)

    async def pages(size: int, skill: str = "") -> list[list[str]]:
        found, token = [], ""
        while True:
            page = page_pb2.PageRequest(page_size=size, page_token=token)
            response = await stub.ListAgents(pb.ListAgentsRequest(page=page, skill=skill))
            found.append([agent.agent_id for agent in response.agents])
            token = response.page.next_page_token
            if not token:
                return found

    names = [f"agent-{number:03}" for number in range(7)]
    assert await pages(3) == [names[:3], names[3:6], names[6:]]
    assert await pages(7) == [names]
    assert await pages(0) == [names]
    assert await pages(2, "maps") == [names[0:4:2], names[4::2]]
    assert await pages(2, "cooking") == [[]]


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (pb.ListAgentsRequest(skill="Not A Skill"), "skill"),
        (pb.ListAgentsRequest(page=page_pb2.PageRequest(page_size=1_001)), "page.page_size"),
        (pb.ListAgentsRequest(page=page_pb2.PageRequest(page_token="?")), "page.page_token"),
        (pb.GetAgentRequest(agent_id="No Agent"), "agent_id"),
        (pb.GetAgentRequest(), "agent_id"),
    ],
)
async def test_bad_requests_name_the_field(plane: Plane, request_: Any, path: str) -> None:
    app = await plane.start()
    stub = plane.stub(app.address)
    method = stub.ListAgents if isinstance(request_, pb.ListAgentsRequest) else stub.GetAgent
    with refused() as errors:
        await method(request_)
    assert errors[0].reason is Reason.INVALID_FIELD
    assert [one.field for one in errors[0].violations] == [path]


class Watcher:
    """What one WatchAgents stream has told."""

    def __init__(self, stub: Any) -> None:
        self.agents: dict[str, agent_pb2.Agent] = {}
        self.generations: dict[str, list[int]] = {}
        self.frames: list[pb.WatchAgentsResponse] = []
        self.call = stub.WatchAgents(pb.WatchAgentsRequest())

    async def read(self) -> pb.WatchAgentsResponse:
        async with asyncio.timeout(PATIENCE_S):
            frame: pb.WatchAgentsResponse = await self.call.read()
        self.frames.append(frame)
        for agent in frame.agents:
            self.agents[agent.agent_id] = agent
            self.generations.setdefault(agent.agent_id, []).append(agent.generation)
        return frame

    async def until(self, agent_id: str, state: int) -> None:
        while agent_id not in self.agents or self.agents[agent_id].state != state:
            await self.read()


async def test_a_watch_sends_the_snapshot_then_what_changes(plane: Plane) -> None:
    app = await plane.start(**QUICK)
    sessions = await fleet(plane, app.address, 3)
    watcher = Watcher(plane.stub(app.address))
    first = await watcher.read()
    assert first.snapshot_complete
    assert sorted(agent.agent_id for agent in first.agents) == ["agent-000", "agent-001", "agent-002"]
    await sessions[1].beat()
    await watcher.until("agent-001", READY)
    # A heartbeat that changes nothing is no news.
    await sessions[1].beat()
    await plane.session(app.address, "late").open(load=working())
    await watcher.until("late", READY)
    for name in ("agent-000", "agent-001", "late"):
        await watcher.until(name, LOST)
    assert [frame.snapshot_complete for frame in watcher.frames].count(True) == 1
    for generations in watcher.generations.values():
        assert generations == sorted(set(generations))
    watcher.call.cancel()


async def test_a_watch_of_an_empty_fleet_says_so_at_once(plane: Plane) -> None:
    app = await plane.start()
    watcher = Watcher(plane.stub(app.address))
    frame = await watcher.read()
    assert frame.snapshot_complete
    assert not frame.agents
    watcher.call.cancel()


async def test_a_watch_at_another_replica_sees_the_same(plane: Plane) -> None:
    here, there = await plane.start("registry-0"), await plane.start("registry-1")
    watcher = Watcher(plane.stub(there.address, "service/scheduler"))
    await watcher.read()
    session = plane.session(here.address)
    await session.open(load=working())
    await watcher.until("a-agent", READY)
    await session.farewell()
    await watcher.until("a-agent", agent_pb2.AGENT_STATE_OFFLINE)
    watcher.call.cancel()


async def test_a_slow_watcher_gets_fewer_newer_frames(plane: Plane, eventually: Eventually) -> None:
    app = await plane.start(heartbeats_per_second_max=1_000)
    stub = plane.stub(app.address)
    watcher = Watcher(stub)
    await watcher.read()
    sessions = await fleet(plane, app.address, 20)
    # Nobody reads, while the states of twenty agents change many times.
    for _ in range(40):
        for session in sessions:
            await session.beat(working(slots=1, used=1))
            await session.beat(working(slots=1, used=0))

    async def all_ready() -> bool:
        response = await stub.ListAgents(pb.ListAgentsRequest())
        return all(agent.state == READY for agent in response.agents)

    await eventually(all_ready)
    newest = {one.agent_id: one.generation for one in (await stub.ListAgents(pb.ListAgentsRequest())).agents}
    while {name: agent.generation for name, agent in watcher.agents.items()} != newest:
        await watcher.read()
    watcher.call.cancel()


async def test_too_many_watchers(plane: Plane) -> None:
    app = await plane.start(watchers_max=1)
    first = Watcher(plane.stub(app.address))
    await first.read()
    with refused() as errors:
        await plane.stub(app.address).WatchAgents(pb.WatchAgentsRequest()).read()
    assert errors[0].reason is Reason.QUOTA_EXCEEDED
    assert errors[0].metadata["limit"] == "watchers_max"
    first.call.cancel()


async def test_services_and_the_coordinator_are_found(
    plane: Plane, etcd_client: EtcdClient, eventually: Eventually
) -> None:
    app = await plane.start("registry-0", metrics_listen="127.0.0.1:0")
    await plane.start("registry-1")
    stub = plane.stub(app.address, "agent/a-agent")

    async def replicas() -> list[tuple[str, str]]:
        response = await stub.ListServices(pb.ListServicesRequest(service="registry"))
        return [(one.replica_id, one.address) for one in response.replicas]

    async def both() -> bool:
        return [name for name, _ in await replicas()] == ["registry-0", "registry-1"]

    await eventually(both)
    assert (await replicas())[0] == ("registry-0", app.address)
    response = await stub.ListServices(pb.ListServicesRequest())
    assert response.replicas[0].metrics_address == app.metrics_address
    assert not response.HasField("coordinator")
    with refused() as errors:
        await stub.GetCoordinator(pb.GetCoordinatorRequest())
    assert errors[0].reason is Reason.NOT_COORDINATOR
    assert errors[0].retry_after_ms is not None

    key = f"{plane.prefix}/{COORDINATOR_ELECTION}1"
    epoch = await etcd_client.put(key, coordinator_value("scheduler-1", "127.0.0.1:7402"))

    async def leads() -> bool:
        found = await stub.ListServices(pb.ListServicesRequest())
        return bool(found.coordinator.epoch == epoch)

    await eventually(leads)
    coordinator = (await stub.GetCoordinator(pb.GetCoordinatorRequest())).coordinator
    assert (coordinator.replica_id, coordinator.address) == ("scheduler-1", "127.0.0.1:7402")
