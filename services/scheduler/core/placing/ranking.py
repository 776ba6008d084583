"""The free slots for one demand in order of preference, and what an explanation says of them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from services.scheduler.core.model import PolicyWeights, SchedulingPolicy
from services.scheduler.core.placing.placement import Demand
from services.scheduler.core.policies.base import Columns, Part, Policy, steps, total
from services.scheduler.core.policies.registry import POLICIES

#: Other agents that an explanation names.
RUNNERS_UP_MAX = 3
#: What a plan has taken of each row's capacities.
Spent = dict[int, dict[str, int]]


class Pool:
    """The free slots for one demand, best first as far as a plan asks for them."""

    __slots__ = (
        "_at",
        "_columns",
        "_j",
        "_left",
        "_order",
        "_owed",
        "_parts",
        "_plain",
        "_scores",
        "count",
        "demand",
        "free",
        "matched",
        "rows",
        "slots",
        "wanted",
    )

    def __init__(
        self,
        demand: Demand,
        rows: Any,
        free: Any,
        slots: int,
        *,
        columns: Callable[[], Any],
        owed: Callable[[], Any],
        left: Callable[[int, str], int],
    ) -> None:
        self.demand = demand
        #: Rows of the fleet in growing order, with their free slots: arrays, or lists for a handful.
        self.rows = rows
        self.free = free
        self._columns = columns
        self._owed = owed
        self._left = left
        self._plain = isinstance(rows, list)
        #: Free instances and free slots.
        self.count = len(rows)
        self.slots = slots
        #: What several tasks get is decided together.
        self.matched = demand.style.policy is SchedulingPolicy.BEST_MATCH
        #: Tasks of a snapshot that may use it.
        self.wanted = 0
        self._at = 0
        self._order: list[int] = []
        self._j: list[int] = []
        # Read by explanations and matchings alone.
        self._parts: list[tuple[str, float, Any]] = []
        self._scores: Any = ()

    def owed_rows(self) -> set[int]:
        """Return the rows that owe their next start to an aged task."""
        owed = self._owed()
        if self._plain:
            return {row for row, owes in zip(self.rows, owed, strict=True) if owes}
        return set(self.rows[owed].tolist())

    def owes(self) -> bool:
        """Return whether one of its slots is owed to an aged task."""
        owed = self._owed()
        return any(owed) if self._plain else bool(owed.any())

    def rank(self, most: int) -> None:
        """Sort the `most` best slots and as many more as an explanation names.

        Asked for less than before it does nothing; asked for more, what was sorted keeps its position.
        """
        if len(self._order) >= min(most, self.slots):
            return
        policy, weights = POLICIES[self.demand.style.policy], self.demand.style.weights
        columns = self._columns()
        if self._plain:
            # Of one instance alone there is nobody else to name.
            most = most if self.count == 1 else most + RUNNERS_UP_MAX
            self._rank_plain(policy, weights, columns, min(most, self.slots))
            return
        scores = steps(total(policy.parts(columns, weights)))
        most = min(most + RUNNERS_UP_MAX, self.slots)
        best = _top(scores, columns.turn, most)
        rows = self.rows[best]
        counts = np.minimum(self.free[best], most)
        if int(counts.max(initial=0)) > 1:
            index = np.repeat(best, counts)
            starts = np.cumsum(counts) - counts
            columns = columns.pick(index)._replace(j=np.arange(len(index)) - np.repeat(starts, counts))
            rows = np.repeat(rows, counts)
        else:
            columns = columns.pick(best)
        parts = policy.parts(columns, weights)
        scores = total(parts)
        # The best of all are among these rows; beyond `most` a row that was left out might come in between.
        order = np.lexsort((columns.j, rows, columns.turn, -steps(scores)))[:most]
        # Lists: what is read one by one is read faster from them.
        self._parts = [(part.name, part.weight, part.values[order].tolist()) for part in parts]
        self._scores = scores[order].tolist()
        self._order = rows[order].tolist()
        self._j = columns.j[order].tolist()

    def _rank_plain(
        self, policy: Policy, weights: PolicyWeights, columns: Sequence[Columns], most: int
    ) -> None:
        """Rank the `most` best slots of a handful of instances by plain numbers: a heap of their next slots.

        A score never rises with j, so that an instance's next slot is never better than the one before it.
        """
        heap: list[tuple[float, int, int, int, tuple[Part, ...]]] = []
        for position, column in enumerate(columns):
            parts = policy.parts(column, weights)
            heap.append((-steps(total(parts)), int(column.turn), position, 0, parts))
        heapq.heapify(heap)
        best: list[tuple[float, int, int, int, tuple[Part, ...]]] = []
        while len(best) < most:
            slot = heap[0]
            best.append(slot)
            _, turn, position, j, _ = slot
            j += 1
            if j < self.free[position]:
                parts = policy.parts(columns[position]._replace(j=j), weights)  # type: ignore[arg-type]
                heapq.heapreplace(heap, (-steps(total(parts)), turn, position, j, parts))
            else:
                heapq.heappop(heap)
        self._parts = [
            (part.name, part.weight, [float(parts[number].values) for *_, parts in best])
            for number, part in enumerate(best[0][4])
        ]
        self._scores = [float(total(parts)) for *_, parts in best]
        self._order = [self.rows[position] for _, _, position, _, _ in best]
        self._j = [j for _, _, _, j, _ in best]

    def take(self, taken: dict[int, int], spent: Spent, wish: int = -1) -> int:
        """Take the best slot that is left, or one of the row `wish`; return its position, -1 for none."""
        if wish >= 0:
            return self._take_wished(taken, spent, wish)
        get, needs = taken.get, self.demand.needs
        while True:
            order, j = self._order, self._j
            for at in range(self._at, len(order)):
                row = order[at]
                if get(row, 0) == j[at] and (not needs or self._fits(row, spent)):
                    taken[row] = j[at] + 1
                    self._at = at + 1
                    return at
            self._at = len(order)
            # Nothing was sorted yet, or others took all of that: sort eight times as much.
            self.rank(max(8 * len(order) + 1, self.wanted))
            if len(self._order) == len(order):
                return -1

    def _take_wished(self, taken: dict[int, int], spent: Spent, wish: int) -> int:
        self.rank(self.slots)
        for at, row in enumerate(self._order):
            if row == wish and taken.get(row, 0) == self._j[at]:
                if self.demand.needs and not self._fits(row, spent):
                    return -1
                taken[row] = self._j[at] + 1
                return at
        return -1

    def take_owed(self, taken: dict[int, int], spent: Spent) -> int:
        """Take the best slot that is owed to an aged task; return its position, -1 when there is none."""
        owing = self.owed_rows()
        self.rank(self.slots)
        for at, row in enumerate(self._order):
            if row in owing and not taken.get(row) and self._j[at] == 0:
                if self.demand.needs and not self._fits(row, spent):
                    continue
                taken[row] = 1
                return at
        return -1

    def left_over(self, taken: dict[int, int]) -> list[tuple[int, int, int, float]]:
        """Return the slots that nobody took: (position, row, j, score), best first."""
        rows = zip(self._order, self._j, self._scores, strict=True)
        return [
            (at, row, j, float(score)) for at, (row, j, score) in enumerate(rows) if taken.get(row, 0) <= j
        ]

    def row(self, at: int) -> int:
        """Return the fleet's row of a position."""
        return self._order[at]

    def _fits(self, row: int, spent: Spent) -> bool:
        """Take what the demand needs of a row's capacities; return whether it was there."""
        amounts = spent.setdefault(row, {})
        needs = self.demand.needs
        for name, amount in needs:
            if amounts.get(name, 0) + amount > self._left(row, name):
                return False
        for name, amount in needs:
            amounts[name] = amounts.get(name, 0) + amount
        return True

    def ranking(self) -> list[tuple[int, float, tuple[tuple[str, float, float], ...]]]:
        """Return the ranked slots: (row, score, parts as (name, value, weight)), best first."""
        return [
            (
                row,
                float(self._scores[at]),
                tuple((name, float(values[at]), weight) for name, weight, values in self._parts),
            )
            for at, row in enumerate(self._order)
        ]

    def explain(self, at: int, name_of: Callable[[int], str]) -> str:
        """Return why the slot at a position won, and who came next."""
        return told(self.demand, self.count, self._order, self._scores, self._parts, at, name_of)


