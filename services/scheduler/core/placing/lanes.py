"""The order in which ready tasks are served.

By class first; inside a class by the requester's dominant share (see `placing.fairness`); inside one
requester's tasks by the instant until which they must have ended (earliest first: Liu and Layland, JACM 20:1,
1973; the instant takes in what depends on the task: Blazewicz, "Scheduling dependent tasks with different
arrival times to meet deadlines", 1976), then the longest chain of work behind them, then arrival.

A lane holds the tasks of one demand, class and requester, twice: in a heap by that order, and in a line by
age. What has waited longer than `ageing_ms` and is not EMERGENCY is *aged*: an instance that gave its last
`ageing_share - 1` starts to others (EMERGENCY not counted) owes the next one to the oldest aged task that it
can do, requesters with aged tasks taking turns: next is the one whose last turn, or whose oldest task's
ageing if that came later, lies furthest back. So whoever joins, joins at the end; fresh requesters, one after
the other, could starve an old one otherwise. With R requesters that have aged tasks at once, the k-th aged
task of one of them in a lane is started at the latest with the R * k * (`ageing_share` + s - 1)-th such
start of any agent with s slots that can do it: slots that are free at once are given away at once. No aged
task ever comes before an emergency.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from services.common.core.instants import Instant
from services.scheduler.core.course import Task
from services.scheduler.core.model import Priority
from services.scheduler.core.placing.fairness import Account

#: Below this size a rebuild costs more than it frees.
_REBUILD_SIZE_MIN = 64
#: A chain of work behind a task counts up to this long for its place, in milliseconds.
RANK_MAX = 2**40 - 1

#: (order, number, task): the order as one integer, and the task's number in the index.
Entry = tuple[int, int, Task]
E = TypeVar("E", bound=tuple[Any, ...])


def order_of(task: Task) -> int:
    """Return a task's place among the tasks of its class and requester: smallest first."""
    rank = task.rank_ms if task.rank_ms < RANK_MAX else RANK_MAX
    return (task.due << 40 | (RANK_MAX - rank)) << 40 | task.arrival


class Lane:
    """The waiting tasks of one demand, class and requester."""

    __slots__ = ("account", "first", "heap", "line", "live", "priority", "queue")

    def __init__(self, priority: Priority, account: Account, queue: Any = None) -> None:
        self.priority = priority
        self.account = account
        #: Where the tasks of its demand wait; opaque here.
        self.queue = queue
        self.heap: list[Entry] = []
        #: The first entry in order: the top of the heap, which is always live.
        self.first: Entry | None = None
        #: The same entries by the instant at which they became ready, nearly: who comes back from the lock
        #: table goes to the front.
        self.line: deque[Entry] = deque()
        self.live = 0

    def add(self, task: Task, number: int) -> None:
        """Take in a task under its new number."""
        entry = (order_of(task), number, task)
        heapq.heappush(self.heap, entry)
        self.first = self.heap[0]
        line = self.line
        if self.priority is not Priority.EMERGENCY:
            if line and (task.ready_time or 0) < (line[-1][2].ready_time or 0):
                line.appendleft(entry)
            else:
                line.append(entry)
        self.live += 1

    def remove(self) -> None:
        """Note that one task's number is no longer current."""
        self.live -= 1
        heap = self.heap
        if self.live == 0:
            self.first = None
            heap.clear()
            self.line.clear()
            return
        entry = heap[0]
        if entry[1] != entry[2].queue_number:
            while not is_live(heap[0]):
                heapq.heappop(heap)
            self.first = heap[0]
        if len(heap) > max(_REBUILD_SIZE_MIN, 2 * self.live):
            self.heap = [entry for entry in heap if is_live(entry)]
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
