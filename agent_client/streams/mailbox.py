"""The Mailbox stream: envelopes out and in, through the broker's durable mailboxes."""

from __future__ import annotations

import logging
from asyncio import Event

from muster.broker.v1 import broker_service_pb2 as broker
from muster.broker.v1.broker_service_pb2_grpc import BrokerServiceStub
from muster.common.v1 import envelope_pb2

from agent_client.core.inbox import Handing, InboxCore, Key, Settlement, Verdict
from agent_client.core.outbox import Answer, OutboxCore, SendOutcome
from agent_client.core.retry import BackoffPolicy, Reconnect
from agent_client.errors import (
    AgentLeftError,
    InvalidRequestError,
    LimitError,
    UnavailableError,
    from_status,
    to_fault,
)
from agent_client.link import Delivered, Envelope, Profile, Receipt, Sink
from agent_client.pending import Pending
from agent_client.streams.discovery import Discovery
from agent_client.streams.duplex import Duplex, keep_open, monotonic_ms
from agent_client.streams.session import SessionStream
from agent_client.tls import Dialer
from agent_client.wire import (
    MAILBOX_FEATURES,
    VERSIONS,
    delivered_from_proto,
    envelope_to_proto,
    mailbox_frame_to_proto,
    receipt_from_proto,
)

log = logging.getLogger("agent_client")
# A broker that comes back is found again within a second: its mailboxes are what everybody waits for.
RECONNECT_MS_MAX = 1_000


