"""TLS as it is on the wire: versions, client certificates, rotation under load, half-done rotations."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest
from muster.audit.v1 import audit_service_pb2 as pb

from services.common.certificates import create_authority, write_authority, write_private, write_public
from services.common.metrics import Metrics, start_exposition
from services.common.rpc import server as server_module
from services.common.rpc.channel import make_channel
from services.common.tls import TlsIdentity, TlsMaterialError
from tests.conftest import Certificates, Eventually
from tests.integration.common.conftest import SERVICE, Serve


async def ok(request: pb.QueryRequest, context: Any) -> pb.QueryResponse:
    return pb.QueryResponse()


@pytest.fixture
def own(tmp_path: Path) -> Certificates:
    """Certificates of this test alone, to be rotated."""
    return Certificates(tmp_path / "certificates")


def client_context(certificates: Certificates, principal: str, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificates.ca_path))
    context.load_cert_chain(*certificates.issue(principal))
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    return context


async def handshake(address: str, context: ssl.SSLContext) -> str | None:
    """Return the negotiated version, or raise what the handshake raises."""
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(
        host, int(port), ssl=context, server_hostname="audit.muster.internal"
    )
    try:
        version: str | None = writer.get_extra_info("ssl_object").version()
        return version
    finally:
        writer.close()


async def test_tls_1_3_only(serve: Serve, certificates: Certificates) -> None:
    plane = await serve()
    newest = client_context(certificates, "agent/x", ssl.TLSVersion.TLSv1_3)
    assert await handshake(plane.address, newest) == "TLSv1.3"
    older = client_context(certificates, "agent/x", ssl.TLSVersion.TLSv1_2)
    with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
        await handshake(plane.address, older)


async def test_a_client_without_certificate_gets_nowhere(serve: Serve, certificates: Certificates) -> None:
    plane = await serve()
    channel = grpc.aio.secure_channel(
        plane.address,
        grpc.ssl_channel_credentials(certificates.authority.certificate_pem),
        options=[("grpc.ssl_target_name_override", "audit.muster.internal")],
    )
    try:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary(f"/{SERVICE}/Query", None, None)(b"", timeout=10)
    finally:
        await channel.close(None)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert plane.outbox.entries == []


async def test_a_certificate_of_another_authority_gets_nowhere(serve: Serve, own: Certificates) -> None:
    plane = await serve(Query=ok)
    channel = make_channel(plane.address, own.tls("agent/x"), "audit")
    try:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary(f"/{SERVICE}/Query", None, None)(b"", timeout=10)
    finally:
        await channel.close(None)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_rotation_under_load_fails_no_call(
    serve: Serve, own: Certificates, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """New leaves, then a new authority in two steps (trust both, then issue from the new one)."""
    monkeypatch.setattr(server_module, "TLS_REFRESH_MS", 5)
    plane = await serve(Query=ok, certificates=own)
    calls = 0
    stopped = asyncio.Event()

    async def keep_calling() -> None:
        nonlocal calls
        while not stopped.is_set():
            # A new channel each time: each makes a handshake with whatever is newest now.
            channel = make_channel(plane.address, TlsIdentity(own.ca_path, *agent), "audit")
            query = channel.unary_unary(f"/{SERVICE}/Query", None, None)
            assert await query(b"", timeout=20) == b""
            await channel.close(None)
            calls += 1

    agent = own.issue("agent/x")
    caller = asyncio.create_task(keep_calling())
    tls = plane.tls
    for _ in range(10):
        version, before = tls.version, calls
        own.issue("service/audit")
        await eventually(lambda version=version: tls.version > version)
        await eventually(lambda before=before: calls > before + 1 or caller.done())
    old_ca = own.authority.certificate_pem
    own.authority = create_authority("the next authority")
    version = tls.version
    write_public(own.ca_path, old_ca + own.authority.certificate_pem)
    await eventually(lambda: tls.version > version)
    agent = own.issue("agent/x")
    version = tls.version
    own.issue("service/audit")
    await eventually(lambda: tls.version > version)
    version, before = tls.version, calls
    write_public(own.ca_path, own.authority.certificate_pem)
    await eventually(lambda: tls.version > version)
    await eventually(lambda: calls > before + 3 or caller.done())
    stopped.set()
    await caller
    assert calls > 20


async def test_half_a_rotation_keeps_the_old_material(own: Certificates) -> None:
    tls = own.tls("service/audit")
    certificate_path, key_path = (own.folder / "service" / name for name in ("audit.crt", "audit.key"))
    old_key = key_path.read_bytes()
    assert not tls.refresh()
    other = own.authority.issue("spiffe://muster.internal/service/audit")
    write_private(key_path, other.key_pem)
    with pytest.raises(TlsMaterialError, match="does not belong"):
        tls.refresh()
    with pytest.raises(TlsMaterialError, match="does not belong"):
        tls.refresh()
    assert tls.version == 1
    write_public(certificate_path, other.certificate_pem)
    assert tls.refresh()
    assert tls.version == 2
    write_private(key_path, old_key)
    key_path.unlink()
    with pytest.raises(TlsMaterialError, match="No such file"):
        tls.refresh()
    assert tls.version == 2


@pytest.mark.parametrize("broken", ["ca.crt", "service/audit.crt", "service/audit.key"])
@pytest.mark.parametrize(
    "content", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", None]
)
def test_unusable_files_are_named(own: Certificates, broken: str, content: bytes | None) -> None:
    own.issue("service/audit")
    path = own.folder / broken
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TlsMaterialError, match=path.name):
        TlsIdentity(own.ca_path, own.folder / "service/audit.crt", own.folder / "service/audit.key")


def test_what_an_identity_says_about_itself(own: Certificates) -> None:
    tls = own.tls("operator/admin")
    assert tls.spiffe_id == "spiffe://muster.internal/operator/admin"
    assert str(tls.principal) == "operator/admin"
    assert tls.expiry_seconds > 0
    credential = own.authority.issue("", ["localhost"])
    write_private(own.folder / "n.key", credential.key_pem)
    write_public(own.folder / "n.crt", credential.certificate_pem)
    nobody = TlsIdentity(own.ca_path, own.folder / "n.crt", own.folder / "n.key")
    assert (nobody.spiffe_id, nobody.principal) == ("", None)


async def get(address: str, context: ssl.SSLContext, request: bytes) -> bytes:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(
        host, int(port), ssl=context, server_hostname="audit.muster.internal"
    )
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


async def test_metrics_are_for_operators_and_services(own: Certificates) -> None:
    metrics = Metrics("audit")
    metrics.counter("entries", "Entries.").inc(3)
    exposition, address = await start_exposition(metrics, "127.0.0.1:0", own.tls("service/audit"))
    scrape = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    try:
        for who in ("operator/admin", "service/prometheus"):
            answer = await get(address, own.tls(who).client_ssl_context(), scrape)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"muster_audit_entries_total 3.0" in answer
        agent = own.tls("agent/x").client_ssl_context()
        assert (await get(address, agent, scrape)).startswith(b"HTTP/1.1 403")
        operator = own.tls("operator/admin").client_ssl_context()
        assert (await get(address, operator, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404")
        assert (await get(address, operator, b"POST /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405")
        assert (await get(address, operator, b"\xff" * 10 + b"\r\n\r\n")).startswith(b"HTTP/1.1 405")
        assert await get(address, operator, b"x" * 20_000) == b""
        older = client_context(own, "operator/admin", ssl.TLSVersion.TLSv1_2)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await get(address, older, scrape)
    finally:
        await exposition.stop()
        await exposition.stop()


async def test_the_exposition_follows_a_rotation(own: Certificates) -> None:
    tls = own.tls("service/audit")
    exposition, address = await start_exposition(Metrics("audit"), "127.0.0.1:0", tls)
    scrape = b"GET /metrics HTTP/1.1\r\n\r\n"
    try:
        own.authority = create_authority("the next authority")
        write_authority(own.folder, own.authority)
        own.issue("service/audit")
        assert tls.refresh()
        answer = await get(address, own.tls("operator/admin").client_ssl_context(), scrape)
        assert answer.startswith(b"HTTP/1.1 200")
    finally:
        await exposition.stop()


async def test_silent_clients_do_not_hold_up_the_exposition(own: Certificates) -> None:
    exposition, address = await start_exposition(Metrics("audit"), "127.0.0.1:0", own.tls("service/audit"))
    host, _, port = address.rpartition(":")
    silent = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
    try:
        context = own.tls("operator/admin").client_ssl_context()
        answer = await get(address, context, b"GET /metrics HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")
    finally:
        for _, writer in silent:
            writer.close()
        await exposition.stop()
