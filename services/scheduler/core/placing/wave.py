"""The pools of many demands at once: what a wave ranks.

One demand takes dozens of small array operations to find, score and sort its free agents, which is more than
their elements cost. So all demands of a wave are laid end to end: found, scored and sorted by one operation
each. One sort of whole numbers orders everything: pool, score, when the instance last got work, and slot side
by side in 63 bits; its steps of a score are those of `policies.base.steps`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from services.scheduler.core.model import SchedulingPolicy
from services.scheduler.core.placing.fleet import Eligible, Fleet
from services.scheduler.core.placing.pools import Pools
from services.scheduler.core.placing.queues import Queue
from services.scheduler.core.placing.ranking import Pool
from services.scheduler.core.policies.base import Columns, Policy, steps, total
from services.scheduler.core.policies.registry import POLICIES

#: Instances of all demands together that are laid end to end at once: 8 MB an array.
_ENTRIES_MAX = 1_000_000
_BITS = 63
#: Slots beyond those wanted that are ranked, and how many times the share that others are thought to take.
_AHEAD = 8
_BY_OTHERS = 1.25
#: How many times that share of an instance's slots is ranked.
_DEPTH = 4.0


def waves_of(pools: Pools, queues: Iterable[Queue]) -> Iterator[Wave]:
    """Yield the pools of those queues for which an agent is free, a bounded number at a time."""
    for part, eligible in _parts(pools.fleet, queues):
        yield Wave(pools, part, eligible)


def _parts(fleet: Fleet, queues: Iterable[Queue]) -> Iterator[tuple[list[Queue], list[Eligible]]]:
    part: list[Queue] = []
    eligible: list[Eligible] = []
    size = 0
    for queue in queues:
        if queue.eligible is None or queue.edition != fleet.edition:
            queue.eligible = fleet.eligible(queue.demand.skills, queue.demand.agents)
            queue.edition = fleet.edition
        part.append(queue)
        eligible.append(queue.eligible)
        size += len(queue.eligible.rows)
        if size >= _ENTRIES_MAX:
            yield part, eligible
            part, eligible, size = [], [], 0
    if part:
        yield part, eligible


class Wave:
    """Some demands' free instances, end to end."""

    def __init__(self, pools: Pools, queues: list[Queue], eligible: list[Eligible]) -> None:
        fleet = pools.fleet
        self._fleet = fleet
        rows = np.concatenate([each.rows for each in eligible])
        ends = np.cumsum([len(each.rows) for each in eligible])
        keep = fleet.free[rows] > 0
        begin = 0
        for queue, end in zip(queues, ends.tolist(), strict=True):
            for name, amount in queue.demand.needs:
                column = fleet.left(name)
                keep[begin:end] &= False if column is None else column[rows[begin:end]] >= amount
            begin = end
        self._rows = rows = rows[keep]
        self._level = np.concatenate([each.level for each in eligible])[keep]
        self._free = fleet.free[rows]
        # Where each demand's instances begin, and its slots, both by running sums.
        begins = np.append(0, np.cumsum(keep))[np.append(0, ends)].tolist()
        slots = np.append(0, np.cumsum(self._free))[begins].tolist()
        self.pools: dict[Queue, Pool] = {}
        #: Where the instances of each pool begin.
        self._begins: dict[Pool, int] = {}
        for number, queue in enumerate(queues):
            begin, end = begins[number], begins[number + 1]
            if begin < end:
                free = slots[number + 1] - slots[number]
                columns = rows[begin:end], self._level[begin:end], self._free[begin:end]
                self.pools[queue] = pool = pools.of(queue.demand, *columns, free)
                self._begins[pool] = begin

    def rank(self, share: float) -> None:
        """Rank what is wanted of all pools whose policy allows it; the others rank themselves.

        `share` is how much of all free slots is given away: others take about as much of each pool before.
        """
        wanted: dict[SchedulingPolicy, list[Pool]] = {}
        for pool in self._begins:
            policy = pool.demand.style.policy
            if pool.wanted and not POLICIES[policy].predicts:
                wanted.setdefault(policy, []).append(pool)
        for policy, chosen in wanted.items():
            self._rank(POLICIES[policy], chosen, share)

    def _rank(self, policy: Policy, pools: list[Pool], share: float) -> None:
        fleet = self._fleet
        # Rows in order of what decides between equal scores; where each row is in it.
        by_turn = np.argsort(fleet.turn[: len(fleet.instances)], kind="stable")
        place = np.empty_like(by_turn)
        place[by_turn] = np.arange(len(by_turn))
        begins = np.array([self._begins[pool] for pool in pools])
        lengths = np.array([pool.count for pool in pools])
        slots = np.array([pool.slots for pool in pools])
        wanted = np.array([pool.wanted for pool in pools])
        most = np.minimum(wanted + _AHEAD + (_BY_OTHERS * share * slots).astype(np.int64), slots)
        # First the best instances by their first slots, then the slots of these.
        at, numbers = _spread(begins, lengths)
        columns = self._columns(at, np.zeros(len(at), np.int64))
        weights = pools[0].demand.style.weights
        order = _sorted(numbers, total(policy.parts(columns, weights)), place, self._rows[at])
        if order is None:
            return
        kept, numbers = _first(order, lengths, most)
        at = at[kept]
        # Not all slots of each: what comes after the first one that was left out is not told.
        whole = np.minimum(self._free[at], most[numbers])
        slots = np.minimum(whole, 2 + (_DEPTH * share * whole).astype(np.int64))
        lengths = np.bincount(numbers, slots, len(pools)).astype(np.int64)
        index = np.repeat(np.arange(len(at)), slots)
        j = np.arange(len(index)) - np.repeat(np.cumsum(slots) - slots, slots)
        at, numbers = at[index], numbers[index]
        columns = self._columns(at, j)
        parts = policy.parts(columns, weights)
        scores = total(parts)
        order = _sorted(numbers, scores, place, self._rows[at], j)
        if order is None:
            return
        kept, numbers = _first(order, lengths, most)
        # Where a pool ends: with the first slot after which its instance has more that were left out.
        more = (j[kept] + 1 == slots[index[kept]]) & (slots < whole)[index[kept]]
        begins = np.cumsum(np.minimum(lengths, most)) - np.minimum(lengths, most)
        ends = begins + np.minimum(lengths, most)
        stops = np.flatnonzero(more)
        at_first, first = np.unique(numbers[stops], return_index=True)
        ends[at_first] = stops[first] + 1
        rows, slot, scores = self._rows[at[kept]].tolist(), j[kept].tolist(), scores[kept]
        values = [(part.name, part.weight, part.values[kept]) for part in parts]
        for pool, begin, end in zip(pools, begins.tolist(), ends.tolist(), strict=True):
            pool.set(
                rows[begin:end],
                slot[begin:end],
                scores[begin:end],
                [(name, weight, each[begin:end]) for name, weight, each in values],
            )

    def _columns(self, at: Any, j: Any) -> Columns:
        fleet, rows, level = self._fleet, self._rows[at], self._level[at]
        held = fleet.held[rows]
        newest = fleet.newest_turn
        return Columns(level, held, held + self._free[at], fleet.turn[rows], newest, level, None, j)


