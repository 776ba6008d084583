"""The audit service is found by the others through etcd, and does its work while etcd is away."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from muster.registry.v1 import registry_service_pb2 as registry_pb

from services.audit.app import AuditApp, build
from services.audit.config import AuditConfig
from services.common.config import ConfigError, load
from services.common.etcd.client import EtcdClient
from services.common.etcd.registration import service_key
from tests.conftest import Certificates, Eventually
from tests.harness.etcd import EtcdHarness
from tests.integration.audit.conftest import Audit, frame


def config(certificates: Certificates, etcd: EtcdHarness, folder: Path, prefix: str) -> AuditConfig:
    certificate, key = certificates.issue("service/audit")
    return AuditConfig(
        replica_id="audit-1",
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        ca=certificates.ca_path,
        certificate=certificate,
        key=key,
        etcd_endpoints=etcd.endpoints,
        etcd_ca=etcd.tls.ca,
        etcd_certificate=etcd.tls.certificate,
        etcd_key=etcd.tls.key,
        etcd_server_name=etcd.tls.server_name,
        key_prefix=prefix,
        data_directory=folder,
    )


async def registered(client: EtcdClient, prefix: str) -> registry_pb.ServiceReplica | None:
    found = await client.get(service_key(prefix, "audit", "audit-1"))
    return registry_pb.ServiceReplica.FromString(found.value) if found else None


async def drained(app: AuditApp) -> None:
    await app.drain()
    await app.supervisor.stop()


async def test_it_is_found_while_it_serves(
    certificates: Certificates,
    etcd: EtcdHarness,
    etcd_client: EtcdClient,
    etcd_prefix: str,
    tmp_path: Path,
    eventually: Eventually,
) -> None:
    app = await build(config(certificates, etcd, tmp_path / "data", etcd_prefix))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(drained, app)
        await app.start()
        await eventually(lambda: registered(etcd_client, etcd_prefix))
        replica = await registered(etcd_client, etcd_prefix)
        assert replica is not None
        assert (replica.service, replica.replica_id) == ("audit", "audit-1")
        assert replica.address == app.address
        assert replica.metrics_address == app.metrics_address
        assert replica.HasField("start_time")
    assert await registered(etcd_client, etcd_prefix) is None


async def test_it_serves_without_etcd(audit: Audit) -> None:
    (response,) = await audit.append(frame(1))
    assert response.durable_sequence_number == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('origin = "two words"', "origin 'two words' must be"),
        ('first_start = "no"', "first_start must be true or false"),
        ("batch_leaves_max = 0", "batch_leaves_max must be at least 1"),
        ("tails = 3", "unknown key 'tails'"),
    ],
)
def test_unusable_settings_are_named(
    certificates: Certificates, tmp_path: Path, line: str, said: str
) -> None:
    path = tmp_path / "audit.toml"
    texts = ("replica_id", "listen", "ca", "certificate", "key", "etcd_ca", "etcd_certificate", "etcd_key")
    lines = [f'{name} = "x"' for name in (*texts, "data_directory")]
    path.write_text("\n".join([*lines, 'etcd_endpoints = ["x:1"]', line]))
    with pytest.raises(ConfigError, match=said):
        load(AuditConfig, path, {})
