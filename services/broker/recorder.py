"""From what happened to entries in the audit log.

Envelopes come by the ten thousand a second and their entries are twice as many, so they are not recorded one
by one before the reply: what happened is noted at once, in memory, and brought to the outbox in large groups
by a loop of its own. What that gives up, and what bounds it:

- a crash of the broker loses the notes of the last moments (the envelopes themselves are in the store);
- a backlog beyond `audit_backlog_max` is not noted but counted, and one entry "envelope.unrecorded" says how
  many are missing, as the outbox does when its own bound is reached (guarantee A3).

Refusals, fencing, streams and dead letters are noted whatever `audit_messages` says.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from services.broker.core import effects as fx
from services.broker.core.model import DeadLetter, DeadReason, Envelope
from services.broker.metrics import BrokerMetrics
from services.broker.wire.facts import envelope_facts
from services.common.clock import Clock
from services.common.core.entries import EntryDraft, Outcome
from services.common.core.errors import Reason
from services.common.core.instants import Instant
from services.common.outbox import Outbox

# Entries brought to the outbox at once: enough to share one sync, few enough not to hold the loop.
GROUP_MAX = 512
# Notes of what is rare have room of their own, so that a flood of envelopes does not push them out.
RARE_MAX = 10_000
ACTOR = "service/broker"
OPERATOR_PREFIX = "operator/"

_DEAD = {
    DeadReason.EXPIRED: ("envelope.expire", Outcome.TIMED_OUT),
    DeadReason.DELIVERIES_EXHAUSTED: ("envelope.exhaust", Outcome.FAILED),
    DeadReason.REJECTED: ("envelope.reject", Outcome.REFUSED),
}


class SendsRefused(NamedTuple):
    """Envelopes of one frame that were refused: their ids and why."""

    actor: str
    refusals: Sequence[tuple[str, Reason]]


class DeadLettersDropped(NamedTuple):
    """Dead letters that are no longer kept, by mailbox."""

    counts: Mapping[str, int]


class SubscriptionChanged(NamedTuple):
    """Somebody added or ended a subscription of its own."""

    actor: str
    pattern: str
    wanted: bool


Note = (
    fx.NoteAccepted
    | fx.NoteUnheard
    | SubscriptionChanged
    | fx.NoteDone
    | fx.NoteDead
    | fx.NoteOpened
    | fx.NoteFenced
    | SendsRefused
    | DeadLettersDropped
)


class AuditRecorder:
    """Owned by the event loop. `note` never waits; `run` brings it to the outbox."""

    def __init__(
        self, outbox: Outbox, clock: Clock, metrics: BrokerMetrics, *, messages: str, backlog_max: int
    ) -> None:
        self._outbox, self._clock, self._metrics = outbox, clock, metrics
        self._accepts, self._terminals = messages == "all", messages != "none"
        self._backlog_max = backlog_max
        self._notes: deque[tuple[Note, Instant]] = deque()
        # Entries that wait, and those that were given up since the last one that says so.
        self._backlog = 0
        self._unrecorded = 0
        self._noted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def note(self, note: Note) -> None:
        """Take in what happened."""
        match note:
            case fx.NoteAccepted(envelopes=envelopes):
                count, limit = len(envelopes) if self._accepts else 0, self._backlog_max
            case fx.NoteUnheard(routed=routed):
                count, limit = len(routed) if self._accepts else 0, self._backlog_max
            case fx.NoteDone(envelopes=envelopes):
                count, limit = len(envelopes) if self._terminals else 0, self._backlog_max
            case fx.NoteDead(dead_letters=letters):
                count, limit = len(letters), self._backlog_max + RARE_MAX
            case SendsRefused(refusals=refusals):
                count, limit = len(refusals), self._backlog_max + RARE_MAX
            case _:
                count, limit = 1, self._backlog_max + RARE_MAX
        if not count:
            return
        if self._backlog + count > limit:
            self._unrecorded += count
            self._metrics.unrecorded.inc(count)
            return
        self._backlog += count
        self._notes.append((note, self._clock.now()))
        self._idle.clear()
        self._noted.set()

    async def record_letters(self, actor: str, operation: str, owner: str, numbers: Sequence[int]) -> None:
        """Record what somebody is about to do with dead letters; see `record_request`."""
        some = ",".join(str(number) for number in numbers[:50])
        facts = {"count": str(len(numbers)), "dead_letter_ids": some}
        await self.record_request(actor, operation, owner, facts)

    async def record_request(self, actor: str, operation: str, owner: str, facts: Mapping[str, str]) -> None:
        """Record a change by hand of a mailbox; AUDIT_UNAVAILABLE when that is impossible.

        Before it is done: what the log can not show does not happen (guarantee A3).
        """
        entry = EntryDraft(self._clock.now(), actor, operation, f"mailbox/{owner}", attributes=facts)
        await self._outbox.record([entry], privileged=True)

    async def run(self) -> None:
        """Bring notes to the outbox until cancelled."""
        entries = self._entries()
        while True:
            await self._noted.wait()
            group = list(islice(entries, GROUP_MAX))
            if group:
                await self._outbox.record(group)
            if len(group) < GROUP_MAX:
                # The generator is used up whenever it has given fewer.
                entries = self._entries()
            if not self._notes and not self._backlog:
                self._noted.clear()
                self._idle.set()

    async def wait_idle(self) -> None:
        """Return when everything noted is recorded; `run` must be running."""
        await self._idle.wait()

    def _entries(self) -> Iterator[EntryDraft]:
        while self._notes:
            note, at = self._notes.popleft()
            for entry in _entries_of(note, at):
                self._backlog -= 1
                yield entry
        if self._unrecorded:
            count, self._unrecorded = self._unrecorded, 0
            yield EntryDraft(
                self._clock.now(),
                ACTOR,
                "envelope.unrecorded",
                "mailbox",
                Outcome.FAILED,
                Reason.AUDIT_UNAVAILABLE,
                attributes={"count": str(count)},
            )


def _entries_of(note: Note, at: Instant) -> Iterator[EntryDraft]:
    match note:
        case fx.NoteAccepted(envelopes=envelopes):
            for envelope in envelopes:
                yield _envelope_entry(envelope, at, _actor(envelope.key.sender), "envelope.accept")
        case fx.NoteDone(envelopes=envelopes, acked=acked):
            operation = "envelope.ack" if acked else "envelope.release"
            for envelope in envelopes:
                yield _envelope_entry(envelope, at, _actor(envelope.key.receiver), operation)
        case fx.NoteDead(dead_letters=letters):
            for letter in letters:
                yield _dead_entry(letter, at)
        case _:
            yield from _rare_entries(note, at)


def _rare_entries(note: Note, at: Instant) -> Iterator[EntryDraft]:
    match note:
        case fx.NoteUnheard(routed=routed):
            for one in routed:
                subject = f"envelope/{one.sender}/{one.message_id}"
                facts = {"receivers": "0"}
                yield EntryDraft(at, _actor(one.sender), "envelope.accept", subject, attributes=facts)
        case SubscriptionChanged(actor=actor, pattern=pattern, wanted=wanted):
            operation = "topic.subscribe" if wanted else "topic.unsubscribe"
            yield EntryDraft(at, actor, operation, f"topic/{pattern}")
        case fx.NoteOpened(actor=actor, instance=instance, incarnation=incarnation, resumed=resumed):
            facts = {"incarnation": str(incarnation), "resumed": str(resumed).lower()}
            yield EntryDraft(at, actor, "mailbox.open", f"{actor}/{instance}", attributes=facts)
        case fx.NoteFenced(actor=actor, instance=instance, incarnation=incarnation, newest=newest):
            yield EntryDraft(
                at,
                actor,
                "mailbox.fence",
                f"{actor}/{instance}",
                Outcome.REFUSED,
                Reason.INCARNATION_FENCED,
                attributes={"incarnation": str(incarnation), "newest": str(newest)},
            )
        case SendsRefused(actor=actor, refusals=refusals):
            for message_id, why in refusals:
                subject = f"envelope/{actor}/{message_id[:64]}"
                yield EntryDraft(at, actor, "envelope.send", subject, Outcome.REFUSED, why)
        case DeadLettersDropped(counts=counts):
            facts = {owner: str(count) for owner, count in sorted(counts.items())[:32]}
            yield EntryDraft(at, ACTOR, "dead_letter.drop", "mailbox", attributes=facts)


def _dead_entry(letter: DeadLetter, at: Instant) -> EntryDraft:
    operation, outcome = _DEAD[letter.reason]
    rejected = letter.reason is DeadReason.REJECTED
    actor = _actor(letter.envelope.key.receiver) if rejected else ACTOR
    entry = _envelope_entry(letter.envelope, at, actor, operation)
    more = {"deliveries": str(letter.delivery_count), "message": letter.message[:256]}
    attributes = {**entry.attributes, **more}
    return entry._replace(outcome=outcome, reason=letter.reason.name, attributes=attributes)


def _envelope_entry(envelope: Envelope, at: Instant, actor: str, operation: str) -> EntryDraft:
    key, sequence, _, draft = envelope
    facts = envelope_facts(draft.body)
    attributes = {
        "receiver": key.receiver,
        "lane": key.lane.name,
        "sequence": str(sequence),
        "type": facts.message_type,
    }
    if facts.correlation_id:
        attributes["correlation_id"] = facts.correlation_id
    return EntryDraft(
        at,
        actor,
        operation,
        f"envelope/{key.sender}/{draft.message_id}",
        cause_id=facts.causation_id or draft.message_id,
        collaboration_id=facts.collaboration_id,
        attributes=attributes,
        traceparent=facts.traceparent,
    )


def _actor(address: str) -> str:
    return address if address.startswith(OPERATOR_PREFIX) else f"agent/{address}"
