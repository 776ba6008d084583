"""The nouns of the broker. README.md explains the words.

What exists once per envelope is a NamedTuple: it is made five times faster than a frozen dataclass, and at
50,000 envelopes a second that is a tenth of a core.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NamedTuple

from services.common.core.errors import ServiceError
from services.common.core.instants import Instant


class Lane(IntEnum):
    """A priority class of one mailbox; the numbers are those of `muster.common.v1.Priority`."""

    EMERGENCY = 1
    HIGH = 2
    NORMAL = 3
    LOW = 4


class DeadReason(IntEnum):
    """Why an envelope was given up; the numbers are those of `muster.broker.v1.TombstoneReason`."""

    EXPIRED = 1
    DELIVERIES_EXHAUSTED = 2
    REJECTED = 3


class DomainKey(NamedTuple):
    """An order domain: inside it envelopes are delivered in the order of their sequence numbers."""

    sender: str
    receiver: str
    lane: Lane


class Draft(NamedTuple):
    """An envelope as its sender gave it: checked, not yet accepted."""

    message_id: str
    receiver: str
    lane: Lane
    requires_ack: bool
    ttl_ms: int
    # Failed deliveries after which one more makes it a dead letter.
    retry_max: int
    # 8 bytes that stand for the content, to tell a repeat from a reuse of the message_id.
    fingerprint: bytes
    # The serialized envelope without the fields that the broker sets; opaque here.
    body: bytes


class RouteKind(StrEnum):
    """How receivers are found; the values begin an address."""

    SKILL = "skill"
    COLLABORATION = "collaboration"
    TOPIC = "topic"


class Route(NamedTuple):
    """An address that names no single receiver."""

    kind: RouteKind
    # The skill, the collaboration's id or the topic.
    name: str


class RoutedDraft(NamedTuple):
    """A draft whose receivers the broker finds; its own `receiver` is empty."""

    message_id: str
    route: Route
    # Refused rather than accepted for nobody.
    requires_receiver: bool
    draft: Draft


class Reach(IntEnum):
    """Whether work reaches an agent, best first."""

    READY = 0
    # Joining, or its heartbeats are late.
    UNSURE = 1
    AWAY = 2


class AgentProfile(NamedTuple):
    """What the registry says of an agent."""

    skills: frozenset[str]
    reach: Reach
    # Of all its instances together.
    slots: int
    slots_used: int


class Envelope(NamedTuple):
    """An envelope with the place that the broker gave it."""

    key: DomainKey
    sequence: int
    accepted_at: Instant
    draft: Draft


class Delivery(NamedTuple):
    """One handing-over of an envelope."""

    # 0 when no ack is wanted.
    token: int
    envelope: Envelope
    # 1 for the first.
    number: int
    # When it is given again unless it is settled; 0 when no ack is wanted.
    deadline: Instant


class Chosen(NamedTuple):
    """For whom a routed envelope was accepted."""

    # The one agent with a skill; "" when every one of several got a copy.
    receiver: str
    receiver_count: int


class SendOutcome(NamedTuple):
    """What became of one envelope that a stream sent: its sequence number, or why it was refused."""

    message_id: str
    sequence: int
    error: ServiceError | None
    # Of a routed envelope that was accepted.
    chosen: Chosen | None = None


class RefusedDraft(NamedTuple):
    """An envelope that was refused before it reached the core: malformed, or for another identity."""

    message_id: str
    error: ServiceError


class Tombstone(NamedTuple):
    """Explains a gap in an order domain; a range when `first_sequence` < `sequence`."""

    first_sequence: int
    sequence: int
    # Empty for a range.
    message_id: str
    reason: DeadReason


class DeadLetter(NamedTuple):
    """An envelope that was given up, kept for people."""

    envelope: Envelope
    reason: DeadReason
    message: str
    dead_at: Instant
    delivery_count: int


class StoredDeadLetter(NamedTuple):
    """A dead letter with its place in the list of its mailbox; numbers grow with time."""

    number: int
    letter: DeadLetter


class LetterOutcome(NamedTuple):
    """What became of a dead letter that was to be replayed or dropped."""

    number: int
    # Its new sequence number when it was replayed.
    sequence: int
    error: ServiceError | None


class DomainRecord(NamedTuple):
    """What must survive of an order domain besides its envelopes."""

    key: DomainKey
    next_sequence: int
    # Everything up to `cursor` is settled, and so are the numbers in `above` (ascending).
    cursor: int
    above: tuple[int, ...] = ()
    # (sequence, failed deliveries) of unsettled envelopes that failed at least once.
    failures: tuple[tuple[int, int], ...] = ()
    tombstones: tuple[Tombstone, ...] = ()


class IncarnationRecord(NamedTuple):
    """The newest incarnation seen of one agent instance."""

    agent: str
    instance: str
    incarnation: int


class RememberedId(NamedTuple):
    """A message_id inside its sender's dedupe window."""

    sender: str
    message_id: str
    fingerprint: bytes
    sequence: int
    keep_until: Instant


