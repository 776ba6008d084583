"""The harness that scenarios stand on, itself under test, with fake services."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from services.local import part
from services.local.ports import is_free
from tests.harness.cluster import Cluster
from tests.harness.fake_plane import fake_command
from tests.harness.processes import ProcessCluster


async def test_parts_are_hurt_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "service_command", fake_command)
    processes = ProcessCluster(tmp_path)
    cluster: Cluster = processes
    async with cluster:
        assert (cluster.home / "context.json").is_file()
        leader, epoch = await cluster.coordinator()
        other = {"scheduler-1": "scheduler-2", "scheduler-2": "scheduler-1"}[leader]

        # The standby takes over while the leader is stopped, not ended.
        cluster.signal(leader, signal.SIGSTOP)
        assert (await cluster.coordinator(newer_than=epoch))[0] == other
        cluster.signal(leader, signal.SIGCONT)

        await cluster.kill("broker-1")
        await cluster.kill("etcd")

        port = int(cluster.addresses["audit-1"].rpartition(":")[2])
        await cluster.take_down("audit-1")
        assert is_free(port)
        await cluster.bring_up("audit-1")
        assert not is_free(port)

        assert str(cluster.tls("agent/a").principal) == "agent/a"
        assert str(cluster.tls("operator/admin").principal) == "operator/admin"
        async with cluster.etcd() as client:
            keys = {kv.key for kv in (await client.get_prefix("/muster/services/")).kvs}
        assert "/muster/services/registry/registry-1" in keys
    assert is_free(port)
