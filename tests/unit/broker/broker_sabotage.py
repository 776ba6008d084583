"""A broker that breaks one promise, chosen by name: what the checker is there to notice."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

from services.broker.core import admission, attachment, flow, settlement
from services.broker.core import effects as fx
from services.broker.core import events as ev
from services.broker.core.dedup import DedupWindow
from services.broker.core.lanes import LaneShares
from services.broker.core.machine import Machine
from services.broker.core.model import (
    Batch,
    Chosen,
    Delivery,
    DomainKey,
    DomainRecord,
    Lane,
    Limits,
    Recovered,
    SendOutcome,
)
from services.broker.core.state import Domain, Item, Session
from services.broker.core.topics import Topics
from services.common.core.errors import ServiceError
from services.common.core.instants import NEVER, Instant
from tests.unit.broker.broker_checker import BrokenPromise
from tests.unit.broker.broker_disks import Disk
from tests.unit.broker.broker_parties import World
from tests.unit.broker.broker_seeds import MakeDisk


class LossyDisk:
    """A disk that forgets what it was told to keep."""

    def __init__(self, disk: Disk, bug: str) -> None:
        self.disk, self.bug = disk, bug
        self.commits = 0
        self.lost: dict[DomainKey, int] = {}
        self.lost_places: set[tuple[DomainKey, int]] = set()

    def commit_now(self, batch: Batch, now: Instant) -> None:
        self.disk.commit_now(self._spoiled(batch), now)

    def commit_full_now(self, batch: Batch) -> ServiceError | None:
        return self.disk.commit_full_now(self._spoiled(batch))

    def lose_now(self, committing: Batch | None, now: Instant) -> bool:
        return self.disk.lose_now(None if committing is None else self._spoiled(committing), now)

    def load_now(self, now: Instant) -> Recovered:
        recovered = self.disk.load_now(now)
        match self.bug:
            case "lost accept":
                kept = [one for one in recovered.envelopes if (one.key, one.sequence) not in self.lost_places]
                return dataclasses.replace(recovered, envelopes=tuple(kept))
            case "resurrection":
                # What was settled last comes back.
                again = tuple(_reopened(record) for record in recovered.domains)
                return dataclasses.replace(recovered, domains=again)
            case "subscriptions forgotten in a crash":
                return dataclasses.replace(recovered, subscriptions=frozenset())
            case "chosen receivers forgotten in a crash":
                return dataclasses.replace(recovered, routed=())
            case "ids forgotten in a crash":
                return dataclasses.replace(recovered, remembered=(), routed=())
        return recovered

    def _spoiled(self, batch: Batch) -> Batch:
        self.commits += 1
        if self.bug == "lost accept" and self.commits % 3 == 0:
            self.lost_places.update((one.key, one.sequence) for one in batch.envelopes[-1:])
        if self.bug == "lost ack":
            for record in batch.domains:
                if record.cursor and self.commits % 5 == 0:
                    self.lost.setdefault(record.key, record.cursor)
            return dataclasses.replace(batch, domains=[self._without(record) for record in batch.domains])
        return batch

    def _without(self, record: DomainRecord) -> DomainRecord:
        lost = self.lost.get(record.key, record.cursor + 1)
        if lost > record.cursor:
            return record
        return record._replace(cursor=lost - 1, above=(*range(lost + 1, record.cursor + 1), *record.above))


def _reopened(record: DomainRecord) -> DomainRecord:
    return record._replace(next_sequence=max(1, record.next_sequence - 1))


class BrokenMachine(Machine):
    """The core with one defect."""

    def __init__(self, recovered: Recovered, limits: Limits, now: Instant, bug: str) -> None:
        super().__init__(recovered, limits, now)
        self.bug = bug
        self.steps = 0
        self.old_tokens: dict[tuple[object, int], list[int]] = {}

    def step(self, event: ev.Event, now: Instant) -> list[fx.Effect]:
        self.steps += 1
        bug = BUGS[self.bug]
        if bug.event is not None:
            event = bug.event(self, event)
        effects = super().step(event, now)
        return effects if bug.effects is None else bug.effects(self, event, effects)


def _steal_tokens(machine: BrokenMachine, event: ev.Event) -> ev.Event:
    """An ack of an earlier delivery settles the envelope's newest one."""
    if not isinstance(event, ev.FrameReceived) or not event.acks:
        return event
    newest = {}
    for tokens in machine.old_tokens.values():
        newest.update(dict.fromkeys(tokens, tokens[-1]))
    return dataclasses.replace(event, acks=[newest.get(token, token) for token in event.acks])


