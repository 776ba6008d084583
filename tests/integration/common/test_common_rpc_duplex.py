"""Bidirectional streams over real sockets: flushing, half-close, errors, slow readers, drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest
from muster.audit.v1 import audit_service_pb2 as pb

from services.common.core.errors import Reason, ServiceError
from services.common.rpc.duplex import Duplex, DuplexLimits, read_first
from services.common.rpc.status import from_rpc_error
from tests.conftest import Eventually
from tests.integration.common.conftest import Serve

EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs do not know it


def frame(number: int) -> pb.AppendRequest:
    return pb.AppendRequest(first_sequence_number=number)


def newest(items: Sequence[int]) -> pb.AppendResponse:
    """An ack cursor: of many that wait only the newest matters."""
    return pb.AppendResponse(durable_sequence_number=items[-1])


class Echo:
    """Answers each frame with its number; remembers every duplex and how it ended."""

    def __init__(self, limits: DuplexLimits | None = None) -> None:
        self.limits = limits or DuplexLimits()
        self.streams: list[Duplex[int, pb.AppendResponse]] = []
        self.batches: list[int] = []
        self.endings: list[BaseException | None] = []

    def pack(self, items: Sequence[int]) -> pb.AppendResponse:
        self.batches.append(len(items))
        return newest(items)

    async def __call__(self, requests: AsyncIterator[pb.AppendRequest], context: Any) -> None:
        duplex: Duplex[int, pb.AppendResponse] = Duplex(context, self.pack, self.limits)
        self.streams.append(duplex)

        async def on_frame(request: pb.AppendRequest) -> None:
            duplex.send(request.first_sequence_number)

        try:
            await duplex.run(on_frame)
        except BaseException as error:
            self.endings.append(error)
            raise
        self.endings.append(None)


async def ending(stream: Any) -> ServiceError:
    """Read to the end and return the error there."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await read_all(stream)
    return from_rpc_error(raised.value)


async def read_all(stream: Any) -> list[int]:
    numbers = []
    while (response := await stream.read()) is not EOF:
        numbers.append(response.durable_sequence_number)
    return numbers


async def test_one_item_goes_out_at_once_and_many_share_frames(serve: Serve) -> None:
    echo = Echo()
    plane = await serve(Append=echo)
    stream = plane.stub().Append()
    await stream.write(frame(1))
    assert (await stream.read()).durable_sequence_number == 1
    duplex = echo.streams[0]
    for number in range(2, 502):
        assert duplex.send(number)
    assert (await stream.read()).durable_sequence_number == 501
    assert echo.batches == [1, 500]
    await stream.done_writing()
    assert await stream.read() is EOF
    assert await stream.code() is grpc.StatusCode.OK


async def test_half_close_waits_for_the_answers_that_are_still_to_come(serve: Serve) -> None:
    release = asyncio.Event()

    async def append(requests: AsyncIterator[pb.AppendRequest], context: Any) -> None:
        duplex: Duplex[int, pb.AppendResponse] = Duplex(context, newest)
        numbers: list[int] = []

        async def on_frame(request: pb.AppendRequest) -> None:
            numbers.append(request.first_sequence_number)

        async def at_half_close() -> None:
            await release.wait()
            duplex.send(numbers[-1])

        await duplex.run(on_frame, at_half_close)

    plane = await serve(Append=append)
    stream = plane.stub().Append()
    for number in range(1, 6):
        await stream.write(frame(number))
    await stream.done_writing()
    release.set()
    assert await read_all(stream) == [5]
    assert await stream.code() is grpc.StatusCode.OK


async def test_an_error_comes_after_what_was_said_before_it(serve: Serve) -> None:
    async def append(requests: AsyncIterator[pb.AppendRequest], context: Any) -> None:
        duplex: Duplex[int, pb.AppendResponse] = Duplex(context, newest)

        async def on_frame(request: pb.AppendRequest) -> None:
            duplex.send(7)
            duplex.end(ServiceError(Reason.INCARNATION_FENCED, "a newer one is here"))
            duplex.end(ServiceError(Reason.WRONG_STATE, "the second error does not count"))
            assert duplex.ended
            assert not duplex.send(8)

        await duplex.run(on_frame)

    plane = await serve(Append=append)
    stream = plane.stub().Append()
    await stream.write(frame(1))
    assert (await stream.read()).durable_sequence_number == 7
    assert (await ending(stream)).reason is Reason.INCARNATION_FENCED


