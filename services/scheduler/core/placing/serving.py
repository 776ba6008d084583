"""Whose turn it is among the ready tasks of one class; the order itself is told in `placing.lanes`."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import count
from operator import attrgetter
from typing import Any, NamedTuple

from services.common.core.instants import Instant
from services.scheduler.core.course import Task
from services.scheduler.core.placing.fairness import Account, Totals, dominant_share
from services.scheduler.core.placing.lanes import Entry, Lane, is_live, smallest


class Offer(NamedTuple):
    """A queue's lanes of one class by requester, and the free agents for its demand."""

    lanes: Mapping[Account, Lane]
    #: A `Pool`, of which only the bounds matter here.
    pool: Any


_LAST_SHARE = attrgetter("last_share")
_FIRST = attrgetter("first")

#: See `_aged_turn`.
_AgedTurn = tuple[int, int, int, int]

#: (task, pool, whether it is served for its age).
Turn = tuple[Task, Any, bool]


def first(
    accounts: Mapping[Account, Mapping[Any, Lane]], queues: Collection[Any], totals: Totals
) -> Task | None:
    """Return the task that `serve` would serve first of one class, None when there is none.

    `accounts` are the requesters with their lanes by queue, of which only those in `queues` count.
    """
    found: Entry | None = None
    least = 0.0
    stamp = totals.changes
    for account in accounts:
        if account.stamp != stamp:
            account.share(totals)
    for account in sorted(accounts, key=_LAST_SHARE) if len(accounts) > 1 else accounts:
        share = account.last_share
        if found is not None and share > least:
            break
        least = share
        # All of it in C: dozens of queues, of which a few have tasks of this requester. Numbers differ: tasks
        # are never compared.
        heads = map(_FIRST, filter(None, map(accounts[account].get, queues)))
        entry: Entry | None = min(heads, default=None)
        if entry is not None and (found is None or entry < found):
            found = entry
    return None if found is None else found[2]


class Asking(NamedTuple):
    """Who may have tasks in one class."""

    #: At least those with a lane, each once.
    accounts: Iterable[Account]
    #: Each one's lanes, none of them empty.
    lanes_of: Callable[[Account], Iterable[Lane]]
    #: A queue's pool.
    pool_of: Callable[[Any], Any]


def serve(
    asking: Asking,
    totals: Totals,
    most: int,
    skip: frozenset[int] = frozenset(),
    *,
    whole: bool = False,
) -> list[Turn]:
    """Return up to `most` tasks of one class in serving order, from each pool no more than it has slots.

    `skip` are numbers of tasks that are served already. Next is always the requester with the smallest
    dominant share, counting what it has got in this call; of equals the one whose first task comes first.
    With `whole`, a requester's tasks are sorted all at once: cheaper when much of what waits is served.
    """
    turns: list[Turn] = []
    slots = totals.slots
    # A requester's tasks are looked at when it is its turn: its first entry says only what its share is.
    line: list[tuple[float, int, int, Account, _HeapBid | _SortedBid | None]] = [
        (each.share(totals), -1, number, each, None) for number, each in enumerate(asking.accounts)
    ]
    heapq.heapify(line)
    make = _SortedBid if whole else _HeapBid
    while line and len(turns) < most:
        share, _, number, account, bid = line[0]
        if bid is None:
            bid = make(account, totals, asking.lanes_of(account), asking.pool_of)
        elif len(line) == 1:
            while bid.key is not None and len(turns) < most:
                bid.take(turns, skip)
            break
        else:
            while bid.key is not None:
                if bid.take(turns, skip):
                    bid.held += 1
                    if turns[-1][0].spec.needs:
                        bid.add(turns[-1][0].spec.needs)
                    # As `fairness.dominant_share` has it.
                    share = bid.held / slots if slots else 0.0
                    share = max(share, bid.needs_share)
                    share /= account.weight
                    break
        if bid.key is None:
            heapq.heappop(line)
        else:
            heapq.heapreplace(line, (share, bid.key, number, account, bid))
    return turns


class _Bid:
    """What one requester wants to have served in one class, with what it would hold then."""

    __slots__ = ("_needs", "_totals", "held", "key", "needs_share")

    def __init__(self, account: Account, totals: Totals) -> None:
        self.held = account.held
        #: Of its first task; None when it has none (any more).
        self.key: int | None = None
        self._needs = account.needs
        self._totals = totals
        #: Its largest share of any capacity.
        self.needs_share = dominant_share(0, self._needs, 1.0, totals)

    def add(self, needs: Iterable[tuple[str, int]]) -> None:
        """Count what a task needs as held."""
        self._needs = dict(self._needs)
        for name, amount in needs:
            self._needs[name] = self._needs.get(name, 0) + amount
        self.needs_share = dominant_share(0, self._needs, 1.0, self._totals)


