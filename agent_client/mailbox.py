"""Messages between agents, as the agent's code sees them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import threading
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, TypeVar

from agent_client.core.delivery_queue import DeliveryQueue, Waiting
from agent_client.core.inbox import EMERGENCY_WINDOW, WINDOW, Domain, Key, Verdict
from agent_client.core.vocabulary import REPLY_TYPES, MessageType, Priority
from agent_client.errors import (
    CallTimeoutError,
    InvalidRequestError,
    MusterError,
    PermanentFailure,
    Violation,
)
from agent_client.handlers import Handler, Threads, end_tasks
from agent_client.link import Delivered, Envelope, Link
from agent_client.payload import decode, encode
from agent_client.pending import Pending

log = logging.getLogger("agent_client")

Word = TypeVar("Word", MessageType, Priority)

# Longest reason of a rejection in bytes (broker_service.proto).
REASON_BYTES_MAX = 1_024


class Delivery:
    """One handing-over of a message to this agent.

    Decide about it once, from any thread: `ack` when it is done, `nack` to get it again, `reject` to never
    get it again. Undecided, it comes again after its ack deadline.
    """

    def __init__(self, delivered: Delivered, mailbox: Mailbox, line: DeliveryQueue) -> None:
        self._delivered, self._mailbox, self._line = delivered, mailbox, line
        self._lock = threading.Lock()
        self._settled = False

    def __repr__(self) -> str:
        return f"Delivery({self.type} from {self.sender}, {self.message_id})"

    @property
    def message_id(self) -> str:
        """The message's id, unique per sender."""
        return self._delivered.envelope.message_id

    @property
    def sender(self) -> str:
        """The agent that sent it, as its certificate says."""
        return self._delivered.envelope.sender

    @property
    def type(self) -> MessageType:
        """What it is about."""
        return self._delivered.envelope.message_type

    @cached_property
    def payload(self) -> Any:
        """What it says: JSON as Python values, text as str, all else as bytes."""
        return decode(self._delivered.envelope.payload)

    @property
    def priority(self) -> Priority:
        """Its lane."""
        return self._delivered.envelope.priority

    @property
    def correlation_id(self) -> str:
        """The conversation it belongs to; empty for none."""
        return self._delivered.envelope.correlation_id

    @property
    def collaboration_id(self) -> str:
        """The collaboration it belongs to; empty for none."""
        return self._delivered.envelope.collaboration_id

    @property
    def causation_id(self) -> str:
        """What made the sender send it."""
        return self._delivered.envelope.causation_id

    @property
    def accepted_time(self) -> datetime | None:
        """When the broker stored it, UTC."""
        return self._delivered.envelope.accepted_time

    @property
    def sequence_number(self) -> int:
        """Its place among the sender's messages of this lane to this agent: 1, 2, 3 …."""
        return self._delivered.envelope.sequence_number

    @property
    def delivery_number(self) -> int:
        """1 for the first handing-over."""
        return self._delivered.delivery_number

    @property
    def ack_deadline(self) -> datetime | None:
        """When it comes again unless it is decided or extended, UTC; None when it needs no ack."""
        return self._delivered.ack_deadline

    @property
    def settled(self) -> bool:
        """Whether ack, nack or reject was called."""
        return self._settled

    def ack(self) -> None:
        """It is done: never give it again."""
        self._settle(Verdict.ACK)

    def nack(self, delay: float | None = None) -> None:
        """Give it again, not before `delay` seconds; None leaves the delay to the broker."""
        self._settle(Verdict.NACK, delay=delay)

    def reject(self, reason: str) -> None:
        """Never give it again; it becomes a dead letter with this reason."""
        raw = reason.encode()[:REASON_BYTES_MAX]
        self._settle(Verdict.REJECT, reason=raw.decode(errors="ignore"))

    def extend(self, seconds: float) -> None:
        """Still working: the ack deadline becomes now plus `seconds`, 1 to 3,600."""
        self._mailbox.link.extend(self._delivered.envelope.key, seconds)

    def reply(self, payload: Any, *, type: MessageType | str | None = None) -> Pending[int]:  # noqa: A002  # as in send
        """Answer the sender under the same correlation id, in the same lane."""
        return self._mailbox.send(
            self.sender,
            payload,
            type=type or REPLY_TYPES.get(self.type, self.type),
            priority=self.priority,
            correlation_id=self.correlation_id or self.message_id,
            causation_id=self.message_id,
            collaboration_id=self.collaboration_id,
        )

    def _settle(self, verdict: Verdict, *, delay: float | None = None, reason: str = "") -> None:
        with self._lock:
            if self._settled:
                return
            self._settled = True
        self._mailbox.settle(self._delivered, self._line, verdict, delay=delay, reason=reason)


