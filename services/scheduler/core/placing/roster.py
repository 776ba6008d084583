"""The waiting tasks as columns, so that a wave takes no step of Python for each task that waits.

A task has a seat while it waits in a queue: to enter and to leave writes one element each. The next wave
takes in what the columns say of all that came since, at once, and no later one pays for it again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from services.scheduler.core.course import Task
from services.scheduler.core.placing.lanes import RANK_MAX

#: Below this length seats are not given anew.
_SEATS_MIN = 1_024

Numbers = npt.NDArray[np.int64]


class Waiters(NamedTuple):
    """Columns of equal length: by class, and inside it as `placing.lanes` orders one requester's tasks."""

    #: Each one's seat in the roster.
    seat: Numbers
    #: Its `Priority`.
    priority: Numbers
    #: Its `Account.number` and its `Queue.number`.
    account: Numbers
    queue: Numbers
    #: When it became ready.
    ready: Numbers


class Roster:
    """See the module. Owned by `placing.index`."""

    def __init__(self) -> None:
        self._tasks: list[Task] = []
        #: Which seats are taken, and how many.
        self._live = bytearray()
        self._live_count = 0
        #: Shape (7, seats taken in): class, account, queue, ready, and what else the order depends on.
        self._columns = np.zeros((7, 0), np.int64)
        #: The seats that were taken when somebody asked last, in order.
        self._order: Numbers = np.zeros(0, np.int64)

    def add(self, task: Task) -> None:
        """Give a seat to a task that begins to wait; its lane is known."""
        tasks = self._tasks
        if len(tasks) > _SEATS_MIN and len(tasks) > 2 * self._live_count:
            self._close_up()
            tasks = self._tasks
        task.seat = len(tasks)
        tasks.append(task)
        self._live.append(1)
        self._live_count += 1

    def remove(self, task: Task) -> None:
        """Take out a task that waits no more."""
        self._live[task.seat] = 0
        self._live_count -= 1

    def tasks(self, seats: Numbers) -> list[Task]:
        """Return who has these seats."""
        return [*map(self._tasks.__getitem__, seats.tolist())]

    def waiters(self) -> Waiters:
        """Return who waits, the most urgent class first."""
        known = self._columns.shape[1]
        if known < len(self._tasks):
            self._take_in(known)
        else:
            self._order = self._order[self._is_live()[self._order]]
        return Waiters(self._order, *(column[self._order] for column in self._columns[:4]))

    def _take_in(self, known: int) -> None:
        fresh = [
            (
                lane.priority,
                lane.account.number,
                lane.queue.number,
                task.ready_time or 0,
                task.due,
                -min(task.rank_ms, RANK_MAX),
                task.arrival,
            )
            if (lane := task.lane) is not None
            else _GONE
            for task in self._tasks[known:]
        ]
        self._columns = np.concatenate((self._columns, np.array(fresh, np.int64).T), axis=1)
        seats = np.flatnonzero(self._is_live())
        priority, due, negative_rank, arrival = (self._columns[row][seats] for row in (0, 4, 5, 6))
        # Of equals the one that came first: seats are in that order, and the sort keeps it.
        self._order = seats[np.lexsort((arrival, negative_rank, due, priority))]

    def _is_live(self) -> npt.NDArray[np.bool_]:
        return np.frombuffer(self._live, np.bool_)

    def _close_up(self) -> None:
        """Give the taken seats new numbers without gaps."""
        live, known = self._is_live().copy(), self._columns.shape[1]
        self._tasks = [self._tasks[seat] for seat in np.flatnonzero(live).tolist()]
        for seat, task in enumerate(self._tasks):
            task.seat = seat
        self._live = bytearray(b"\1" * len(self._tasks))
        self._order = (np.cumsum(live) - 1)[self._order[live[self._order]]]
        self._columns = self._columns[:, live[:known]]


#: In the columns of a task that has left before it was taken in: its seat is empty.
_GONE = (0,) * 7
