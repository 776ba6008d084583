"""Messages as the agent's code sees them: what arrived, and the reply that it waits for."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from agent_client.core.addresses import address_of, topic_of
from agent_client.core.delivery_queue import DeliveryQueue
from agent_client.core.fields import (
    DELAY_S_MAX,
    EXTENSION_S_MAX,
    EXTENSION_S_MIN,
    TTL_S_MIN,
    is_seconds,
    is_text,
)
from agent_client.core.inbox import Verdict
from agent_client.core.vocabulary import REPLY_TYPES, MessageType, Priority
from agent_client.errors import CallTimeoutError, bad_field
from agent_client.link import Delivered, Envelope, Receipt
from agent_client.payload import decode
from agent_client.pending import Pending

if TYPE_CHECKING:
    from agent_client.mailbox import Mailbox

# Longest reason of a rejection in bytes (broker_service.proto).
REASON_BYTES_MAX = 1_024


class Delivery:
    """One handing-over of a message to this agent.

    Decide about it once, from any thread: `ack` when it is done, `nack` to get it again, `reject` to never
    get it again. Undecided, it comes again after its ack deadline.
    """

    def __init__(
        self, delivered: Delivered, mailbox: Mailbox, line: DeliveryQueue, *, late: bool = False
    ) -> None:
        self._delivered, self._mailbox, self._line = delivered, mailbox, line
        self._late = late
        # Written by the mailbox, under its lock.
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
    def address(self) -> str:
        """What the sender wrote, when that was a skill, a collaboration or a topic; else empty."""
        return self._delivered.envelope.address

    @property
    def topic(self) -> str:
        """The topic that it was published to; empty for none."""
        return topic_of(self._delivered.envelope.address)

    @property
    def is_late_reply(self) -> bool:
        """Whether it answers a request of this agent that has timed out."""
        return self._late

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
        """Give it again, not before `delay` seconds, at most 3,600; None leaves the delay to the broker."""
        if delay is not None and not is_seconds(delay, 0, DELAY_S_MAX):
            raise bad_field("delay", f"must be 0 to {DELAY_S_MAX:,.0f} seconds, or None")
        self._settle(Verdict.NACK, delay=delay)

    def reject(self, reason: str) -> None:
        """Never give it again; it becomes a dead letter with this reason."""
        if not is_text(reason):
            raise bad_field("reason", "must be a text that says why")
        raw = reason.encode()[:REASON_BYTES_MAX]
        self._settle(Verdict.REJECT, reason=raw.decode(errors="ignore"))

    def extend(self, seconds: float) -> None:
        """Still working: the ack deadline becomes now plus `seconds`, 1 to 3,600."""
        if not is_seconds(seconds, EXTENSION_S_MIN, EXTENSION_S_MAX):
            raise bad_field("seconds", f"must be {EXTENSION_S_MIN:g} to {EXTENSION_S_MAX:,.0f}")
        self._mailbox.link.extend(self._delivered.place.key, seconds)

    @property
    def envelope(self) -> Envelope:
        """All its fields."""
        return self._delivered.envelope

    def reply(self, payload: Any, *, type: MessageType | str | None = None) -> Pending[Receipt]:  # noqa: A002  # as in send
        """Answer the sender under the same correlation id, in the same lane.

        The answer to a request goes to the instance that asked, and lives no longer than the request would
        have; that to any other message goes to any instance of its sender.
        """
        envelope = self._delivered.envelope
        return self._mailbox.send(
            address_of(self.sender, envelope.reply_instance),
            payload,
            type=type or REPLY_TYPES.get(self.type, self.type),
            priority=self.priority,
            correlation_id=self.correlation_id or self.message_id,
            causation_id=self.message_id,
            collaboration_id=self.collaboration_id,
            ttl=_time_left(envelope) if envelope.correlation_id else None,
            traceparent=envelope.traceparent,
            tracestate=envelope.tracestate,
        )

    def _settle(self, verdict: Verdict, *, delay: float | None = None, reason: str = "") -> None:
        self._mailbox.settle(self, verdict, delay=delay, reason=reason)


class Reply(Pending[Any]):
    """The payload of the reply to a request; await it, or call `result()` in sync code."""

    def __init__(self, mailbox: Mailbox, correlation_id: str, timeout: float) -> None:
        super().__init__()
        self._mailbox, self._correlation_id, self._timeout = mailbox, correlation_id, timeout

    def accepted(self, receipt: Receipt) -> None:
        """The request is stored; called by the link before anything that comes after."""
        self._mailbox.request_accepted(self._correlation_id, receipt.receiver)

    async def _arrival(self) -> Any:
        late = False
        try:
            async with asyncio.timeout(self._timeout):
                return await super()._arrival()
        except TimeoutError:
            late = True
            raise self._late() from None
        finally:
            self._mailbox.forget_request(self._correlation_id, late=late)

    def result(self, timeout: float | None = None) -> Any:
        """Block this thread for the reply, at most the request's timeout."""
        late = False
        try:
            return super().result(self._timeout if timeout is None else min(timeout, self._timeout))
        except CallTimeoutError:
            late = True
            raise self._late() from None
        finally:
            self._mailbox.forget_request(self._correlation_id, late=late)

    def _late(self) -> CallTimeoutError:
        return CallTimeoutError(f"no reply within {self._timeout:g} s; the request may still be answered")


class SentRequest(Pending[Receipt]):
    """Lets a request fail with its envelope."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self._reply = reply

    def resolve(self, value: Receipt) -> None:
        """Note who is to reply, before a reply can come."""
        self._reply.accepted(value)
        super().resolve(value)

    def fail(self, error: BaseException) -> None:
        """Give the error to whoever waits for the reply."""
        super().fail(error)
        self._reply.fail(error)


def _time_left(envelope: Envelope) -> float | None:
    """Return how many seconds an envelope still had to live; None when it does not say."""
    if envelope.ttl is None or envelope.accepted_time is None:
        return None
    left = envelope.ttl - (datetime.now(UTC) - envelope.accepted_time).total_seconds()
    return min(max(left, TTL_S_MIN), max(envelope.ttl, TTL_S_MIN))
