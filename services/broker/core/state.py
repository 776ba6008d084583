"""The broker's memory. Owned by the core: outside it everything here is read-only."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TypeAlias

from services.broker.core.addresses import instance_of, owner_of
from services.broker.core.dedup import DedupWindow
from services.broker.core.lanes import LaneShares
from services.broker.core.model import (
    AgentProfile,
    DomainKey,
    DomainRecord,
    Envelope,
    Lane,
    Limits,
    RouteKind,
    Tombstone,
)
from services.broker.core.settled import SettledSet
from services.broker.core.table import TABLE, DeliveryInput, DeliveryState
from services.broker.core.topics import Topics
from services.common.core.instants import NEVER, Instant
from services.common.core.machine import InvalidTransitionError

# The table as rows by input, each by state: what is not allowed is None.
_ROWS: list[list[DeliveryState | None]] = [[None] * len(DeliveryState) for _ in DeliveryInput]
for _state, _given, _target in TABLE.rows():
    _ROWS[_given][_state] = _target


class Item:
    """One unsettled envelope in memory."""

    __slots__ = (
        "deadline",
        "domain",
        "envelope",
        "expire_at",
        "failures",
        "handed_over",
        "session",
        "state",
        "token",
    )

    def __init__(self, domain: Domain, envelope: Envelope, state: DeliveryState) -> None:
        self.domain = domain
        self.envelope = envelope
        self.expire_at = Instant(envelope.accepted_at + envelope.draft.ttl_ms)
        self.state = state
        # Deliveries that failed, and deliveries at all (those that were recalled did not fail).
        self.failures = 0
        self.handed_over = 0
        # Of the newest delivery.
        self.token = 0
        self.deadline = Instant(0)
        self.session: Session | None = None

    def __repr__(self) -> str:
        return f"<{self.envelope.key} #{self.envelope.sequence} {self.state.name} failures={self.failures}>"

    def advance(self, given: DeliveryInput) -> None:
        """Take one step of the table; raises `InvalidTransitionError` with the envelope's story."""
        target = _ROWS[given][self.state]
        if target is None:
            raise InvalidTransitionError(repr(self), self.state, given)
        self.state = target


def advance_all(items: Iterable[Item], given: DeliveryInput) -> None:
    """Take the same step for many items: what `Item.advance` does, without a call for each."""
    row = _ROWS[given]
    for item in items:
        target = row[item.state]
        if target is None:
            raise InvalidTransitionError(repr(item), item.state, given)
        item.state = target


# An ordered set: first in, first out, and removal from the middle in one step.
Ring: TypeAlias = "dict[Domain, None]"
# An ack token is the broker's life and a counter: 2^40 deliveries in each of 2^23 lives.
TOKEN_BITS = 40


