"""kill -9 under load, with a real process: nothing acknowledged is lost, reordered or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from muster.broker.v1 import broker_service_pb2 as pb
from muster.common.v1 import envelope_pb2

from services.common.core.errors import Reason, ServiceError
from services.common.tls import TlsIdentity
from tests.conftest import Certificates, Eventually
from tests.integration.broker.broker_client import MailboxClient, envelope
from tests.integration.broker.broker_process import BrokerProcess

FRAME = 20
WINDOW = 200
KILLS = 5
NIGHTLY_KILLS = 200
# What a broken or refused link looks like; a client comes back after it.
AWAY = (ServiceError, grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError)


class Party:
    """Keeps a stream open for ever."""

    def __init__(self, address: str, tls: TlsIdentity) -> None:
        self.address, self.tls = address, tls
        self.stopping = False

    async def open(self, **hello: object) -> MailboxClient | None:
        """Return a new stream, or None when the broker is away."""
        try:
            return await MailboxClient.open(self.address, self.tls, **hello)  # type: ignore[arg-type]
        except AWAY:
            await asyncio.sleep(0.05)  # sleeps: a client's pause between two tries
            return None


class SteadySender(Party):
    """Sends numbered envelopes; after each break everything unanswered again, in order."""

    def __init__(self, address: str, tls: TlsIdentity) -> None:
        super().__init__(address, tls)
        self.made = 0
        self.unanswered: dict[str, None] = {}
        self.sequences: dict[str, set[int]] = {}

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


@pytest_asyncio.fixture
async def process(
    tmp_path: Path, certificates: Certificates, free_port: Callable[[], int]
) -> AsyncIterator[BrokerProcess]:
    """A broker's process, running."""
    # Synced to the disk each time, as always; audit's own spool is not what is under test here.
    made = BrokerProcess(certificates, tmp_path / "broker", free_port(), audit_messages="none")
    made.start()
    yield made
    if made.process is not None:
        made.kill()


async def test_killed_under_load(
    process: BrokerProcess, certificates: Certificates, eventually: Eventually
) -> None:
    await _kill_under_load(process, certificates, eventually, KILLS)


@pytest.mark.nightly
async def test_killed_very_often_under_load(
    process: BrokerProcess, certificates: Certificates, eventually: Eventually
) -> None:
    await _kill_under_load(process, certificates, eventually, NIGHTLY_KILLS)


async def _kill_under_load(
    process: BrokerProcess, certificates: Certificates, eventually: Eventually, kills: int
) -> None:
    rng = random.Random(kills)
    sender = SteadySender(process.address, certificates.tls("agent/alpha"))
    receiver = SteadyReceiver(process.address, certificates.tls("agent/beta"))
    running = [asyncio.create_task(receiver.run())]
    await eventually(lambda: _serves(process, certificates))
    running.append(asyncio.create_task(sender.run()))
    for _ in range(kills):
        before = len(receiver.effects)
        more = rng.randint(100, 1_500)
        await eventually(lambda before=before, more=more: len(receiver.effects) > before + more, timeout=60)
        process.kill()
        process.start()
    sender.stopping = True
    await asyncio.wait_for(running[1], 60)
    await eventually(lambda: len(receiver.effects) >= len(sender.sequences), timeout=60)
    receiver.stopping = True
    await asyncio.wait_for(running[0], 60)
    assert process.stop() == 0
    # Nothing acknowledged is lost, nothing came that was not sent, in the sender's order.
    assert receiver.broken == []
    assert [message_id for _, message_id in receiver.effects] == [f"k-{n}" for n in range(sender.made)]
    # Nothing was stored twice, whatever was repeated.
    assert all(len(numbers) == 1 for numbers in sender.sequences.values())
    assert {one: {number} for number, one in receiver.effects} == sender.sequences


async def _serves(process: BrokerProcess, certificates: Certificates) -> bool:
    with contextlib.suppress(*AWAY):
        client = await MailboxClient.open(process.address, certificates.tls("agent/gamma"), send_only=True)
        await client.close()
        return True
    return False


async def test_stopped_well_it_says_goodbye_and_comes_back(
    process: BrokerProcess, certificates: Certificates, eventually: Eventually
) -> None:
    await eventually(lambda: _serves(process, certificates))
    beta = await MailboxClient.open(process.address, certificates.tls("agent/beta"))
    assert process.stop() == 0
    error = await beta.wait_end()
    assert error is not None
    assert error.reason is Reason.SHUTTING_DOWN
    await beta.close()
    process.start()
    await eventually(lambda: _serves(process, certificates))
    # It knows its mailboxes although the registry never answered.
    alpha = await MailboxClient.open(process.address, certificates.tls("agent/alpha"), send_only=True)
    (outcome,) = await alpha.send(envelope("m-1", "beta"))
    assert outcome.sequence_number == 1
    await alpha.close()
