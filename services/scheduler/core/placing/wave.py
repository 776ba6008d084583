"""A wave: what is free for many demands at once, and which task gets which slot of it.

One demand takes dozens of small array operations to find, score and sort its free agents, which is more than
their elements cost. So the demands of a wave are laid end to end: counted, scored and sorted by one operation
each, some ten thousand elements at a time, which stay in the processor's cache. Demands that differ in their
needs alone are ranked once.

The free slots of all instances are numbered. In a ranking an instance's slots come one after the other, so
that tasks in serving order that each take the first slot of its ranking that nobody took get what choosing
anew for every task would give (serial dictatorship; see `placing.placement`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from services.scheduler.core.course import Task
from services.scheduler.core.model import SchedulingPolicy
from services.scheduler.core.placing.filling import EXACT_MAX, Room
from services.scheduler.core.placing.fleet import Eligible, Fleet
from services.scheduler.core.placing.placement import Placement
from services.scheduler.core.placing.queues import Family, Queue
from services.scheduler.core.placing.ranking import told
from services.scheduler.core.policies.base import Columns, steps, total
from services.scheduler.core.policies.registry import POLICIES

Numbers = npt.NDArray[np.int64]

#: Elements that are laid end to end at once, unless a single demand has more.
_TOGETHER = 32_768
#: Slots beyond those wanted that are ranked, and how many times the share that others are thought to take.
_AHEAD = 8
_BY_OTHERS = 0.75
#: How many times that share of an instance's slots is ranked.
_DEPTH = 3.0
#: Slots of a ranking that are looked at in one go, and how many of them are listed for the next tasks.
_LOOK = 1_024
_LISTED = 32
_BITS = 63


class Ranking:
    """The slots that are free for a family of demands, best first as far as they are asked for."""

    __slots__ = ("family", "order", "slots")

    def __init__(self, family: Family, slots: int) -> None:
        self.family = family
        #: All that are free, and the numbers of those that are ranked.
        self.slots = slots
        self.order: Numbers = np.zeros(0, np.int64)


class Wave:
    """See the module. What it reads of the fleet is what was there when it was made."""

    def __init__(self, fleet: Fleet, queues: Iterable[Queue]) -> None:
        count = len(fleet.instances)
        self._fleet = fleet
        self._free: Numbers = fleet.free[:count].copy()
        self._held: Numbers = fleet.held[:count].copy()
        self._turn: Numbers = fleet.turn[:count].copy()
        self._newest = fleet.newest_turn
        #: Rows in order of what decides between equal scores.
        self._place: Numbers = np.empty_like(self._turn)
        self._place[np.argsort(self._turn, kind="stable")] = np.arange(count)
        self._place_bits = count.bit_length()
        #: The number of each row's first free slot, and the row of each slot.
        self._first: Numbers = np.cumsum(self._free) - self._free
        self._row: Numbers = np.repeat(np.arange(count), self._free)
        self._left: dict[str, Numbers] = {}
        asked = [*queues]
        families = {
            family: number for number, family in enumerate(dict.fromkeys(each.family for each in asked))
        }
        slots, counts = self._count([family.among(fleet) for family in families], {})
        self._rankings = [
            Ranking(family, free) for family, free in zip(families, slots.tolist(), strict=True)
        ]
        of = np.array([families[each.family] for each in asked], np.int64)
        slots, counts = slots[of], counts[of]
        needs = self._needs(asked)
        needing = np.flatnonzero([bool(each.demand.needs) for each in asked])
        if len(needing):
            eligible = [asked[at].family.among(fleet) for at in needing.tolist()]
            slots[needing], counts[needing] = self._count(
                eligible, {name: amounts[needing] for name, amounts in needs.items()}
            )
        is_open = slots > 0
        #: The queues for which an instance is free, and columns with an element for each of them.
        self.queues = [each for each, free in zip(asked, is_open.tolist(), strict=True) if free]
        self.room = Room(slots[is_open], {name: amounts[is_open] for name, amounts in needs.items()})
        self._counts, self._ranking_of = counts[is_open], of[is_open]

    def _needs(self, queues: Sequence[Queue]) -> dict[str, Numbers]:
        """Return what each queue's tasks take of each capacity; take down what is left of these."""
        needs: dict[str, Numbers] = {}
        for at, queue in enumerate(queues):
            for name, amount in queue.demand.needs:
                if name not in needs:
                    needs[name] = np.zeros(len(queues), np.int64)
                needs[name][at] = amount
        count = len(self._free)
        for name in needs:
            column = self._fleet.left(name)
            # Where more is taken than there is, nothing is left: who needs none of it is not kept away.
            self._left[name] = np.maximum(0 if column is None else column[:count], np.zeros(count, np.int64))
        return needs

    def _count(self, eligible: list[Eligible], needs: dict[str, Numbers]) -> tuple[Numbers, Numbers]:
        """Return how many slots and how many instances are free for each demand, given what it needs."""
        slots, counts = np.zeros(len(eligible), np.int64), np.zeros(len(eligible), np.int64)
        for part in _parts([len(each.rows) for each in eligible]):
            rows = np.concatenate([each.rows for each in eligible[part]])
            lengths = np.array([len(each.rows) for each in eligible[part]])
            free = self._free[rows]
            for name, amounts in needs.items():
                free *= self._left[name][rows] >= np.repeat(amounts[part], lengths)
            ends = np.append(0, np.cumsum(lengths))
            slots[part] = np.diff(np.append(0, np.cumsum(free))[ends])
            counts[part] = np.diff(np.append(0, np.cumsum(free > 0))[ends])
        return slots, counts

    def is_plain(self, task_count: int) -> bool:
        """Return whether these queues' tasks are told apart by numbers alone, so many of them.

        Not those that are matched together, or of which each is predicted where it would run.
        """
        most = max((int(amounts.max()) for amounts in self.room.needs.values()), default=0)
        capacities = self._fleet.totals.capacities
        largest = max((capacities.get(name, 0) for name in self.room.needs), default=0)
        return largest + most * task_count < EXACT_MAX and all(
            _is_plain(ranking.family.demand.style.policy) for ranking in self._rankings
        )

    def places(self, queue: Numbers) -> Numbers:
        """Return where in `queues` those with these numbers are, -1 for nowhere."""
        numbers = np.array([each.number for each in self.queues])
        place = np.full(max(int(numbers.max()), int(queue.max(initial=0))) + 1, -1)
        place[numbers] = np.arange(len(numbers))
        return place[queue]

    def give(self, queue: Numbers) -> Numbers:
        """Return a slot for each task in serving order, -1 where none is left.

        `queue` says where in `queues` each one waits.
        """
        asking = np.flatnonzero(np.bincount(queue, minlength=len(self.queues))).tolist()
        wanted = np.bincount(self._ranking_of[queue], minlength=len(self._rankings))
        self._rank(np.flatnonzero(wanted), wanted, len(queue) / len(self._row))
        # One more than there are: none at all is slot -1.
        free = bytearray(b"\1") * (len(self._row) + 1)
        left = {name: column.tolist() for name, column in self._left.items()}
        walks = {at: self._walk(at, free, left) for at in asking}
        slots: list[int] = []
        for at in queue.tolist():
            slot = next(walks[at], -1)
            free[slot] = 0
            slots.append(slot)
        return np.array(slots, np.int64)

    def _walk(self, at: int, free: bytearray, left: dict[str, list[int]]) -> Iterator[int]:
        """Yield the best slot that is free, then the next one, for the tasks of a queue."""
        walk = self._free_slots(self._rankings[self._ranking_of[at]], free)
        needs = [(left[name], amount) for name, amount in self.queues[at].demand.needs]
        return self._fitting(walk, needs) if needs else walk

    def _free_slots(self, ranking: Ranking, free: bytearray) -> Iterator[int]:
        listed = ranking.order[:_LISTED].tolist()
        yield from filter(free.__getitem__, listed)
        is_free = np.frombuffer(free, np.bool_)
        seen = len(listed)
        while True:
            # What was taken before is left out all at once, what is taken from now on one by one.
            look = ranking.order[seen : seen + _LOOK]
            found = np.flatnonzero(is_free[look])[:_LISTED]
            seen += int(found[-1]) + 1 if len(found) == _LISTED else len(look)
            yield from filter(free.__getitem__, look[found].tolist())
            if seen == len(ranking.order):
                if seen == ranking.slots:
                    return
                # Others took more of it than was thought.
                self._rank_part([ranking], np.array([ranking.slots]), 1.0)

    def _fitting(self, walk: Iterator[int], needs: list[tuple[list[int], int]]) -> Iterator[int]:
        for slot in walk:
            row = int(self._row[slot])
            # What is left only shrinks: a slot that does not fit now never will.
            if all(left[row] >= amount for left, amount in needs):
                for left, amount in needs:
                    left[row] -= amount
                yield slot

    def _rank(self, numbers: Numbers, wanted: Numbers, share: float) -> None:
        """Rank what is wanted of some rankings; others take about the `share` of each before."""
        by_style: dict[Any, list[int]] = {}
        for number in numbers.tolist():
            by_style.setdefault(self._rankings[number].family.demand.style, []).append(number)
        for mine in by_style.values():
            slots = np.array([self._rankings[number].slots for number in mine])
            for part in _parts(np.minimum(slots, (2.0 + _DEPTH * share * slots)).tolist()):
                chosen = mine[part]
                self._rank_part([self._rankings[number] for number in chosen], wanted[chosen], share)

    def _rank_part(self, rankings: list[Ranking], wanted: Numbers, share: float) -> None:
        eligible = [each.family.among(self._fleet) for each in rankings]
        slots = np.array([each.slots for each in rankings])
        most = np.minimum(wanted + _AHEAD + (_BY_OTHERS * share * slots).astype(np.int64), slots)
        numbers = np.repeat(np.arange(len(rankings)), [len(each.rows) for each in eligible])
        rows = np.concatenate([each.rows for each in eligible])
        level = np.concatenate([each.level for each in eligible])
        # Those with a free slot; of equals in all else the one comes first that waited longest for work.
        kept = np.flatnonzero(self._free[rows])
        kept = kept[np.argsort(numbers[kept] << self._place_bits | self._place[rows[kept]])]
        rows, level, numbers = rows[kept], level[kept], numbers[kept]
        style = rankings[0].family.demand.style
        if np.any(np.bincount(numbers) > most):
            # First the best instances by their first slots, then the slots of these.
            columns = self._columns(rows, level, np.zeros(len(rows), np.int64))
            kept = _best(numbers, total(POLICIES[style.policy].parts(columns, style.weights)), most)
            kept.sort()
            rows, level, numbers = rows[kept], level[kept], numbers[kept]
        # Not all slots of each: what comes after the first one that was left out is not told.
        whole = np.minimum(self._free[rows], most[numbers])
        depth = np.minimum(whole, 2 + (_DEPTH * share * whole).astype(np.int64))
        index = np.repeat(np.arange(len(rows)), depth)
        j = np.arange(len(index)) - np.repeat(np.cumsum(depth) - depth, depth)
        columns = self._columns(rows[index], level[index], j)
        best = _best(numbers[index], total(POLICIES[style.policy].parts(columns, style.weights)), most)
        index, j = index[best], j[best]
        order = self._first[rows[index]] + j
        stops = np.flatnonzero((j + 1 == depth[index]) & (depth < whole)[index])
        ends = np.cumsum(np.bincount(numbers[index], minlength=len(rankings)))
        begins = np.append(0, ends[:-1])
        stopped, at = np.unique(numbers[index[stops]], return_index=True)
        ends[stopped] = stops[at] + 1
        for ranking, begin, end in zip(rankings, begins.tolist(), ends.tolist(), strict=True):
            ranking.order = order[begin:end]

    def _columns(self, rows: Numbers, level: Any, j: Numbers) -> Columns:
        held = self._held[rows]
        slots = held + self._free[rows]
        return Columns(level, held, slots, self._turn[rows], self._newest, level, None, j)

    def rows(self, slots: Numbers) -> Numbers:
        """Return whose these slots are."""
        rows: Numbers = self._row[slots]
        return rows

    def count(self, at: int) -> int:
        """Return how many instances are free for a queue."""
        return int(self._counts[at])

    def shown(self, at: int) -> tuple[Numbers, list[int], Any, list[tuple[str, float, Any]]]:
        """Return what is ranked for a queue, best first: slots, their rows, scores, and parts of these."""
        ranking = self._rankings[self._ranking_of[at]]
        slots = ranking.order
        rows = self._row[slots]
        fits = np.ones(len(rows), np.bool_)
        for name, amount in self.queues[at].demand.needs:
            fits &= self._left[name][rows] >= amount
        slots, rows = slots[fits], rows[fits]
        eligible = ranking.family.among(self._fleet)
        level = eligible.level[np.searchsorted(eligible.rows, rows)]
        style = ranking.family.demand.style
        parts = POLICIES[style.policy].parts(
            self._columns(rows, level, slots - self._first[rows]), style.weights
        )
        return slots, rows.tolist(), total(parts), [(part.name, part.weight, part.values) for part in parts]