@pytest.mark.parametrize(
    ("raised", "reason"),
    [(ServiceError(Reason.MALFORMED_FRAME, "no"), Reason.MALFORMED_FRAME), (KeyError("x"), Reason.INTERNAL)],
)
async def test_what_reading_raises_ends_the_stream(serve: Serve, raised: Exception, reason: Reason) -> None:
    async def append(requests: AsyncIterator[pb.AppendRequest], context: Any) -> None:
        async def on_frame(request: pb.AppendRequest) -> None:
            raise raised

        duplex: Duplex[int, pb.AppendResponse] = Duplex(context, newest)
        await duplex.run(on_frame)

    plane = await serve(Append=append)
    stream = plane.stub().Append()
    await stream.write(frame(1))
    assert (await ending(stream)).reason is reason


async def test_what_reading_waits_for_is_cancelled_elsewhere(serve: Serve) -> None:
    """For example a driver that stops and cancels the futures of its answers."""

    async def append(requests: AsyncIterator[pb.AppendRequest], context: Any) -> None:
        async def on_frame(request: pb.AppendRequest) -> None:
            answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            answer.cancel()
            await answer

        duplex: Duplex[int, pb.AppendResponse] = Duplex(context, newest)
        await duplex.run(on_frame)

    plane = await serve(Append=append)
    stream = plane.stub().Append()
    await stream.write(frame(1))
    assert (await ending(stream)).reason is Reason.CALL_CANCELLED


async def test_frames_stay_within_their_bounds(serve: Serve) -> None:
    echo = Echo(DuplexLimits(frame_items_max=10, frame_bytes_max=100))
    plane = await serve(Append=echo)
    stream = plane.stub().Append()
    await stream.write(frame(1))
    await stream.read()
    duplex = echo.streams[0]
    for number in range(2, 27):
        duplex.send(number)
    # One of 500 bytes travels alone, then three of 40 do not fit into one frame.
    duplex.send(100, 500)
    for number in (101, 102, 103):
        duplex.send(number, 40)
    await stream.done_writing()
    assert await read_all(stream) == [11, 21, 26, 100, 102, 103]
    assert echo.batches == [1, 10, 10, 5, 1, 2, 1]


async def test_a_full_buffer_ends_the_stream(serve: Serve) -> None:
    echo = Echo(DuplexLimits(items_max=100))
    plane = await serve(Append=echo)
    stream = plane.stub().Append()
    await stream.write(frame(1))
    await stream.read()
    said = [echo.streams[0].send(number) for number in range(150)]
    assert said == [True] * 100 + [False] * 50
    assert (await ending(stream)).reason is Reason.PEER_SILENT


async def test_a_cut_during_the_first_write_still_has_a_status(serve: Serve) -> None:
    """gRPC takes a stream's headers once: a write that is given up must not leave their fate open."""
    duplexes: list[Duplex[int, pb.AppendResponse]] = []

    def pack(items: Sequence[int]) -> pb.AppendResponse:
        # The next turn of the loop, before gRPC's thread can say that the frame is out.
        asyncio.get_running_loop().call_soon(duplexes[0].send, 2, 2_000)
        return newest(items)

    async def append(requests: AsyncIterator[pb.AppendRequest], context: Any) -> None:
        duplexes.append(Duplex(context, pack, DuplexLimits(bytes_max=1_000)))

        async def on_frame(request: pb.AppendRequest) -> None:
            duplexes[0].send(request.first_sequence_number)

        await duplexes[0].run(on_frame)

    plane = await serve(Append=append)
    stream = plane.stub().Append(timeout=10)
    await stream.write(frame(1))
    assert (await ending(stream)).reason is Reason.PEER_SILENT


async def test_a_full_buffer_counts_bytes_too(serve: Serve) -> None:
    echo = Echo(DuplexLimits(bytes_max=1_000))
    plane = await serve(Append=echo)
    stream = plane.stub().Append()
    await stream.write(frame(1))
    await stream.read()
    assert echo.streams[0].send(2, 999)
    assert not echo.streams[0].send(3, 2)
    assert (await ending(stream)).reason is Reason.PEER_SILENT


