"""What surrounds every call, over real sockets with mutual TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from muster.audit.v1 import audit_service_pb2 as pb

from services.common import logs
from services.common.core.entries import Outcome
from services.common.core.errors import FieldViolation, Reason, ServiceError, invalid
from services.common.metrics import Metrics
from services.common.rpc import interceptors
from services.common.rpc.channel import make_channel
from services.common.rpc.status import TRAILER, from_rpc_error
from tests.conftest import Certificates, Eventually
from tests.integration.common.conftest import SERVICE, Serve

EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs do not know it


async def failure(call: Any) -> ServiceError:
    """Return the typed error that a unary call or a whole stream ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await (drained(call) if hasattr(call, "read") else call)
    return from_rpc_error(raised.value)


async def drained(stream: Any) -> None:
    while await stream.read() is not EOF:
        pass


async def test_service_error_arrives_whole(serve: Serve) -> None:
    async def query(request: pb.QueryRequest, context: Any) -> pb.QueryResponse:
        raise ServiceError(
            Reason.QUOTA_EXCEEDED,
            "only 10 queries a second: wait",
            (FieldViolation("actor", "too many"),),
            {"limit": "queries_per_second"},
            retry_after_ms=250,
        )

    plane = await serve(Query=query)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await plane.stub().Query(pb.QueryRequest())
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    error = from_rpc_error(raised.value)
    assert (error.reason, error.message, error.retry_after_ms) == (
        Reason.QUOTA_EXCEEDED,
        "only 10 queries a second: wait",
        250,
    )
    assert error.violations == (FieldViolation("actor", "too many"),)
    assert error.metadata == {"limit": "queries_per_second", "definite": "true", "retryable": "true"}
    trailers: Any = raised.value.trailing_metadata()
    status = status_pb2.Status.FromString(dict(trailers)[TRAILER])
    kinds = {detail.TypeName() for detail in status.details}
    assert error_details_pb2.QuotaFailure.DESCRIPTOR.full_name in kinds
    assert plane.calls("Query", "RESOURCE_EXHAUSTED") == 1