class WavePool:
    """The slots for a queue in a wave, for explanations: see `ranking.Pool`; positions are slots here."""

    __slots__ = ("_at", "_shown", "_wave", "count", "demand")

    def __init__(self, wave: Wave, at: int) -> None:
        self._wave = wave
        self._at = at
        self._shown: Any = None
        self.demand = wave.queues[at].demand
        self.count = wave.count(at)

    def explain(self, at: int, name_of: Callable[[int], str]) -> str:
        """Return why a slot won, and who came next."""
        if self._shown is None:
            self._shown = self._wave.shown(self._at)
        slots, rows, scores, parts = self._shown
        position = int(np.flatnonzero(slots == at)[0])
        return told(self.demand, self.count, rows, scores, parts, position, name_of)


class WavePlacements(Collection[Placement]):
    """What a wave gave, as columns: a placement is made when somebody looks at it."""

    def __init__(self, wave: Wave, tasks: Sequence[Task], queue: Numbers, slots: Numbers) -> None:
        self._wave = wave
        #: Of each task its queue and its slot.
        self._tasks = tasks
        self._queue = queue
        self._slots = slots

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Placement]:
        pools: dict[int, WavePool] = {}
        rows = self._wave.rows(self._slots)
        columns = self._queue.tolist(), self._slots.tolist(), rows.tolist()
        for task, at, slot, row in zip(self._tasks, *columns, strict=True):
            pool = pools.get(at)
            if pool is None:
                pool = pools[at] = WavePool(self._wave, at)
            yield Placement(task, row, False, pool, slot)

    def __contains__(self, placement: object) -> bool:
        return any(each == placement for each in self)