def _spread(begins: Any, lengths: Any) -> tuple[Any, Any]:
    """Return the positions of ranges laid end to end, and to which range each belongs."""
    numbers = np.repeat(np.arange(len(lengths)), lengths)
    return np.arange(len(numbers)) + np.repeat(begins - (np.cumsum(lengths) - lengths), lengths), numbers


def _sorted(numbers: Any, scores: Any, place: Any, rows: Any, j: Any = None) -> Any:
    """Return the order by pool, score, turn, row and slot; None when that does not fit into one number.

    `numbers` are the pools', in growing order.
    """
    score = steps(scores)
    score = (score.max() - score).astype(np.int64)
    bits = len(place).bit_length()
    key = (score << bits) | place[rows]
    if j is not None:
        slot_bits = int(j.max()).bit_length()
        key = (key << slot_bits) | j
        bits += slot_bits
    bits += int(score.max()).bit_length()
    if bits >= _BITS:
        return None
    # As many pools at once as fit above.
    together = 1 << (_BITS - bits)
    starts = np.arange(0, int(numbers[-1]) + 1, together)
    edges = [*np.searchsorted(numbers, starts).tolist(), len(numbers)]
    orders = [
        begin + np.argsort((numbers[begin:end] % together << bits) | key[begin:end])
        for begin, end in pairwise(edges)
    ]
    return orders[0] if len(orders) == 1 else np.concatenate(orders)


def _first(order: Any, lengths: Any, most: Any) -> tuple[Any, Any]:
    """Return the first `most` of each pool in an order, and to which pool each belongs."""
    at, numbers = _spread(np.cumsum(lengths) - lengths, np.minimum(lengths, most))
    return order[at], numbers
