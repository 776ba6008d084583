"""Who holds which resource, and who is next: all claims of a request or none, in order, without deadlock.

The order. Requests are served by priority class, then by arrival; waiting lifts a request by one class every
`ageing_step_ms`. Both together are one number fixed on arrival, `arrival + class * ageing_step_ms`, the
smaller the earlier: Jackson's dynamic priorities ("Some problems in queueing with dynamic priorities",
Naval Research Logistics Quarterly 7, 1960), without a timer and without re-sorting.

The rule that bounds waiting. A request is granted when all its claims are free and no request before it
conflicts with it ("no barging"). So a request for several resources keeps its place on each of them and is
never starved by requests for one; and as places are fixed, whoever waits is passed only by higher classes
that come within (difference of classes) * `ageing_step_ms` of it, EMERGENCY included. The price: a resource
may stand idle for a while because the first in its line waits for another one as well.

The one exception. An owner that already holds something may pass a request that waits, directly or through
others, for what that owner holds: that request could not be granted earlier by keeping the order, and both
would wait for ever. (PostgreSQL's lock manager arranges its queues in the same way.) With it, every deadlock
is a circle of owners each of which waits for a lock that the next one *holds*; it is found when the request
that closes it queues, and broken by refusing the circle's waiting request of the lowest class, then the
youngest. A grant that would close a circle, possible when one owner waits for several things at once, is put
off instead.

Lending. While an owner is in the way of more urgent work it counts in the class of that work, and so do the
owners for which it waits in turn: see `lock_lending`.

Two steps. `Proposed` occupies the resources; the caller makes it durable and says `confirm` with the token,
or `roll_back`, which puts the request back into its place.

Keys that others put into the store exclude us and are excluded by us; they wait in the store's queue, not in
this one, so a circle through them is not seen: give such waits a bound.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from services.common.core.errors import ServiceError
from services.common.core.fencing import FencingToken
from services.common.core.ids import ResourceName
from services.common.core.instants import Instant
from services.scheduler.core.locking.book import LockBook
from services.scheduler.core.locking.lending import lend
from services.scheduler.core.locking.queue import (
    ForeignKey,
    LockId,
    LockOwner,
    LockRecord,
    LockRequest,
    LockStage,
)
from services.scheduler.core.locking.waits import find_circle, waits_for, would_close_circle
from services.scheduler.core.locking.words import (
    LentView,
    LockView,
    blocked_error,
    deadlock_error,
    lent_view,
    own_conflict_error,
    view_of_token,
    views,
)
from services.scheduler.core.model import InstanceKey, LockMode, Priority


@dataclass(frozen=True, slots=True)
class Proposed:
    """All claims are free and now occupied: make the grant durable, then `confirm` or `roll_back`."""

    request: LockRequest


@dataclass(frozen=True, slots=True)
class Refused:
    """The request is over without a grant.

    The error is RESOURCE_HELD with `resource`, `holder`, `until`, and with `cycle` when the request was
    chosen to break a deadlock; its owner then still holds what it held.
    """

    request: LockRequest
    error: ServiceError


@dataclass(frozen=True, slots=True)
class Freed:
    """These resources were given up: take their keys out of the store before, or with, the next grant."""

    lock_id: LockId
    resources: tuple[ResourceName, ...]


@dataclass(frozen=True, slots=True)
class Lent:
    """A request counts in a more urgent class from now on, because `lender` waits for it."""

    request: LockRequest
    lender: LockRequest
    priority: Priority


LockOutcome = Proposed | Refused | Freed | Lent


class LockTable:
    """All locks of the plane. A method that changes something returns what follows from it, in order."""

    def __init__(self, *, ageing_step_ms: int = 60_000) -> None:
        self._ageing_step_ms = ageing_step_ms
        self._arrivals = 0
        self._book = LockBook()
        # Waiting requests that the holders leave room for, and that may go once the waits-for graph changes.
        self._stalled: dict[LockId, LockRecord] = {}

    def __repr__(self) -> str:
        return f"<LockTable requests={len(self._book.records)} resources={len(self._book.queues)}>"

    # What can happen.

    def request(self, request: LockRequest, now: Instant, *, may_wait: bool = True) -> list[LockOutcome]:
        """Propose `request`, let it wait, or refuse it; a deadlock that it closes is broken at once.

        Refused at once: a claim that conflicts with another one of the same owner, and, without `may_wait`,
        whatever cannot be granted now.
        """
        if request.lock_id in self._book.records:
            raise ValueError(f"{request.lock_id} is in use")
        self._arrivals += 1
        order = (now + request.priority * self._ageing_step_ms, self._arrivals)
        record = LockRecord(request, order, {claim.resource: claim.mode for claim in request.claims}, now)
        self._inherit(record)
        conflict = self._own_conflict(record)
        if conflict is not None:
            return [Refused(request, own_conflict_error(self._book, *conflict))]
        self._book.add_waiting(record)
        if not may_wait and not self._is_grantable(record):
            error = blocked_error(self._book, record)
            self._end_waiting(record)
            self._book.tidy(record.modes)
            return [Refused(request, error)]
        return self._wait_or_propose(record)

    def confirm(
        self, lock_id: LockId, token: FencingToken, agent: InstanceKey, now: Instant
    ) -> list[LockOutcome]:
        """The proposed grant is durable: `agent` holds it for its owner under `token`."""
        record = self._proposed(lock_id)
        if record.stage is LockStage.ABANDONED:
            return self._free(record)
        record.stage, record.token, record.agent, record.since = LockStage.HELD, token, agent, now
        return []

    def roll_back(self, lock_id: LockId) -> list[LockOutcome]:
        """The proposed grant is not durable and will not be: the request takes its place again.

        Say first what stood in the way (`put_foreign`); otherwise the same grant is proposed at once.
        """
        record = self._proposed(lock_id)
        abandoned = record.stage is LockStage.ABANDONED
        self._book.remove_occupying(record)
        if abandoned:
            self._book.forget(record)
            return self._settle(record.modes)
        self._book.add_waiting(record)
        return self._wait_or_propose(record, touched=record.modes)

    def release(self, lock_id: LockId, resources: Iterable[ResourceName] | None = None) -> list[LockOutcome]:
        """End a request in any stage, or give back some of the resources of a held one.

        What is not there is passed over, so that a release may be repeated.
        """
        record = self._book.records.get(lock_id)
        if record is None:
            return []
        if record.stage is LockStage.HELD:
            wanted = record.modes if resources is None else frozenset(resources)
            names = tuple(name for name in record.modes if name in wanted)
            if len(names) == len(record.modes):
                return self._free(record)
            self._book.shrink(record, names)
            return [Freed(lock_id, names), *self._settle(names)] if names else []
        if record.stage is LockStage.WAITING:
            self._end_waiting(record)
            return self._settle(record.modes)
        if record.stage is LockStage.PROPOSED:
            # Its keys may be on their way into the store: only the answer tells what must be taken out.
            self._book.abandon(record)
            return self._settle(())
        return []

    def give_up(self, lock_id: LockId) -> list[LockOutcome]:
        """Refuse a request that waited as long as it wanted to; one that does not wait is passed over."""
        record = self._book.records.get(lock_id)
        if record is None or record.stage is not LockStage.WAITING:
            return []
        error = blocked_error(self._book, record)
        self._end_waiting(record)
        return [Refused(record.request, error), *self._settle(record.modes)]

    def expire_owner(self, owner: LockOwner) -> list[LockOutcome]:
        """End everything of an owner that is gone; its waiting requests get no answer."""
        freed: list[LockOutcome] = []
        touched: dict[ResourceName, LockMode] = {}
        for record in [*self._book.waiting_of(owner), *self._book.occupying_of(owner)]:
            if record.stage is LockStage.PROPOSED:
                self._book.abandon(record)
                continue
            touched |= record.modes
            if record.stage is LockStage.WAITING:
                self._end_waiting(record)
            else:
                freed.append(Freed(record.lock_id, tuple(record.modes)))
                self._book.remove_occupying(record)
                self._book.forget(record)
        return [*freed, *self._settle(touched)]

    def renew(self, owner: LockOwner, until: Instant) -> None:
        """Note until when the owner's locks stand unless renewed again; only `expire_owner` ends them."""
        if self._book.knows(owner):
            self._book.until[owner] = until

    def put_foreign(self, foreign: ForeignKey) -> None:
        """Somebody else put a key: until it is gone nothing new is granted on its resource."""
        self._book.queue(foreign.resource).foreign[foreign.key] = foreign

    def remove_foreign(self, resource: ResourceName, key: str) -> list[LockOutcome]:
        """Somebody else's key is gone; one that was not known is passed over."""
        queue = self._book.queues.get(resource)
        if queue is None or queue.foreign.pop(key, None) is None:
            return []
        return self._settle((resource,))

    def restore(self, request: LockRequest, token: FencingToken, agent: InstanceKey, since: Instant) -> None:
        """Take over a durable grant as the store has it, before anything else happens.

        Raises `ValueError` when another one that was restored leaves no room for it.
        """
        modes = {claim.resource: claim.mode for claim in request.claims}
        record = LockRecord(request, (since, 0), modes, since, LockStage.HELD, token, agent)
        for name, mode in modes.items():
            other = next(self._book.queue(name).holders_against(mode), None)
            if other is not None:
                raise ValueError(f"{name}: {request.lock_id} and {other.lock_id} both hold it")
        self._book.add_occupying(record, LockStage.HELD)

    # What can be asked.

    def snapshot(self, resource: ResourceName | None = None) -> list[LockView]:
        """Return every claim, by resource: who holds it, then who waits in the order of their places."""
        names = sorted(self._book.queues) if resource is None else [resource]
        return [view for name in names if name in self._book.queues for view in views(self._book, name)]

    def find(self, resource: ResourceName, token: FencingToken) -> LockView | None:
        """Return the claim on `resource` that is held under `token`."""
        return view_of_token(self._book, resource, token)

    def lent_to(self, owner: LockOwner) -> LentView | None:
        """Return the most urgent class that waits for what `owner` holds or comes before, None for nobody."""
        return lent_view(self._book, owner)

    # How it is decided.

    def _own_conflict(self, record: LockRecord) -> tuple[ResourceName, LockRecord] | None:
        """Return another request of the same owner that can never be held together with `record`."""
        for other in (*self._book.occupying_of(record.owner), *self._book.waiting_of(record.owner)):
            for name, mode in record.modes.items():
                if name in other.modes and LockMode.EXCLUSIVE in (mode, other.modes[name]):
                    return name, other
        return None

    def _wait_or_propose(self, record: LockRecord, touched: Iterable[ResourceName] = ()) -> list[LockOutcome]:
        """Decide about a request that has just queued, and about all that this changes."""
        refused, places = self._break_deadlocks(record)
        if record.stage is LockStage.WAITING:
            self._stalled[record.lock_id] = record
        settled = self._settle([*touched, *places])
        if record.stage is not LockStage.WAITING:
            return [*refused, *settled]
        # It waits: whatever is in its way counts as much as it does.
        lent = self._lend(record)
        return [*refused, *settled, *lent, *(self._settle(()) if lent else ())]

    def _lend(self, waiting: LockRecord) -> list[LockOutcome]:
        """Let what is in the way of a waiting request count as much as it does; what moved may go now."""
        lent: list[LockOutcome] = []
        for loan in lend(self._book, waiting, self._ageing_step_ms):
            lent.append(Lent(loan.borrower.request, loan.lender.request, loan.priority))
            if loan.borrower.stage is LockStage.WAITING:
                self._stalled[loan.borrower.lock_id] = loan.borrower
        return lent

    def _inherit(self, record: LockRecord) -> None:
        """A request of an owner for whom somebody more urgent waits begins in that class."""
        loan = self.lent_to(record.owner)
        if loan is not None and loan.priority < record.request.priority:
            record.lent = loan.priority
            place = record.order[0] - (record.request.priority - loan.priority) * self._ageing_step_ms
            record.order = (place, record.order[1])

    def _break_deadlocks(self, record: LockRecord) -> tuple[list[LockOutcome], list[ResourceName]]:
        """Refuse victims until `record` closes no circle; return that, and what they waited for."""
        refused: list[LockOutcome] = []
        places: list[ResourceName] = []
        # Without a lock of its owner's nobody waits for it, so that there is no circle.
        while self._book.occupying_of(record.owner) and record.stage is LockStage.WAITING:
            circle = find_circle(self._book, record.owner)
            if circle is None:
                break
            victim = max(circle, key=lambda member: (member.request.priority, member.order[1]))
            at = circle.index(victim)
            refused.append(Refused(victim.request, deadlock_error(self._book, circle[at:] + circle[:at])))
            places += victim.modes
            self._end_waiting(victim)
        return refused, places

    def _settle(self, touched: Iterable[ResourceName]) -> list[LockOutcome]:
        """Propose all that may go after holders or waiters left `touched`, or the waits-for graph changed."""
        touched = list(dict.fromkeys(touched))
        queues = [self._book.queues[name] for name in touched if name in self._book.queues]
        leading = [record for queue in queues if not queue.foreign for record in queue.leading()]
        outcomes = self._propose_grantable(leading)
        for queue in queues:
            if queue.admits(LockMode.SHARED):
                # There may still be room that the first in line cannot use; then somebody else may pass.
                self._stalled |= {
                    record.lock_id: record
                    for record in queue.waiters_against(LockMode.EXCLUSIVE)
                    if self._may_move(record)
                }
        # A grant changes the graph as well, so try until nothing moves.
        while self._stalled and (passing := self._propose_grantable(self._stalled.values())):
            outcomes += passing
        self._stalled = {
            lock_id: record
            for lock_id, record in self._stalled.items()
            if self._may_move(record) and self._book.has_room(record)
        }
        self._book.tidy(touched)
        return outcomes

    def _propose_grantable(self, candidates: Iterable[LockRecord]) -> list[LockOutcome]:
        distinct = {record.lock_id: record for record in candidates}
        ordered = sorted(distinct.values(), key=lambda record: record.order)
        return [
            outcome for record in ordered if self._is_grantable(record) for outcome in self._propose(record)
        ]

    def _propose(self, record: LockRecord) -> list[LockOutcome]:
        self._remove_waiting(record)
        self._book.add_occupying(record, LockStage.PROPOSED)
        # Whoever waits for this owner now waits for a holder, whose other requests may pass.
        self._stalled |= {other.lock_id: other for other in self._book.waiting_of(record.owner)}
        lent: list[LockOutcome] = []
        if self._book.waiting_of(record.owner):
            # Who merely came after it waits for what it holds now: that counts for its other requests.
            waiters = self._book.waiters_against(record)
            urgent = min(waiters, key=lambda other: other.priority, default=None)
            lent = [] if urgent is None else self._lend(urgent)
        return [Proposed(record.request), *lent]

    def _is_grantable(self, record: LockRecord) -> bool:
        if not self._book.has_room(record):
            return False
        may_pass = bool(self._book.occupying_of(record.owner))
        for name in record.modes:
            for other in self._book.queues[name].ahead_of(record):
                if not (may_pass and waits_for(self._book, other.owner, record.owner)):
                    return False
        return would_close_circle(self._book, record) is None

    def _may_move(self, record: LockRecord) -> bool:
        """Return whether a change of the waits-for graph alone can make `record` grantable."""
        return bool(self._book.occupying_of(record.owner)) or len(self._book.waiting_of(record.owner)) > 1

    def _proposed(self, lock_id: LockId) -> LockRecord:
        record = self._book.records.get(lock_id)
        if record is None or record.stage not in (LockStage.PROPOSED, LockStage.ABANDONED):
            stage = "not here" if record is None else record.stage.name
            raise ValueError(f"{lock_id} is {stage}; only a proposed grant can be confirmed or rolled back")
        return record

    def _remove_waiting(self, record: LockRecord) -> None:
        self._book.remove_waiting(record)
        self._stalled.pop(record.lock_id, None)

    def _end_waiting(self, record: LockRecord) -> None:
        self._remove_waiting(record)
        self._book.forget(record)

    def _free(self, record: LockRecord) -> list[LockOutcome]:
        """End a grant."""
        names = tuple(record.modes)
        self._book.remove_occupying(record)
        self._book.forget(record)
        return [Freed(record.lock_id, names), *self._settle(names)]
