"""Who exists and who belongs together, from services that come and go: over mTLS, with the test's own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest
from muster.registry.v1 import agent_pb2 as agent_pb
from muster.registry.v1 import registry_service_pb2 as pb
from muster.registry.v1.registry_service_pb2_grpc import (
    RegistryServiceServicer,
    add_RegistryServiceServicer_to_server,
)
from muster.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from muster.scheduler.v1.scheduler_service_pb2_grpc import (
    SchedulerServiceServicer,
    add_SchedulerServiceServicer_to_server,
)

from services.broker.core.model import AgentProfile, Reach
from services.broker.peers import AgentsView, RegistryAgents, SchedulerMembers, read_profile
from services.common import logs
from services.common.core.errors import Reason, ServiceError
from services.common.etcd.directory import ServiceDirectory
from services.common.metrics import Metrics
from services.common.rpc.server import GrpcServer
from tests.conftest import Certificates, Eventually
from tests.integration.broker.broker_client import envelope, error_of
from tests.integration.broker.conftest import House

NAME = "muster.registry.v1.RegistryService"
SCHEDULER = "muster.scheduler.v1.SchedulerService"


class Registry(RegistryServiceServicer):
    """Sends what it is told to whoever watches."""

    def __init__(self, certificates: Certificates, names: Sequence[str]) -> None:
        self.names = list(names)
        self.news: asyncio.Queue[str] = asyncio.Queue()
        methods = ("Session", "ListAgents", "GetAgent", "WatchAgents", "ListServices", "GetCoordinator")
        access = {f"{NAME}/{method}": frozenset({"service"}) for method in methods}
        self.server = GrpcServer(
            certificates.tls("service/registry"),
            "127.0.0.1:0",
            access,
            Metrics("registry"),
            logs.get("test.registry"),
        )
        self.server.add(add_RegistryServiceServicer_to_server, self, NAME)

    # The broker only watches.
    _unasked: Any = None
    Session = ListAgents = GetAgent = ListServices = GetCoordinator = _unasked

    async def WatchAgents(self, request: Any, context: Any) -> AsyncIterator[Any]:  # the proto's name
        for name in self.names:
            yield pb.WatchAgentsResponse(agents=[agent_pb.Agent(agent_id=name)])
        yield pb.WatchAgentsResponse(snapshot_complete=True)
        while True:
            yield pb.WatchAgentsResponse(agents=[agent_pb.Agent(agent_id=await self.news.get())])


class Directory:
    """Where registries are; a test moves them."""

    def __init__(self) -> None:
        self.known: tuple[str, ...] = ()
        self.changed = asyncio.Event()

    def addresses(self, service: str) -> tuple[str, ...]:
        assert service == "registry"
        return self.known

    async def wait_changed(self) -> None:
        await self.changed.wait()

    def move(self, *addresses: str) -> None:
        self.known = addresses
        self.changed.set()


def names_of(view: AgentsView) -> tuple[set[str], bool]:
    assert view.profiles.keys() == view.names
    return set(view.names), view.complete


def test_a_profile_counts_what_work_reaches() -> None:
    agent = agent_pb.Agent(agent_id="alpha", state=agent_pb.AGENT_STATE_BUSY)
    agent.skills.add(name="plans", level=0.5)
    for state, used in (("READY", 1), ("BUSY", 4), ("LOST", 4)):
        load = agent_pb.AgentLoad(slots=4, slots_used=used)
        agent.instances.add(state=agent_pb.AgentState.Value(f"AGENT_STATE_{state}"), load=load)
    assert read_profile(agent) == AgentProfile(frozenset({"plans"}), Reach.READY, 8, 5)
    assert read_profile(agent_pb.Agent(agent_id="beta")).reach is Reach.AWAY


async def test_it_follows_registries_wherever_they_go(certificates: Certificates) -> None:
    directory = Directory()
    agents = RegistryAgents(cast(ServiceDirectory, directory), certificates.tls("service/broker"))
    first, second = Registry(certificates, ["alpha", "beta"]), Registry(certificates, ["alpha", "gamma"])
    async with contextlib.aclosing(agents.watch()) as views:
        waiting = asyncio.create_task(anext(views))
        # None is known yet; as soon as one is, everything that it knows comes at once.
        directory.move(await first.server.start())
        assert names_of(await waiting) == ({"alpha", "beta"}, True)
        first.news.put_nowait("delta")
        assert names_of(await anext(views)) == ({"delta"}, False)
        directory.move(await second.server.start())
        await first.server.drain(100)
        assert names_of(await anext(views)) == ({"alpha", "gamma"}, True)
    await second.server.drain(100)


async def test_while_no_registry_answers_the_known_agents_stay(
    house: House, certificates: Certificates, eventually: Eventually
) -> None:
    directory = Directory()
    registry = Registry(certificates, ["alpha", "beta"])
    directory.move(await registry.server.start())
    house.agents = cast(
        Any, RegistryAgents(cast(ServiceDirectory, directory), certificates.tls("service/broker"))
    )
    app = await house.start()
    await eventually(lambda: {"alpha", "beta"} <= app.driver.machine.state.known)
    await registry.server.drain(100)
    alpha = await house.open("agent/alpha")
    taken, refused = await alpha.send(envelope("m-1", "beta"), envelope("m-2", "gamma"))
    assert not taken.HasField("error")
    assert error_of(refused).reason is Reason.AGENT_NOT_FOUND
    # Nor does a restart without any registry forget them.
    await house.stop()
    await house.start()
    alpha = await house.open("agent/alpha")
    (taken,) = await alpha.send(envelope("m-3", "beta"))
    assert taken.sequence_number == 2


class Scheduler(SchedulerServiceServicer):
    """A scheduler that knows one collaboration."""

    def __init__(self, certificates: Certificates, members: Sequence[str]) -> None:
        self.members, self.asked = members, 0
        tls = certificates.tls("service/scheduler")
        methods = scheduler_pb.DESCRIPTOR.services_by_name["SchedulerService"].methods
        access = {f"{SCHEDULER}/{method.name}": frozenset({"service/broker"}) for method in methods}
        self.server = GrpcServer(tls, "127.0.0.1:0", access, Metrics("scheduler"), logs.get("test"))
        self.server.add(add_SchedulerServiceServicer_to_server, self, SCHEDULER)

    async def GetMembers(self, request: Any, context: Any) -> Any:
        self.asked += 1
        if request.collaboration_id != "c-1":
            raise ServiceError(Reason.COLLABORATION_NOT_FOUND, "no such collaboration")
        return scheduler_pb.GetMembersResponse(members=self.members)


class Leaders:
    """Says who leads."""

    def __init__(self) -> None:
        self.coordinator: pb.Coordinator | None = None


async def test_members_are_asked_of_whoever_leads(certificates: Certificates) -> None:
    leaders = Leaders()
    source = SchedulerMembers(cast(ServiceDirectory, leaders), certificates.tls("service/broker"))
    # What no test calls is left out of it.
    first = Scheduler(certificates, ["alpha", "beta"])  # type: ignore[abstract]
    second = Scheduler(certificates, ["alpha"])  # type: ignore[abstract]
    with pytest.raises(ServiceError) as nobody:
        await source.members("c-1", 1_000)
    assert nobody.value.reason is Reason.NOT_COORDINATOR
    leaders.coordinator = pb.Coordinator(address=await first.server.start())
    assert await source.members("c-1", 5_000) == frozenset({"alpha", "beta"})
    assert await source.members("c-9", 5_000) is None
    leaders.coordinator = pb.Coordinator(address=await second.server.start())
    assert await source.members("c-1", 5_000) == frozenset({"alpha"})
    await second.server.drain(100)
    with pytest.raises(ServiceError):
        await source.members("c-1", 300)
    await source.close()
    await first.server.drain(100)
