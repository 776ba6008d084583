"""One end of a mailbox under load, on the generated stubs: as lean as a client can be in this language.

Run: python -m benchmarks.mailbox_load --help. Speaks to the broker and to `benchmarks.bare` alike.

Throughput is closed-loop: the sender keeps as many envelopes unanswered as the server allows. Latency is
open-loop: one envelope at each fixed instant, whatever became of those before, and it counts from that
instant on, so that a stall is counted for everybody who came during it.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop
from muster.broker.v1.broker_service_pb2 import Ack, MailboxHello, MailboxRequest, MailboxResponse
from muster.broker.v1.broker_service_pb2_grpc import BrokerServiceStub
from muster.common.v1.envelope_pb2 import MESSAGE_TYPE_STATUS_UPDATE, Envelope
from muster.common.v1.payload_pb2 import Payload
from muster.registry.v1.agent_pb2 import Skill
from muster.registry.v1.registry_service_pb2 import SessionHello, SessionRequest
from muster.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

from benchmarks.plane import agent_tls
from benchmarks.priority import raise_own
from benchmarks.programs import tell
from services.common.rpc.channel import make_channel

PAYLOAD_BYTES = 256
# Deliveries that the receiver takes in advance.
CREDITS = 8_192
_STAMP_BYTES = 8
_RUN = secrets.token_hex(4)

Stream = Any  # grpc.aio's bidirectional call; its stubs do not know the message types


def payload(stamp_ns: int = 0) -> Payload:
    """Return a payload of `PAYLOAD_BYTES` that begins with an instant of the system's monotonic clock."""
    return Payload(data=stamp_ns.to_bytes(_STAMP_BYTES, "big").ljust(PAYLOAD_BYTES, b"."))


def stamp_of(sent: Payload) -> int:
    """Return the instant in a payload."""
    return int.from_bytes(sent.data[:_STAMP_BYTES], "big")


def envelope(number: int, receiver: str, stamp_ns: int = 0) -> Envelope:
    """Return one envelope; ids repeat in no other run, or it would be taken for one sent before."""
    return Envelope(
        message_id=f"{_RUN}-{number}",
        receiver_id=receiver,
        message_type=MESSAGE_TYPE_STATUS_UPDATE,
        payload=payload(stamp_ns),
        requires_ack=True,
    )


@asynccontextmanager
async def open_mailbox(
    options: argparse.Namespace, name: str, incarnation: int
) -> AsyncIterator[tuple[Stream, MailboxResponse]]:
    """Open a mailbox as agent `name`; yield the stream and the answer to the hello."""
    async with make_channel(options.address, agent_tls(options.home, name), "broker") as channel:
        stub: Any = BrokerServiceStub(channel)
        stream: Stream = stub.Mailbox()
        await stream.write(
            MailboxRequest(hello=MailboxHello(versions=[1], instance_id=name, incarnation=incarnation))
        )
        yield stream, await stream.read()


@asynccontextmanager
async def registered(options: argparse.Namespace, name: str) -> AsyncIterator[int]:
    """Be a registered agent while the block runs; yield the incarnation. Nothing without a registry."""
    if not options.registry:
        yield 1
        return
    async with make_channel(options.registry, agent_tls(options.home, name), "registry") as channel:
        stub: Any = RegistryServiceStub(channel)
        session: Stream = stub.Session()
        hello = SessionHello(versions=[1], instance_id=name, skills=[Skill(name="load")])
        await session.write(SessionRequest(hello=hello))
        welcome = (await session.read()).welcome
        beating = asyncio.create_task(
            _beat(session, welcome.heartbeat_interval.ToTimedelta().total_seconds())
        )
        try:
            yield welcome.incarnation
        finally:
            beating.cancel()
            session.cancel()


async def _beat(session: Stream, interval_s: float) -> None:
    sequence_number = 0
    while True:
        await asyncio.sleep(interval_s)
        sequence_number += 1
        request = SessionRequest()
        request.heartbeat.sequence_number = sequence_number
        await session.write(request)
        await session.read()


