"""Priority lent along the waits-for graph, so that urgent work never waits for work that waits its turn.

Method: priority inheritance, Sha, Rajkumar and Lehoczky, "Priority inheritance protocols: an approach to
real-time synchronization" (IEEE Transactions on Computers 39:9, 1990), transitive over chains. Whoever waits
lends its class to whoever is in its way. Two questions are answered in two ways.

Who lends to an owner *now* is found when asked, backwards over the waits-for graph, order in the queues
included (`lender_of`): it is exact at every moment and costs nothing while nobody asks.

Where a holder's own requests stand in their queues is moved when a request begins to wait for it (`lend`). A
place that was lent is kept: like a place that waiting has improved, it ends with the grant. To take it back
would cost a search at each end of a wait, to the benefit of nobody who is urgent. An earlier request that
merely waits is not moved: it is earlier by the rule of the order, which counts its age.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from services.common.core.ids import ResourceName
from services.scheduler.core.locking.book import LockBook
from services.scheduler.core.locking.queue import LockOwner, LockRecord, LockStage
from services.scheduler.core.model import LockMode, Priority


class Loan(NamedTuple):
    """One request counts in the class of another that waits for it."""

    borrower: LockRecord
    lender: LockRecord
    priority: Priority


def lender_of(book: LockBook, owner: LockOwner) -> LockRecord | None:
    """Return the most urgent request that waits for `owner`, directly or through others; None for nobody."""
    best: LockRecord | None = None
    seen, stack = {owner}, [owner]
    covered: dict[tuple[ResourceName, LockMode], tuple[int, int]] = {}
    while stack:
        for waiter in _who_waits(book, stack.pop(), covered):
            if waiter.owner == owner:
                continue
            if best is None or waiter.request.priority < best.request.priority:
                best = waiter
                if best.request.priority is Priority.EMERGENCY:
                    return best
            if waiter.owner not in seen:
                seen.add(waiter.owner)
                stack.append(waiter.owner)
    return best


def lend(book: LockBook, waiting: LockRecord, ageing_step_ms: int) -> list[Loan]:
    """Lend the class of a request that begins to wait to all that it waits for; return what is new.

    The waiting requests of the borrowers take the places that the class gives them.
    """
    priority = waiting.priority
    loans: list[Loan] = []
    stack = [waiting]
    while stack:
        for blocker in [*book.holders_against(stack.pop())]:
            if blocker.stage is LockStage.ABANDONED:
                continue
            for record in (blocker, *book.waiting_of(blocker.owner)):
                # What counts as urgent already has lent on when it began to.
                if record.priority > priority:
                    place = record.order[0] - (record.priority - priority) * ageing_step_ms
                    loans.append(Loan(record, waiting, priority))
                    record.lent = priority
                    book.move(record, place)
                    if record.stage is LockStage.WAITING:
                        stack.append(record)
    return loans


def _who_waits(
    book: LockBook, owner: LockOwner, covered: dict[tuple[ResourceName, LockMode], tuple[int, int]]
) -> Iterator[LockRecord]:
    """Yield the waiters that `owner` is in the way of; each part of a queue is walked through once."""
    for record in book.occupying_of(owner):
        for name, mode in record.modes.items():
            if _take(covered, name, mode, (-1, 0)):
                yield from book.queues[name].waiters_against(mode)
    for record in book.waiting_of(owner):
        for name, mode in record.modes.items():
            if _take(covered, name, mode, record.order):
                yield from book.queues[name].behind(record)


def _take(
    covered: dict[tuple[ResourceName, LockMode], tuple[int, int]],
    name: ResourceName,
    mode: LockMode,
    place: tuple[int, int],
) -> bool:
    """Return whether what stands behind `place` has not been walked through yet, and note that it is now."""
    whole = covered.get((name, LockMode.EXCLUSIVE))
    known = covered.get((name, mode))
    if (whole is not None and whole <= place) or (known is not None and known <= place):
        return False
    covered[name, mode] = place
    return True
