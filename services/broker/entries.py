"""From what happened to entries in the audit log.

What one commit accepted from one sender, or made durable of one receiver's acks, is one entry with a group:
it costs a fraction of what an entry for each envelope would, in the broker and in audit. An envelope that is
alone has an entry of its own that says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from services.broker.core import effects as fx
from services.broker.core.addresses import owner_of
from services.broker.core.model import DeadLetter, DeadReason, Envelope
from services.broker.wire.facts import envelope_facts, fact_columns
from services.common.core.entries import DraftGroup, EntryDraft, Outcome, shared
from services.common.core.errors import Reason
from services.common.core.instants import Instant

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


def entries_of(note: Note, at: Instant, group_max: int) -> Iterator[EntryDraft]:
    """Yield the entries about `note`, noted at `at`, each of at most `group_max` operations."""
    match note:
        case fx.NoteAccepted(envelopes=envelopes):
            yield from _together(envelopes, at, "envelope.accept", _sender, group_max)
        case fx.NoteDone(envelopes=envelopes, acked=acked):
            operation = "envelope.ack" if acked else "envelope.release"
            yield from _together(envelopes, at, operation, _receiver, group_max)
        case fx.NoteDead(dead_letters=letters):
            for letter in letters:
                yield _dead_entry(letter, at)
        case _:
            yield from _rare_entries(note, at)


def _sender(envelope: Envelope) -> str:
    return envelope.key.sender


def _receiver(envelope: Envelope) -> str:
    return envelope.key.receiver


def _together(
    envelopes: Sequence[Envelope],
    at: Instant,
    operation: str,
    who: Callable[[Envelope], str],
    group_max: int,
) -> Iterator[EntryDraft]:
    by_actor: dict[str, list[Envelope]] = {}
    for envelope in envelopes:
        by_actor.setdefault(who(envelope), []).append(envelope)
    for address, mine in by_actor.items():
        for begin in range(0, len(mine), group_max):
            some = mine[begin : begin + group_max]
            if len(some) == 1:
                yield _envelope_entry(some[0], at, _actor(address), operation)
            else:
                yield _group_entry(some, at, _actor(address), operation)


def _group_entry(envelopes: Sequence[Envelope], at: Instant, actor: str, operation: str) -> EntryDraft:
    """Return one entry that says of each envelope what `_envelope_entry` does."""
    keys = [envelope.key for envelope in envelopes]
    names = [envelope.draft.message_id for envelope in envelopes]
    facts = fact_columns([envelope.draft.body for envelope in envelopes])
    sender, senders = shared([key.sender for key in keys])
    if senders:
        names = [f"{sender}/{name}" for sender, name in zip(senders, names, strict=True)]
    cause_id, cause_ids = shared(facts.causation_ids)
    collaboration_id, collaboration_ids = shared(facts.collaboration_ids)
    traceparent, traceparents = shared(facts.traceparents)
    attributes: dict[str, str] = {}
    columns: dict[str, Sequence[str]] = {"sequence": [str(envelope.sequence) for envelope in envelopes]}
    for name, values in (
        ("receiver", [key.receiver for key in keys]),
        ("lane", [key.lane.name for key in keys]),
        ("type", facts.message_types),
        ("correlation_id", facts.correlation_ids),
    ):
        value, column = shared(values)
        if column:
            columns[name] = column
        elif value:
            attributes[name] = value
    return EntryDraft(
        at,
        actor,
        operation,
        "envelope/" if senders else f"envelope/{sender}/",
        cause_id=cause_id,
        collaboration_id=collaboration_id,
        attributes=attributes,
        traceparent=traceparent,
        group=DraftGroup(names, cause_ids, collaboration_ids, traceparents, columns),
    )


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
    # Whichever instance did it: identities are those of certificates.
    owner = owner_of(address)
    return owner if owner.startswith(OPERATOR_PREFIX) else f"agent/{owner}"
