"""What the code that runs handlers needs of the plane, and the reverse.

Two things stand behind `Link`: the real one (`driver.py`), which speaks gRPC from the link thread, and the
in-memory plane (`testing`). All methods of both protocols may be called from any thread and never block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol

from agent_client.core.addresses import INSTANCE_MARK, address_of, split_instance
from agent_client.core.delivery_queue import Waiting
from agent_client.core.inbox import Domain, Key, Verdict
from agent_client.core.records import AttemptRef, Claim, HeldLock, Outcome, Payload
from agent_client.core.vocabulary import MessageType, Priority
from agent_client.errors import MusterError
from agent_client.payload import EMPTY
from agent_client.pending import Pending

# Asked of every message; an Enum takes longer to find its members than a module does.
_EMERGENCY = Priority.EMERGENCY


@dataclass(frozen=True, slots=True)
class Profile:
    """What an agent tells the registry of itself. `skills` maps names to levels, 0 < level <= 1."""

    name: str
    instance: str
    skills: Mapping[str, float]
    labels: Mapping[str, str]
    slots: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt handed to this agent, with everything that it needs to run."""

    attempt: AttemptRef
    task_name: str = ""
    description: str = ""
    task_type: str = ""
    required_skills: tuple[str, ...] = ()
    priority: Priority = Priority.NORMAL
    payload: Payload = EMPTY
    # Results of the dependencies, by task_id.
    inputs: Mapping[str, Payload] = field(default_factory=dict)
    locks: tuple[HeldLock, ...] = ()
    shared_context: Payload = EMPTY
    collaboration_name: str = ""
    coordinator_agent: str = ""
    members: tuple[str, ...] = ()
    deadline: datetime | None = None
    requester: str = ""
    # From where to go on; None for the beginning.
    savepoint: Payload | None = None


# What exists once per message is a NamedTuple: it is made several times faster than a frozen dataclass.


class Envelope(NamedTuple):
    """A message on its way; the fields are those of `muster.common.v1.Envelope`."""

    message_id: str
    receiver: str
    message_type: MessageType
    payload: Payload
    priority: Priority = Priority.NORMAL
    requires_ack: bool = True
    correlation_id: str = ""
    # Seconds that it may wait for its receiver; None means the broker's default of 300 s.
    ttl: float | None = None
    # Deliveries after the first; None means the broker's default of 3.
    retry_max: int | None = None
    causation_id: str = ""
    traceparent: str = ""
    tracestate: str = ""
    collaboration_id: str = ""
    # Whether it is refused when nobody would get it.
    requires_receiver: bool = False
    # The instance of the sender that a reply is for; empty: any.
    reply_instance: str = ""
    # Set by the broker. `address` is what the sender wrote, when it was none of a single receiver.
    sender: str = ""
    address: str = ""
    accepted_time: datetime | None = None
    sequence_number: int = 0

    @property
    def key(self) -> Key:
        """What tells it from every other envelope."""
        return self.sender, self.message_id

    @property
    def domain(self) -> Domain:
        """The order domain at its receiver; what is for one instance of it only has one of its own."""
        if INSTANCE_MARK not in self.receiver:
            return self.sender, self.priority
        _, instance = split_instance(self.receiver)
        return self.sender, address_of(self.priority, instance)


class Receipt(NamedTuple):
    """The broker's word that a message is stored durably."""

    # Its place among this agent's messages to that receiver in that lane; 0 when each of several has a copy.
    sequence_number: int
    # The receiver, also one that the broker chose; empty when each of several has a copy.
    receiver: str
    # Mailboxes that it is in.
    receiver_count: int = 1


