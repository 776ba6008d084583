"""A Mailbox stream from a client's side, frame by frame, over real mTLS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import grpc
from muster.broker.v1 import broker_service_pb2 as pb
from muster.broker.v1.broker_service_pb2_grpc import BrokerServiceStub
from muster.common.v1 import envelope_pb2, priority_pb2

from services.common.core.errors import ServiceError
from services.common.rpc.channel import make_channel
from services.common.rpc.status import from_rpc_error, from_status
from services.common.tls import TlsIdentity

T = TypeVar("T")

PATIENCE_S = 20.0
NORMAL = priority_pb2.PRIORITY_NORMAL
EMERGENCY = priority_pb2.PRIORITY_EMERGENCY


def envelope(message_id: str, receiver: str, data: bytes = b"hello", **fields: Any) -> envelope_pb2.Envelope:
    """Return an envelope that wants an ack."""
    made = envelope_pb2.Envelope(
        message_id=message_id,
        receiver_id=receiver,
        message_type=envelope_pb2.MESSAGE_TYPE_STATUS_UPDATE,
        requires_ack=True,
    )
    made.payload.data = data
    for name, value in fields.items():
        if name == "ttl_ms":
            made.ttl.FromMilliseconds(value)
        else:
            setattr(made, name, value)
    return made


class MailboxClient:
    """One stream; collects everything that comes."""

    def __init__(self, address: str, tls: TlsIdentity) -> None:
        self.channel = make_channel(address, tls, "broker")
        stub: Any = BrokerServiceStub(self.channel)
        self.stub: Any = stub
        self.call: Any = stub.Mailbox()
        self.welcome = pb.MailboxWelcome()
        self.outcomes: list[pb.SendOutcome] = []
        self.deliveries: list[pb.Delivery] = []
        self.settled: list[int] = []
        self.refusals: list[pb.SettleRefusal] = []
        self.recalled: list[int] = []
        self.tombstones: list[pb.Tombstone] = []
        self.send_credits = 0
        self.error: ServiceError | None = None
        self.ended = False
        self._changed = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls, address: str, tls: TlsIdentity, *, credits_: int = 100, **hello: Any
    ) -> MailboxClient:
        """Open a stream, wait for the welcome, grant credits."""
        client = cls(address, tls)
        fields: dict[str, Any] = {"versions": [1], "incarnation": 1} | hello
        await client.write(hello=pb.MailboxHello(**fields))
        client.start()
        await client.wait(lambda: client.welcome.version or client.ended)
        if client.error is not None:
            await client.close()
            raise client.error
        if credits_ and not fields.get("send_only"):
            await client.write(credits=credits_, emergency_credits=credits_)
        return client

    def start(self) -> None:
        """Begin to read."""
        self._reader = asyncio.create_task(self._read(), name="mailbox-client")

    async def write(self, **fields: Any) -> None:
        """Send one frame."""
        await self.call.write(pb.MailboxRequest(**fields))

    async def send(self, *envelopes: envelope_pb2.Envelope) -> list[pb.SendOutcome]:
        """Send envelopes in one frame and return their outcomes."""
        before = len(self.outcomes)
        await self.write(sends=envelopes)
        await self.wait(lambda: len(self.outcomes) >= before + len(envelopes) or self.ended)
        if self.error is not None:
            raise self.error
        return self.outcomes[before:]

    async def ack(self, deliveries: Iterable[pb.Delivery]) -> None:
        """Ack deliveries and wait until that is durable."""
        tokens = [delivery.ack_token for delivery in deliveries]
        await self.write(acks=[pb.Ack(ack_token=token) for token in tokens])
        await self.wait(lambda: set(tokens) <= set(self.settled) or self.ended)

    async def take(self, count: int) -> list[pb.Delivery]:
        """Return the first `count` deliveries, waiting for them."""
        await self.wait(lambda: len(self.deliveries) >= count or self.ended)
        taken, self.deliveries = self.deliveries[:count], self.deliveries[count:]
        return taken

    async def wait(self, condition: Callable[[], T]) -> T:
        """Return the condition's value as soon as it is true."""
        async with asyncio.timeout(PATIENCE_S):
            while not (value := condition()):
                self._changed.clear()
                await self._changed.wait()
        return value

    def wake(self) -> None:
        """Have who waits look at its condition again."""
        self._changed.set()

    async def wait_end(self) -> ServiceError | None:
        """Return what the stream ended with; None for a good end."""
        await self.wait(lambda: self.ended)
        return self.error

    async def half_close(self) -> None:
        """Send nothing more."""
        await self.call.done_writing()

    async def close(self) -> None:
        """End the stream and its channel at once, as a broken link would."""
        self.call.cancel()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)
        await self.channel.close(None)

    def bodies(self) -> list[bytes]:
        """Return the payloads of what came, in order."""
        return [delivery.envelope.payload.data for delivery in self.deliveries]

    async def _read(self) -> None:
        try:
            while (frame := await self.call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
                if frame.HasField("welcome"):
                    self.welcome = frame.welcome
                self.outcomes += frame.accepted
                self.deliveries += frame.deliveries
                self.settled += frame.settled
                self.refusals += frame.refusals
                self.recalled += frame.recalled
                self.tombstones += frame.tombstones
                self.send_credits += frame.send_credits
                self._changed.set()
            if await self.call.code() is not grpc.StatusCode.OK:
                # grpc.aio gives the end of the stream first and why afterwards.
                await self.call
        except grpc.aio.AioRpcError as error:
            self.error = from_rpc_error(error)
        finally:
            self.ended = True
            self._changed.set()


def error_of(outcome: pb.SendOutcome | pb.SettleRefusal) -> ServiceError:
    """Return the error inside an outcome or refusal."""
    return from_status(outcome.error)