def _note_tokens(machine: BrokenMachine, _: ev.Event, effects: list[fx.Effect]) -> list[fx.Effect]:
    for effect in effects:
        if isinstance(effect, fx.Deliver):
            for delivery in effect.deliveries:
                where = delivery.envelope.key, delivery.envelope.sequence
                machine.old_tokens.setdefault(where, []).append(delivery.token)
    return effects


def _answer_early(machine: BrokenMachine, event: ev.Event, effects: list[fx.Effect]) -> list[fx.Effect]:
    """The sender's ack does not wait for the disk."""
    if isinstance(event, ev.FrameReceived) and event.drafts and machine._desk.open.answers:
        answers = machine._desk.open.answers.pop()
        answers.stream.unanswered -= len(answers.outcomes)
        return [*effects, fx.Answer(answers.stream.stream_id, answers.outcomes)]
    return effects


def _reorder(_: BrokenMachine, __: ev.Event, effects: list[fx.Effect]) -> list[fx.Effect]:
    return [
        dataclasses.replace(one, deliveries=one.deliveries[::-1]) if isinstance(one, fx.Deliver) else one
        for one in effects
    ]


def _silence(_: BrokenMachine, __: ev.Event, effects: list[fx.Effect]) -> list[fx.Effect]:
    return [one for one in effects if not isinstance(one, fx.TellTombstones)]


def _swallow(machine: BrokenMachine, __: ev.Event, effects: list[fx.Effect]) -> list[fx.Effect]:
    """One outcome in a while is never told."""
    return [
        dataclasses.replace(one, outcomes=one.outcomes[1:])
        if isinstance(one, fx.Answer) and machine.steps % 7 == 0
        else one
        for one in effects
    ]


def _double(_: BrokenMachine, __: ev.Event, effects: list[fx.Effect]) -> list[fx.Effect]:
    """What wants no ack goes out twice."""
    again: list[fx.Effect] = [
        one for one in effects if isinstance(one, fx.Deliver) and not one.deliveries[0].token
    ]
    return [*effects, *again]


def _hurry_others(_: BrokenMachine, __: ev.Event, effects: list[fx.Effect]) -> list[fx.Effect]:
    """EMERGENCY goes last."""

    def late(delivery: Delivery) -> bool:
        return delivery.envelope.key.lane is Lane.EMERGENCY

    return [
        dataclasses.replace(one, deliveries=sorted(one.deliveries, key=late))
        if isinstance(one, fx.Deliver)
        else one
        for one in effects
    ]


def _reuse_tokens(machine: BrokenMachine, _: ev.Event, effects: list[fx.Effect]) -> list[fx.Effect]:
    """A redelivery keeps the token of the delivery before."""
    _note_tokens(machine, _, effects)
    changed: list[fx.Effect] = []
    for one in effects:
        if isinstance(one, fx.Deliver):
            first = [
                delivery._replace(
                    token=machine.old_tokens[delivery.envelope.key, delivery.envelope.sequence][0]
                )
                for delivery in one.deliveries
            ]
            one = dataclasses.replace(one, deliveries=first)  # noqa: PLW2901  # the tampered one
        changed.append(one)
    return changed


def _renumber(machine: BrokenMachine, __: ev.Event, effects: list[fx.Effect]) -> list[fx.Effect]:
    """An outcome tells another number than the one that was given."""
    return [
        dataclasses.replace(one, outcomes=[_wrong(outcome) for outcome in one.outcomes])
        if isinstance(one, fx.Answer) and machine.steps % 5 == 0
        else one
        for one in effects
    ]


def _wrong(outcome: SendOutcome) -> SendOutcome:
    return outcome if outcome.error else outcome._replace(sequence=outcome.sequence + 1)


def _never(_: Item) -> Instant:
    return NEVER


def _ignore(_: Item, __: Instant) -> None:
    """Do not take the value."""


def _grant_more(session: Session, *_: object) -> None:
    session.credits += 60
    session.emergency_credits += 60


def _ready_unless_any_waits(domain: Domain) -> bool:
    if any(other.delayed_until for other in domain.mailbox.domains):
        return False
    return bool(domain.waiting) and not domain.blocked