class Delivered(NamedTuple):
    """One handing-over of an envelope to this agent; 1 is the first."""

    envelope: Envelope
    # Its key, its order domain and whether it is an emergency, found out once: everybody asks for them.
    place: Waiting
    delivery_number: int = 1
    ack_deadline: datetime | None = None

    @classmethod
    def of(
        cls, envelope: Envelope, delivery_number: int = 1, ack_deadline: datetime | None = None
    ) -> Delivered:
        """Return a handing-over of `envelope`."""
        place = Waiting(envelope.key, envelope.domain, envelope.priority is _EMERGENCY)
        return cls(envelope, place, delivery_number, ack_deadline)


@dataclass(frozen=True, slots=True)
class LockWish:
    """Locks that the agent's code wants, all or none."""

    handle: int
    claims: tuple[Claim, ...]
    # Milliseconds to wait at most; None without limit, 0 to try once.
    wait_ms: int | None
    attempt: AttemptRef | None
    # Gets the grant, or ResourceHeldError and the like.
    granted: Pending[tuple[HeldLock, ...]]
    # Called once when the locks end before they are released.
    lost: Callable[[MusterError], None]


class Sink(Protocol):
    """The side of the agent's code."""

    def assigned(self, assignment: Assignment) -> None:
        """Run the handler of a new attempt."""
        ...

    def stopped(self, attempt: AttemptRef, *, fenced: bool, reason: str) -> None:
        """Ask a handler to stop; its outcome counts for nothing when `fenced`."""
        ...

    def suspend_asked(self, attempt: AttemptRef, *, reason: str, grace_ms: int) -> None:
        """Ask a handler to save and stop within `grace_ms`; its outcome counts until then."""
        ...

    def delivered(self, deliveries: Sequence[Delivered]) -> None:
        """Envelopes arrived."""
        ...

    def recalled(self, key: Key) -> None:
        """Drop a delivery if it still waits in line, and answer with `Link.recall_answered`."""
        ...

    def nack_confirmed(self, domain: Domain) -> None:
        """The broker took note of a nack in this domain."""
        ...


class Link(Protocol):
    """The side of the plane."""

    def begin(self, sink: Sink) -> None:
        """Start to bring work and messages to `sink`; called once, before anything else."""
        ...

    def started(self, attempt: AttemptRef) -> None:
        """The handler of an attempt runs."""
        ...

    def progressed(self, attempt: AttemptRef, fraction: float, stage: str) -> None:
        """The handler of an attempt reported."""
        ...

    def saved(self, attempt: AttemptRef, savepoint: Payload, durable: Pending[None]) -> None:
        """The handler of an attempt saved from where another could go on; `durable` ends when it is."""
        ...

    def ended(self, attempt: AttemptRef, outcome: Outcome) -> None:
        """The handler of an attempt returned."""
        ...

    def lock(self, wish: LockWish) -> None:
        """Ask for locks."""
        ...

    def unlock(self, handle: int) -> None:
        """Give the locks of a wish back, or withdraw it."""
        ...

    def send(self, envelope: Envelope, accepted: Pending[Receipt]) -> None:
        """Send an envelope; `accepted` gets the broker's receipt when it is stored."""
        ...

    def subscribe(self, pattern: str, done: Pending[None], *, wanted: bool) -> None:
        """Add or end a subscription; `done` ends when that is durable."""
        ...

    def subscriptions(self, found: Pending[list[str]]) -> None:
        """Tell the patterns that this agent is subscribed to."""
        ...

    def want_messages(self) -> None:
        """Somebody takes deliveries from now on."""
        ...

    def taken(self, key: Key, *, kept: bool) -> None:
        """A delivery left the line: for a handler (`kept`, extended meanwhile) or for the code itself."""
        ...

    def recall_answered(self, key: Key, *, dropped: bool) -> None:
        """Answer `Sink.recalled`: whether the delivery was still in line and is dropped now."""
        ...

    def settle(self, delivered: Delivered, verdict: Verdict, *, delay: float | None, reason: str) -> None:
        """The code decided about a delivery; `delay` in seconds, for a nack."""
        ...

    def extend(self, key: Key, seconds: float) -> None:
        """The code needs more time for a delivery."""
        ...