async def test_a_peer_that_does_not_read_is_cut_off(serve: Serve, eventually: Eventually) -> None:
    """The window of HTTP/2 fills, a write stalls, the handler is free again in bounded time."""
    payload = b"x" * 500_000
    endings: list[BaseException] = []

    async def get_tiles(requests: AsyncIterator[pb.AppendRequest], context: Any) -> None:
        def pack(items: Sequence[bytes]) -> pb.AppendResponse:
            response = pb.AppendResponse()
            response.error.message = items[0].decode()
            return response

        duplex: Duplex[bytes, pb.AppendResponse] = Duplex(
            context, pack, DuplexLimits(stall_ms=200, frame_items_max=1, bytes_max=1 << 30)
        )

        async def on_frame(request: pb.AppendRequest) -> None:
            for _ in range(100):
                duplex.send(payload, len(payload))

        try:
            await duplex.run(on_frame)
        except ServiceError as error:
            endings.append(error)
            raise

    plane = await serve(Append=get_tiles)
    stream = plane.stub().Append()
    await stream.write(frame(1))
    await eventually(lambda: endings)
    assert isinstance(endings[0], ServiceError)
    assert endings[0].reason is Reason.PEER_SILENT
    assert plane.in_flight("Append") == 0
    # The status can not reach such a peer; it must not hold up a drain for its whole grace either.
    await asyncio.wait_for(plane.server.drain(300_000), 30)
    stream.cancel()


async def test_cancelling_peers_leave_nothing_behind(
    serve: Serve, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    echo = Echo()
    plane = await serve(Append=echo)
    stub = plane.stub()
    for _ in range(30):
        stream = stub.Append()
        await stream.write(frame(1))
        await stream.read()
        for number in range(50):
            echo.streams[-1].send(number)
        stream.cancel()
    await eventually(lambda: len(echo.endings) == 30 and plane.in_flight("Append") == 0)
    assert all(stream.ended for stream in echo.streams)
    assert not echo.streams[0].send(1)
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_a_lost_connection_leaves_nothing_behind(serve: Serve, eventually: Eventually) -> None:
    echo = Echo()
    plane = await serve(Append=echo)
    channel = plane.channel()
    streams = [
        channel.stream_stream("/muster.audit.v1.AuditService/Append", None, None)(None) for _ in range(10)
    ]
    for stream in streams:
        await stream.write(frame(1).SerializeToString())
        await stream.read()
    await channel.close(None)
    await eventually(lambda: len(echo.endings) == 10)


async def test_drain_flushes_and_says_why(serve: Serve) -> None:
    echo = Echo()
    plane = await serve(Append=echo)
    stream = plane.stub().Append()
    await stream.write(frame(1))
    await stream.read()
    for number in range(2, 50):
        echo.streams[0].send(number)
    drained = asyncio.create_task(plane.server.drain(5_000))
    assert (await stream.read()).durable_sequence_number == 49
    assert (await ending(stream)).reason is Reason.SHUTTING_DOWN
    await drained


async def test_end_calls_ends_the_streams_of_a_revoked_identity(serve: Serve) -> None:
    echo = Echo()
    plane = await serve(Append=echo)
    revoked, other = plane.stub("agent/bad").Append(), plane.stub("agent/good").Append()
    for stream in (revoked, other):
        await stream.write(frame(1))
        await stream.read()
    error = ServiceError(Reason.ACCESS_DENIED, "this certificate was revoked")
    assert plane.server.end_calls(lambda call: call.principal.name == "bad", error) == 1
    assert (await ending(revoked)).reason is Reason.ACCESS_DENIED
    await other.write(frame(2))
    assert (await other.read()).durable_sequence_number == 2


async def test_first_frame(serve: Serve) -> None:
    async def append(requests: AsyncIterator[pb.AppendRequest], context: Any) -> None:
        hello = await read_first(context, 100)
        await context.write(pb.AppendResponse(durable_sequence_number=hello.first_sequence_number))

    plane = await serve(Append=append)
    stub = plane.stub()
    good, silent, empty = stub.Append(), stub.Append(), stub.Append()
    await good.write(frame(3))
    assert (await good.read()).durable_sequence_number == 3
    assert (await ending(silent)).reason is Reason.MALFORMED_FRAME
    await empty.done_writing()
    assert (await ending(empty)).reason is Reason.MALFORMED_FRAME
