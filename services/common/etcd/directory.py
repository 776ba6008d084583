"""Who serves and who leads, read from etcd and kept current by watches."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping

from google.protobuf.message import DecodeError
from muster.registry.v1 import registry_service_pb2 as registry_pb

from services.common import logs
from services.common.etcd.client import EtcdClient
from services.common.etcd.follow import Mirror, follow
from services.common.etcd.ops import KeyValue

_log = logs.get("etcd.directory")
# Where the scheduler's replicas campaign, below the plane's key prefix.
COORDINATOR_ELECTION = "election/coordinator/"


def coordinator_value(replica_id: str, address: str) -> bytes:
    """Return what a scheduler replica campaigns with."""
    return json.dumps({"replica_id": replica_id, "address": address}).encode()


def coordinator_address(value: bytes) -> str:
    """Return the address that a replica campaigned with; empty when it cannot be read."""
    try:
        return str(json.loads(value)["address"])
    except (ValueError, KeyError, TypeError):
        return ""


class ServiceDirectory:
    """The replicas of every service that are alive, and the coordinator. While etcd is away: as last seen.

    Run `run` as a supervised loop; `wait_loaded` tells when the first reading is in.
    """

    def __init__(self, client: EtcdClient, key_prefix: str) -> None:
        self._client = client
        self._services_prefix = f"{key_prefix}/services/"
        self._election_prefix = f"{key_prefix}/{COORDINATOR_ELECTION}"
        # Owned by `run`.
        self._replicas: tuple[registry_pb.ServiceReplica, ...] = ()
        self._coordinator: registry_pb.Coordinator | None = None
        self._to_load = 2
        self._changed = asyncio.Event()

    @property
    def coordinator(self) -> registry_pb.Coordinator | None:
        """The scheduler replica that leads; None while there is none."""
        return self._coordinator

    def replicas(self, service: str = "") -> tuple[registry_pb.ServiceReplica, ...]:
        """Return the replicas of one service, or of all, in the order of (service, replica id)."""
        return tuple(one for one in self._replicas if service in ("", one.service))

    def addresses(self, service: str) -> tuple[str, ...]:
        """Return host:port of each replica of a service."""
        return tuple(one.address for one in self.replicas(service))

    async def run(self) -> None:
        """Follow etcd until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(self._services_prefix, self._take_replicas))
            group.create_task(self._follow(self._election_prefix, self._take_candidates))

    async def wait_loaded(self) -> None:
        """Return when replicas and coordinator have been read once."""
        while self._to_load:
            await self.wait_changed()

    async def wait_changed(self) -> None:
        """Return at the next change; look at the directory first, then wait, without an await between."""
        await self._changed.wait()

    async def _follow(self, prefix: str, take: Callable[[Mapping[str, KeyValue]], None]) -> None:
        mirror = Mirror()
        loaded = False
        async with contextlib.aclosing(follow(self._client, prefix)) as changes:
            async for change in changes:
                if not mirror.apply(change):
                    continue
                take(mirror.kvs)
                self._to_load -= 0 if loaded else 1
                loaded = True
                # Wake those who wait now; those who come later wait for the next change.
                changed, self._changed = self._changed, asyncio.Event()
                changed.set()

    def _take_replicas(self, kvs: Mapping[str, KeyValue]) -> None:
        found = []
        for key in sorted(kvs):
            try:
                found.append(registry_pb.ServiceReplica.FromString(kvs[key].value))
            except DecodeError:
                _log.warning("an entry in the directory of services is malformed", key=key)
        self._replicas = tuple(found)

    def _take_candidates(self, kvs: Mapping[str, KeyValue]) -> None:
        leader = min(kvs.values(), key=lambda kv: kv.create_revision, default=None)
        self._coordinator = None if leader is None else _coordinator(leader)


def _coordinator(leader: KeyValue) -> registry_pb.Coordinator | None:
    try:
        value = json.loads(leader.value)
        return registry_pb.Coordinator(
            replica_id=value["replica_id"], address=value["address"], epoch=leader.create_revision
        )
    except (ValueError, KeyError, TypeError):
        _log.warning("the leader's election key is malformed", key=leader.key)
        return None
