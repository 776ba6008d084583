"""Calls that are passed on to the replica that leads: streams frame by frame, both ways, and single calls.

Nothing is understood here but the frames' borders. Flow control goes through: what one side does not read
is not read from the other. When the leader changes, what runs through here ends with an indefinite error,
and the client comes back and repeats, as after any broken link.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, NoReturn

import grpc
from muster.broker.v1 import broker_service_pb2 as pb
from muster.broker.v1.broker_service_pb2_grpc import BrokerServiceStub

from services.broker.caller import ON_BEHALF_OF, caller, is_relayed
from services.broker.mailbox_stream import BREAK_GRACE_MS
from services.broker.replica import Elsewhere, Replica, Seat
from services.common.core.errors import Reason, ServiceError
from services.common.rpc.channel import make_channel
from services.common.rpc.status import from_rpc_error
from services.common.tls import TlsIdentity

_SERVICE = pb.DESCRIPTOR.services_by_name["BrokerService"]
_MAILBOX = f"/{_SERVICE.full_name}/Mailbox"
# Streams of one connection: half of what a server takes on one.
STREAMS_PER_LINK = 512


class _Link:
    """One connection to the leader."""

    def __init__(self, leader: Elsewhere, tls: TlsIdentity) -> None:
        self.channel = make_channel(leader.address, tls, "broker")
        # Answers stay bytes: nobody reads them here.
        self.mailbox: Any = self.channel.stream_stream(
            _MAILBOX, request_serializer=pb.MailboxRequest.SerializeToString, response_deserializer=None
        )
        self.stub: Any = BrokerServiceStub(self.channel)
        self.streams = 0
        # Set when its leader leads no longer.
        self.is_over = False


class Relay:
    """The connections to one leader. Owned by the event loop."""

    def __init__(self, tls: TlsIdentity) -> None:
        self._tls = tls
        self._leader: Elsewhere | None = None
        self._links: list[_Link] = []
        self._closing: set[asyncio.Task[None]] = set()

    def follow(self, leader: Elsewhere | None) -> None:
        """End what runs to another leader than this one."""
        if leader == self._leader:
            return
        self._leader = leader
        links, self._links = self._links, []
        for link in links:
            link.is_over = True
            closing = asyncio.create_task(link.channel.close(None), name="broker-relay-close")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """End everything."""
        self.follow(None)
        if self._closing:
            await asyncio.wait(self._closing)

    async def pass_stream(self, leader: Elsewhere, context: Any) -> None:
        """Pass a Mailbox stream on, to its end; raises the error that it ends with."""
        metadata = _on_behalf(context)
        link = self._link(leader)
        link.streams += 1
        call = link.mailbox(metadata=metadata)
        upward = asyncio.create_task(_pass_up(context, call), name="broker-relay-up")
        try:
            while (frame := await call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
                await context.write(frame)
        except grpc.aio.AioRpcError as error:
            _raise(link, upward, error)
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            # Not this handler: the call alone was cancelled, from here.
            _raise(link, upward, None)
        finally:
            link.streams -= 1
            call.cancel()
            upward.cancel()
            await asyncio.gather(upward, return_exceptions=True)

    async def pass_call(self, leader: Elsewhere, method: str, request: Any, context: Any) -> Any:
        """Pass a single call on and return its answer."""
        link = self._link(leader)
        try:
            return await getattr(link.stub, method)(
                request, metadata=_on_behalf(context), timeout=context.time_remaining()
            )
        except grpc.aio.AioRpcError as error:
            _raise(link, None, error)
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            _raise(link, None, None)

    def _link(self, leader: Elsewhere) -> _Link:
        self.follow(leader)
        for link in self._links:
            if link.streams < STREAMS_PER_LINK:
                return link
        self._links.append(_Link(leader, self._tls))
        return self._links[-1]


class RelayingServicer:
    """Serves `muster.broker.v1.BrokerService` where the leader is: here, or through a relay."""

    def __init__(self, replica: Replica, relay: Relay) -> None:
        self._replica, self._relay = replica, relay

    async def Mailbox(self, request_iterator: Any, context: Any) -> None:
        """Serve one stream of an agent or operator."""
        place = await self._place(context)
        if isinstance(place, Seat):
            await place.servicer.Mailbox(request_iterator, context)
        else:
            await self._relay.pass_stream(place, context)

    def __getattr__(self, method: str) -> Any:
        """Return the handler of a method that takes one request and gives one answer."""
        if method not in _SERVICE.methods_by_name:
            raise AttributeError(method)

        async def handle(request: Any, context: Any) -> Any:
            place = await self._place(context)
            if isinstance(place, Seat):
                return await getattr(place.servicer, method)(request, context)
            return await self._relay.pass_call(place, method, request, context)

        return handle

    async def _place(self, context: Any) -> Seat | Elsewhere:
        # Whoever has no business here is told so without waiting for a leader.
        caller(context)
        # What was passed on once is not passed on again: two replicas may each take the other for the leader.
        return await self._replica.place(here=is_relayed())


async def _pass_up(context: Any, call: Any) -> None:
    try:
        while (frame := await context.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            await call.write(frame)
        # A link that breaks looks like a last frame first; then gRPC cancels the handler, and with it `call`.
        # Who leaves well gives back what it holds, who only lost its link may resume.
        await asyncio.sleep(BREAK_GRACE_MS / 1_000)
        await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        # The call is over; who reads from it hears why.
        return
    except ServiceError:
        # Its frame can not be read: `pass_stream` ends the stream with this error.
        call.cancel()
        raise


def _on_behalf(context: Any) -> tuple[tuple[str, str], ...]:
    return ((ON_BEHALF_OF, str(caller(context))),)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _raise(link: _Link, upward: asyncio.Task[None] | None, error: grpc.aio.AioRpcError | None) -> NoReturn:
    if upward is not None and upward.done() and not upward.cancelled():
        with contextlib.suppress(asyncio.CancelledError):
            upward.result()
    if error is None or link.is_over:
        raise ServiceError(
            Reason.PEER_SILENT,
            "another broker replica leads now: connect again and repeat what was not answered",
        ) from error
    raise from_rpc_error(error) from error
