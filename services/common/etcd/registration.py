"""A replica's entry in the directory of services, there for as long as the replica lives."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
from typing import Protocol

from google.protobuf.timestamp_pb2 import Timestamp
from muster.registry.v1 import registry_service_pb2 as registry_pb

from services.common import logs
from services.common.clock import Clock
from services.common.core.errors import ServiceError
from services.common.etcd.client import EtcdClient
from services.common.etcd.session import SESSION_TTL_S, sessions

_log = logs.get("etcd.registration")
# Pause after etcd refused the entry (a full disk, say), in seconds.
_REFUSED_PAUSE_S = 1.0


def service_key(key_prefix: str, service: str, replica_id: str) -> str:
    """Return the key of one replica's entry."""
    return f"{key_prefix}/services/{service}/{replica_id}"


class Placed(Protocol):
    """What a service's settings say of where it is found."""

    @property
    def key_prefix(self) -> str:
        """The plane's keys begin with it."""
        ...

    @property
    def replica_id(self) -> str:
        """The name of this process among its like."""
        ...

    @property
    def advertise(self) -> str:
        """The address that others shall use, "" for the one that is listened on."""
        ...


async def announce(
    client: EtcdClient, clock: Clock, placed: Placed, service: str, *, address: str, metrics_address: str
) -> None:
    """Let the others find this process, until cancelled; see `this_replica` and `Registration`.

    While etcd is away the service goes on for those who know its address.
    """
    replica = this_replica(service, placed.replica_id, placed.advertise or address, metrics_address, clock)
    await Registration(client, clock, placed.key_prefix, replica).run()


def this_replica(
    service: str, replica_id: str, address: str, metrics_address: str, clock: Clock
) -> registry_pb.ServiceReplica:
    """Return the entry of this process, started now; addresses are host:port, "" for no metrics."""
    return registry_pb.ServiceReplica(
        service=service,
        replica_id=replica_id,
        address=address,
        version=importlib.metadata.version("muster"),
        start_time=Timestamp(seconds=clock.now() // 1_000),
        metrics_address=metrics_address,
    )


class Registration:
    """Keeps one `ServiceReplica` under a session's lease, and writes it again after the session was lost.

    Run `run` as a supervised loop, from when the replica serves until it drains.
    """

    def __init__(
        self,
        client: EtcdClient,
        clock: Clock,
        key_prefix: str,
        replica: registry_pb.ServiceReplica,
        *,
        ttl_s: int = SESSION_TTL_S,
    ) -> None:
        self._client = client
        self._clock = clock
        self._key = service_key(key_prefix, replica.service, replica.replica_id)
        self._value = replica.SerializeToString(deterministic=True)
        self._ttl_s = ttl_s
        # Set while the entry is certainly there.
        self.registered = asyncio.Event()

    async def run(self) -> None:
        """Keep the entry until cancelled; then take it away."""
        try:
            async with contextlib.aclosing(sessions(self._client, self._clock, ttl_s=self._ttl_s)) as live:
                async for session in live:
                    try:
                        # A replica that was killed and restarted finds its own older entry, whose lease has
                        # not ended yet: the write moves the key over to the new lease.
                        await self._client.put(self._key, self._value, lease_id=session.lease_id)
                    except ServiceError as error:
                        _log.warning("not in the directory of services", key=self._key, why=str(error))
                        await asyncio.sleep(_REFUSED_PAUSE_S)
                        continue
                    self.registered.set()
                    await session.lost.wait()
                    self.registered.clear()
                    _log.warning("lost the session in etcd; registering again", key=self._key)
        finally:
            self.registered.clear()