class LonePool(Pool):
    """The slot of the only instance with a free one: nobody to compare it with, scored when asked."""

    __slots__ = ("_lone",)

    def __init__(self, demand: Demand, row: int, columns: Callable[[], Columns]) -> None:
        # Nothing of what ranking needs is made.
        self.demand = demand
        self.rows = [row]
        self.count = self.slots = self.wanted = 1
        self.matched = False
        self._lone = columns

    def rank(self, most: int) -> None:
        """See `Pool.rank`: there is one slot."""

    def take(self, taken: dict[int, int], spent: Spent, wish: int = -1) -> int:
        """See `Pool.take`; that the task fits was seen when this was made for it."""
        del taken, spent
        return 0 if wish in (-1, self.rows[0]) else -1

    def take_owed(self, taken: dict[int, int], spent: Spent) -> int:
        """See `Pool.take_owed`: it was made because the slot is owed."""
        del taken, spent
        return 0

    def row(self, at: int) -> int:
        """See `Pool.row`."""
        return int(self.rows[at])

    def explain(self, at: int, name_of: Callable[[int], str]) -> str:
        """See `Pool.explain`; to be called before anything changes."""
        del at, name_of
        style = self.demand.style
        parts = POLICIES[style.policy].parts(self._lone(), style.weights)
        shown = _shown([(name, weight, float(values)) for name, weight, values in parts])
        return f"{style.policy.name}: {shown} = {total(parts):.2f}, best of 1 free"


