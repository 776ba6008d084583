"""One Mailbox stream: frames to events on the way in, effects to pieces of frames on the way out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from muster.broker.v1 import broker_service_pb2 as pb

from services.broker.core import effects as fx
from services.broker.core import events as ev
from services.broker.core.model import Draft, RefusedDraft, RoutedDraft, RouteKind, SendOutcome
from services.broker.driver import Driver
from services.broker.entries import SendsRefused
from services.broker.members import Memberships
from services.broker.metrics import BrokerMetrics
from services.broker.recorder import AuditRecorder
from services.broker.wire import requests, responses
from services.broker.wire.handshake import NOTHING_AGREED, read_hello
from services.common.core.errors import ServiceError
from services.common.identity import Principal
from services.common.rpc.duplex import Duplex, read_first

# Between reading the end of a stream and believing that its peer meant it, in milliseconds.
BREAK_GRACE_MS = 50


@dataclass(frozen=True, slots=True)
class StreamTerms:
    """What a stream is told in the welcome, and what bounds it."""

    ack_deadline_ms: int
    payload_bytes_max: int
    hello_timeout_ms: int


class _Piece(NamedTuple):
    """Part of a frame: bytes, the deliveries' weight in them, send credits to add up."""

    content: bytes
    weight: int = 0
    credits: int = 0


def address_of(principal: Principal) -> str:
    """Return where envelopes for `principal` are sent: an agent's bare name, or "operator/<name>"."""
    return principal.name if principal.kind == "agent" else str(principal)


def collaborations_of(drafts: Sequence[Draft | RoutedDraft | RefusedDraft]) -> set[str]:
    """Return the ids of the collaborations to which a frame writes."""
    routes = [draft.route for draft in drafts if isinstance(draft, RoutedDraft)]
    return {route.name for route in routes if route.kind is RouteKind.COLLABORATION}


@dataclass(frozen=True, slots=True)
class StreamHost:
    """What all streams share."""

    driver: Driver
    recorder: AuditRecorder
    metrics: BrokerMetrics
    terms: StreamTerms
    memberships: Memberships


class MailboxStream:
    """Owned by the event loop; the driver's outlet of this stream."""

    def __init__(self, context: Any, principal: Principal, host: StreamHost) -> None:
        self._context, self._actor, self._address = context, str(principal), address_of(principal)
        self._driver, self._recorder = host.driver, host.recorder
        self._metrics, self._terms, self._memberships = host.metrics, host.terms, host.memberships
        self._duplex: Duplex[_Piece, bytes] = Duplex(context, self._pack)
        self._agreed = NOTHING_AGREED
        self._stream_id = 0
        self._receives = True
        # Set when the core has let the stream go.
        self._let_go = asyncio.Event()

    async def run(self) -> None:
        """Serve the stream to its end; raises the error that it ends with."""
        first: pb.MailboxRequest = await read_first(self._context, self._terms.hello_timeout_ms)
        hello, self._agreed = read_hello(first)
        self._receives = not hello.send_only
        self._stream_id = self._driver.attach(self)
        try:
            self._driver.submit(
                ev.StreamOpened(
                    self._stream_id,
                    self._actor,
                    self._address,
                    hello.instance_id or requests.INSTANCE_DEFAULT,
                    hello.incarnation,
                    hello.send_only,
                    hello.resume_ack_token,
                )
            )
            await self._duplex.run(self._take, self._leave)
        finally:
            self._driver.detach(self._stream_id)

    # What the driver calls.

    def carry(self, effect: fx.StreamEffect) -> None:
        """See `outlet.Outlet`."""
        match effect:
            case fx.Deliver(deliveries=deliveries, weight=weight):
                *before, last = responses.deliveries(deliveries)
                for content in before:
                    self._say(_Piece(content))
                # The core counts by effects: this one is flushed with the last of its pieces.
                self._say(_Piece(last, weight))
            case fx.Answer(outcomes=outcomes):
                self._note_refused(outcomes)
                self._say(_Piece(responses.outcomes(outcomes), credits=len(outcomes)))
            case fx.ConfirmSettled(tokens=tokens):
                self._say(_Piece(responses.settled(tokens)))
            case fx.RefuseSettling(tokens=tokens, error=error):
                for content in responses.refusals(tokens, error):
                    self._say(_Piece(content))
            case fx.Recall(tokens=tokens):
                self._say(_Piece(responses.recalled(tokens)))
            case fx.TellTombstones(key=key, tombstones=stones):
                self._say(_Piece(responses.tombstones(key, stones)))
            case fx.Welcome(waiting_count=waiting_count, send_credits=credits_):
                welcome = responses.welcome(
                    self._agreed,
                    waiting_count,
                    ack_deadline_ms=self._terms.ack_deadline_ms,
                    payload_bytes_max=self._terms.payload_bytes_max,
                )
                self._say(_Piece(welcome, credits=credits_))

    def end(self, error: ServiceError | None) -> None:
        """See `outlet.Outlet`."""
        self._let_go.set()
        self._duplex.end(error)

    # What the duplex calls.

    async def _take(self, request: pb.MailboxRequest) -> None:
        frame, size = requests.read_frame(
            request, self._stream_id, self._address, self._terms.payload_bytes_max, self._agreed
        )
        if meant := collaborations_of(frame.drafts):
            # Frames come one after the other: what follows keeps its place behind this one.
            await self._memberships.learn(meant)
        self._driver.hurry(frame, size)
        await self._driver.wait_room()

    async def _leave(self) -> None:
        """The client has sent its last frame; it gets the answers that it waits for."""
        if self._receives:
            # A link that breaks looks like a last frame first; then gRPC cancels this handler. Who leaves
            # well gives back what it holds, who only lost its link may resume.
            await asyncio.sleep(BREAK_GRACE_MS / 1000)
        self._driver.submit(ev.StreamLeaving(self._stream_id))
        await self._let_go.wait()

    def _pack(self, pieces: Sequence[_Piece]) -> bytes:
        credits_ = sum(piece.credits for piece in pieces)
        content = [piece.content for piece in pieces]
        if credits_:
            # A scalar field: once in a frame, since the last one counts.
            content.append(responses.send_credits(credits_))
        weight = sum(piece.weight for piece in pieces)
        if weight:
            # The writer is free again: what the core may hand over grows by what leaves now.
            self._driver.submit(ev.Flushed(self._stream_id, weight))
        return b"".join(content)

    def _say(self, piece: _Piece) -> None:
        self._duplex.send(piece, len(piece.content))

    def _note_refused(self, outcomes: Sequence[SendOutcome]) -> None:
        refusals = [(one.message_id, one.error.reason) for one in outcomes if one.error is not None]
        if refusals:
            for _, reason in refusals:
                self._metrics.refused.labels(reason).inc()
            self._recorder.note(SendsRefused(self._actor, refusals))