class Reply(Pending[Any]):
    """The payload of the reply to a request; await it, or call `result()` in sync code."""

    def __init__(self, mailbox: Mailbox, correlation_id: str, timeout: float) -> None:
        super().__init__()
        self._mailbox, self._correlation_id, self._timeout = mailbox, correlation_id, timeout

    async def _arrival(self) -> Any:
        try:
            async with asyncio.timeout(self._timeout):
                return await super()._arrival()
        except TimeoutError:
            raise self._late() from None
        finally:
            self._mailbox.forget_request(self._correlation_id)

    def result(self, timeout: float | None = None) -> Any:
        """Block this thread for the reply, at most the request's timeout."""
        try:
            return super().result(self._timeout if timeout is None else min(timeout, self._timeout))
        except CallTimeoutError:
            raise self._late() from None
        finally:
            self._mailbox.forget_request(self._correlation_id)

    def _late(self) -> CallTimeoutError:
        return CallTimeoutError(f"no reply within {self._timeout:g} s; the request may still be answered")


class _Sent(Pending[int]):
    """Lets a request fail with its envelope."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self._reply = reply

    def fail(self, error: BaseException) -> None:
        super().fail(error)
        self._reply.fail(error)


class Mailbox:
    """The agent's messages, in both directions."""

    def __init__(self, link: Link, handlers: dict[MessageType | None, Handler]) -> None:
        self.link = link
        self._handlers = handlers
        # One thread for each order domain that may be handled at once.
        self._threads = Threads(WINDOW + EMERGENCY_WINDOW, "muster-message")
        self._prefix, self._numbers = secrets.token_hex(8), itertools.count(1)
        # Guards everything below: the link, the loop and the handlers' threads come here.
        self._lock = threading.Lock()
        self._waiting: dict[Key, Delivered] = {}
        self._handled = DeliveryQueue(serial=True)
        self._offered = DeliveryQueue(serial=False)
        self._replies: dict[str, tuple[str, Reply]] = {}
        # Owned by the loop.
        self._readers = 0
        self._arrived = asyncio.Event()
        self._closed = False
        self._running: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Begin to take deliveries when there are handlers for them."""
        if self._handlers:
            self.link.want_messages()

    async def close(self) -> None:
        """End every `messages()` loop and every handler; what they held comes again."""
        self._closed = True
        self._arrived.set()
        await end_tasks(self._running)
        self._threads.close()

    # Sending.

    def send(
        self,
        to: str,
        payload: Any,
        *,
        type: MessageType | str,  # noqa: A002  # the story's own word for it
        priority: Priority | str = Priority.NORMAL,
        correlation_id: str = "",
        ttl: float | None = None,
        collaboration_id: str = "",
        causation_id: str = "",
        accepted: Pending[int] | None = None,
    ) -> Pending[int]:
        """Send an envelope; see `Agent.send`."""
        if not to:
            raise _bad_field("receiver_id", "name the agent that is to get it")
        envelope = Envelope(
            message_id=f"{self._prefix}-{next(self._numbers)}",
            receiver=to,
            message_type=_parse(MessageType, type, "message_type"),
            payload=encode(payload),
            priority=_parse(Priority, priority, "priority"),
            correlation_id=correlation_id,
            ttl=ttl,
            collaboration_id=collaboration_id,
            causation_id=causation_id,
        )
        accepted = Pending() if accepted is None else accepted
        self.link.send(envelope, accepted)
        return accepted

    def request(self, to: str, payload: Any, *, timeout: float, **how: Any) -> Reply:
        """Send an envelope and return its reply; see `Agent.request`."""
        correlation_id = f"{self._prefix}-r{next(self._numbers)}"
        reply = Reply(self, correlation_id, timeout)
        with self._lock:
            self._replies[correlation_id] = (to, reply)
        self.link.want_messages()
        try:
            self.send(to, payload, correlation_id=correlation_id, accepted=_Sent(reply), **how)
        except MusterError:
            self.forget_request(correlation_id)
            raise
        return reply

    def forget_request(self, correlation_id: str) -> None:
        """Nobody waits for this reply any more; should it come, it is an ordinary message."""
        with self._lock:
            self._replies.pop(correlation_id, None)

    # Receiving.

    async def messages(self) -> AsyncGenerator[Delivery, None]:
        """Yield deliveries that no handler takes, until the agent stops."""
        self._readers += 1
        self.link.want_messages()
        try:
            while not self._closed:
                delivery = self._take(self._offered)
                if delivery is None:
                    self._arrived.clear()
                    await self._arrived.wait()
                    continue
                self.link.taken(delivery._delivered.envelope.key, kept=False)
                yield delivery
        finally:
            self._readers -= 1

    def deliver(self, deliveries: Sequence[Delivered]) -> None:
        """Deliveries arrived; called on the loop."""
        for delivered in deliveries:
            self._route(delivered)
        self._turn()

    def recall(self, key: Key) -> None:
        """The broker took a delivery back; called on the loop."""
        with self._lock:
            delivered = self._waiting.pop(key, None)
            if delivered is not None:
                domain = delivered.envelope.domain
                if not self._handled.recalled(key, domain):
                    self._offered.recalled(key, domain)
        self.link.recall_answered(key, dropped=delivered is not None)

    def confirm_nack(self, domain: Domain) -> None:
        """The broker confirmed a nack; called on the loop."""
        with self._lock:
            self._handled.nack_confirmed(domain)
            self._offered.nack_confirmed(domain)
        self._turn()

    def settle(
        self, delivered: Delivered, line: DeliveryQueue, verdict: Verdict, *, delay: float | None, reason: str
    ) -> None:
        """The code decided about a delivery that it took from `line`; called from any thread."""
        with self._lock:
            line.settled(delivered.envelope.domain)
            if verdict is Verdict.NACK:
                self._handled.nacked(delivered.envelope.domain)
                self._offered.nacked(delivered.envelope.domain)
        self.link.settle(delivered, verdict, delay=delay, reason=reason)

    def _route(self, delivered: Delivered) -> None:
        envelope = delivered.envelope
        with self._lock:
            receiver, reply = self._replies.get(envelope.correlation_id, ("", None))
        if reply is not None and receiver == envelope.sender:
            reply.resolve(decode(envelope.payload))
            self.link.taken(envelope.key, kept=True)
            self.link.settle(delivered, Verdict.ACK, delay=None, reason="")
            return
        wanted = envelope.message_type in self._handlers or None in self._handlers
        if self._handlers and not wanted and not self._readers:
            # Kept here it would fill the window and keep out what there are handlers for.
            log.warning("rejected %s from %s: no handler for it", envelope.message_type, envelope.sender)
            self.link.settle(
                delivered,
                Verdict.REJECT,
                delay=None,
                reason=f"the receiver has no handler for {envelope.message_type}",
            )
            return
        with self._lock:
            self._waiting[envelope.key] = delivered
            (self._handled if wanted else self._offered).put(_waiting(delivered))

    def _take(self, line: DeliveryQueue) -> Delivery | None:
        with self._lock:
            waiting = line.take()
            return None if waiting is None else Delivery(self._waiting.pop(waiting.key), self, line)

    def _turn(self) -> None:
        """Give everything that may be handled now to a handler, and wake the readers."""
        while not self._closed and (delivery := self._take(self._handled)) is not None:
            running = asyncio.create_task(self._handle(delivery))
            self._running.add(running)
            running.add_done_callback(self._running.discard)
        self._arrived.set()

    async def _handle(self, delivery: Delivery) -> None:
        """Handle one delivery, and then those that may be handled because of it."""
        following: Delivery | None = delivery
        while following is not None:
            await self._handle_one(following)
            following = None if self._closed else self._take(self._handled)

    async def _handle_one(self, delivery: Delivery) -> None:
        if not delivery._delivered.envelope.requires_ack:
            self.link.taken(delivery._delivered.envelope.key, kept=True)
        handler = self._handlers.get(delivery.type) or self._handlers[None]
        try:
            answer = await handler.call(delivery, self._threads)
            if answer is not None:
                # Before the ack: a reply that was not stored must be made again.
                await delivery.reply(answer)
            delivery.ack()
        except PermanentFailure as failure:
            delivery.reject(str(failure))
        except asyncio.CancelledError:
            delivery.nack(0)
            raise
        except Exception:  # what a handler raises is its own affair; the message comes again
            log.exception("the handler of %r failed; it comes again", delivery)
            delivery.nack()


def _waiting(delivered: Delivered) -> Waiting:
    envelope = delivered.envelope
    return Waiting(envelope.key, envelope.domain, envelope.priority is Priority.EMERGENCY)


def _parse(words: type[Word], value: str, field: str) -> Word:
    try:
        return words(value)
    except ValueError:
        raise _bad_field(field, f"{value!r} is none of {', '.join(words.__members__)}") from None


def _bad_field(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field}: {description}", violations=[Violation(field, description)])
