"""The server around the calls: health, reflection, probe, access table, ports, drain."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from muster.audit.v1 import audit_service_pb2 as pb
from muster.audit.v1 import audit_service_pb2_grpc as audit_grpc

from services.common import logs
from services.common.core.errors import Reason, ServiceError
from services.common.metrics import Metrics
from services.common.rpc import probe
from services.common.rpc.channel import make_channel
from services.common.rpc.server import GrpcServer, ServerLimits
from services.common.rpc.status import from_rpc_error
from tests.conftest import PATIENCE_SECONDS, Certificates, Eventually
from tests.integration.common.conftest import METHODS, SERVICE, Serve

STATES = health_pb2.HealthCheckResponse


async def check(channel: grpc.aio.Channel, service: str = "") -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(response.status)


async def listed(channel: grpc.aio.Channel) -> list[str]:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    response = await call.read()
    await call.done_writing()
    return [service.name for service in response.list_services_response.service]


async def test_health_is_for_everybody_and_can_be_switched(serve: Serve) -> None:
    plane = await serve()
    channel = plane.channel("agent/x")
    assert await check(channel) == await check(channel, SERVICE) == STATES.SERVING
    await plane.server.set_serving(serving=False)
    assert await check(channel) == await check(channel, SERVICE) == STATES.NOT_SERVING
    await plane.server.set_serving(serving=True)
    assert await check(channel) == STATES.SERVING


async def test_reflection_is_for_operators(serve: Serve) -> None:
    plane = await serve()
    assert SERVICE in await listed(plane.channel("operator/admin"))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await listed(plane.channel("agent/x"))
    assert from_rpc_error(raised.value).reason is Reason.ACCESS_DENIED


async def test_the_probe(
    serve: Serve, certificates: Certificates, capsys: pytest.CaptureFixture[str]
) -> None:
    plane = await serve()
    certificate_path, key_path = certificates.issue("service/audit")
    arguments = [plane.address, "--ca", str(certificates.ca_path)]
    arguments += ["--cert", str(certificate_path), "--key", str(key_path)]

    async def run(*more: str) -> tuple[int, str]:
        code = await asyncio.to_thread(probe.main, [*arguments, *more])
        return code, capsys.readouterr().err

    assert await run() == (0, "")
    assert await run("--service", "audit") == (0, "")
    assert (await run("--service", "broker"))[0] == 1
    await plane.server.set_serving(serving=False)
    assert await run() == (1, f"{plane.address}: NOT_SERVING\n")
    await plane.server.drain(1_000)
    code, said = await run("--timeout-ms", "500")
    assert code == 1
    assert said.startswith(plane.address)


def test_the_probe_names_missing_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "x")
    assert probe.main(["127.0.0.1:1", "--ca", missing, "--cert", missing, "--key", missing]) == 1
    assert missing in capsys.readouterr().err


async def test_a_method_without_an_access_row_is_a_mistake(certificates: Certificates) -> None:
    rows = {f"{SERVICE}/{method}": frozenset({"agent"}) for method in METHODS if method != "Tail"}
    server = GrpcServer(
        certificates.tls("service/audit"), "127.0.0.1:0", rows, Metrics("audit"), logs.get("test")
    )
    with pytest.raises(ValueError, match=f"{SERVICE}/Tail"):
        server.add(audit_grpc.add_AuditServiceServicer_to_server, object(), SERVICE)


async def test_a_taken_port_is_an_error(serve: Serve, certificates: Certificates) -> None:
    plane = await serve()
    server = GrpcServer(
        certificates.tls("service/audit"), plane.address, {}, Metrics("audit"), logs.get("test")
    )
    with pytest.raises(OSError, match=plane.address):
        await server.start()
    await server.drain(0)


async def test_drain_finishes_what_is_held_and_refuses_what_is_new(
    serve: Serve, eventually: Eventually
) -> None:
    release, entered = asyncio.Event(), asyncio.Event()

    async def query(request: pb.QueryRequest, context: Any) -> pb.QueryResponse:
        entered.set()
        await release.wait()
        return pb.QueryResponse(tree_size=7)

    plane = await serve(Query=query)
    stub, channel = plane.stub(), plane.channel()
    held = asyncio.ensure_future(stub.Query(pb.QueryRequest()))
    assert await check(channel) == STATES.SERVING
    await entered.wait()
    draining = asyncio.create_task(plane.server.drain(20_000))
    await eventually(lambda: plane.server._calls.draining)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Query(pb.QueryRequest())
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    release.set()
    assert (await held).tree_size == 7
    await draining


async def test_drain_cuts_what_does_not_end(serve: Serve) -> None:
    entered = asyncio.Event()

    async def query(request: pb.QueryRequest, context: Any) -> pb.QueryResponse:
        entered.set()
        await asyncio.Event().wait()
        return pb.QueryResponse()

    plane = await serve(Query=query)
    held = asyncio.ensure_future(plane.stub().Query(pb.QueryRequest()))
    await entered.wait()
    await plane.server.drain(50)
    with pytest.raises(grpc.aio.AioRpcError):
        await held


async def test_calls_beyond_the_bound_are_refused(serve: Serve) -> None:
    release = asyncio.Event()

    async def query(request: pb.QueryRequest, context: Any) -> pb.QueryResponse:
        await release.wait()
        return pb.QueryResponse()

    plane = await serve(Query=query, limits=ServerLimits(calls_max=2))
    calls = [asyncio.ensure_future(plane.stub().Query(pb.QueryRequest())) for _ in range(4)]
    done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    for call in done:
        error = call.exception()
        assert isinstance(error, grpc.aio.AioRpcError)
        assert from_rpc_error(error).reason is Reason.QUOTA_EXCEEDED
    release.set()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_several_replicas_behind_one_channel(serve: Serve, certificates: Certificates) -> None:
    def answering(number: int) -> Any:
        async def query(request: pb.QueryRequest, context: Any) -> pb.QueryResponse:
            return pb.QueryResponse(tree_size=number)

        return query

    planes = [await serve(Query=answering(number)) for number in (1, 2)]
    channel = make_channel([plane.address for plane in planes], certificates.tls("agent/x"), "audit")
    stub: Any = audit_grpc.AuditServiceStub(channel)
    try:
        seen: set[int] = set()
        while seen != {1, 2}:
            seen.add((await stub.Query(pb.QueryRequest(), wait_for_ready=True, timeout=20)).tree_size)
        await planes[0].server.drain(0)
        for _ in range(5):
            assert (await stub.Query(pb.QueryRequest(), wait_for_ready=True, timeout=20)).tree_size == 2
    finally:
        await channel.close(None)


def test_a_channel_needs_an_address(certificates: Certificates) -> None:
    with pytest.raises(ValueError, match="no address of audit"):
        make_channel([], certificates.tls("agent/x"), "audit")


async def test_end_calls_without_a_duplex_cancels_the_handler(serve: Serve) -> None:
    async def tail(request: pb.TailRequest, context: Any) -> None:
        await context.write(pb.TailResponse())
        await asyncio.Event().wait()

    plane = await serve(Tail=tail)
    stream = plane.stub().Tail(pb.TailRequest())
    await stream.read()
    revoked = ServiceError(Reason.ACCESS_DENIED, "this certificate was revoked")
    assert plane.server.end_calls(lambda call: call.method.endswith("/Tail"), revoked) == 1
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stream.read()
    assert from_rpc_error(raised.value).message == "this certificate was revoked"


async def test_a_health_watch_ends_with_its_identity_and_does_not_hold_up_a_drain(serve: Serve) -> None:
    plane = await serve()
    stub = health_pb2_grpc.HealthStub(plane.channel())
    watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
    for watch in watches:
        await watch.read()
    revoked = ServiceError(Reason.ACCESS_DENIED, "this certificate was revoked")
    assert plane.server.end_calls(lambda call: call.method.endswith("/Watch"), revoked) == 2
    for watch in watches:
        with pytest.raises(grpc.aio.AioRpcError, match="revoked"):
            await watch.read()
    again = stub.Watch(health_pb2.HealthCheckRequest())
    await again.read()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await plane.server.drain(60_000)