class Domain:
    """One order domain with its unsettled envelopes."""

    __slots__ = (
        "blocked",
        "delayed",
        "delayed_until",
        "expire_first",
        "expiry_due",
        "failures",
        "held",
        "instance",
        "key",
        "mailbox",
        "next_sequence",
        "sender",
        "session",
        "settled",
        "told",
        "tombstones",
        "unsettled",
        "waiting",
    )

    def __init__(self, key: DomainKey, mailbox: Mailbox, sender: Sender) -> None:
        self.key = key
        self.mailbox = mailbox
        self.sender = sender
        # The only instance that gets what is in here; None: any.
        self.instance = instance_of(key.receiver)
        self.next_sequence = 1
        self.settled = SettledSet()
        # WAITING and DELAYED, ascending by sequence number.
        self.waiting: deque[Item] = deque()
        # Those of `waiting` that are DELAYED, and until when the domain waits with them; 0 for not.
        self.delayed: list[Item] = []
        self.delayed_until = Instant(0)
        # The session that holds deliveries of this domain: the next ones go to it too, so that two
        # instances never work on one domain at once. `held` counts OUTSTANDING and ACKING.
        self.session: Session | None = None
        self.held = 0
        # RELEASING and BURYING: nothing is handed over before they are durable.
        self.blocked = 0
        # Accepted and not settled for good, and those still ACCEPTING.
        self.unsettled = 0
        # Failed deliveries by sequence number, for what is unsettled.
        self.failures: dict[int, int] = {}
        # Ascending; kept until an envelope behind them was acked.
        self.tombstones: list[Tombstone] = []
        # The newest ack token at the time when a tombstone was told, by sequence number.
        self.told: dict[int, int] = {}
        # A lower bound of when the first of `waiting` expires, and when the timer that watches it is due.
        self.expire_first = NEVER
        self.expiry_due = NEVER

    def __repr__(self) -> str:
        return (
            f"<domain {self.key.sender}->{self.key.receiver}/{self.key.lane.name} waiting={len(self.waiting)}"
            f" held={self.held} blocked={self.blocked} next={self.next_sequence}>"
        )

    @property
    def ready(self) -> bool:
        """Whether an envelope may be handed over now, given a receiver.

        One that wants no ack can not be taken back, so it waits until all before it are settled.
        """
        if not self.waiting or self.blocked or self.delayed_until:
            return False
        return not self.held or self.waiting[0].envelope.draft.requires_ack

    def concerns(self, session: Session) -> bool:
        """Return whether what is in here may go to `session`."""
        return self.instance is None or self.instance == session.instance

    def record(self) -> DomainRecord:
        """Return what of this domain must be durable."""
        settled = self.settled
        return DomainRecord(
            self.key,
            self.next_sequence,
            settled.cursor,
            tuple(sorted(settled.above)) if settled.above else (),
            tuple(sorted(one for one in self.failures.items() if one[0] not in settled)),
            tuple(self.tombstones) if self.tombstones else (),
        )


class Sender:
    """What the broker knows of one sender."""

    __slots__ = ("armed", "emergency_pending", "name", "pending", "streams", "window")

    def __init__(self, name: str) -> None:
        self.name = name
        # Accepted and not settled, without and in the EMERGENCY lane.
        self.pending = 0
        self.emergency_pending = 0
        self.window = DedupWindow()
        # Whether a timer watches the window.
        self.armed = False
        # Open streams of this identity.
        self.streams = 0


class Mailbox:
    """One receiver's mailbox."""

    __slots__ = (
        "bytes",
        "count",
        "domains",
        "emergency_count",
        "incarnations",
        "owner",
        "ready",
        "sessions",
    )

    def __init__(self, owner: str) -> None:
        self.owner = owner
        # Unsettled: all of their bytes, those outside and in the EMERGENCY lane.
        self.bytes = 0
        self.count = 0
        self.emergency_count = 0
        self.domains: list[Domain] = []
        # Domains that are ready, for any instance, and held by no session, by lane.
        self.ready: list[Ring] = [{} for _ in range(Lane.LOW + 1)]
        self.sessions: dict[str, Session] = {}
        # Newest incarnation seen of each instance, oldest use first.
        self.incarnations: dict[str, int] = {}


class Session:
    """One incarnation of one receiving instance; outlives its stream for the resume window."""

    __slots__ = (
        "credits",
        "due",
        "emergency_credits",
        "ended",
        "extended",
        "free_next",
        "incarnation",
        "instance",
        "lost_at",
        "mailbox",
        "outstanding",
        "ready",
        "shares",
        "stream",
        "unflushed_bytes",
    )

    def __init__(self, mailbox: Mailbox, instance: str, incarnation: int, limits: Limits) -> None:
        self.mailbox = mailbox
        self.instance = instance
        self.incarnation = incarnation
        # None while the link is down.
        self.stream: Stream | None = None
        # When it ends unless its owner resumes it; NEVER while the link is up.
        self.lost_at = NEVER
        self.ended = False
        self.credits = 0
        self.emergency_credits = 0
        # Handed to the stream's writer and not yet written.
        self.unflushed_bytes = 0
        # By ack token, ascending; all have the same time to answer, so the first is due first.
        self.outstanding: dict[int, Item] = {}
        # Those whose deadlines are in no order: extended, or back after a commit that failed.
        self.extended: dict[int, Item] = {}
        # Ready domains that this session holds, and those that are for its instance only, by lane.
        self.ready: list[Ring] = [{} for _ in range(Lane.LOW + 1)]
        self.shares = LaneShares(limits.lane_share_normal_percent, limits.lane_share_low_percent)
        # Whose turn it is when both held and free domains are ready.
        self.free_next = False
        # When the timer that watches the deadlines is due.
        self.due = NEVER

    def __repr__(self) -> str:
        return (
            f"<session {self.mailbox.owner}/{self.instance}.{self.incarnation}"
            f" {'up' if self.stream else 'down'} outstanding={len(self.outstanding) + len(self.extended)}>"
        )