def told(  # noqa: PLR0917  # all that is known of one ranking
    demand: Demand,
    count: int,
    rows: Sequence[int],
    scores: Any,
    parts: Sequence[tuple[str, float, Any]],
    at: int,
    name_of: Callable[[int], str],
) -> str:
    """Return why the slot at a position of a ranking won among `count` instances, and who came next."""
    seen = {rows[at]}
    others = []
    for position in range(at + 1, len(rows)):
        if len(seen) == count:
            # All that were compared are named: what is left are more slots of theirs.
            break
        row = rows[position]
        if row not in seen:
            seen.add(row)
            others.append(f"{name_of(row)} {scores[position]:.2f}")
            if len(others) == RUNNERS_UP_MAX:
                break
    shown = _shown([(name, weight, values[at]) for name, weight, values in parts])
    text = f"{demand.style.policy.name}: {shown} = {scores[at]:.2f}, best of {count} free"
    return f"{text}, then {', '.join(others)}" if others else text


def _shown(parts: Sequence[tuple[str, float, float]]) -> str:
    return " + ".join(
        [
            f"{name} {value:.2f}" if weight == 1.0 else f"{weight:.2f} * {name} {value:.2f}"
            for name, weight, value in parts
        ]
    )


def _top(scores: Any, turn: Any, most: int) -> Any:
    """Return the positions of at least the `most` best in growing order; ties go to the smallest turns.

    Of equal turns (nobody of them had work so far) the smaller positions. Array operations only: linear in
    the number of agents for a few, and without a sort of all for many.
    """
    count = len(scores)
    if count <= max(64, most):
        return np.arange(count)
    cut = np.partition(scores, count - most)[count - most]
    above = np.flatnonzero(scores > cut)
    ties = np.flatnonzero(scores == cut)
    wanted = most - len(above)
    if len(ties) > wanted:
        ties = ties[np.argpartition(turn[ties] * count + ties, wanted - 1)[:wanted]]
    best = np.concatenate((above, ties))
    best.sort()
    return best
