"""A broker with nothing in it: what gRPC, TLS and protobuf alone allow, with the broker's own frames.

`sink` counts envelopes and says once that all came. `forwarder` accepts every envelope at once and hands it
to its receiver; nothing is stored, checked, numbered or given again. Run: python -m benchmarks.bare --help
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import grpc
import uvloop
from muster.broker.v1.broker_service_pb2 import (
    Delivery,
    MailboxRequest,
    MailboxResponse,
    MailboxWelcome,
    SendOutcome,
)

from benchmarks.priority import raise_own
from benchmarks.programs import tell
from services.common.tls import TlsIdentity

# Frames on their way to one stream; a sender that is faster than its receiver waits here.
FRAMES_WAITING_MAX = 64
_SEND_CREDITS = 4_096

Frames = AsyncIterator[MailboxRequest]


class Sink:
    """Takes envelopes; tells how many came when the sender has said so many that it is done."""

    def __init__(self, total: int) -> None:
        self._total = total

    async def mailbox(self, frames: Frames, _context: object) -> AsyncIterator[MailboxResponse]:
        """Serve one stream."""
        received = 0
        async for frame in frames:
            if frame.HasField("hello"):
                yield MailboxResponse(welcome=MailboxWelcome(version=1), send_credits=self._total)
                continue
            received += len(frame.sends)
            if received == self._total:
                yield MailboxResponse(settled=[received])
                received = 0


class Forwarder:
    """Hands envelopes to the stream whose hello named their receiver as its instance."""

    def __init__(self) -> None:
        self._streams: dict[str, asyncio.Queue[MailboxResponse]] = {}
        self._tokens = count(1)

    async def mailbox(self, frames: Frames, _context: object) -> AsyncIterator[MailboxResponse]:
        """Serve one stream."""
        hello = (await anext(frames)).hello
        outgoing: asyncio.Queue[MailboxResponse] = asyncio.Queue(FRAMES_WAITING_MAX)
        self._streams[hello.instance_id] = outgoing
        yield MailboxResponse(welcome=MailboxWelcome(version=1), send_credits=_SEND_CREDITS)
        reader = asyncio.create_task(self._read(frames, outgoing))
        try:
            while True:
                yield await outgoing.get()
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader

    async def _read(self, frames: Frames, outgoing: asyncio.Queue[MailboxResponse]) -> None:
        async for frame in frames:
            if frame.sends:
                receiver = self._streams[frame.sends[0].receiver_id]
                deliveries = [Delivery(ack_token=next(self._tokens), envelope=sent) for sent in frame.sends]
                await receiver.put(MailboxResponse(deliveries=deliveries))
                accepted = [SendOutcome(message_id=sent.message_id) for sent in frame.sends]
                await outgoing.put(MailboxResponse(accepted=accepted, send_credits=len(accepted)))
            if frame.acks:
                await outgoing.put(MailboxResponse(settled=[ack.ack_token for ack in frame.acks]))


async def serve(servicer: Sink | Forwarder, tls: TlsIdentity) -> None:
    """Serve over mutual TLS on a free port, which is told, until the process is ended."""
    server = grpc.aio.server()
    mailbox = grpc.stream_stream_rpc_method_handler(
        servicer.mailbox,
        request_deserializer=MailboxRequest.FromString,
        response_serializer=MailboxResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("muster.broker.v1.BrokerService", {"Mailbox": mailbox})]
    )
    port = server.add_secure_port("127.0.0.1:0", tls.server_credentials())
    await server.start()
    tell("ready", address=f"127.0.0.1:{port}")
    await server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare", description=__doc__)
    parser.add_argument("kind", choices=["sink", "forwarder"])
    parser.add_argument("--home", type=Path, required=True, help="folder with a plane's certificates")
    parser.add_argument("--total", type=int, default=0, help="envelopes that a sink waits for")
    options = parser.parse_args()
    certificate = options.home / "services" / "broker.crt"
    tls = TlsIdentity(options.home / "ca.crt", certificate, certificate.with_suffix(".key"))
    raise_own()
    servicer = Sink(options.total) if options.kind == "sink" else Forwarder()
    uvloop.run(serve(servicer, tls))


if __name__ == "__main__":
    main()
