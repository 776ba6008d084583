"""What the scheduler needs from other services: the registry's view of the agents."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from typing import Protocol

import grpc
from muster.registry.v1 import agent_pb2 as agent_pb
from muster.registry.v1 import registry_service_pb2 as registry_pb
from muster.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

from services.common import logs
from services.common.core.backoff import backoff_ms
from services.common.core.errors import ServiceError
from services.common.core.ids import AgentId, InstanceId, Skill
from services.common.rpc.status import from_rpc_error
from services.scheduler.core.events import AgentsChanged, AgentView, InstanceView

_log = logs.get("scheduler.peers")
#: Pause before the registry is asked again, in milliseconds.
_RETRY_BASE_MS = 50
_RETRY_MAX_MS = 2_000
#: Labels that declare a capacity begin with this.
_CAPACITY = "capacity."
_DIGITS_MAX = 15
_GONE = frozenset({agent_pb.AGENT_STATE_LOST, agent_pb.AGENT_STATE_OFFLINE})


class AgentFeed(Protocol):
    """The registry's view of the agents, as it changes."""

    async def run(self, tell: Callable[[AgentsChanged], None]) -> None:
        """Tell of every change, for ever: after each gap first of all agents at once (a snapshot).

        While the registry is away nothing is told; the last view stands.
        """
        ...


class RegistryFeed:
    """The `AgentFeed` of a registry, over `WatchAgents`."""

    def __init__(self, connect: Callable[[], Awaitable[grpc.aio.Channel]]) -> None:
        self._connect = connect
        self._numbers = itertools.count(1)

    async def run(self, tell: Callable[[AgentsChanged], None]) -> None:
        """See `AgentFeed.run`."""
        failures = 0
        while True:
            try:
                channel = await self._connect()
                try:
                    async for event in self._follow(channel):
                        failures = 0
                        tell(event)
                    why: object = "it ended the stream"
                finally:
                    await channel.close(None)
            except grpc.aio.AioRpcError as error:
                why = from_rpc_error(error)
            except (ServiceError, OSError) as error:
                why = error
            failures += 1
            if failures == 1:
                _log.warning("the registry is not to be heard; its last view stands", why=why)
            pause_ms = backoff_ms(
                failures, base_ms=_RETRY_BASE_MS, max_ms=_RETRY_MAX_MS, jitter=random.random()
            )
            await asyncio.sleep(pause_ms / 1_000)

    async def _follow(self, channel: grpc.aio.Channel) -> AsyncGenerator[AgentsChanged, None]:
        call = RegistryServiceStub(channel).WatchAgents(registry_pb.WatchAgentsRequest())
        snapshot: list[AgentView] | None = []
        async for frame in call:
            agents = [agent_view(agent) for agent in frame.agents]
            if snapshot is None:
                yield self._event(agents, snapshot=False)
                continue
            snapshot += agents
            if frame.snapshot_complete:
                yield self._event(snapshot, snapshot=True)
                snapshot = None

    def _event(self, agents: list[AgentView], *, snapshot: bool) -> AgentsChanged:
        return AgentsChanged(
            f"agents-{next(self._numbers)}", random.random(), tuple(agents), snapshot=snapshot
        )


def _capacities(labels: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Yield what labels like "capacity.gpu_milli" = "8000" declare; what is no such amount is passed over."""
    for name, text in labels.items():
        if name.startswith(_CAPACITY) and text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX:
            yield name.removeprefix(_CAPACITY), int(text)


def _cost(labels: Mapping[str, str]) -> float:
    """Return what the label "cost" declares; 0 when it declares no finite cost of at least 0."""
    try:
        cost = float(labels.get("cost", "0"))
    except ValueError:
        return 0.0
    return cost if 0.0 <= cost < math.inf else 0.0


def agent_view(agent: agent_pb.Agent) -> AgentView:
    """Return what matters of an agent to the scheduler."""
    return AgentView(
        AgentId(agent.agent_id),
        frozenset(Skill(skill.name) for skill in agent.skills),
        tuple(
            InstanceView(
                InstanceId(instance.instance_id),
                instance.incarnation,
                instance.state in _GONE,
                tuple((Skill(skill.name), skill.level or 1.0) for skill in instance.skills),
                tuple(_capacities(instance.labels)),
                _cost(instance.labels),
            )
            for instance in agent.instances
        ),
    )
