"""The real services fit the launcher: all register, one leads, kills are mended, all end well."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from muster.registry.v1 import registry_service_pb2 as registry_pb

from services.common.etcd.client import EtcdClient
from services.local.describe import KEY_PREFIX
from services.local.layout import REPLICAS
from tests.harness.processes import ProcessCluster

Eventually = Callable[..., Awaitable[None]]

pytestmark = pytest.mark.timeout(180)


async def registered(client: EtcdClient) -> dict[str, str]:
    """Return replica id -> address of everybody in the directory of services."""
    rows = await client.get_prefix(f"{KEY_PREFIX}/services/")
    replicas = [registry_pb.ServiceReplica.FromString(kv.value) for kv in rows.kvs]
    return {one.replica_id: one.address for one in replicas}


async def test_the_plane_mends_itself_and_ends_in_order(tmp_path: Path, eventually: Eventually) -> None:
    cluster = ProcessCluster(tmp_path / "plane")
    async with cluster, cluster.etcd() as client:
        expected = {one.replica_id: cluster.addresses[one.replica_id] for one in REPLICAS}

        async def complete() -> bool:
            return await registered(client) == expected

        await eventually(complete)
        leader, epoch = await cluster.coordinator()
        await cluster.kill(leader)
        standby, epoch = await cluster.coordinator(newer_than=epoch)
        assert standby != leader
        for name in ("etcd", "audit-1", "broker-1", "registry-1"):
            await cluster.kill(name)
        await eventually(complete, timeout=60)
    kinds = [event.kind for event in cluster.events]
    assert kinds[-2:] == ["stopping", "stopped"]
    assert "killed" not in kinds
    # What they had to say at the end, they said as JSON, and it was no failure.
    for replica in REPLICAS:
        last = (tmp_path / "plane" / "logs" / f"{replica.replica_id}.log").read_text().splitlines()[-1]
        assert json.loads(last)["msg"] == "stopped", last
        assert json.loads(last)["fields"]["code"] == 0, last
