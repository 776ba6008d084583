"""What can happen to the broker: the inputs of `Machine.step`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.broker.core.model import (
    AgentProfile,
    Draft,
    RefusedDraft,
    RoutedDraft,
    StoredDeadLetter,
    Subscription,
)
from services.common.core.errors import ServiceError


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """A client said hello. Version and access were checked before."""

    # New for each stream of this process; never 0.
    stream_id: int
    # "agent/<name>" or "operator/<name>".
    actor: str
    # Its address: an agent's name, or "operator/<name>".
    address: str
    instance: str
    incarnation: int
    send_only: bool
    # Greatest ack token that this incarnation received; 0 for none.
    resume_token: int = 0


@dataclass(frozen=True, slots=True)
class Nack:
    """Give a delivery back; `delay_ms` None means the broker's backoff."""

    token: int
    delay_ms: int | None


@dataclass(frozen=True, slots=True)
class Extend:
    """The receiver still works on a delivery: its deadline becomes now + `extension_ms`."""

    token: int
    extension_ms: int


@dataclass(frozen=True, slots=True)
class Reject:
    """A delivery must never come again."""

    token: int
    reason: str


@dataclass(frozen=True, slots=True)
class FrameReceived:
    """One frame of a stream. Its parts are applied in the order of the fields here."""

    stream_id: int
    acks: Sequence[int] = ()
    settlings: Sequence[Nack | Extend | Reject] = ()
    credits: int = 0
    emergency_credits: int = 0
    drafts: Sequence[Draft | RoutedDraft | RefusedDraft] = ()


@dataclass(frozen=True, slots=True)
class StreamLeaving:
    """A client has sent its last frame and waits for its answers."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """A stream is gone, whoever ended it."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class Flushed:
    """Deliveries of this weight left for the network."""

    stream_id: int
    weight: int


@dataclass(frozen=True, slots=True)
class AgentsSeen:
    """The registry knows these agents; `complete` means all that there are."""

    names: frozenset[str]
    complete: bool
    # What it says of some of them; of the others it says what it said before.
    profiles: Mapping[str, AgentProfile] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MembersSeen:
    """The scheduler says who the members of a collaboration are; None: there is no such collaboration."""

    collaboration_id: str
    members: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class SubscriptionAsked:
    """Somebody wants a subscription, or wants to be without it."""

    # New for each request of this process.
    request_id: int
    subscription: Subscription
    wanted: bool
    # Whether its owner asks.
    own: bool


@dataclass(frozen=True, slots=True)
class ReplayAsked:
    """Somebody wants dead letters sent to their receiver once more."""

    # New for each request of this process.
    request_id: int
    letters: Sequence[StoredDeadLetter]


@dataclass(frozen=True, slots=True)
class DropAsked:
    """Somebody wants dead letters forgotten."""

    request_id: int
    numbers: Sequence[int]


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time passed; timers may be due."""


@dataclass(frozen=True, slots=True)
class StoreReady:
    """The store can take a commit."""


@dataclass(frozen=True, slots=True)
class Persisted:
    """The batch of the last `Commit` is durable."""

    number: int


@dataclass(frozen=True, slots=True)
class PersistFailed:
    """The batch of the last `Commit` is certainly not in the store."""

    number: int
    error: ServiceError


@dataclass(frozen=True, slots=True)
class DrainBegan:
    """The service leaves: no new envelopes."""


Event = (
    StreamOpened
    | FrameReceived
    | StreamLeaving
    | StreamClosed
    | Flushed
    | AgentsSeen
    | MembersSeen
    | SubscriptionAsked
    | ReplayAsked
    | DropAsked
    | Ticked
    | StoreReady
    | Persisted
    | PersistFailed
    | DrainBegan
)