def _match_but_one(topics: Topics, topic: str) -> set[str]:
    del topic
    return {owner for owner in ("r1", "r2") if topics.count(owner)} - {"r2"}


def _say_more(_: BrokenMachine, __: ev.Event, effects: list[fx.Effect]) -> list[fx.Effect]:
    """The outcome counts one copy that there is not."""
    return [
        dataclasses.replace(one, outcomes=[_one_more(outcome) for outcome in one.outcomes])
        if isinstance(one, fx.Answer)
        else one
        for one in effects
    ]


def _one_more(outcome: SendOutcome) -> SendOutcome:
    chosen = outcome.chosen
    if chosen is None or chosen.receiver_count < 2:
        return outcome
    return outcome._replace(chosen=chosen._replace(receiver_count=chosen.receiver_count + 1))


@dataclasses.dataclass(frozen=True)
class Bug:
    """One defect, and the promise that it breaks."""

    promise: str
    event: Callable[[BrokenMachine, ev.Event], ev.Event] | None = None
    effects: Callable[[BrokenMachine, ev.Event, list[fx.Effect]], list[fx.Effect]] | None = None
    # What is replaced inside the core, and by what.
    patch: tuple[object, str, object] | None = None
    # Envelopes that a sender sends at once; some defects show under load only.
    burst: int = 6


BUGS = {
    "lost accept": Bug("M1"),
    "lost ack": Bug("M1"),
    "answer before the disk": Bug("M1", effects=_answer_early),
    "double effect": Bug("M2", patch=(DedupWindow, "add", lambda window, *rest: None)),
    "ids forgotten in a crash": Bug("M2"),
    "reused id accepted": Bug(
        "M2",
        patch=(admission, "_repeated", lambda draft, known: SendOutcome(draft.message_id, known[1], None)),
    ),
    "at most twice": Bug("M2", effects=_double),
    "wrong number": Bug("M2", effects=_renumber),
    "resurrection": Bug("M3"),
    "reordered delivery": Bug("M3", effects=_reorder),
    "no recall": Bug("M3", patch=(settlement, "recall_from", lambda desk, domain, sequence: None)),
    "retry blocks the mailbox": Bug("M4", patch=(Domain, "ready", property(_ready_unless_any_waits))),
    "silent expiry": Bug("M5", effects=_silence),
    "delivery after the ttl": Bug("M5", patch=(Item, "expire_at", property(_never, _ignore))),
    "emergency last": Bug("M6", effects=_hurry_others),
    "starved lane": Bug(
        "M6", patch=(LaneShares, "charge", lambda shares, served, count, waiting: None), burst=30
    ),
    "stolen ack token": Bug("M7", event=_steal_tokens, effects=_note_tokens),
    "reused token": Bug("M7", effects=_reuse_tokens),
    "credits ignored": Bug("M8", patch=(flow, "grant", _grant_more)),
    "swallowed outcome": Bug("M8", effects=_swallow),
    "subscriptions forgotten in a crash": Bug("M8"),
    "chosen receivers forgotten in a crash": Bug("M2"),
    "one subscriber left out": Bug("M8", patch=(Topics, "match", _match_but_one)),
    "fewer copies than said": Bug("M1", effects=_say_more),
    "another instance": Bug("M8", patch=(Domain, "instance", property(lambda domain: None, _ignore))),
    "forgotten by the instance": Bug("M4", patch=(attachment, "enlist_for", lambda session: None)),
    "chosen anew": Bug("M2", patch=(DedupWindow, "chosen", lambda window, message_id: Chosen("r2", 1))),
}


def worlds_until_noticed(name: str, make: MakeDisk, worlds: int) -> int | None:
    """Return how many worlds with one defect it took until the checker named the promise; None: too many."""
    bug = BUGS[name]
    with contextlib.ExitStack() as stack:
        if bug.patch is not None:
            stack.enter_context(patch.object(*bug.patch))
        for seed in range(worlds):
            with make(seed) as disk:
                broken = partial(BrokenMachine, bug=name)
                world = World(seed, LossyDisk(disk, name), broken, inspects=False, burst=bug.burst)
                try:
                    world.play()
                except BrokenPromise as noticed:
                    if noticed.promise == bug.promise:
                        return seed + 1
    return None
