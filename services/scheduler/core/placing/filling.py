"""Whose turn it is among thousands of tasks of one class, by arrays.

Progressive filling (`placing.fairness`; Ghodsi et al., NSDI 2011, section 4.1) is a merge: what a requester
holds before its k-th task, and so its dominant share, does not depend on the others and never falls with k.
So one sort by share, ties by the tasks' own order, says whose turn it is, as long as everybody gets what it
asks for. The first task that finds no slot left of its pool, which then does not count for its requester,
ends that: from there on it goes one by one.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from services.scheduler.core.placing.fairness import Account, Totals, dominant_share

Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
#: Amounts up to here are as exact in arrays as they are elsewhere.
EXACT_MAX = 2**53


class Room(NamedTuple):
    """What the queues of a wave ask for, and what may be had: columns with an element for each."""

    #: Free slots that no task of this wave has asked for; changed by `fill`.
    slots: Numbers
    #: What a task takes of each capacity that any of them needs.
    needs: dict[str, Numbers]


class Held:
    """What requesters hold before a wave: columns by `Account.number`."""

    def __init__(self, accounts: Iterable[Account], totals: Totals, names: Iterable[str]) -> None:
        known = [*accounts]
        size = 1 + max(each.number for each in known)
        self.totals = totals
        self.slots = np.zeros(size, np.int64)
        self.weight = np.ones(size)
        #: Largest share of any capacity.
        self.needs_share = np.zeros(size)
        self.needs = {name: np.zeros(size, np.int64) for name in names if totals.capacities.get(name)}
        for each in known:
            self.slots[each.number] = each.held
            self.weight[each.number] = each.weight
            self.needs_share[each.number] = dominant_share(0, each.needs, 1.0, totals)
            for name, column in self.needs.items():
                column[each.number] = each.needs.get(name, 0)


def fill(account: Numbers, queue: Numbers, held: Held, room: Room, most: int) -> Numbers:
    """Return up to `most` tasks of one class in serving order, as positions; takes their slots from `room`.

    `account` and `queue` say whose each task is and where it waits, in the order of one requester's tasks.
    """
    # Positions by requester, and where each requester's begin and end.
    mine = np.argsort(account.astype(np.min_scalar_type(len(held.slots))), kind="stable")
    ends = np.cumsum(np.bincount(account, minlength=len(held.slots)))
    begins = np.append(0, ends[:-1])
    owner = account[mine]
    slots = held.slots[owner] + np.arange(len(mine)) - begins[owner]
    share: Floats = np.maximum(slots / held.totals.slots, held.needs_share[owner])
    needs = {}
    for name, amounts in room.needs.items():
        if name in held.needs:
            sums = np.append(0, np.cumsum(amounts[queue[mine]]))
            needs[name] = held.needs[name][owner] + sums[:-1] - sums[begins][owner]
            share = np.maximum(share, needs[name] / held.totals.capacities[name])
    share /= held.weight[owner]
    turns = _merged(mine, share, most)
    asked = np.bincount(queue[turns], minlength=len(room.slots))
    if np.all(asked <= room.slots):
        room.slots[:] -= asked
        return turns
    turns = turns[: _first_in_vain(queue[turns], room.slots)]
    room.slots[:] -= np.bincount(queue[turns], minlength=len(room.slots))
    begins += np.bincount(account[turns], minlength=len(begins))
    line = [
        _Asking(number, at, end, int(slots[at]), {name: int(needs[name][at]) for name in needs})
        for number, (at, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True))
        if at < end
    ]
    rest = _one_by_one(line, mine.tolist(), queue.tolist(), held, room, most - len(turns))
    return np.concatenate((turns, np.array(rest, np.int64)))


def _merged(mine: Numbers, share: Floats, most: int) -> Numbers:
    """Return the positions with the `most` smallest shares in order of share, ties in order of position."""
    by_position = np.empty_like(share)
    by_position[mine] = share
    if len(mine) <= most:
        return np.argsort(by_position, kind="stable")
    limit = np.partition(by_position, most - 1)[most - 1]
    among = np.flatnonzero(by_position <= limit)
    return among[np.argsort(by_position[among], kind="stable")[:most]]


def _first_in_vain(queue: Numbers, slots: Numbers) -> int:
    """Return the number of the first turn that finds no slot left of its queue's pool."""
    by_queue = np.argsort(queue, kind="stable")
    ordered = queue[by_queue]
    before = np.arange(len(queue)) - np.searchsorted(ordered, ordered)
    return int(by_queue[before >= slots[ordered]].min())


class _Asking:
    """A requester that still has tasks in a class."""

    __slots__ = ("at", "end", "full", "needs", "number", "slots")

    def __init__(self, number: int, at: int, end: int, slots: int, needs: dict[str, int]) -> None:
        self.number = number
        #: Its next task, and where its last one ends.
        self.at = at
        self.end = end
        #: What it holds, counting what it has got.
        self.slots = slots
        self.needs = needs
        #: Queues that it found without a slot left. Before, their tasks count for its place among equals.
        self.full: set[int] = set()


def _one_by_one(  # noqa: PLR0917  # the arguments of `fill` once more, as lists
    askers: list[_Asking], mine: list[int], queue: list[int], held: Held, room: Room, most: int
) -> list[int]:
    """Return the positions of up to `most` further tasks in serving order; takes their slots from `room`."""
    free: list[int] = room.slots.tolist()
    total, capacities = held.totals.slots, held.totals.capacities
    weights: list[float] = held.weight.tolist()
    least: list[float] = held.needs_share.tolist()
    amounts = {name: room.needs[name].tolist() for name in held.needs}

    def share_of(asking: _Asking) -> float:
        share = max(asking.slots / total, least[asking.number])
        for name, amount in asking.needs.items():
            share = max(share, amount / capacities[name])
        return share / weights[asking.number]

    # Positions differ: requesters are never compared.
    line = [(share_of(each), mine[each.at], each) for each in askers]
    heapq.heapify(line)
    turns: list[int] = []
    while line and len(turns) < most:
        asking = line[0][2]
        at, end, full = asking.at, asking.end, asking.full
        served = False
        while at < end and not served:
            position = mine[at]
            number = queue[position]
            at += 1
            if free[number] > 0:
                free[number] -= 1
                turns.append(position)
                asking.slots += 1
                for name in asking.needs:
                    asking.needs[name] += amounts[name][number]
                served = True
            else:
                full.add(number)
            while full and at < end and queue[mine[at]] in full:
                at += 1
        asking.at = at
        if at == end:
            heapq.heappop(line)
        else:
            heapq.heapreplace(line, (share_of(asking), mine[at], asking))
    room.slots[:] = free
    return turns