class Sender:
    """Sends `count` envelopes and waits until all are accepted."""

    def __init__(self, stream: Stream, free: int, frame_max: int) -> None:
        self._stream, self._frame_max = stream, frame_max
        # Envelopes that may still be sent unanswered.
        self._free = free
        self._accepted = 0
        self._changed = asyncio.Event()

    async def read(self) -> None:
        """Count answers until cancelled."""
        while True:
            frame: MailboxResponse = await self._stream.read()
            for outcome in frame.accepted:
                if outcome.HasField("error"):
                    raise RuntimeError(f"refused: {outcome.error}")
            self._accepted += len(frame.accepted)
            self._free += frame.send_credits
            self._changed.set()

    async def send_all(self, receiver: str, first: int, count: int) -> None:
        """Send as fast as the credits allow; return when the last one is accepted."""
        target = self._accepted + count
        sent = 0
        while sent < count:
            while self._free == 0:
                await self._wait_change()
            size = min(self._frame_max, self._free, count - sent)
            sends = [envelope(first + sent + offset, receiver) for offset in range(size)]
            self._free -= size
            sent += size
            await self._stream.write(MailboxRequest(sends=sends))
        while self._accepted < target:
            await self._wait_change()

    async def send_paced(self, receiver: str, first: int, count: int, rate: float) -> None:
        """Send one envelope each 1/rate seconds, stamped with the instant at which it was due."""
        target = self._accepted + count
        begin = time.monotonic_ns()
        for number in range(count):
            due = begin + int(number * 1e9 / rate)
            await asyncio.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
            await self._stream.write(MailboxRequest(sends=[envelope(first + number, receiver, due)]))
        while self._accepted < target:
            await self._wait_change()

    async def _wait_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


async def send(options: argparse.Namespace) -> None:
    """Be the sending end."""
    async with (
        registered(options, "sender") as incarnation,
        open_mailbox(options, "sender", incarnation) as (stream, welcome),
    ):
        sender = Sender(stream, welcome.send_credits, options.frame)
        reading = asyncio.create_task(sender.read())
        await _unless_ends(reading, sender.send_all("receiver", 0, options.warmup))
        first_ns = time.monotonic_ns()
        if options.rate:
            work = sender.send_paced("receiver", options.warmup, options.count, options.rate)
        else:
            work = sender.send_all("receiver", options.warmup, options.count)
        await _unless_ends(reading, work)
        tell("sent", first_ns=first_ns, accepted_ns=time.monotonic_ns())
        reading.cancel()
        stream.cancel()


async def receive(options: argparse.Namespace) -> None:
    """Be the receiving end: ack everything, and count what the server says is settled."""
    total = options.warmup + options.count
    async with (
        registered(options, "receiver") as incarnation,
        open_mailbox(options, "receiver", incarnation) as (stream, _),
    ):
        await stream.write(MailboxRequest(credits=CREDITS))
        tell("ready")
        latency_us: list[float] = []
        arrived = settled = 0
        while settled < total:
            frame: MailboxResponse = await stream.read()
            now_ns = time.monotonic_ns()
            settled += len(frame.settled)
            if not frame.deliveries:
                continue
            for delivery in frame.deliveries:
                if options.rate and arrived >= options.warmup:
                    latency_us.append((now_ns - stamp_of(delivery.envelope.payload)) / 1e3)
                arrived += 1
            acks = [Ack(ack_token=delivery.ack_token) for delivery in frame.deliveries]
            await stream.write(MailboxRequest(acks=acks, credits=len(acks)))
        tell("received", last_ns=time.monotonic_ns(), latency_us=latency_us)
        stream.cancel()


async def fill(options: argparse.Namespace) -> None:
    """Send to a sink, which answers once, when everything is there."""
    async with open_mailbox(options, "sender", 1) as (stream, _):
        for run in ("warm-up", "measured"):
            begin = time.monotonic_ns()
            for first in range(0, options.count, options.frame):
                size = min(options.frame, options.count - first)
                sends = [envelope(first + offset, "receiver") for offset in range(size)]
                await stream.write(MailboxRequest(sends=sends))
            await stream.read()
            if run == "measured":
                tell("sent", first_ns=begin, accepted_ns=time.monotonic_ns())
        stream.cancel()


async def _unless_ends(reading: asyncio.Task[None], work: Any) -> None:
    """Do `work`; raise what ended the reader if that comes first."""
    working = asyncio.ensure_future(work)
    await asyncio.wait({reading, working}, return_when=asyncio.FIRST_COMPLETED)
    if reading.done():
        working.cancel()
        reading.result()
    await working


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mailbox_load", description=__doc__)
    roles = {"sender": send, "receiver": receive, "filler": fill}
    parser.add_argument("role", choices=list(roles))
    parser.add_argument("--address", required=True, help="host:port of a broker")
    parser.add_argument("--registry", default="", help="host:port of a registry; left out for a bare server")
    parser.add_argument("--home", type=Path, required=True, help="folder with a plane's certificates")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--warmup", type=int, default=0, help="envelopes before those that are counted")
    parser.add_argument("--frame", type=int, default=128, help="envelopes in one frame, at most")
    parser.add_argument(
        "--rate", type=float, default=0.0, help="envelopes per second; 0: as fast as possible"
    )
    options = parser.parse_args()
    if options.rate:
        raise_own()
    uvloop.run(roles[options.role](options))


if __name__ == "__main__":
    main()