class RoutedId(NamedTuple):
    """A message_id whose receivers the broker chose: what a repeat of it is answered."""

    sender: str
    message_id: str
    fingerprint: bytes
    # The one receiver that was chosen and its number there; "" and 0 when every one of several got a copy.
    receiver: str
    sequence: int
    receiver_count: int
    keep_until: Instant


class Subscription(NamedTuple):
    """A mailbox that gets a copy of whatever is published to a matching topic."""

    owner: str
    pattern: str


NEVER_KEPT = Instant(0)


@dataclass(slots=True)
class Batch:
    """Everything that one commit makes durable, all or nothing."""

    number: int
    envelopes: list[Envelope] = field(default_factory=list)
    # Until when the ids of `envelopes` are in the dedupe window; 0 without envelopes.
    keep_until: Instant = NEVER_KEPT
    # New state of every domain that changed.
    domains: list[DomainRecord] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    # Numbers of those that are dead letters no longer.
    dead_letters_gone: list[int] = field(default_factory=list)
    agents_known: list[str] = field(default_factory=list)
    agents_forgotten: list[str] = field(default_factory=list)
    incarnations: list[IncarnationRecord] = field(default_factory=list)
    # Among the ids of `envelopes`, and ids of what was accepted for nobody.
    routed: list[RoutedId] = field(default_factory=list)
    # No subscription is in both.
    subscribed: list[Subscription] = field(default_factory=list)
    unsubscribed: list[Subscription] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Return whether there is anything to write."""
        return bool(
            self.envelopes
            or self.domains
            or self.dead_letters
            or self.dead_letters_gone
            or self.agents_known
            or self.agents_forgotten
            or self.incarnations
            or self.routed
            or self.subscribed
            or self.unsubscribed
        )


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a store holds when the broker starts."""

    # Grows by one with every start, so that ack tokens of earlier lives are void.
    life: int
    domains: tuple[DomainRecord, ...] = ()
    # Unsettled envelopes, in the order of their sequence numbers inside each domain.
    envelopes: tuple[Envelope, ...] = ()
    remembered: tuple[RememberedId, ...] = ()
    agents: frozenset[str] = frozenset()
    incarnations: tuple[IncarnationRecord, ...] = ()
    routed: tuple[RoutedId, ...] = ()
    subscriptions: frozenset[Subscription] = frozenset()


@dataclass(frozen=True, slots=True)
class Limits:
    """The numbers by which the core decides; `config.py` has the reasons. Times in milliseconds."""

    ack_deadline_ms: int = 30_000
    resume_window_ms: int = 10_000
    redelivery_base_ms: int = 200
    redelivery_max_ms: int = 30_000
    nack_delay_ms_max: int = 3_600_000
    extension_ms_min: int = 1_000
    extension_ms_max: int = 3_600_000
    retry_horizon_ms: int = 120_000
    dedup_bytes_max_per_sender: int = 128 * 1024 * 1024
    dedup_bytes_max: int = 512 * 1024 * 1024
    mailbox_count_max: int = 100_000
    mailbox_bytes_max: int = 256 * 1024 * 1024
    mailbox_emergency_count_max: int = 10_000
    domain_share_percent: int = 50
    sender_pending_max: int = 200_000
    sender_emergency_pending_max: int = 20_000
    pending_bytes_max: int = 1024 * 1024 * 1024
    domains_max: int = 200_000
    tombstones_max_per_domain: int = 1_000
    instances_max_per_agent: int = 64
    streams_max_per_agent: int = 64
    send_window: int = 8_192
    fanout_max: int = 1_000
    subscriptions_max_per_agent: int = 256
    subscriptions_max: int = 100_000
    memberships_max: int = 10_000
    credits_max: int = 65_536
    unflushed_bytes_max: int = 1024 * 1024
    lane_share_normal_percent: int = 10
    lane_share_low_percent: int = 5