def _parts(sizes: Sequence[int]) -> Iterator[slice]:
    """Yield slices of what has these sizes, so that each but a single one is no larger than `_TOGETHER`."""
    begin = size = 0
    for at, more in enumerate(sizes):
        if size and size + more > _TOGETHER:
            yield slice(begin, at)
            begin, size = at, 0
        size += more
    if begin < len(sizes):
        yield slice(begin, len(sizes))


def _best(numbers: Numbers, scores: Any, most: Numbers) -> Numbers:
    """Return the positions of the best of each ranking, by ranking and then best first, ties as they stand.

    `numbers` say whose each score is, in growing order, and `most` how many of each.
    """
    score = steps(scores)
    score = score.max() - score
    bits = len(score).bit_length()
    if int(numbers[-1]).bit_length() + int(score.max()).bit_length() + bits <= _BITS:
        # Ranking, score and position as one whole number: much the fastest sort.
        key = (numbers << int(score.max()).bit_length()) | score.astype(np.int64)
        key = (key << bits) | np.arange(len(score))
        key.sort()
        order: Numbers = key & ((1 << bits) - 1)
    else:
        order = np.lexsort((score, numbers))
    lengths = np.bincount(numbers, minlength=len(most))
    if np.all(lengths <= most):
        return order
    kept = np.minimum(lengths, most)
    skipped = np.cumsum(lengths - kept) - (lengths - kept)
    first: Numbers = order[np.arange(int(kept.sum())) + np.repeat(skipped, kept)]
    return first


def _is_plain(policy: SchedulingPolicy) -> bool:
    return policy is not SchedulingPolicy.BEST_MATCH and not POLICIES[policy].predicts
