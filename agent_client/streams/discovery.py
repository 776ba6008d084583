"""Where the services are: asked from the registry, remembered for when it does not answer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from muster.registry.v1 import registry_service_pb2 as registry
from muster.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

from agent_client.errors import MusterError, UnavailableError, from_rpc_error
from agent_client.tls import Dialer

LOOKUP_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Directory:
    """What the registry answered; addresses are host:port."""

    replicas: Mapping[str, tuple[str, ...]]
    # Empty while no scheduler replica leads.
    coordinator: str


class Discovery:
    """Asks the registries of a context in turn."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._registries = itertools.cycle(dialer.context.registry)
        self._turns = itertools.count()
        self._channel: grpc.aio.Channel | None = None
        # Lookups that begin while one is under way share its channel.
        self._opening = asyncio.Lock()
        self._known = Directory({}, "")

    def next_registry(self) -> str:
        """Return a registry's address, another one at each call when there are several."""
        return next(self._registries)

    async def close(self) -> None:
        """Close the channel to the registry."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(None)

    async def lookup(self) -> Directory:
        """Return the live services. Raises MusterError when no registry answers."""
        failure: MusterError | None = None
        for _ in self._dialer.context.registry:
            try:
                self._known = await self._ask()
                return self._known
            except MusterError as error:
                failure = error
                await self.close()
        raise failure or UnavailableError("the context names no registry")

    async def coordinator(self) -> str:
        """Return the leading scheduler's address. Raises UnavailableError while none leads.

        When no registry answers, the schedulers known from before are returned in turn: one that does not
        lead names the one that does.
        """
        try:
            directory = await self.lookup()
        except MusterError:
            return self._remembered("scheduler")
        if not directory.coordinator:
            raise UnavailableError(
                "no scheduler leads at the moment", reason="NOT_COORDINATOR", definite=True
            )
        return directory.coordinator

    async def address(self, service: str) -> str:
        """Return the address of a replica of `service`, in turn. Raises UnavailableError when none is up."""
        try:
            addresses = (await self.lookup()).replicas.get(service, ())
        except MusterError:
            return self._remembered(service)
        if not addresses:
            raise UnavailableError(f"no {service} is up at the moment", definite=True)
        return addresses[next(self._turns) % len(addresses)]

    def _remembered(self, service: str) -> str:
        addresses = self._known.replicas.get(service, ())
        if not addresses:
            where = ", ".join(self._dialer.context.registry)
            raise UnavailableError(
                f"the registry at {where} does not answer: is the plane up? `muster up` starts one",
                definite=True,
            )
        return addresses[next(self._turns) % len(addresses)]

    async def _ask(self) -> Directory:
        async with self._opening:
            if self._channel is None:
                self._channel = await self._dialer.open("registry", self.next_registry())
            channel = self._channel
        try:
            answer = await RegistryServiceStub(channel).ListServices(
                registry.ListServicesRequest(), timeout=LOOKUP_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except grpc.aio.UsageError as error:
            # Another lookup found the channel dead and closed it under us.
            raise UnavailableError("the link to the registry was closed", definite=True) from error
        replicas: dict[str, tuple[str, ...]] = {}
        for replica in answer.replicas:
            replicas[replica.service] = (*replicas.get(replica.service, ()), replica.address)
        return Directory(replicas, answer.coordinator.address)
