"""The publisher of a topic, or all of its subscribers. Run: python -m benchmarks.fanout_load --help.

Keeps the protocol of `benchmarks.exchange`; subscribers need no registry, since a certificate proves a name.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

import uvloop
from muster.broker.v1.broker_service_pb2 import (
    Ack,
    MailboxHello,
    MailboxRequest,
    MailboxResponse,
    SubscribeRequest,
)
from muster.broker.v1.broker_service_pb2_grpc import BrokerServiceStub

from benchmarks.crowd import JOINING_MAX, raise_file_limit
from benchmarks.fanout import PUBLISHER, subscriber_name
from benchmarks.mailbox_load import CREDITS, envelope
from benchmarks.plane import agent_tls
from benchmarks.programs import tell
from services.common.rpc.channel import make_channel

TOPIC = "benchmark.fanout"
# Publications that may be unanswered.
WINDOW = 16


class Subscriber:
    """One mailbox that takes and acks everything."""

    def __init__(self, options: argparse.Namespace, name: str) -> None:
        self._channel = make_channel(options.address, agent_tls(options.home, name), "broker")
        stub: Any = BrokerServiceStub(self._channel)
        self._stub = stub
        self._stream: Any = stub.Mailbox()

    async def join(self) -> None:
        """Be connected and subscribed."""
        hello = MailboxHello(versions=[1], instance_id="0", incarnation=1)
        await self._stream.write(MailboxRequest(hello=hello))
        await self._stream.read()
        await self._stub.Subscribe(SubscribeRequest(pattern=TOPIC))
        await self._stream.write(MailboxRequest(credits=CREDITS))

    async def take(self, count: int) -> None:
        """Return when so many deliveries are settled."""
        settled = 0
        while settled < count:
            frame: MailboxResponse = await self._stream.read()
            settled += len(frame.settled)
            if frame.deliveries:
                acks = [Ack(ack_token=delivery.ack_token) for delivery in frame.deliveries]
                await self._stream.write(MailboxRequest(acks=acks, credits=len(acks)))

    async def leave(self) -> None:
        """End everything at once."""
        await self._channel.close(None)


async def subscribe(options: argparse.Namespace) -> None:
    """Be all subscribers."""
    raise_file_limit()
    members = [Subscriber(options, subscriber_name(number)) for number in range(options.subscribers)]
    for start in range(0, len(members), JOINING_MAX):
        await asyncio.gather(*(one.join() for one in members[start : start + JOINING_MAX]))
    tell("ready")
    await asyncio.gather(*(one.take(options.warmup + options.count) for one in members))
    tell("received", last_ns=time.monotonic_ns(), latency_us=[])
    await asyncio.gather(*(one.leave() for one in members))


async def publish(options: argparse.Namespace) -> None:
    """Be the publisher: one envelope a frame, a few unanswered."""
    async with make_channel(options.address, agent_tls(options.home, PUBLISHER), "broker") as channel:
        stub: Any = BrokerServiceStub(channel)
        stream: Any = stub.Mailbox()
        hello = MailboxHello(versions=[1], features=["routes"], send_only=True)
        await stream.write(MailboxRequest(hello=hello))
        await stream.read()
        await _publish(stream, options, 0, options.warmup)
        first_ns = time.monotonic_ns()
        await _publish(stream, options, options.warmup, options.count)
        tell("sent", first_ns=first_ns, accepted_ns=time.monotonic_ns())
        stream.cancel()


async def _publish(stream: Any, options: argparse.Namespace, first: int, count: int) -> None:
    sent = answered = 0
    while answered < count:
        while sent < count and sent - answered < WINDOW:
            await stream.write(MailboxRequest(sends=[envelope(first + sent, f"topic/{TOPIC}")]))
            sent += 1
        frame: MailboxResponse = await stream.read()
        for outcome in frame.accepted:
            if outcome.HasField("error") or outcome.receiver_count != options.subscribers:
                raise RuntimeError(f"not what was wanted: {outcome}")
        answered += len(frame.accepted)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fanout_load", description=__doc__)
    roles = {"sender": publish, "receiver": subscribe}
    parser.add_argument("role", choices=list(roles))
    parser.add_argument("--address", required=True, help="host:port of a broker")
    parser.add_argument("--home", type=Path, required=True, help="folder with a plane's certificates")
    parser.add_argument("--subscribers", type=int, required=True)
    parser.add_argument("--count", type=int, required=True, help="publications that count")
    parser.add_argument("--warmup", type=int, required=True, help="publications before them")
    parser.add_argument("--rate", type=float, default=0, help="closed-loop only: 0")
    options = parser.parse_args()
    uvloop.run(roles[options.role](options))


if __name__ == "__main__":
    main()