class MailboxStream:
    """Keeps the mailbox open; its cores hold what must survive a broken stream."""

    def __init__(
        self, dialer: Dialer, discovery: Discovery, profile: Profile, *, session: SessionStream, sink: Sink
    ) -> None:
        self._dialer, self._discovery, self._profile = dialer, discovery, profile
        self._session, self._sink = session, sink
        self._inbox, self._outbox = InboxCore(), OutboxCore()
        # Envelopes that the broker has not answered, with whom to tell.
        self._sends: dict[str, tuple[envelope_pb2.Envelope, Pending[Receipt]]] = {}
        # Deliveries that came again while the agent's code is asked about the ones before.
        self._later: dict[Key, Delivered] = {}
        self._reconnect = Reconnect(BackoffPolicy(max_ms=RECONNECT_MS_MAX))
        self._left = False
        self._incarnation = 0
        self._wake = Event()
        # Decisions since the last look at a full window.
        self._settled_count = 0
        self.open = Event()
        # Set when no envelope waits for the broker and every decision about a delivery is durable.
        self.idle = Event()
        self.idle.set()

    def __repr__(self) -> str:
        return f"MailboxStream({self._inbox!r}, {self._outbox!r})"

    async def run(self) -> None:
        """Keep the stream until cancelled; raises MusterError when there is no use in going on."""
        await keep_open("mailbox at the broker", self._live, self._reconnect)

    def restart(self) -> None:
        """A new incarnation began: the stream must be opened under it."""
        self._wake.set()

    # From the agent's code; on the link loop.

    def send(self, envelope: Envelope, accepted: Pending[Receipt]) -> None:
        """Queue an envelope."""
        if self._left:
            accepted.fail(AgentLeftError())
            return
        if self._outbox.full:
            accepted.fail(
                LimitError(
                    f"{len(self._outbox)} messages wait for the broker already: await each send, "
                    "or wait until it is reachable",
                    reason="OUTBOX_FULL",
                )
            )
            return
        try:
            written = envelope_to_proto(envelope)
        except (TypeError, ValueError, OverflowError) as error:
            # Without an answer its sender would wait for ever.
            accepted.fail(InvalidRequestError(f"the message can not be written: {error}"))
            return
        self._sends[envelope.message_id] = written, accepted
        self._outbox.add(envelope.message_id, len(envelope.payload.data))
        self._changed()

    def want(self) -> None:
        """Somebody takes deliveries from now on."""
        self._inbox.want()
        self._wake.set()

    def taken(self, key: Key, *, kept: bool) -> None:
        """A delivery left the line."""
        if kept:
            self._inbox.taken(key)
        else:
            self._inbox.given(key)
        self._wake.set()

    def recall_answered(self, key: Key, *, dropped: bool) -> None:
        """The code said whether a recalled delivery was still in line."""
        again = self._later.pop(key, None)
        if self._inbox.recall_answered(key, dropped=dropped) and again is not None:
            self._sink.delivered([again])

    def settle(self, delivered: Delivered, verdict: Verdict, delay: float | None, reason: str) -> None:
        """The code decided about a delivery."""
        self._settled_count += 1
        delay_ms = None if delay is None else max(0, int(delay * 1000))
        key, domain, _ = delivered.place
        told = self._inbox.settled(key, verdict, domain=domain, delay_ms=delay_ms, reason=reason)
        if verdict is Verdict.NACK and not told:
            self._sink.nack_confirmed(domain)
        self._changed()

    def extend(self, key: Key, seconds: float) -> None:
        """The code needs more time for a delivery."""
        self._inbox.extended(key, int(seconds * 1000))
        self._wake.set()

    def leave(self) -> None:
        """The agent leaves: what the broker has not answered may or may not be stored."""
        self._left = True
        for _, accepted in self._sends.values():
            accepted.fail(AgentLeftError())

    # The stream's life.

    async def _live(self, _hint: str) -> None:
        await self._session.open.wait()
        address = await self._discovery.address("broker")
        channel = await self._dialer.open("broker", address)
        try:
            duplex: Duplex[broker.MailboxRequest, broker.MailboxResponse]
            duplex = Duplex.begin(BrokerServiceStub(channel).Mailbox, self._wake)
            self._renew_incarnation()
            answer = await duplex.greet(self._hello())
            self._welcomed(answer, address)
            await duplex.converse(self)
        finally:
            self.open.clear()
            self._inbox.closed()
            self._outbox.closed()
            await channel.close(None)

    def _renew_incarnation(self) -> None:
        if self._incarnation != self._session.incarnation:
            self._incarnation = self._session.incarnation
            for settlement in self._inbox.restarted():
                self._confirm_nack(settlement)

    def _hello(self) -> broker.MailboxRequest:
        return broker.MailboxRequest(
            hello=broker.MailboxHello(
                versions=VERSIONS,
                features=MAILBOX_FEATURES,
                instance_id=self._profile.instance,
                incarnation=self._incarnation,
                resume_ack_token=self._inbox.resume_ack_token,
            )
        )

    def _welcomed(self, answer: broker.MailboxResponse, address: str) -> None:
        now = monotonic_ms()
        self._reconnect.welcomed(now)
        self._inbox.opened(answer.welcome.ack_deadline.ToMilliseconds(), now)
        self.open.set()
        log.info("mailbox open at %s, %d waiting", address, answer.welcome.waiting_count)
        # The first frame may carry more than the welcome.
        self.receive(answer)

    # The conversation.

    def take(self, now: int) -> broker.MailboxRequest | None:
        """Return envelopes, decisions and credits."""
        if self._incarnation != self._session.incarnation:
            raise UnavailableError("a new incarnation began", definite=True)
        if (due_at := self._inbox.extend_due_at()) is not None and now >= due_at:
            self._inbox.extend_kept(now)
            self._warn_when_stuck()
        self._inbox.pace(now)
        sends = [self._sends[message_id][0] for message_id in self._outbox.take()]
        return mailbox_frame_to_proto(sends, self._inbox.take())

    def receive(self, frame: broker.MailboxResponse) -> None:
        """Take deliveries, outcomes of sends, and what the broker says about decisions."""
        if frame.send_credits:
            self._outbox.credited(frame.send_credits)
        for outcome in frame.accepted:
            self._answered(outcome)
        # A recall first, then the confirmation of the nack that led to it: until then the domain pauses.
        for token in frame.recalled:
            if (key := self._inbox.recalled(token)) is not None:
                self._sink.recalled(key)
        for token in frame.settled:
            self._confirm_nack(self._inbox.confirmed(token))
        for refusal in frame.refusals:
            log.info("a decision about a delivery came too late: %s", from_status(refusal.error))
            self._confirm_nack(self._inbox.confirmed(refusal.ack_token))
        for tombstone in frame.tombstones:
            log.info(
                "message %d of %s will not come: %s",
                tombstone.sequence_number,
                tombstone.sender_id,
                broker.TombstoneReason.Name(tombstone.reason).removeprefix("TOMBSTONE_REASON_").lower(),
            )
        self._deliver(frame)
        self._changed()

    def due_at(self) -> int | None:
        """Return when what waits here must be extended."""
        return self._inbox.extend_due_at()

    def silent_at(self) -> None:
        """Say that the broker may be silent: an idle mailbox is, and keepalive finds a dead link."""
        return

    def _deliver(self, frame: broker.MailboxResponse) -> None:
        fresh: list[Delivered] = []
        take, now = self._inbox.delivered, Handing.NOW
        for delivery in frame.deliveries:
            delivered = delivered_from_proto(delivery)
            key, _, emergency = delivered.place
            handing = take(key, delivery.ack_token, emergency=emergency)
            if handing is now:
                fresh.append(delivered)
            elif handing is Handing.LATER:
                self._later[key] = delivered
        if fresh:
            self._sink.delivered(fresh)

    def _warn_when_stuck(self) -> None:
        if self._inbox.full and not self._settled_count:
            log.warning(
                "%d messages wait in this process and none was decided about lately, so that no more come: "
                "take them with @agent.on_message or agent.messages(), and ack them",
                self._inbox.unsettled_count,
            )
        self._settled_count = 0

    def _answered(self, outcome: broker.SendOutcome) -> None:
        error = from_status(outcome.error) if outcome.HasField("error") else None
        fault = None if error is None else to_fault(error)
        answer = self._outbox.answered(SendOutcome(outcome.message_id, outcome.sequence_number, fault))
        if answer is Answer.INDEFINITE and error is not None:
            # The next stream sends it again, before everything that came after it.
            raise error
        if answer is Answer.SETTLED:
            envelope, accepted = self._sends.pop(outcome.message_id)
            if error is None:
                accepted.resolve(receipt_from_proto(outcome, envelope.receiver_id))
            else:
                accepted.fail(error)

    def _confirm_nack(self, settlement: Settlement | None) -> None:
        if settlement is not None and settlement.verdict is Verdict.NACK:
            self._sink.nack_confirmed(settlement.domain)

    def _changed(self) -> None:
        if self._sends or self._inbox.unconfirmed_count:
            self.idle.clear()
        else:
            self.idle.set()
        self._wake.set()
