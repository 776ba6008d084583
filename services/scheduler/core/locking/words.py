"""What callers are told about locks: refusals with holder and until, and the list of all claims."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from services.common.core.errors import Reason, ServiceError
from services.common.core.fencing import FencingToken
from services.common.core.ids import ResourceName
from services.common.core.instants import Instant, rfc3339
from services.scheduler.core.locking.book import LockBook
from services.scheduler.core.locking.lending import lender_of
from services.scheduler.core.locking.queue import (
    ForeignKey,
    InstanceOwner,
    LockId,
    LockOwner,
    LockRecord,
    LockStage,
)
from services.scheduler.core.locking.waits import would_close_circle
from services.scheduler.core.model import InstanceKey, LockMode, Priority

# Owners of a circle that are named in an error; the others are counted.
CIRCLE_NAMED_MAX = 10


@dataclass(frozen=True, slots=True)
class LockView:
    """One claim that is held or waits, for `ListLocks`."""

    resource: ResourceName
    mode: LockMode
    held: bool
    # For people: the owner, or the foreign key.
    holder: str
    # Both None for a key that somebody else put.
    lock_id: LockId | None = None
    owner: LockOwner | None = None
    # Both set when held by one of ours and durable.
    agent: InstanceKey | None = None
    token: FencingToken | None = None
    # Since when it is held or waits; None for a foreign key.
    since: Instant | None = None
    # Until when it is held unless renewed; None when unknown.
    until: Instant | None = None
    # Its owner's own class; None for a foreign key.
    priority: Priority | None = None
    # Who lends it a more urgent class by waiting for its owner; None for nobody.
    lent: LentView | None = None


class LentView(NamedTuple):
    """The most urgent class that waits for an owner, directly or through others."""

    priority: Priority
    # For people: who waits.
    by: str


def lent_view(book: LockBook, owner: LockOwner) -> LentView | None:
    """Return the most urgent class that waits for `owner`, None when nobody does."""
    lender = lender_of(book, owner)
    return None if lender is None else LentView(lender.request.priority, _named(lender))


def views(book: LockBook, name: ResourceName) -> Iterator[LockView]:
    """Yield the claims on one resource: who holds it, then who waits in the order of their places."""
    queue = book.queues[name]
    tokens = [record.token.number for record in queue.holders.values() if record.token is not None]
    foreign = sorted(queue.foreign.values(), key=lambda key: key.revision)
    # By the rule of etcd's lock recipe only the oldest key holds.
    first_holds = bool(foreign) and all(foreign[0].revision < number for number in tokens)
    if first_holds:
        yield _foreign_view(foreign[0], held=True)
    for record in [*queue.holders.values(), *queue.waiters()]:
        yield _view(book, name, record)
    for key in foreign[1:] if first_holds else foreign:
        yield _foreign_view(key, held=False)


def view_of_token(book: LockBook, name: ResourceName, token: FencingToken) -> LockView | None:
    """Return the claim on `name` that is held under `token`."""
    queue = book.queues.get(name)
    holders = queue.holders.values() if queue is not None else ()
    return next((_view(book, name, record) for record in holders if record.token == token), None)


def own_conflict_error(book: LockBook, name: ResourceName, other: LockRecord) -> ServiceError:
    """Return the refusal of a request that conflicts with `other`, one of the same owner."""
    verb = "waits for" if other.stage is LockStage.WAITING else "holds"
    return _held_by(
        book,
        name,
        other,
        f"{other.owner} itself {verb} it: release that first, or lock on behalf of another attempt",
    )


def blocked_error(book: LockBook, record: LockRecord) -> ServiceError:
    """Return what is in the way of a waiting request: a holder, else a foreign key, else a waiter."""
    for name, mode in record.modes.items():
        holder = next(book.queues[name].holders_against(mode), None)
        if holder is not None:
            advice = f"held by {_named(holder)}: ask again later, or wait longer"
            return _held_by(book, name, holder, advice)
    for name in record.modes:
        key = next(iter(book.queues[name].foreign), None)
        if key is not None:
            return ServiceError(
                Reason.RESOURCE_HELD,
                f"{name}: held by the key {key}, which Muster did not put: have it removed, or wait longer",
                metadata={"resource": name, "holder": key, "until": ""},
            )
    for name in record.modes:
        other = next(book.queues[name].ahead_of(record), None)
        if other is not None:
            return _waits_before(book, name, other)
    other = would_close_circle(book, record)
    if other is None:
        raise ValueError(f"nothing is in the way of {record.lock_id}")
    return _waits_before(book, next(name for name in record.modes if name in other.modes), other)


def deadlock_error(book: LockBook, circle: list[LockRecord]) -> ServiceError:
    """Return the refusal of the first request of `circle`, which was chosen to break it."""
    victim, following = circle[0], circle[1 % len(circle)]
    name, holder = next(
        (name, holder)
        for name, mode in victim.modes.items()
        for holder in book.queues[name].holders_against(mode)
        if holder.owner == following.owner
    )
    named = [str(member.owner) for member in circle[:CIRCLE_NAMED_MAX]]
    if len(circle) > CIRCLE_NAMED_MAX:
        named.append(f"({len(circle) - CIRCLE_NAMED_MAX} more)")
    cycle = " -> ".join([*named, str(victim.owner)])
    advice = (
        f"deadlock, {cycle}: this request is the lowest in priority, then the youngest of them; release what "
        f"you hold and ask again"
    )
    return _held_by(book, name, holder, advice, cycle=cycle)


def _waits_before(book: LockBook, name: ResourceName, other: LockRecord) -> ServiceError:
    advice = f"{_named(other)} waits for it and comes first: ask again later, or wait longer"
    return _held_by(book, name, other, advice)


def _held_by(book: LockBook, name: ResourceName, other: LockRecord, advice: str, **more: str) -> ServiceError:
    until = book.until.get(other.owner)
    metadata = {"resource": name, "holder": _named(other), "until": "" if until is None else rfc3339(until)}
    return ServiceError(Reason.RESOURCE_HELD, f"{name}: {advice}", metadata={**metadata, **more})


def _named(record: LockRecord) -> str:
    """Return who holds or waits: the owner, with the agent that acts for a task once it is known."""
    if record.agent is None or isinstance(record.owner, InstanceOwner):
        return str(record.owner)
    return f"agent {record.agent} for {record.owner}"


def _view(book: LockBook, name: ResourceName, record: LockRecord) -> LockView:
    held = record.stage is not LockStage.WAITING
    own = record.request.priority
    lent = lent_view(book, record.owner)
    return LockView(
        name,
        record.modes[name],
        held,
        _named(record),
        record.lock_id,
        record.owner,
        record.agent,
        record.token,
        record.since,
        book.until.get(record.owner) if held else None,
        own,
        lent if lent is not None and lent.priority < own else None,
    )


def _foreign_view(foreign: ForeignKey, *, held: bool) -> LockView:
    return LockView(foreign.resource, LockMode.EXCLUSIVE, held, foreign.key)
