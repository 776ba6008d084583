"""What the broker asks of the outside: the outputs of `Machine.step`.

Whatever depends on a commit is asked for only in answer to `Persisted`, so that every effect but `Commit`
may be carried out at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.broker.core.model import (
    Batch,
    DeadLetter,
    Delivery,
    DomainKey,
    Envelope,
    LetterOutcome,
    RoutedId,
    SendOutcome,
    Tombstone,
)
from services.common.core.errors import ServiceError


@dataclass(frozen=True, slots=True)
class Commit:
    """Make this durable, then step `Persisted` or `PersistFailed`."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Welcome:
    """A stream is open."""

    stream_id: int
    waiting_count: int
    send_credits: int


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand over. Step `Flushed` with `weight` when it was written."""

    stream_id: int
    deliveries: Sequence[Delivery]
    weight: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell a sender what became of its envelopes, in the order sent; it may send as many again."""

    stream_id: int
    outcomes: Sequence[SendOutcome]


@dataclass(frozen=True, slots=True)
class ConfirmSettled:
    """Tell a receiver that these acks, nacks and rejects are durable."""

    stream_id: int
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class RefuseSettling:
    """Tell a receiver that acks, nacks, extends or rejects did nothing, all for the same reason."""

    stream_id: int
    tokens: list[int]
    error: ServiceError


@dataclass(frozen=True, slots=True)
class Recall:
    """Tell a receiver that these deliveries were taken back."""

    stream_id: int
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class TellTombstones:
    """Explain gaps to a receiver; before any later delivery of the domain."""

    stream_id: int
    key: DomainKey
    tombstones: Sequence[Tombstone]


@dataclass(frozen=True, slots=True)
class End:
    """End a stream with an error. The core has forgotten it already."""

    stream_id: int
    error: ServiceError


@dataclass(frozen=True, slots=True)
class Finish:
    """A leaving stream has all its answers: end it well. The core has forgotten it already."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class TellLetters:
    """Answer a request about dead letters."""

    request_id: int
    outcomes: Sequence[LetterOutcome]


@dataclass(frozen=True, slots=True)
class TellSubscription:
    """Answer a request about a subscription."""

    request_id: int
    error: ServiceError | None


@dataclass(frozen=True, slots=True)
class NoteAccepted:
    """These envelopes were accepted. For the audit log, like all effects whose name begins with Note."""

    envelopes: Sequence[Envelope]


@dataclass(frozen=True, slots=True)
class NoteUnheard:
    """These envelopes were accepted for nobody: no copy of them exists."""

    routed: Sequence[RoutedId]


@dataclass(frozen=True, slots=True)
class NoteDone:
    """Their receiver acked these envelopes, or they were handed over to it without an ack wanted."""

    envelopes: Sequence[Envelope]
    acked: bool


@dataclass(frozen=True, slots=True)
class NoteDead:
    """These envelopes were given up."""

    dead_letters: Sequence[DeadLetter]


@dataclass(frozen=True, slots=True)
class NoteOpened:
    """A receiver opened its mailbox."""

    actor: str
    instance: str
    incarnation: int
    resumed: bool


@dataclass(frozen=True, slots=True)
class NoteFenced:
    """A stream of an older incarnation was refused or ended."""

    actor: str
    instance: str
    incarnation: int
    newest: int


# What goes to one stream.
StreamEffect = Welcome | Deliver | Answer | ConfirmSettled | RefuseSettling | Recall | TellTombstones
Effect = (
    StreamEffect
    | Commit
    | End
    | Finish
    | TellLetters
    | TellSubscription
    | NoteAccepted
    | NoteUnheard
    | NoteDone
    | NoteDead
    | NoteOpened
    | NoteFenced
)
