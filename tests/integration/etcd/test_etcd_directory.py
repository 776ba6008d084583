"""Services enter the directory, stay in it, and are found there with the coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from muster.registry.v1 import registry_service_pb2 as registry_pb

from services.common.clock import SystemClock
from services.common.etcd.client import EtcdClient
from services.common.etcd.directory import COORDINATOR_ELECTION, ServiceDirectory, coordinator_value
from services.common.etcd.election import EtcdElection
from services.common.etcd.registration import Registration, service_key, this_replica
from tests.harness.etcd import EtcdHarness

Eventually = Callable[..., Awaitable[None]]
TTL_S = 2


def replica(service: str, replica_id: str, address: str = "127.0.0.1:1") -> registry_pb.ServiceReplica:
    return this_replica(service, replica_id, address, "", SystemClock())


def test_an_entry_says_what_runs_and_since_when() -> None:
    one = replica("audit", "audit-1")
    assert one.version
    assert one.version == importlib.metadata.version("muster")
    assert one.start_time.seconds > 0


def leader(directory: ServiceDirectory) -> tuple[str, str, int] | None:
    one = directory.coordinator
    return None if one is None else (one.replica_id, one.address, one.epoch)


@contextlib.asynccontextmanager
async def registered(
    client: EtcdClient, prefix: str, one: registry_pb.ServiceReplica
) -> AsyncIterator[Registration]:
    registration = Registration(client, SystemClock(), prefix, one, ttl_s=TTL_S)
    running = asyncio.create_task(registration.run())
    try:
        await asyncio.wait_for(registration.registered.wait(), 10)
        yield registration
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
async def directory(etcd_client: EtcdClient, etcd_prefix: str) -> AsyncIterator[ServiceDirectory]:
    made = ServiceDirectory(etcd_client, etcd_prefix)
    running = asyncio.create_task(made.run())
    await asyncio.wait_for(made.wait_loaded(), 10)
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_replicas_come_and_go(
    etcd_client: EtcdClient, etcd_prefix: str, directory: ServiceDirectory, eventually: Eventually
) -> None:
    assert directory.replicas() == ()
    audit = replica("audit", "audit-1", "127.0.0.1:7")
    async with registered(etcd_client, etcd_prefix, audit):
        await eventually(lambda: directory.replicas() == (audit,))
        assert directory.addresses("audit") == ("127.0.0.1:7",)
        async with registered(etcd_client, etcd_prefix, replica("broker", "broker-1")):
            await eventually(lambda: len(directory.replicas()) == 2)
            assert directory.replicas("audit") == (audit,)
        await eventually(lambda: directory.replicas() == (audit,))
    await eventually(lambda: directory.replicas() == ())


async def test_a_lost_session_is_replaced(
    etcd_client: EtcdClient, etcd_prefix: str, directory: ServiceDirectory, eventually: Eventually
) -> None:
    async with registered(etcd_client, etcd_prefix, replica("audit", "audit-1")):
        kv = await etcd_client.get(service_key(etcd_prefix, "audit", "audit-1"))
        assert kv is not None
        await etcd_client.lease_revoke(kv.lease_id)
        await eventually(lambda: directory.replicas() == ())
        await eventually(lambda: len(directory.replicas()) == 1)


async def test_a_restarted_replica_takes_over_the_entry_of_the_one_before(
    etcd_client: EtcdClient, etcd_prefix: str, directory: ServiceDirectory, eventually: Eventually
) -> None:
    key = service_key(etcd_prefix, "audit", "audit-1")
    leftover = await etcd_client.lease_grant(60)
    old = replica("audit", "audit-1", "127.0.0.1:1")
    await etcd_client.put(key, old.SerializeToString(), lease_id=leftover.lease_id)
    async with registered(etcd_client, etcd_prefix, replica("audit", "audit-1", "127.0.0.1:2")):
        await eventually(lambda: directory.addresses("audit") == ("127.0.0.1:2",))
        await etcd_client.lease_revoke(leftover.lease_id)
        assert await etcd_client.get(key) is not None


async def test_the_coordinator_is_who_leads(
    etcd_client: EtcdClient, etcd_prefix: str, directory: ServiceDirectory, eventually: Eventually
) -> None:
    prefix = f"{etcd_prefix}/{COORDINATOR_ELECTION}"
    first, second = (EtcdElection(etcd_client, SystemClock(), prefix) for _ in range(2))
    assert leader(directory) is None
    leadership = await first.campaign(coordinator_value("scheduler-1", "127.0.0.1:1"))
    waiting = asyncio.create_task(second.campaign(coordinator_value("scheduler-2", "127.0.0.1:2")))
    await eventually(lambda: leader(directory) == ("scheduler-1", "127.0.0.1:1", leadership.epoch))
    await first.resign()
    epoch = (await waiting).epoch
    await eventually(lambda: leader(directory) == ("scheduler-2", "127.0.0.1:2", epoch))
    await second.resign()
    await eventually(lambda: leader(directory) is None)


async def test_malformed_entries_hide_nobody_else(
    etcd_client: EtcdClient, etcd_prefix: str, directory: ServiceDirectory, eventually: Eventually
) -> None:
    await etcd_client.put(f"{etcd_prefix}/services/audit/a", b"\xff\xff not a message")
    for value in (b"not json", b"[]", b"{}", b'{"replica_id": 1, "address": 2}'):
        await etcd_client.put(f"{etcd_prefix}/{COORDINATOR_ELECTION}1", value)
    async with registered(etcd_client, etcd_prefix, replica("audit", "b")):
        await eventually(lambda: [one.replica_id for one in directory.replicas()] == ["b"])
    assert leader(directory) is None


async def test_the_directory_outlives_a_restart_of_etcd(
    own_etcd: EtcdHarness, eventually: Eventually
) -> None:
    async with own_etcd.client(request_timeout_s=1.0) as client:
        directory = ServiceDirectory(client, "/muster")
        running = asyncio.create_task(directory.run())
        async with registered(client, "/muster", replica("audit", "audit-1")):
            await eventually(lambda: len(directory.replicas()) == 1)
            own_etcd.kill()
            assert len(directory.replicas()) == 1
            await own_etcd.restart()
            async with registered(client, "/muster", replica("broker", "broker-1")):
                await eventually(lambda: len(directory.replicas()) == 2)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
