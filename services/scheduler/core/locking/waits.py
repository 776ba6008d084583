"""The waits-for graph of lock owners: who waits for whom, and whether that goes round in a circle.

Method: Holt, "Some deadlock properties of computer systems" (ACM Computing Surveys 4:3, 1972). Nodes are
owners. There are two kinds of edges, from the owner of a waiting request
  - to the owner of a lock that leaves no room for it (hard: ends only when that owner releases),
  - to the owner of an earlier request in its queue that conflicts with it (soft: a matter of order).
An ABANDONED grant ends without its owner's doing, so no edge leads to it. Searches are iterative.
"""

from __future__ import annotations

from services.scheduler.core.locking.book import LockBook
from services.scheduler.core.locking.queue import LockOwner, LockRecord, LockStage


def waits_for(book: LockBook, owner: LockOwner, target: LockOwner) -> bool:
    """Return whether `owner` waits, directly or through others, for something that `target` holds.

    Edges of both kinds count, but the last one must be hard.
    """
    seen, stack = {owner, target}, [owner]
    while stack:
        for record in book.waiting_of(stack.pop()):
            for holder in book.holders_against(record):
                if holder.stage is LockStage.ABANDONED:
                    continue
                if holder.owner == target:
                    return True
                if holder.owner not in seen:
                    seen.add(holder.owner)
                    stack.append(holder.owner)
            for name in record.modes:
                for other in book.queues[name].next_ahead_of(record):
                    if other.owner not in seen:
                        seen.add(other.owner)
                        stack.append(other.owner)
    return False


def find_circle(book: LockBook, start: LockOwner) -> list[LockRecord] | None:
    """Return a circle of hard edges through `start`, as the waiting requests that make it, or None.

    The first request is one of `start`; each waits for what the next one's owner holds, the last one for
    what `start` holds.
    """
    came_by = _reach(book, start)
    closing = came_by.get(start)
    if closing is None:
        return None
    circle = [closing]
    while circle[-1].owner != start:
        circle.append(came_by[circle[-1].owner])
    return circle[::-1]


def would_close_circle(book: LockBook, record: LockRecord) -> LockRecord | None:
    """Return a waiting request whose owner would wait for `record`'s owner, and be waited for by it, after
    `record` was granted.
    """
    if len(book.waiting_of(record.owner)) == 1:
        return None
    reached = _reach(book, record.owner)
    return next((other for other in book.waiters_against(record) if other.owner in reached), None)


def _reach(book: LockBook, start: LockOwner) -> dict[LockOwner, LockRecord]:
    """Return the owners that hard edges lead to from `start`, each with the request by which it was found."""
    came_by: dict[LockOwner, LockRecord] = {}
    stack = [start]
    while stack:
        for record in book.waiting_of(stack.pop()):
            for holder in book.holders_against(record):
                if holder.stage is not LockStage.ABANDONED and holder.owner not in came_by:
                    came_by[holder.owner] = record
                    stack.append(holder.owner)
    return came_by
