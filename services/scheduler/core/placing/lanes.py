"""The order in which ready tasks are served.

By class first; inside a class by the requester's dominant share (see `core.fairness`); inside one requester's
tasks by the instant until which they must have ended (earliest first: Liu and Layland, JACM 20:1, 1973; the
instant takes in what depends on the task: Blazewicz, "Scheduling dependent tasks with different arrival
times to meet deadlines", 1976), then the longest chain of work behind them, then arrival.

A lane holds the tasks of one demand, class and requester, twice: in a heap by that order, and in a line by
age. What has waited longer than `ageing_ms` and is not EMERGENCY is *aged*: an instance that gave its last
`ageing_share - 1` starts to others (EMERGENCY not counted) owes the next one to the oldest aged task that it
can do, requesters with aged tasks taking turns. So with R requesters that have aged tasks, the k-th aged
task of one of them in a lane is started at the latest with the R * k * (`ageing_share` + s - 1)-th such
start of any agent with s slots that can do it: slots that are free at once are given away at once. No aged
task ever comes before an emergency.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from services.common.core.instants import Instant
from services.scheduler.core.course import Task
from services.scheduler.core.model import Priority
from services.scheduler.core.placing.fairness import Account, Totals, dominant_share

#: Below this size a rebuild costs more than it frees.
_REBUILD_SIZE_MIN = 64
_RANK_MAX = 2**40 - 1

#: (order, number, task): the order as one integer, and the task's number in the index.
Entry = tuple[int, int, Task]
E = TypeVar("E", bound=tuple[Any, ...])
T = TypeVar("T")


def order_of(task: Task) -> int:
    """Return a task's place among the tasks of its class and requester: smallest first."""
    rank = task.rank_ms if task.rank_ms < _RANK_MAX else _RANK_MAX
    return (task.due << 40 | (_RANK_MAX - rank)) << 40 | task.arrival


class Lane:
    """The waiting tasks of one demand, class and requester."""

    __slots__ = ("account", "heap", "line", "live", "priority")

    def __init__(self, priority: Priority, account: Account) -> None:
        self.priority = priority
        self.account = account
        self.heap: list[Entry] = []
        #: The same entries by the instant at which they became ready, nearly: who comes back from the lock
        #: table goes to the front.
        self.line: deque[Entry] = deque()
        self.live = 0

    def add(self, task: Task, number: int) -> None:
        """Take in a task under its new number."""
        entry = (order_of(task), number, task)
        heapq.heappush(self.heap, entry)
        line = self.line
        if self.priority is not Priority.EMERGENCY:
            if line and (task.ready_time or 0) < (line[-1][2].ready_time or 0):
                line.appendleft(entry)
            else:
                line.append(entry)
        self.live += 1

    def head(self) -> Entry:
        """Return the first entry in order; a lane that waits has one."""
        heap = self.heap
        entry = heap[0]
        while entry[1] != entry[2].queue_number:
            heapq.heappop(heap)
            entry = heap[0]
        return entry

    def remove(self) -> None:
        """Note that one task's number is no longer current."""
        self.live -= 1
        if self.live == 0:
            self.heap.clear()
            self.line.clear()
        elif len(self.heap) > max(_REBUILD_SIZE_MIN, 2 * self.live):
            self.heap = [entry for entry in self.heap if is_live(entry)]
            heapq.heapify(self.heap)
        if len(self.line) > max(_REBUILD_SIZE_MIN, 2 * self.live):
            self.line = deque(entry for entry in self.line if is_live(entry))

    def aged(self, now: Instant, ageing_ms: int) -> Iterator[Task]:
        """Yield the tasks that have waited for `ageing_ms` or longer, the oldest first."""
        line = self.line
        while line and not is_live(line[0]):
            line.popleft()
        for entry in line:
            if (entry[2].ready_time or 0) + ageing_ms > now:
                return
            if is_live(entry):
                yield entry[2]


def is_live(entry: Entry) -> bool:
    """Return whether an entry is its task's newest."""
    return entry[1] == entry[2].queue_number


class Offer(NamedTuple):
    """A queue's lanes of one class by requester, and the free agents for its demand."""

    lanes: Mapping[Account, Lane]
    #: A `Pool`, of which only the bounds matter here.
    pool: Any


#: (task, pool, whether it is served for its age).
Turn = tuple[Task, Any, bool]


def first(
    offers: Sequence[tuple[Mapping[Account, Lane], T]], accounts: Iterable[Account], totals: Totals
) -> tuple[Task, T]:
    """Return the task that `serve` would serve first of one class, with what its lanes came with.

    At least one of the offers has a lane, and no lane is empty; `accounts` as for `serve`.
    """
    found: tuple[int, int, Task, T] | None = None
    least = 0.0
    for share, _, account in sorted(
        [(account.share(totals), number, account) for number, account in enumerate(accounts)]
    ):
        if found is not None and share > least:
            break
        least = share
        for lanes, of in offers:
            lane = lanes.get(account)
            if lane is None:
                continue
            heap = lane.heap
            key, number, task = heap[0]
            if number != task.queue_number:
                key, number, task = lane.head()
            if found is None or key < found[0] or (key == found[0] and number < found[1]):
                found = (key, number, task, of)
    if found is None:
        raise AssertionError("a class without a task was asked for its first one")
    return found[2], found[3]


