"""What the broker needs from others: who exists (the registry) and who belongs together (the scheduler)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import grpc
from muster.registry.v1 import agent_pb2 as agent_pb
from muster.registry.v1 import registry_service_pb2 as registry_pb
from muster.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from muster.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from muster.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub

from services.broker.core.model import AgentProfile, Reach
from services.common import logs
from services.common.core.backoff import backoff_ms
from services.common.core.errors import Reason, ServiceError
from services.common.etcd.directory import ServiceDirectory
from services.common.rpc.channel import make_channel
from services.common.rpc.status import from_rpc_error
from services.common.tls import TlsIdentity

BACKOFF_MS_MIN = 100
BACKOFF_MS_MAX = 5_000
# Seconds that calls to a scheduler that leads no more may still take.
CLOSE_GRACE_S = 2.0

_log = logs.get("broker.peers")


@dataclass(frozen=True, slots=True)
class AgentsView:
    """Names of agents; `complete` means all that there are."""

    names: frozenset[str]
    complete: bool
    # What is known of each of them.
    profiles: Mapping[str, AgentProfile] = field(default_factory=dict)


class AgentDirectory(Protocol):
    """Tells which agents exist."""

    def watch(self) -> AsyncGenerator[AgentsView, None]:
        """Yield all agents, then those that changed, for ever; all of them again after a gap."""
        ...


class RegistryAgents:
    """An `AgentDirectory` that asks the registry, and asks again for ever when it is away."""

    def __init__(self, services: ServiceDirectory, tls: TlsIdentity) -> None:
        self._services, self._tls = services, tls
        self._failures = 0

    async def watch(self) -> AsyncGenerator[AgentsView, None]:
        """See `AgentDirectory.watch`."""
        while True:
            addresses = self._services.addresses("registry")
            if not addresses:
                await self._services.wait_changed()
                continue
            channel = make_channel(addresses, self._tls, "registry")
            try:
                async for view in self._follow(channel):
                    self._failures = 0
                    yield view
                why: Exception = ConnectionError("the registry ended the stream")
            except grpc.aio.AioRpcError as error:
                why = from_rpc_error(error)
            except ServiceError as error:
                why = error
            finally:
                await channel.close(None)
            self._failures += 1
            if self._failures == 1:
                _log.warning("lost the registry; known agents stay as they are", why=str(why))
            delay_ms = backoff_ms(
                self._failures, base_ms=BACKOFF_MS_MIN, max_ms=BACKOFF_MS_MAX, jitter=random.random()
            )
            await asyncio.sleep(delay_ms / 1000)

    async def _follow(self, channel: grpc.aio.Channel) -> AsyncGenerator[AgentsView, None]:
        stub = RegistryServiceStub(channel)
        snapshot: dict[str, AgentProfile] | None = {}
        async for frame in stub.WatchAgents(registry_pb.WatchAgentsRequest()):
            profiles = {agent.agent_id: read_profile(agent) for agent in frame.agents}
            if snapshot is None:
                if profiles:
                    yield AgentsView(frozenset(profiles), complete=False, profiles=profiles)
                continue
            snapshot |= profiles
            if frame.snapshot_complete:
                yield AgentsView(frozenset(snapshot), complete=True, profiles=snapshot)
                snapshot = None


class SchedulerMembers:
    """A `members.MembershipSource` that asks the coordinator."""

    def __init__(self, services: ServiceDirectory, tls: TlsIdentity) -> None:
        self._services, self._tls = services, tls
        self._address = ""
        self._channel: grpc.aio.Channel | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def members(self, collaboration_id: str, timeout_ms: int) -> frozenset[str] | None:
        """See `members.MembershipSource`."""
        request = scheduler_pb.GetMembersRequest(collaboration_id=collaboration_id)
        try:
            stub = SchedulerServiceStub(await self._reach())
            answer = await stub.GetMembers(request, timeout=timeout_ms / 1000)
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error)
            if failure.reason is Reason.COLLABORATION_NOT_FOUND:
                return None
            raise failure from error
        return frozenset(answer.members)

    async def close(self) -> None:
        """Let go of the connection."""
        for closing in self._closing:
            closing.cancel()
        if self._channel is not None:
            await self._channel.close(None)

    async def _reach(self) -> grpc.aio.Channel:
        coordinator = self._services.coordinator
        if coordinator is None:
            raise ServiceError(Reason.NOT_COORDINATOR, "no scheduler replica leads at the moment")
        if self._channel is None or coordinator.address != self._address:
            before, self._address = self._channel, coordinator.address
            self._channel = make_channel(self._address, self._tls, "scheduler")
            if before is not None:
                # Calls that are under way on it may end well; closing it at once would cancel them.
                closing = asyncio.create_task(before.close(CLOSE_GRACE_S), name="broker-old-scheduler")
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
        return self._channel


def read_profile(agent: agent_pb.Agent) -> AgentProfile:
    """Return what the registry says of an agent; slots are those of instances that work reaches."""
    reached = [one for one in agent.instances if one.state in _READY]
    return AgentProfile(
        frozenset(skill.name for skill in agent.skills),
        _REACH.get(agent.state, Reach.AWAY),
        sum(one.load.slots for one in reached),
        sum(one.load.slots_used for one in reached),
    )


_READY = frozenset({agent_pb.AGENT_STATE_READY, agent_pb.AGENT_STATE_BUSY})
_REACH: dict[int, Reach] = {
    **dict.fromkeys(_READY, Reach.READY),
    agent_pb.AGENT_STATE_JOINING: Reach.UNSURE,
    agent_pb.AGENT_STATE_SUSPECT: Reach.UNSURE,
}