async def test_unexpected_exception_leaks_nothing(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async def query(request: pb.QueryRequest, context: Any) -> pb.QueryResponse:
        raise KeyError("s3cret")

    plane = await serve(Query=query)
    error = await failure(plane.stub().Query(pb.QueryRequest()))
    assert error.reason is Reason.INTERNAL
    assert "s3cret" not in repr(error)
    cause_id, _, raised = caplog.records[-1].muster  # type: ignore[attr-defined]
    assert cause_id == error.metadata["cause_id"]
    assert isinstance(raised, KeyError)


async def test_a_stream_reports_what_it_sent_and_then_why_it_ended(serve: Serve) -> None:
    closed = asyncio.Event()

    async def tail(request: pb.TailRequest, context: Any) -> AsyncIterator[pb.TailResponse]:
        try:
            yield pb.TailResponse()
            yield pb.TailResponse()
            raise ServiceError(Reason.HISTORY_GONE, "gone", metadata={"oldest": "5"})
        finally:
            closed.set()

    plane = await serve(Tail=tail)
    stream = plane.stub().Tail(pb.TailRequest())
    assert await stream.read() == await stream.read() == pb.TailResponse()
    assert (await failure(stream)).metadata["oldest"] == "5"
    assert closed.is_set()


@pytest.mark.parametrize("who", ["agent/x", "operator/admin", "service/broker"])
async def test_default_deny(serve: Serve, who: str) -> None:
    async def query(request: pb.QueryRequest, context: Any) -> pb.QueryResponse:
        return pb.QueryResponse()

    plane = await serve(Query=query)
    plane.access[f"{SERVICE}/Query"] = frozenset({"service/scheduler"})
    error = await failure(plane.stub(who).Query(pb.QueryRequest()))
    assert error.reason is Reason.ACCESS_DENIED
    assert error.metadata["identity"] == who
    assert error.metadata["method"] == f"{SERVICE}/Query"
    # The servicer never saw it, so that the refusal is recorded here (A2).
    (entry,) = plane.outbox.entries
    assert (entry.operation, entry.actor, entry.outcome) == ("access.refuse", who, Outcome.REFUSED)


async def test_one_service_identity_is_admitted(serve: Serve) -> None:
    async def query(request: pb.QueryRequest, context: Any) -> pb.QueryResponse:
        assert interceptors.current_call.get().principal.name == "scheduler"
        return pb.QueryResponse(tree_size=7)

    plane = await serve(Query=query)
    plane.access[f"{SERVICE}/Query"] = frozenset({"service/scheduler"})
    response = await plane.stub("service/scheduler").Query(pb.QueryRequest())
    assert response.tree_size == 7


async def test_certificate_without_identity(serve: Serve, certificates: Certificates) -> None:
    plane = await serve()
    credential = certificates.authority.issue("spiffe://elsewhere.example/agent/x")
    channel = grpc.aio.secure_channel(
        plane.address,
        grpc.ssl_channel_credentials(
            certificates.authority.certificate_pem, credential.key_pem, credential.certificate_pem
        ),
        options=[("grpc.ssl_target_name_override", "audit.muster.internal")],
    )
    try:
        call = channel.unary_unary(f"/{SERVICE}/Query", None, None)
        error = await failure(call(b""))
    finally:
        await channel.close(None)
    assert error.reason is Reason.IDENTITY_MISSING
    assert [entry.actor for entry in plane.outbox.entries] == ["unknown"]


async def test_hostile_bytes_in_a_unary_call_and_in_a_stream(serve: Serve) -> None:
    async def append(requests: AsyncIterator[pb.AppendRequest], context: Any) -> None:
        async for request in requests:
            await context.write(pb.AppendResponse(durable_sequence_number=request.first_sequence_number))

    plane = await serve(Append=append)
    channel = plane.channel()
    unary = channel.unary_unary(f"/{SERVICE}/Query", None, None)
    assert (await failure(unary(b"\xff\xff\xff"))).reason is Reason.MALFORMED_FRAME
    stream: Any = channel.stream_stream(f"/{SERVICE}/Append", None, None)(None)
    await stream.write(pb.AppendRequest(first_sequence_number=4).SerializeToString())
    assert pb.AppendResponse.FromString(await stream.read()).durable_sequence_number == 4
    await stream.write(b"\xff\xff\xff")
    assert (await failure(stream)).reason is Reason.MALFORMED_FRAME


async def test_unknown_method_is_unsupported(serve: Serve) -> None:
    plane = await serve()
    call = plane.channel().unary_unary(f"/{SERVICE}/Nothing", None, None)
    assert (await failure(call(b""))).reason is Reason.UNSUPPORTED_VERSION


async def test_oversized_message_is_refused(serve: Serve) -> None:
    plane = await serve()
    channel = plane.channel()
    call = channel.unary_unary(f"/{SERVICE}/Query", None, None)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(b"\0" * (4 * 1024 * 1024 - 64) + b"\0" * 128)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_error_of_any_size_still_arrives(serve: Serve) -> None:
    async def query(request: pb.QueryRequest, context: Any) -> pb.QueryResponse:
        violations = tuple(FieldViolation(f"tasks[{n}].名", "字" * 1_000) for n in range(1_000))
        raise ServiceError(Reason.INVALID_FIELD, "错" * 5_000, violations, {"x": "y" * 9_000})

    plane = await serve(Query=query)
    error = await failure(plane.stub().Query(pb.QueryRequest()))
    assert error.reason is Reason.INVALID_FIELD
    assert len(error.violations) + int(error.metadata["violations_omitted"]) == 1_000


async def test_a_callers_deadline_ends_the_handler(serve: Serve, eventually: Eventually) -> None:
    ended = asyncio.Event()

    async def query(request: pb.QueryRequest, context: Any) -> pb.QueryResponse:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return pb.QueryResponse()

    plane = await serve(Query=query)
    error = await failure(plane.stub().Query(pb.QueryRequest(), timeout=0.2))
    assert error.reason is Reason.CALL_TIMED_OUT
    await asyncio.wait_for(ended.wait(), 10)
    # The caller's goodbye may come before the deadline does here.
    await eventually(
        lambda: plane.calls("Query", "DEADLINE_EXCEEDED") + plane.calls("Query", "CANCELLED") == 1
    )
    assert plane.in_flight("Query") == 0


async def test_a_handler_that_takes_too_long_is_ended(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def query(request: pb.QueryRequest, context: Any) -> pb.QueryResponse:
        await asyncio.Event().wait()
        return pb.QueryResponse()

    monkeypatch.setattr(interceptors, "UNARY_MS_MAX", 50)
    plane = await serve(Query=query)
    error = await failure(plane.stub().Query(pb.QueryRequest()))
    assert error.reason is Reason.CALL_TIMED_OUT
    assert error.row.definite is False


async def test_a_handlers_own_timeout_is_a_defect(serve: Serve) -> None:
    async def query(request: pb.QueryRequest, context: Any) -> pb.QueryResponse:
        raise TimeoutError

    plane = await serve(Query=query)
    assert (await failure(plane.stub().Query(pb.QueryRequest()))).reason is Reason.INTERNAL


async def test_a_cancelled_stream_is_counted_and_silent(
    serve: Serve, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    async def append(requests: AsyncIterator[pb.AppendRequest], context: Any) -> None:
        async for request in requests:
            await context.write(pb.AppendResponse(durable_sequence_number=request.first_sequence_number))
        # The end of the requests may be heard before the cancellation, which alone shall end this call.
        await asyncio.Event().wait()

    plane = await serve(Append=append)
    for _ in range(20):
        call = plane.stub().Append()
        await call.write(pb.AppendRequest(first_sequence_number=1))
        await call.read()
        call.cancel()
    await eventually(lambda: plane.calls("Append", "CANCELLED") == 20)
    assert plane.in_flight("Append") == 0
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_a_channel_refuses_a_server_of_another_service(serve: Serve) -> None:
    plane = await serve()
    call = plane.channel(service="broker").unary_unary(f"/{SERVICE}/Query", None, None)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(b"", timeout=10)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_channel_refuses_an_agent_that_plays_a_service(
    serve: Serve, certificates: Certificates
) -> None:
    """An agent's certificate comes from the same authority but never names a service."""
    impostor = grpc.aio.server()
    port = impostor.add_secure_port("127.0.0.1:0", certificates.tls("agent/impostor").server_credentials())
    await impostor.start()
    plane = await serve()
    plane_address, plane.address = plane.address, f"127.0.0.1:{port}"
    try:
        call = plane.channel().unary_unary(f"/{SERVICE}/Query", None, None)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(b"", timeout=10)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        plane.address = plane_address
        await impostor.stop(0)


async def test_stream_unary_and_sync_errors_are_wrapped_too(certificates: Certificates) -> None:
    """The fourth kind of method, which our protos do not have."""

    async def count(requests: AsyncIterator[bytes], context: Any) -> bytes:
        total = 0
        async for request in requests:
            total += len(request)
            if total > 10:
                raise invalid("total", "is over 10")
        return str(total).encode()

    interceptor = interceptors.CallInterceptor(
        {"test.Test/Count": frozenset({"agent"})}, Metrics("audit"), logs.get("test")
    )
    server = grpc.aio.server(interceptors=[interceptor])
    handler = grpc.stream_unary_rpc_method_handler(count)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", {"Count": handler}),))
    port = server.add_secure_port("127.0.0.1:0", certificates.tls("service/audit").server_credentials())
    await server.start()
    channel = make_channel(f"127.0.0.1:{port}", certificates.tls("agent/x"), "audit")
    try:
        call = channel.stream_unary("/test.Test/Count", None, None)
        assert await call(iter([b"abc", b"de"])) == b"5"
        assert (await failure(call(iter([b"abcdef"] * 3)))).reason is Reason.INVALID_FIELD
    finally:
        await channel.close(None)
        await server.stop(0)
