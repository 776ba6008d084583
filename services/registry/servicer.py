"""gRPC in and out: decode, hand over to the driver, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Protocol

from muster.registry.v1 import agent_pb2
from muster.registry.v1 import registry_service_pb2 as pb
from muster.registry.v1 import registry_service_pb2_grpc as pb_grpc

from services.common.core.errors import Reason, ServiceError, invalid
from services.common.core.ids import AGENT_ID, SKILL, AgentId
from services.common.rpc.interceptors import ANYONE, current_call
from services.registry import wire
from services.registry.core.model import AgentRecord
from services.registry.driver import Driver
from services.registry.session_stream import SessionStream, SessionTerms

SERVICE = "registry"
SERVICE_NAME = "muster.registry.v1.RegistryService"
# Agents look for each other and for the services; the whole fleet's changes are for those who run it.
ACCESS = {
    f"{SERVICE_NAME}/Session": frozenset({"agent"}),
    f"{SERVICE_NAME}/ListAgents": ANYONE,
    f"{SERVICE_NAME}/GetAgent": ANYONE,
    f"{SERVICE_NAME}/WatchAgents": frozenset({"service", "operator"}),
    f"{SERVICE_NAME}/ListServices": ANYONE,
    f"{SERVICE_NAME}/GetCoordinator": ANYONE,
}
# Agents in one frame of a watch, and bytes of agents in one frame or page: well below gRPC's 4 MiB, of which
# one agent may need one.
_FRAME_AGENTS_MAX = 256
_MESSAGE_BYTES_MAX = 1024 * 1024


class Directory(Protocol):
    """Who serves and who leads."""

    @property
    def coordinator(self) -> pb.Coordinator | None:
        """The scheduler replica that leads; None while there is none."""
        ...

    def replicas(self, service: str = "") -> Sequence[pb.ServiceReplica]:
        """Return the replicas of one service, or of all."""
        ...


class RegistryServicer(pb_grpc.RegistryServiceServicer):
    """Serves `muster.registry.v1.RegistryService`."""

    def __init__(self, driver: Driver, directory: Directory, terms: SessionTerms) -> None:
        self._driver, self._directory, self._terms = driver, directory, terms

    async def Session(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # it writes to the context
        """Keep one incarnation of the calling agent."""
        del request_iterator  # the duplex reads from the context
        call = current_call.get()
        agent_id = AgentId(call.principal.name)
        await SessionStream(self._driver, agent_id, call.cause_id, context, self._terms).run()

    async def ListAgents(self, request: pb.ListAgentsRequest, context: Any) -> pb.ListAgentsResponse:
        """Return one page of agents by name."""
        del context
        if request.skill and not SKILL.match(request.skill):
            raise invalid("skill", "must be 1 to 64 bytes of [a-z0-9._-], or empty for all agents")
        size, after = wire.page_size(request.page), wire.page_after(request)
        response = pb.ListAgentsResponse()
        room = _MESSAGE_BYTES_MAX
        for record in self._driver.agents_after(after, request.skill):
            if len(response.agents) == size or room <= 0:
                # There is another one: this page has a next.
                last = AgentId(response.agents[-1].agent_id)
                response.page.next_page_token = wire.page_token(request.skill, last)
                break
            message = wire.agent_message(record)
            room -= message.ByteSize()
            response.agents.append(message)
        return response

    async def GetAgent(self, request: pb.GetAgentRequest, context: Any) -> pb.GetAgentResponse:
        """Return one agent."""
        del context
        if not AGENT_ID.match(request.agent_id):
            raise invalid("agent_id", "must be 1 to 64 bytes of [a-z0-9-], no dash at either end")
        record = self._driver.agent(AgentId(request.agent_id))
        if record is None:
            raise ServiceError(
                Reason.AGENT_NOT_FOUND,
                f"no agent {request.agent_id!r} has ever opened a session; ListAgents names those that have",
            )
        return pb.GetAgentResponse(agent=wire.agent_message(record))

    async def WatchAgents(
        self, request: pb.WatchAgentsRequest, context: Any
    ) -> AsyncIterator[pb.WatchAgentsResponse]:
        """Send all agents, then every change, at the reader's pace."""
        del request, context
        with self._driver.watch() as watch:
            while True:
                taken, snapshot_complete = await watch.take(_FRAME_AGENTS_MAX)
                records = [record for one in taken if (record := self._driver.agent(one)) is not None]
                frames = list(_frames(records))
                if snapshot_complete:
                    frames = frames or [pb.WatchAgentsResponse()]
                    frames[-1].snapshot_complete = True
                for frame in frames:
                    yield frame

    async def ListServices(self, request: pb.ListServicesRequest, context: Any) -> pb.ListServicesResponse:
        """Return the live replicas of every service, and who leads."""
        del context
        return pb.ListServicesResponse(
            replicas=self._directory.replicas(request.service), coordinator=self._directory.coordinator
        )

    async def GetCoordinator(
        self, request: pb.GetCoordinatorRequest, context: Any
    ) -> pb.GetCoordinatorResponse:
        """Return the scheduler replica that leads."""
        del request, context
        coordinator = self._directory.coordinator
        if coordinator is None:
            raise ServiceError(
                Reason.NOT_COORDINATOR,
                "no scheduler leads at the moment; an election takes a few seconds, then try again",
                metadata={"coordinator": ""},
                retry_after_ms=500,
            )
        return pb.GetCoordinatorResponse(coordinator=coordinator)


def _frames(records: Sequence[AgentRecord]) -> Iterator[pb.WatchAgentsResponse]:
    frame, room = pb.WatchAgentsResponse(), _MESSAGE_BYTES_MAX
    for record in records:
        message: agent_pb2.Agent = wire.agent_message(record)
        if frame.agents and room < message.ByteSize():
            yield frame
            frame, room = pb.WatchAgentsResponse(), _MESSAGE_BYTES_MAX
        room -= message.ByteSize()
        frame.agents.append(message)
    if frame.agents:
        yield frame
