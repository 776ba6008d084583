"""Steady load for tests that break things: a sender and a receiver that come back after every break."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable

import grpc
from muster.broker.v1 import broker_service_pb2 as pb
from muster.common.v1 import envelope_pb2

from services.common.core.errors import ServiceError
from services.common.tls import TlsIdentity
from tests.conftest import Certificates, Eventually
from tests.integration.broker.broker_client import MailboxClient, envelope

FRAME = 20
WINDOW = 200
# What a broken or refused link looks like; a client comes back after it.
AWAY = (ServiceError, grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError)


class Party:
    """Keeps a stream open for ever, at each of its addresses ("host:port", several by commas) in turn."""

    def __init__(self, address: str, tls: TlsIdentity) -> None:
        self._addresses, self.tls = itertools.cycle(address.split(",")), tls
        self.stopping = False
        # Streams that were welcomed, and the one that is open.
        self.opened = 0
        self._client: MailboxClient | None = None

    def stop(self) -> None:
        """End at the next chance; who waits for something to come is told."""
        self.stopping = True
        if self._client is not None:
            self._client.wake()

    async def open(self, **hello: object) -> MailboxClient | None:
        """Return a new stream, or None when the broker is away."""
        try:
            client = await MailboxClient.open(next(self._addresses), self.tls, **hello)  # type: ignore[arg-type]
        except AWAY:
            await asyncio.sleep(0.05)  # sleeps: a client's pause between two tries
            return None
        self.opened += 1
        self._client = client
        return client


class SteadySender(Party):
    """Sends numbered envelopes; after each break everything unanswered again, in order."""

    def __init__(self, address: str, tls: TlsIdentity) -> None:
        super().__init__(address, tls)
        self.made = 0
        self.unanswered: dict[str, None] = {}
        self.sequences: dict[str, set[int]] = {}

    def __repr__(self) -> str:
        return f"<sender made={self.made} unanswered={len(self.unanswered)} opened={self.opened}>"

    async def run(self) -> None:
        while not (self.stopping and not self.unanswered):
            client = await self.open(send_only=True)
            if client is None:
                continue
            with contextlib.suppress(*AWAY):
                await self._send_all(client)
            await client.close()

    async def _send_all(self, client: MailboxClient) -> None:
        again = list(self.unanswered)
        for start in range(0, len(again), FRAME):
            await client.write(sends=[self._envelope(one) for one in again[start : start + FRAME]])
        while not client.ended and not (self.stopping and not self.unanswered):
            if not self.stopping and len(self.unanswered) < WINDOW:
                fresh = [f"k-{self.made + number}" for number in range(FRAME)]
                self.made += FRAME
                self.unanswered |= dict.fromkeys(fresh)
                await client.write(sends=[self._envelope(one) for one in fresh])
            else:
                await client.wait(lambda: client.outcomes or client.ended)
            self._take(client)

    def _take(self, client: MailboxClient) -> None:
        outcomes, client.outcomes = client.outcomes, []
        for outcome in outcomes:
            if outcome.HasField("error"):
                continue
            self.sequences.setdefault(outcome.message_id, set()).add(outcome.sequence_number)
            self.unanswered.pop(outcome.message_id, None)

    def _envelope(self, message_id: str) -> envelope_pb2.Envelope:
        return envelope(message_id, "beta", message_id.encode() * 8, ttl_ms=3_600_000, retry_max=100)


class SteadyReceiver(Party):
    """Takes and acks; knows repeats by their sequence number, as a client does."""

    def __init__(self, address: str, tls: TlsIdentity) -> None:
        super().__init__(address, tls)
        self.effects: list[tuple[int, str]] = []
        self.repeats = 0
        self.greatest_token = 0
        self.broken: list[str] = []

    def __repr__(self) -> str:
        return f"<receiver effects={len(self.effects)} repeats={self.repeats} opened={self.opened}>"

    async def run(self) -> None:
        while not self.stopping:
            client = await self.open(resume_ack_token=self.greatest_token, credits_=WINDOW)
            if client is None:
                continue
            with contextlib.suppress(*AWAY):
                await self._receive(client)
            await client.close()

    async def _receive(self, client: MailboxClient) -> None:
        while not client.ended and not self.stopping:
            await client.wait(lambda: client.deliveries or client.ended or self.stopping)
            deliveries, client.deliveries = client.deliveries, []
            for delivery in deliveries:
                self._take(delivery)
            acks = [pb.Ack(ack_token=delivery.ack_token) for delivery in deliveries]
            await client.write(acks=acks, credits=len(acks))

    def _take(self, delivery: pb.Delivery) -> None:
        sequence, message_id = delivery.envelope.sequence_number, delivery.envelope.message_id
        self.greatest_token = max(self.greatest_token, delivery.ack_token)
        last = self.effects[-1][0] if self.effects else 0
        if sequence > last + 1:
            self.broken.append(f"#{sequence} came after #{last}")
        if sequence <= last:
            self.repeats += 1
            if self.effects[sequence - 1][1] != message_id:
                self.broken.append(f"#{sequence} is {message_id} and was {self.effects[sequence - 1][1]}")
        else:
            self.effects.append((sequence, message_id))


async def break_under_load(
    address: str,
    certificates: Certificates,
    eventually: Eventually,
    times: int,
    harm: Callable[[int], Awaitable[None]],
    story: Callable[[], str],
) -> None:
    """Do harm `times` times under load, then check everything that was acknowledged.

    `story` is what the brokers said, for when nothing goes on any more.
    """
    rng = random.Random(times)
    sender = SteadySender(address, certificates.tls("agent/alpha"))
    receiver = SteadyReceiver(address, certificates.tls("agent/beta"))
    running = [asyncio.create_task(receiver.run())]

    async def goes_on(more: int) -> None:
        wanted = len(receiver.effects) + more
        await eventually(lambda: len(receiver.effects) > wanted, timeout=60)

    try:
        # From its first stream on the receiver is known, also to later runs of the broker.
        await eventually(lambda: receiver.opened, timeout=60)
        running.append(asyncio.create_task(sender.run()))
        for number in range(times):
            await goes_on(rng.randint(100, 1_000))
            await harm(number)
        await goes_on(0)
        sender.stop()
        await asyncio.wait_for(running[1], 60)
        await eventually(lambda: len(receiver.effects) >= len(sender.sequences), timeout=60)
        receiver.stop()
        await asyncio.wait_for(running[0], 60)
    except (AssertionError, TimeoutError) as stalled:
        raise AssertionError(f"stalled with {sender!r}, {receiver!r}\n{story()}") from stalled
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    check_course(sender, receiver)


def check_course(sender: SteadySender, receiver: SteadyReceiver) -> None:
    """Everything was accepted, arrived once as far as effects go, and in the sender's order."""
    assert receiver.broken == []
    assert [message_id for _, message_id in receiver.effects] == [f"k-{n}" for n in range(sender.made)]
    # Nothing was stored twice, whatever was repeated.
    assert all(len(numbers) == 1 for numbers in sender.sequences.values())
    assert {one: {number} for number, one in receiver.effects} == sender.sequences