def serve(
    offers: Sequence[Offer],
    accounts: Iterable[Account],
    totals: Totals,
    most: int,
    skip: frozenset[int] = frozenset(),
) -> list[Turn]:
    """Return up to `most` tasks of one class in serving order, from each pool no more than it has slots.

    `accounts` are at least those with a lane, each once; `skip` are numbers of tasks that are served already.
    Next is always the requester with the smallest dominant share, counting what it has got in this call; of
    equals the one whose first task comes first.
    """
    turns: list[Turn] = []
    slots = totals.slots or 1
    # A requester's tasks are looked at when it is its turn: its first entry says only what its share is.
    line: list[tuple[float, int, int, Account, _Bid | None]] = [
        (each.share(totals), -1, number, each, None) for number, each in enumerate(accounts)
    ]
    heapq.heapify(line)
    while line and len(turns) < most:
        share, _, number, account, bid = line[0]
        if bid is None:
            bid = _Bid(account, offers)
            if bid.heads:
                heapq.heapreplace(line, (share, bid.heads[0][0], number, account, bid))
            else:
                heapq.heappop(line)
            continue
        if len(line) == 1:
            while bid.heads and len(turns) < most:
                bid.take(turns, skip)
            break
        served = False
        while bid.heads and not served:
            served = bid.take(turns, skip)
        if not bid.heads:
            heapq.heappop(line)
            continue
        if served:
            bid.held += 1
            needs = turns[-1][0].spec.needs
            if needs:
                bid.add(needs)
            share = (
                dominant_share(bid.held, bid.needs, account.weight, totals)
                if bid.needs
                else bid.held / slots / account.weight
            )
        heapq.heapreplace(line, (share, bid.heads[0][0], number, account, bid))
    return turns


#: (order, number, task, the lane's others once they are asked for, lane, pool).
_Head = tuple[int, int, Task, Iterator[Entry] | None, Lane, Any]


class _Bid:
    """What one requester wants to have served in one class, with what it would hold then."""

    __slots__ = ("heads", "held", "needs")

    def __init__(self, account: Account, offers: Sequence[Offer]) -> None:
        self.held = account.held
        self.needs = account.needs
        #: The first entry of each of its lanes, as a heap, with the lane's others once they are asked for.
        self.heads = heads = list[_Head]()
        for lanes, pool in offers:
            lane = lanes.get(account)
            if lane is not None:
                key, number, task = lane.head()
                heads.append((key, number, task, None, lane, pool))
        heapq.heapify(heads)

    def take(self, turns: list[Turn], skip: frozenset[int]) -> bool:
        """Serve the first task, and return whether there was one to serve."""
        heads = self.heads
        _, number, task, rest, lane, pool = heads[0]
        if pool.wanted >= pool.slots:
            heapq.heappop(heads)
            return False
        if rest is None:
            rest = smallest(lane.heap, lane.live, is_live)
            next(rest)
        entry = next(rest, None)
        if entry is None:
            heapq.heappop(heads)
        else:
            heapq.heapreplace(heads, (entry[0], entry[1], entry[2], rest, lane, pool))
        if number in skip:
            return False
        pool.wanted += 1
        turns.append((task, pool, False))
        return True

    def add(self, needs: Iterable[tuple[str, int]]) -> None:
        """Count what a task needs as held."""
        self.needs = dict(self.needs)
        for name, amount in needs:
            self.needs[name] = self.needs.get(name, 0) + amount


def serve_aged(
    offers: Sequence[Offer], now: Instant, ageing_ms: int, most: int, turn: Callable[[], int]
) -> list[Turn]:
    """Return up to `most` aged tasks that a slot is owed to, requesters taking turns.

    `offers` are of every class but EMERGENCY.
    """
    # Of equally old ones the one that came first, whatever the order of the offers.
    line: list[tuple[int, int, int, Task, Iterator[Task], Account, Any]] = []
    for lanes, pool in offers:
        if not pool.owes():
            continue
        for account, lane in lanes.items():
            rest = lane.aged(now, ageing_ms)
            task = next(rest, None)
            if task is not None:
                age = task.ready_time or 0
                line.append((account.aged_turn, age, task.queue_number, task, rest, account, pool))
    heapq.heapify(line)
    turns: list[Turn] = []
    while line and len(turns) < most:
        aged_turn, _, _, task, rest, account, pool = heapq.heappop(line)
        if aged_turn == account.aged_turn:
            turns.append((task, pool, True))
            account.aged_turn = turn()
            following = next(rest, None)
            if following is None:
                continue
            task = following
        age = task.ready_time or 0
        heapq.heappush(line, (account.aged_turn, age, task.queue_number, task, rest, account, pool))
    return turns


def smallest(heap: list[E], count: int, live: Callable[[E], bool]) -> Iterator[E]:
    """Yield the `count` smallest live entries in order; dead ones at the top are dropped for good.

    Method: best-first search of the heap's tree, O(count log count) whatever the heap's length; a simple form
    of Frederickson, "An optimal algorithm for selection in a min-heap" (1993).
    """
    while heap and not live(heap[0]):
        heapq.heappop(heap)
    frontier = [(heap[0], 0)] if heap else []
    while frontier and count > 0:
        entry, position = heapq.heappop(frontier)
        if live(entry):
            count -= 1
            yield entry
        for child in (2 * position + 1, 2 * position + 2):
            if child < len(heap):
                heapq.heappush(frontier, (heap[child], child))
