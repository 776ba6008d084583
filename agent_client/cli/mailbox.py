"""The operator's own mailbox: send one envelope, or take what comes. Everything here is on the link loop."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc.aio import EOF  # type: ignore[attr-defined]  # not in the stubs
from muster.broker.v1 import broker_service_pb2 as broker
from muster.broker.v1.broker_service_pb2_grpc import BrokerServiceStub
from muster.common.v1 import envelope_pb2, priority_pb2

from agent_client.context import load_context
from agent_client.core.retry import BackoffPolicy, may_repeat
from agent_client.errors import MusterError, UnavailableError, from_rpc_error, from_status, to_fault
from agent_client.streams.discovery import Discovery
from agent_client.streams.duplex import Duplex
from agent_client.tls import Dialer
from agent_client.wire import MAILBOX_FEATURES, VERSIONS

# All receiving commands are one instance: a new one ends the one before and gets what that held.
INSTANCE = "muster-command"
# Seconds that the broker has to end a stream that we closed.
CLOSE_S_MAX = 2.0


async def send(envelope: envelope_pb2.Envelope, patience_s: float) -> broker.SendOutcome:
    """Send an envelope as the context's operator; return the broker's answer when it is durable.

    It is sent again, under its message_id, for `patience_s` seconds, as long as it may not have been stored.
    Raises MusterError.
    """
    dialer, policy = _dialer(), BackoffPolicy()
    failures, deadline = 0, time.monotonic() + patience_s
    while True:
        try:
            return await _send_once(dialer, envelope)
        except MusterError as error:
            failures += 1
            delay_s = max(policy.delay_ms(failures, random.random()) / 1000, error.retry_after or 0)
            if not may_repeat(to_fault(error), idempotent=True) or time.monotonic() + delay_s > deadline:
                raise
        await asyncio.sleep(delay_s)


@contextlib.asynccontextmanager
async def receiving() -> AsyncIterator[Incoming]:
    """Receive as the context's operator. Raises MusterError, also when a newer command takes over."""
    # A newer one is told from an older one by the clock, since no registry session counts them.
    hello = broker.MailboxHello(
        versions=VERSIONS,
        features=MAILBOX_FEATURES,
        instance_id=INSTANCE,
        incarnation=time.time_ns() // 1_000_000,
    )
    async with _stream(_dialer(), hello) as stream:
        yield Incoming(stream)


async def _send_once(dialer: Dialer, envelope: envelope_pb2.Envelope) -> broker.SendOutcome:
    hello = broker.MailboxHello(
        versions=VERSIONS, features=MAILBOX_FEATURES, instance_id=INSTANCE, send_only=True
    )
    async with _stream(dialer, hello) as stream:
        await stream.write(broker.MailboxRequest(sends=[envelope]))
        while not (outcomes := (await stream.read()).accepted):
            pass
        outcome: broker.SendOutcome = outcomes[0]
        if outcome.HasField("error"):
            raise from_status(outcome.error)
        return outcome


class Incoming:
    """Deliveries, at most one of each window at a time, so that hardly any waits here undecided."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._waiting: deque[broker.Delivery] = deque()
        self._settled: set[int] = set()
        # What may still come, by whether it is of the EMERGENCY lane.
        self._credits = {False: 0, True: 0}

    async def next(self) -> broker.Delivery:
        """Return the next delivery; cancelling it ends the stream. Raises MusterError."""
        while not self._waiting:
            await self._ask()
            self._take(await self._stream.read())
        return self._waiting.popleft()

    async def ack(self, delivery: broker.Delivery) -> bool:
        """Acknowledge, durably. False when the broker had taken it back: then it comes again."""
        if not delivery.ack_token:
            return True
        await self._stream.write(broker.MailboxRequest(acks=[broker.Ack(ack_token=delivery.ack_token)]))
        while delivery.ack_token not in self._settled:
            answer = await self._stream.read()
            self._take(answer)
            if any(refusal.ack_token == delivery.ack_token for refusal in answer.refusals):
                return False
        self._settled.clear()
        return True

    async def _ask(self) -> None:
        lacking = {emergency: int(not self._credits[emergency]) for emergency in self._credits}
        if any(lacking.values()):
            await self._stream.write(
                broker.MailboxRequest(credits=lacking[False], emergency_credits=lacking[True])
            )
            self._credits = {False: 1, True: 1}

    def _take(self, answer: broker.MailboxResponse) -> None:
        recalled = set(answer.recalled)
        self._waiting = deque(one for one in self._waiting if one.ack_token not in recalled)
        self._waiting.extend(answer.deliveries)
        self._settled.update(answer.settled)
        for delivery in answer.deliveries:
            self._credits[delivery.envelope.priority == priority_pb2.PRIORITY_EMERGENCY] = 0


class _Stream:
    """An open Mailbox call; its errors are MusterErrors."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def write(self, frame: broker.MailboxRequest) -> None:
        # When the call has ended, `read` tells why.
        with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
            await self._call.write(frame)

    async def read(self) -> broker.MailboxResponse:
        try:
            frame = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        if frame is EOF:
            raise UnavailableError("the broker ended the stream")
        answer: broker.MailboxResponse = frame
        return answer

    async def close(self) -> None:
        """Say that nothing more comes, and wait a moment for the broker to have taken note of it."""
        if self._call.done():
            return
        with contextlib.suppress(TimeoutError, asyncio.InvalidStateError, MusterError):
            async with asyncio.timeout(CLOSE_S_MAX):
                await self._call.done_writing()
                while True:
                    await self.read()


@contextlib.asynccontextmanager
async def _stream(dialer: Dialer, hello: broker.MailboxHello) -> AsyncIterator[_Stream]:
    discovery = Discovery(dialer)
    try:
        channel = await dialer.open("broker", await discovery.address("broker"))
    finally:
        await discovery.close()
    try:
        duplex: Duplex[broker.MailboxRequest, broker.MailboxResponse]
        duplex = Duplex.begin(BrokerServiceStub(channel).Mailbox, asyncio.Event())
        await duplex.greet(broker.MailboxRequest(hello=hello))
        stream = _Stream(duplex.call)
        yield stream
        await stream.close()
    finally:
        await channel.close(None)


def _dialer() -> Dialer:
    context = load_context()
    return Dialer(context, context.operator())
