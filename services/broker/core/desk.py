"""What the parts of the machine share: the memory, the timers, the effects of this step, and the decisions
that wait for the disk.
"""

from __future__ import annotations

from typing import NamedTuple

from services.broker.core.effects import Effect, RefuseSettling
from services.broker.core.events import SubscriptionAsked
from services.broker.core.model import (
    Batch,
    DeadLetter,
    IncarnationRecord,
    LetterOutcome,
    Limits,
    RoutedId,
    SendOutcome,
)
from services.broker.core.state import Domain, Item, Session, State, Stream
from services.broker.core.table import DeliveryInput
from services.broker.core.timers import Timers
from services.common.core.errors import ServiceError
from services.common.core.instants import Instant


class Acks(NamedTuple):
    """Deliveries that one frame acked."""

    stream: Stream
    session: Session
    items: list[Item]


class Release(NamedTuple):
    """Envelopes without acks that go to one session once it is durable that they are done."""

    session: Session
    # Whose credits this took; None while the link is down.
    stream: Stream | None
    items: list[Item]


class Burial(NamedTuple):
    """An envelope that is given up."""

    item: Item
    letter: DeadLetter
    # The stream whose reject this is; None when nobody waits for an answer.
    stream: Stream | None


class Nacked(NamedTuple):
    """A nack that took effect; its count of failures is not durable yet."""

    stream: Stream
    token: int


class Answers(NamedTuple):
    """Outcomes of one frame's envelopes, in the order sent."""

    stream: Stream
    outcomes: list[SendOutcome]


class LettersWork(NamedTuple):
    """A request about dead letters: what to tell, and which are dead letters no longer."""

    request_id: int
    outcomes: list[LetterOutcome]
    gone: list[int]


class SubscriptionWork(NamedTuple):
    """A request about a subscription; `changes` unless it was so before."""

    event: SubscriptionAsked
    changes: bool


class Tentative:
    """What was decided since the last commit was cut."""

    __slots__ = (
        "accepted",
        "acks",
        "agents_forgotten",
        "agents_known",
        "answers",
        "burials",
        "incarnations",
        "letters",
        "nacks",
        "releases",
        "replayed",
        "routed",
        "subscriptions",
        "touched",
        "urgent",
    )

    def __init__(self) -> None:
        self.accepted: list[Item] = []
        self.acks: list[Acks] = []
        self.releases: list[Release] = []
        self.burials: list[Burial] = []
        self.nacks: list[Nacked] = []
        self.answers: list[Answers] = []
        self.letters: list[LettersWork] = []
        # Those of `accepted` that are replayed dead letters: no sender waits for them.
        self.replayed: dict[Item, None] = {}
        # Ids whose receivers were chosen; the copies are in `accepted`.
        self.routed: list[RoutedId] = []
        self.subscriptions: list[SubscriptionWork] = []
        self.agents_known: list[str] = []
        self.agents_forgotten: list[str] = []
        self.incarnations: list[IncarnationRecord] = []
        # Domains whose record changed.
        self.touched: dict[Domain, None] = {}
        # A changed record that should not wait for other work.
        self.urgent = False

    def __bool__(self) -> bool:
        """Return whether somebody waits for the commit of this."""
        return bool(
            self.answers
            or self.acks
            or self.releases
            or self.burials
            or self.letters
            or self.subscriptions
            or self.agents_known
            or self.agents_forgotten
            or self.incarnations
            or self.urgent
        )

    def batch(self, number: int, retry_horizon_ms: int) -> Batch:
        """Return what the store must write."""
        batch = Batch(number)
        batch.envelopes = [item.envelope for item in self.accepted]
        if self.accepted:
            ttl_max = max(item.envelope.draft.ttl_ms for item in self.accepted)
            newest = self.accepted[-1].envelope.accepted_at
            batch.keep_until = Instant(newest + max(ttl_max, retry_horizon_ms))
        batch.domains = [domain.record() for domain in self.touched]
        batch.dead_letters = [burial.letter for burial in self.burials]
        batch.dead_letters_gone = [number for work in self.letters for number in work.gone]
        batch.agents_known = self.agents_known
        batch.agents_forgotten = self.agents_forgotten
        batch.incarnations = self.incarnations
        # Kept as long as the ids of the copies, so that one is never known without the other.
        batch.routed = [one._replace(keep_until=max(one.keep_until, batch.keep_until)) for one in self.routed]
        # The last change of a subscription counts.
        last = {work.event.subscription: work.event.wanted for work in self.subscriptions if work.changes}
        batch.subscribed = [subscription for subscription, wanted in last.items() if wanted]
        batch.unsubscribed = [subscription for subscription, wanted in last.items() if not wanted]
        return batch


class Desk:
    """One per machine."""

    __slots__ = ("effects", "in_flight", "limits", "number", "open", "state", "timers")

    def __init__(self, state: State) -> None:
        self.state = state
        self.limits: Limits = state.limits
        self.timers = Timers()
        # Of the step that runs now.
        self.effects: list[Effect] = []
        # Gathers while `in_flight` is being written.
        self.open = Tentative()
        self.in_flight: Tentative | None = None
        self.number = 0

    def refuse_settling(self, stream_id: int, token: int, error: ServiceError) -> None:
        """Tell that a settling did nothing; a frame full of the same refusals becomes one effect."""
        last = self.effects[-1] if self.effects else None
        if (
            isinstance(last, RefuseSettling)
            and last.stream_id == stream_id
            and (last.error.reason, last.error.message) == (error.reason, error.message)
        ):
            last.tokens.append(token)
        else:
            self.effects.append(RefuseSettling(stream_id, [token], error))

    def count(self, given: DeliveryInput, times: int = 1) -> None:
        """Count transitions for the metrics."""
        self.state.transitions[given] += times