class _HeapBid(_Bid):
    """Looks at no more of each lane than is served, and asks for no other pool."""

    __slots__ = ("_heads", "_pool_of", "_rest")

    def __init__(
        self,
        account: Account,
        totals: Totals,
        lanes: Iterable[Lane],
        pool_of: Callable[[Any], Any],
    ) -> None:
        super().__init__(account, totals)
        #: The first entry of each of its lanes, as a heap. Numbers differ: tasks are never compared.
        self._heads: list[Entry] = [*map(_FIRST, lanes)]
        heapq.heapify(self._heads)
        self._pool_of = pool_of
        #: What follows in the lanes that were served from.
        self._rest: dict[Lane, Iterator[Entry]] = {}
        self.key = self._heads[0][0] if self._heads else None

    def take(self, turns: list[Turn], skip: frozenset[int]) -> bool:
        """Serve the first task, and return whether there was one to serve."""
        heads = self._heads
        _, number, task = heads[0]
        lane = task.lane
        if lane is None:
            raise AssertionError(f"{task} waits in no lane")
        pool = self._pool_of(lane.queue)
        full = pool.wanted >= pool.slots
        following: Entry | None = None
        if not full and lane.live > 1:
            rest = self._rest.get(lane)
            if rest is None:
                rest = self._rest[lane] = smallest(lane.heap, lane.live, is_live)
                next(rest)
            following = next(rest, None)
        if following is None:
            heapq.heappop(heads)
        else:
            heapq.heapreplace(heads, following)
        self.key = heads[0][0] if heads else None
        if full or number in skip:
            return False
        pool.wanted += 1
        turns.append((task, pool, False))
        return True


class _SortedBid(_Bid):
    """Sorts all that waits; what is passed over is what the heap would have passed over."""

    __slots__ = ("_at", "_entries", "_full")

    def __init__(
        self,
        account: Account,
        totals: Totals,
        lanes: Iterable[Lane],
        pool_of: Callable[[Any], Any],
    ) -> None:
        super().__init__(account, totals)
        self._entries = entries = [
            (key, number, task, pool)
            for lane, pool in [(lane, pool_of(lane.queue)) for lane in lanes]
            for key, number, task in lane.heap
            if number == task.queue_number
        ]
        entries.sort()
        self._at = 0
        #: Pools that were found without a slot left.
        self._full: set[Any] = set()
        self.key = entries[0][0] if entries else None

    def take(self, turns: list[Turn], skip: frozenset[int]) -> bool:
        """Serve the first task, and return whether there was one to serve."""
        entries, at, full = self._entries, self._at, self._full
        _, number, task, pool = entries[at]
        at += 1
        served = False
        if pool.wanted >= pool.slots:
            full.add(pool)
        elif number not in skip:
            pool.wanted += 1
            turns.append((task, pool, False))
            served = True
        if full:
            while at < len(entries) and entries[at][3] in full:
                at += 1
        self._at = at
        self.key = entries[at][0] if at < len(entries) else None
        return served


def serve_aged(offers: Sequence[Offer], now: Instant, ageing_ms: int, most: int) -> list[Turn]:
    """Return up to `most` aged tasks that a slot is owed to, requesters taking turns.

    `offers` are of every class but EMERGENCY. Nobody has had a turn by that: it takes a start.
    """
    line: list[tuple[_AgedTurn, Task, Iterator[Task], Account, Any]] = []
    #: Each one's last turn, counting those of this call.
    last: dict[Account, tuple[Instant, int]] = {}
    for lanes, pool in offers:
        if not pool.owes():
            continue
        for account, lane in lanes.items():
            rest = lane.aged(now, ageing_ms)
            task = next(rest, None)
            if task is not None:
                last[account] = account.aged_turn
                line.append((_aged_turn(last[account], task, ageing_ms), task, rest, account, pool))
    heapq.heapify(line)
    numbers = count(1 + max((number for _, number in last.values()), default=0))
    turns: list[Turn] = []
    while line and len(turns) < most:
        place, task, rest, account, pool = heapq.heappop(line)
        if place[1] == last[account][1]:
            turns.append((task, pool, True))
            last[account] = now, next(numbers)
            following = next(rest, None)
            if following is None:
                continue
            task = following
        heapq.heappush(line, (_aged_turn(last[account], task, ageing_ms), task, rest, account, pool))
    return turns


def first_aged(lanes: Iterable[Lane], now: Instant, ageing_ms: int) -> Task | None:
    """Return the task that `serve_aged` would serve first of these lanes, None when none of them is aged."""
    found: tuple[_AgedTurn, Task] | None = None
    for lane in lanes:
        task = next(lane.aged(now, ageing_ms), None)
        if task is not None:
            place = (_aged_turn(lane.account.aged_turn, task, ageing_ms), task)
            if found is None or place < found:
                found = place
    return None if found is None else found[1]


def _aged_turn(last: tuple[Instant, int], task: Task, ageing_ms: int) -> _AgedTurn:
    """Return when an aged task, its requester's oldest in a lane, has its turn: smallest first.

    The requester's turn counts from its `last` one, or from when the task aged if that was later, so that
    whoever joins, joins at the end. Of equally old tasks the one that came first, whatever the order of the
    offers: numbers differ, tasks are never compared.
    """
    since, number = last
    age = task.ready_time or 0
    return max(since, age + ageing_ms), number, age, task.queue_number
