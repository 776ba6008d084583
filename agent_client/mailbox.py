"""Messages between agents: sending, and giving what arrives to whom it is for."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import AsyncGenerator, Sequence
from threading import Lock
from typing import Any, TypeVar

from agent_client.core.addresses import TOPIC, has_copies, is_routed, matches, split_instance, topic_of
from agent_client.core.delivery_queue import DeliveryQueue
from agent_client.core.fields import (
    MAY_BE_NONE,
    NO_TEXT,
    TTL_S_MAX,
    TTL_S_MIN,
    fault,
    is_seconds,
    is_text,
)
from agent_client.core.inbox import EMERGENCY_WINDOW, WINDOW, Domain, Key, Verdict
from agent_client.core.requests import Answered, RequestBook
from agent_client.core.vocabulary import MessageType, Priority
from agent_client.delivery import Delivery, Reply, SentRequest
from agent_client.errors import MusterError, PermanentFailure, bad_field
from agent_client.handlers import Handler, Threads, end_tasks
from agent_client.link import Delivered, Envelope, Link, Receipt
from agent_client.payload import decode, encode
from agent_client.pending import Pending

log = logging.getLogger("agent_client")

Word = TypeVar("Word", MessageType, Priority)


class Mailbox:
    """The agent's messages, in both directions."""

    def __init__(
        self,
        link: Link,
        handlers: dict[MessageType | None, Handler],
        topic_handlers: dict[str, Handler] | None = None,
        *,
        instance: str = "",
    ) -> None:
        self.link = link
        # Who is to get the replies to its requests.
        self._instance = instance
        self._handlers = handlers
        # By pattern, in the order of their declaration.
        self._topic_handlers = topic_handlers or {}
        self._subscribing: list[Pending[None]] = []
        # One thread for each order domain that a window of the usual size may hold.
        self._threads = Threads(WINDOW + EMERGENCY_WINDOW, "muster-message")
        # Ids that count up without a gap cost the broker least; those of what it routes it keeps apart.
        self._prefix, self._numbers = secrets.token_hex(8), itertools.count(1)
        self._routed_numbers = itertools.count(1)
        # Guards everything below: the link, the loop and the handlers' threads come here.
        self._lock = Lock()
        self._waiting: dict[Key, Delivered] = {}
        self._handled = DeliveryQueue(serial=True)
        self._offered = DeliveryQueue(serial=False)
        self._requests = RequestBook()
        self._replies: dict[str, Reply] = {}
        # Replies that came too late, until they are handed out.
        self._late: set[Key] = set()
        # Owned by the loop.
        self._readers = 0
        self._arrived = asyncio.Event()
        self._closed = False
        self._running: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Begin to take deliveries when there are handlers for them."""
        if self._handlers or self._topic_handlers:
            self.link.want_messages()
        self._subscribing = [self.subscribe(pattern) for pattern in self._topic_handlers]

    async def wait_subscribed(self) -> None:
        """Wait until what the handlers subscribe to is subscribed to. Raises MusterError."""
        for pending in self._subscribing:
            await pending

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
        accepted: Pending[Receipt] | None = None,
        **fields: Any,
    ) -> Pending[Receipt]:
        """Send an envelope with these further fields of `Envelope`; see `Agent.send`."""
        if not to or not isinstance(to, str):
            raise bad_field("receiver_id", "name the agent that is to get it")
        for name, value in fields.items():
            if value is NO_TEXT or (value is None and name in MAY_BE_NONE):
                continue
            if (wrong := fault(name, value)) is not None:
                raise bad_field(name, wrong)
        routed = is_routed(to)
        envelope = Envelope(
            message_id=f"{self._prefix}-{next(self._numbers)}"
            if not routed
            else f"{self._prefix}r-{next(self._routed_numbers)}",
            receiver=to,
            message_type=_parse(MessageType, type, "message_type"),
            payload=encode(payload),
            priority=_parse(Priority, priority, "priority"),
            **fields,
        )
        accepted = Pending() if accepted is None else accepted
        self.link.send(envelope, accepted)
        return accepted

    def publish(self, topic: str, payload: Any, **how: Any) -> Pending[Receipt]:
        """Send an envelope to a topic's subscribers; see `Agent.publish`."""
        if not topic or not isinstance(topic, str):
            raise bad_field("topic", "name the topic, for example roads.closed")
        return self.send(f"{TOPIC}{topic}", payload, **how)

    def request(self, to: str, payload: Any, *, timeout: float, **how: Any) -> Reply:
        """Send an envelope and return its reply; see `Agent.request`."""
        if not isinstance(to, str):
            raise bad_field("receiver_id", "name the agent that is asked")
        if not is_seconds(timeout, 0, TTL_S_MAX) or not timeout:
            raise bad_field("timeout", f"must be more than 0 and at most {TTL_S_MAX:,.0f} seconds")
        if has_copies(to):
            raise bad_field("receiver_id", "a request goes to one: an agent, or skill/<skill>")
        correlation_id = f"{self._prefix}-q{next(self._numbers)}"
        reply = Reply(self, correlation_id, timeout)
        with self._lock:
            self._requests.asked(correlation_id, "" if is_routed(to) else split_instance(to)[0])
            self._replies[correlation_id] = reply
        self.link.want_messages()
        try:
            # Nobody needs it when the requester has given up.
            ttl = max(timeout, TTL_S_MIN)
            self.send(
                to,
                payload,
                correlation_id=correlation_id,
                ttl=ttl,
                reply_instance=self._instance,
                accepted=SentRequest(reply),
                **how,
            )
        except MusterError:
            self.forget_request(correlation_id, late=False)
            raise
        return reply

    def request_accepted(self, correlation_id: str, receiver: str) -> None:
        """The broker said for whom it accepted a request; called from the link."""
        with self._lock:
            self._requests.chosen(correlation_id, split_instance(receiver)[0])

    def forget_request(self, correlation_id: str, *, late: bool) -> None:
        """Nobody waits for this reply any more; should it come after all, it is `late`."""
        with self._lock:
            self._replies.pop(correlation_id, None)
            if late:
                self._requests.gave_up(correlation_id)
            else:
                self._requests.ended(correlation_id)

    def subscribe(self, pattern: str) -> Pending[None]:
        """Subscribe to topics; see `Agent.subscribe`."""
        return self._change(pattern, wanted=True)

    def unsubscribe(self, pattern: str) -> Pending[None]:
        """End a subscription; see `Agent.unsubscribe`."""
        return self._change(pattern, wanted=False)

    def subscriptions(self) -> Pending[list[str]]:
        """Return the patterns that this agent is subscribed to."""
        found: Pending[list[str]] = Pending()
        self.link.subscriptions(found)
        return found

    def _change(self, pattern: str, *, wanted: bool) -> Pending[None]:
        if not is_text(pattern):
            raise bad_field("pattern", "must be a text: a topic, or a pattern such as roads.*")
        done: Pending[None] = Pending()
        self.link.subscribe(pattern, done, wanted=wanted)
        return done

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
                self.link.taken(delivery._delivered.place.key, kept=False)
                yield delivery
        finally:
            self._readers -= 1

    def deliver(self, deliveries: Sequence[Delivered]) -> None:
        """Deliveries arrived; called on the loop."""
        replies: list[tuple[Reply, Delivered]] = []
        late: list[Delivered] = []
        unwanted: list[Delivered] = []
        with self._lock:
            for delivered in deliveries:
                envelope = delivered.envelope
                answered = self._requests.arrived(envelope.correlation_id, envelope.sender)
                reply = self._replies.get(envelope.correlation_id) if answered is Answered.IN_TIME else None
                if reply is not None:
                    replies.append((reply, delivered))
                    continue
                wanted = self._handler_of(envelope) is not None
                if not wanted and not self._readers:
                    if answered is Answered.LATE:
                        late.append(delivered)
                        continue
                    if self._handlers or self._topic_handlers:
                        unwanted.append(delivered)
                        continue
                place = delivered.place
                if answered is Answered.LATE:
                    self._late.add(place.key)
                self._waiting[place.key] = delivered
                (self._handled if wanted else self._offered).put(place)
        for reply, delivered in replies:
            reply.resolve(decode(delivered.envelope.payload))
            self._keep(delivered)
        for delivered in late:
            log.info("the reply of %s came after its request had timed out", delivered.envelope.sender)
            self._keep(delivered)
        for delivered in unwanted:
            self._reject(delivered)
        self._turn()

    def recall(self, key: Key) -> None:
        """The broker took a delivery back; called on the loop."""
        with self._lock:
            delivered = self._waiting.pop(key, None)
            self._late.discard(key)
            if delivered is not None:
                domain = delivered.place.domain
                if not self._handled.recalled(key, domain):
                    self._offered.recalled(key, domain)
        self.link.recall_answered(key, dropped=delivered is not None)

    def confirm_nack(self, domain: Domain) -> None:
        """The broker confirmed a nack; called on the loop."""
        with self._lock:
            self._handled.nack_confirmed(domain)
            self._offered.nack_confirmed(domain)
        self._turn()

    def settle(self, delivery: Delivery, verdict: Verdict, *, delay: float | None, reason: str) -> None:
        """The code decided about a delivery; only its first word counts. Called from any thread."""
        delivered = delivery._delivered
        domain = delivered.place.domain
        with self._lock:
            if delivery._settled:
                return
            delivery._settled = True
            delivery._line.settled(domain)
            if verdict is Verdict.NACK:
                self._handled.nacked(domain)
                self._offered.nacked(domain)
        self.link.settle(delivered, verdict, delay=delay, reason=reason)

    def _reject(self, delivered: Delivered) -> None:
        """Refuse what no handler takes: kept, it would fill the window and keep out what there are for."""
        envelope = delivered.envelope
        log.warning("rejected %s from %s: no handler for it", envelope.message_type, envelope.sender)
        reason = f"the receiver has no handler for {envelope.message_type}"
        self.link.settle(delivered, Verdict.REJECT, delay=None, reason=reason)

    def _keep(self, delivered: Delivered) -> None:
        """Ack what needs nobody to look at it."""
        self.link.taken(delivered.place.key, kept=True)
        self.link.settle(delivered, Verdict.ACK, delay=None, reason="")

    def _handler_of(self, envelope: Envelope) -> Handler | None:
        """Return the handler of an envelope: of its topic, else of its type, else of all."""
        if topic := topic_of(envelope.address):
            for pattern, handler in self._topic_handlers.items():
                if matches(pattern, topic):
                    return handler
        return self._handlers.get(envelope.message_type) or self._handlers.get(None)

    def _take(self, line: DeliveryQueue) -> Delivery | None:
        with self._lock:
            waiting = line.take()
            if waiting is None:
                return None
            late = bool(self._late) and waiting.key in self._late
            if late:
                self._late.discard(waiting.key)
            return Delivery(self._waiting.pop(waiting.key), self, line, late=late)

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
            self.link.taken(delivery._delivered.place.key, kept=True)
        handler = self._handler_of(delivery.envelope)
        assert handler is not None  # noqa: S101  # only what has one was put in this line
        try:
            answer = await handler.call(delivery, self._threads)
            if answer is not None and not delivery.topic:
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


# The usual spellings of a word, which an Enum takes longer to find than all else that is done for a message.
_SPELLINGS: dict[Any, dict[str, Any]] = {
    words: {spelling: word for word in words for spelling in (word.value, word.value.lower())}
    for words in (MessageType, Priority)
}


def _parse(words: type[Word], value: str, field: str) -> Word:
    try:
        known: Word | None = _SPELLINGS[words].get(value)
        if known is not None:
            return known
        return words(value)
    except (ValueError, TypeError):
        raise bad_field(field, f"{value!r} is none of {', '.join(words.__members__)}") from None