class Stream:
    """One open Mailbox stream."""

    __slots__ = ("actor", "leaving", "sender", "session", "settling", "stream_id", "unanswered")

    def __init__(self, stream_id: int, actor: str, sender: Sender) -> None:
        self.stream_id = stream_id
        # "agent/<name>" or "operator/<name>".
        self.actor = actor
        self.sender = sender
        # None for a stream that only sends.
        self.session: Session | None = None
        # Envelopes without an outcome, and groups of settlings that are not durable yet.
        self.unanswered = 0
        self.settling = 0
        # It has sent its last frame and waits for its answers.
        self.leaving = False


class State:
    """Everything."""

    def __init__(self, limits: Limits, life: int) -> None:
        self.limits = limits
        # The last ack token that was given; the high bits are the broker's life.
        self.token = life << TOKEN_BITS
        self.known: set[str] = set()
        self.senders: dict[str, Sender] = {}
        self.mailboxes: dict[str, Mailbox] = {}
        self.domains: dict[DomainKey, Domain] = {}
        self.streams: dict[int, Stream] = {}
        # Of all unsettled envelopes, and of all dedupe windows.
        self.pending_bytes = 0
        self.dedup_bytes = 0
        # How often each input of the table was applied; metrics.py shows it.
        self.transitions = [0] * len(DeliveryInput)
        # How often receivers were chosen.
        self.routed = dict.fromkeys(RouteKind, 0)
        self.topics = Topics()
        # What the registry says; nothing of it is durable here. Names by skill, in no order.
        self.profiles: dict[str, AgentProfile] = {}
        self.skilled: dict[str, set[str]] = {}
        # Whether it has told of all agents since the start.
        self.profiles_complete = False
        # What the scheduler said of collaborations, oldest use first; None: there is none.
        self.memberships: dict[str, frozenset[str] | None] = {}
        self.draining = False

    def see_profile(self, name: str, profile: AgentProfile | None) -> None:
        """Take what the registry says of an agent; None: it is gone."""
        before = self.profiles.pop(name, None)
        if before is not None and profile is not None and before.skills == profile.skills:
            self.profiles[name] = profile
            return
        if before is not None:
            for skill in before.skills:
                self.skilled[skill].discard(name)
                if not self.skilled[skill]:
                    del self.skilled[skill]
        if profile is not None:
            self.profiles[name] = profile
            for skill in profile.skills:
                self.skilled.setdefault(skill, set()).add(name)

    def see_members(self, collaboration_id: str, members: frozenset[str] | None) -> None:
        """Take what the scheduler says of a collaboration; what was not used for longest is forgotten."""
        self.memberships.pop(collaboration_id, None)
        self.memberships[collaboration_id] = members
        if len(self.memberships) > self.limits.memberships_max:
            del self.memberships[next(iter(self.memberships))]

    def sender(self, name: str) -> Sender:
        """Return a sender, made on first use."""
        found = self.senders.get(name)
        if found is None:
            found = self.senders[name] = Sender(name)
        return found

    def mailbox(self, owner: str) -> Mailbox:
        """Return a mailbox, made on first use; whether its owner is known is another question."""
        found = self.mailboxes.get(owner)
        if found is None:
            found = self.mailboxes[owner] = Mailbox(owner)
        return found

    def addresses(self, owner: str) -> set[str]:
        """Return an owner, and each instance of it for which there ever was something."""
        mailbox = self.mailboxes.get(owner)
        return {owner, *(domain.key.receiver for domain in mailbox.domains)} if mailbox else {owner}

    def domain(self, key: DomainKey) -> Domain:
        """Return an order domain, made on first use."""
        found = self.domains.get(key)
        if found is None:
            mailbox = self.mailbox(owner_of(key.receiver))
            found = self.domains[key] = Domain(key, mailbox, self.sender(key.sender))
            mailbox.domains.append(found)
        return found
