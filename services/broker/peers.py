"""What the broker needs from others: who exists, from the registry."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

import grpc
from muster.registry.v1 import registry_service_pb2 as registry_pb
from muster.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

from services.common import logs
from services.common.core.backoff import backoff_ms
from services.common.core.errors import ServiceError
from services.common.etcd.directory import ServiceDirectory
from services.common.rpc.channel import make_channel
from services.common.rpc.status import from_rpc_error
from services.common.tls import TlsIdentity

BACKOFF_MS_MIN = 100
BACKOFF_MS_MAX = 5_000

_log = logs.get("broker.peers")


@dataclass(frozen=True, slots=True)
class AgentsView:
    """Names of agents; `complete` means all that there are."""

    names: frozenset[str]
    complete: bool


class AgentDirectory(Protocol):
    """Tells which agents exist."""

    def watch(self) -> AsyncGenerator[AgentsView, None]:
        """Yield all agents, then those that are new, for ever; all of them again after a gap."""
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
        snapshot: set[str] | None = set()
        async for frame in stub.WatchAgents(registry_pb.WatchAgentsRequest()):
            names = frozenset(agent.agent_id for agent in frame.agents)
            if snapshot is None:
                if names:
                    yield AgentsView(names, complete=False)
                continue
            snapshot |= names
            if frame.snapshot_complete:
                yield AgentsView(frozenset(snapshot), complete=True)
                snapshot = None
