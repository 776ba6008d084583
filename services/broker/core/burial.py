"""Giving an envelope up: a dead letter for people, a tombstone for its receiver."""

from __future__ import annotations

from typing import NamedTuple

from services.broker.core.desk import Burial, Desk
from services.broker.core.model import DeadLetter, DeadReason, Tombstone
from services.broker.core.state import Domain, Item, Stream
from services.broker.core.table import DeliveryInput
from services.common.core.instants import Instant

# As the token of an announcement that was not made yet: greater than every token.
_UNTOLD = 2**64


class Fate(NamedTuple):
    """How an envelope ends that is given up."""

    given: DeliveryInput
    reason: DeadReason
    # For people.
    message: str


def bury(desk: Desk, item: Item, fate: Fate, now: Instant, stream: Stream | None = None) -> None:
    """Give `item` up; its domain hands over nothing more before that is durable.

    The caller has taken it out of its session or out of what waits. `stream` is the one whose reject this
    is, if it is one.
    """
    domain = item.domain
    sequence = item.envelope.sequence
    item.advance(fate.given)
    desk.count(fate.given)
    domain.blocked += 1
    domain.settled.add(sequence)
    stones = domain.tombstones
    at = len(stones)
    while at and stones[at - 1].sequence > sequence:
        at -= 1
    stones.insert(at, _stone(item, fate.reason))
    domain.told[sequence] = _UNTOLD
    desk.open.touched[domain] = None
    letter = DeadLetter(item.envelope, fate.reason, fate.message, now, item.handed_over)
    desk.open.burials.append(Burial(item, letter, stream))


def unbury(burial: Burial) -> None:
    """Take back what `bury` did to the domain: the commit failed."""
    domain = burial.item.domain
    sequence = burial.item.envelope.sequence
    domain.blocked -= 1
    domain.tombstones = [stone for stone in domain.tombstones if stone.sequence != sequence]
    domain.told.pop(sequence, None)


def announce(desk: Desk, burial: Burial) -> Tombstone:
    """Return the tombstone of a burial that is durable, for whoever listens now.

    Who comes later is told when it comes. Beyond the bound the oldest tombstones become one that stands for
    a range.
    """
    domain = burial.item.domain
    domain.told[burial.item.envelope.sequence] = desk.state.token
    stones = domain.tombstones
    excess = len(stones) - desk.limits.tombstones_max_per_domain
    if excess > 0 and not any(untold(domain, stone) for stone in stones[: excess + 1]):
        newest = stones[excess]
        for stone in stones[:excess]:
            domain.told.pop(stone.sequence, None)
        stones[: excess + 1] = [Tombstone(stones[0].first_sequence, newest.sequence, "", newest.reason)]
        desk.open.touched[domain] = None
    return _stone(burial.item, burial.letter.reason)


def untold(domain: Domain, stone: Tombstone) -> bool:
    """Return whether a tombstone is not durable yet."""
    return domain.told.get(stone.sequence) == _UNTOLD


def drop_tombstones(domain: Domain, acked: Item) -> bool:
    """Forget what the receiver has certainly been told: it acked a later envelope that was handed over after
    the telling. Return whether anything was forgotten.
    """
    stones = domain.tombstones
    drop = 0
    while (
        drop < len(stones)
        and stones[drop].sequence < acked.envelope.sequence
        and domain.told.get(stones[drop].sequence, 0) < acked.token
    ):
        domain.told.pop(stones[drop].sequence, None)
        drop += 1
    del stones[:drop]
    return drop > 0


def _stone(item: Item, reason: DeadReason) -> Tombstone:
    sequence = item.envelope.sequence
    return Tombstone(sequence, sequence, item.envelope.draft.message_id, reason)


EXPIRED_WAITING = Fate(DeliveryInput.EXPIRED, DeadReason.EXPIRED, "its ttl passed while it waited")
