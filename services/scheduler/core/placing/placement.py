"""Which ready task goes to which free agent: a function of a snapshot.

Tasks come in serving order (`core.lanes`) and each goes to the slot with the largest score under its policy
(`core.policies`). The slots of an instance are told apart: the j-th free one is scored as if the ones before
it were taken. Since a score never rises with j, walking each demand's slots in falling order of score and
passing over those that others took gives what choosing anew for every task would give, at the price of one
sort for each demand.

The plan is a proposal: `core.apply` verifies each placement against the state as it then is, and may accept
a part.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from services.common.core.ids import AgentId, Skill
from services.scheduler.core.model import (
    ALIKE,
    CollaborationSpec,
    InstanceKey,
    PolicyWeights,
    SchedulingPolicy,
    TaskSpec,
)
from services.scheduler.core.placing.matching import best_match
from services.scheduler.core.policies.base import Columns, Part, Policy, total
from services.scheduler.core.policies.registry import POLICIES

#: Tasks that are matched together at most: the price of a matching grows with their cube.
MATCHED_MAX = 256
#: Other agents that an explanation names.
RUNNERS_UP_MAX = 3


class Style(NamedTuple):
    """How an agent is chosen. Tasks of different styles never share a queue."""

    policy: SchedulingPolicy = SchedulingPolicy.PRIORITY
    weights: PolicyWeights = ALIKE
    #: What the policy predicts for; empty and 0 when it predicts nothing.
    task_type: str = ""
    duration_ms: int = 0
    skill: str = ""


_PLAIN = Style()
#: What a plan has taken of each row's capacities.
Spent = dict[int, dict[str, int]]


class Demand(NamedTuple):
    """What a task needs of an agent, and how one is chosen; tasks with the same demand share a queue."""

    skills: frozenset[Skill]
    #: If not empty, only these.
    agents: frozenset[AgentId]
    #: Amounts of an instance's capacities, by name in order of name.
    needs: tuple[tuple[str, int], ...] = ()
    style: Style = _PLAIN


def demand_of(
    spec: TaskSpec,
    collaboration: CollaborationSpec | None = None,
    default: SchedulingPolicy = SchedulingPolicy.PRIORITY,
) -> Demand:
    """Return what a task needs of an agent; `default` is the policy of a collaboration that names none."""
    policy = (None if collaboration is None else collaboration.policy) or default
    style = _PLAIN
    if policy is not SchedulingPolicy.PRIORITY:
        style = Style(policy)
        if POLICIES[policy].predicts and collaboration is not None:
            task_type = spec.task_type or spec.required_skills[0]
            declared_ms, skill = spec.estimated_duration_ms, spec.required_skills[0]
            style = Style(policy, collaboration.weights, task_type, declared_ms, skill)
    return Demand(frozenset(spec.required_skills), frozenset(spec.required_agents), spec.needs, style)


class Pool:
    """The free slots for one demand, best first as far as a plan asks for them."""

    def __init__(
        self, demand: Demand, rows: Any, free: Any, columns: Callable[[], Any], owed: Callable[[], Any]
    ) -> None:
        self.demand = demand
        #: Rows of the fleet in growing order, with their free slots: arrays, or lists for a handful.
        self.rows = rows
        self.free = free
        self._columns = columns
        self._owed = owed
        self._plain = isinstance(rows, list)
        #: Free instances and free slots.
        self.count = len(rows)
        self.slots = sum(free) if self._plain else int(free.sum())
        #: Tasks of a snapshot that may use it.
        self.wanted = 0
        #: What each row has left of the capacities that the demand needs; none when it needs nothing.
        self.left: tuple[dict[int, int], ...] = ()
        self._at = 0
        self._order: list[int] = []
        self._j: list[int] = []
        self._parts: list[tuple[str, float, list[float]]] = []
        self._scores: list[float] = []

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
        scores = total(policy.parts(columns, weights))
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
        order = np.lexsort((columns.j, columns.turn, -scores))[:most]
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
            heap.append((-float(total(parts)), int(column.turn), 0, position, parts))
        heapq.heapify(heap)
        best: list[tuple[float, int, int, int, tuple[Part, ...]]] = []
        while len(best) < most:
            slot = heap[0]
            best.append(slot)
            _, turn, j, position, _ = slot
            j += 1
            if j < self.free[position]:
                parts = policy.parts(columns[position]._replace(j=j), weights)  # type: ignore[arg-type]
                heapq.heapreplace(heap, (-float(total(parts)), turn, j, position, parts))
            else:
                heapq.heappop(heap)
        self._parts = [
            (part.name, part.weight, [float(parts[number].values) for *_, parts in best])
            for number, part in enumerate(best[0][4])
        ]
        self._scores = [-negative for negative, *_ in best]
        self._order = [self.rows[position] for _, _, _, position, _ in best]
        self._j = [j for _, _, j, _, _ in best]

    def take(self, taken: dict[int, int], spent: Spent, wish: int = -1) -> int:
        """Take the best slot that is left, or one of the row `wish`; return its position, -1 for none."""
        if wish >= 0:
            return self._take_wished(taken, spent, wish)
        order, j, at = self._order, self._j, self._at
        while True:
            if at == len(order):
                # Others took what was sorted: sort eight times as much.
                self.rank(8 * at + 1)
                order, j = self._order, self._j
                if at == len(order):
                    break
            row = order[at]
            if taken.get(row, 0) == j[at] and (not self.left or self._fits(row, spent)):
                taken[row] = j[at] + 1
                self._at = at + 1
                return at
            at += 1
        self._at = at
        return -1

    def _take_wished(self, taken: dict[int, int], spent: Spent, wish: int) -> int:
        self.rank(self.slots)
        for at, row in enumerate(self._order):
            if row == wish and taken.get(row, 0) == self._j[at]:
                if self.left and not self._fits(row, spent):
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
                if self.left and not self._fits(row, spent):
                    continue
                taken[row] = 1
                return at
        return -1

    def left_over(self, taken: dict[int, int]) -> list[tuple[int, int, int, float]]:
        """Return the slots that nobody took: (position, row, j, score), best first."""
        rows = zip(self._order, self._j, self._scores, strict=True)
        return [(at, row, j, score) for at, (row, j, score) in enumerate(rows) if taken.get(row, 0) <= j]

    def row(self, at: int) -> int:
        """Return the fleet's row of a position."""
        return self._order[at]

    def _fits(self, row: int, spent: Spent) -> bool:
        """Take what the demand needs of a row's capacities; return whether it was there."""
        amounts = spent.setdefault(row, {})
        needs = self.demand.needs
        for (name, amount), left in zip(needs, self.left, strict=True):
            if amounts.get(name, 0) + amount > left[row]:
                return False
        for name, amount in needs:
            amounts[name] = amounts.get(name, 0) + amount
        return True

    def ranking(self) -> list[tuple[int, float, tuple[tuple[str, float, float], ...]]]:
        """Return the ranked slots: (row, score, parts as (name, value, weight)), best first."""
        return [
            (
                row,
                self._scores[at],
                tuple((name, values[at], weight) for name, weight, values in self._parts),
            )
            for at, row in enumerate(self._order)
        ]

    def explain(self, at: int, name_of: Callable[[int], str]) -> str:
        """Return why the slot at a position won, and who came next."""
        shown = " + ".join(
            f"{name} {values[at]:.2f}" if weight == 1.0 else f"{weight:.2f} * {name} {values[at]:.2f}"
            for name, weight, values in self._parts
        )
        order, scores = self._order, self._scores
        seen = {order[at]}
        others = []
        for position in range(at + 1, len(order)):
            row = order[position]
            if row not in seen:
                seen.add(row)
                others.append(f"{name_of(row)} {scores[position]:.2f}")
                if len(others) == RUNNERS_UP_MAX:
                    break
        text = f"{self.demand.style.policy.name}: {shown} = {scores[at]:.2f}, best of {self.count} free"
        return f"{text}, then {', '.join(others)}" if others else text


class Snapshot(NamedTuple):
    """What a planner may look at. Bounded: no more tasks than could be served."""

    #: In serving order: (task, pool, whether it is served for its age). The task is opaque here.
    turns: Sequence[tuple[Any, Pool, bool]]
    #: Instance by row.
    key_of: Callable[[int], InstanceKey]


class Placement(NamedTuple):
    """One proposed assignment."""

    #: As it was in the snapshot.
    task: Any
    row: int
    #: Served for its age.
    aged: bool
    #: Where the reasons are: rendered by `explain` when somebody wants them.
    pool: Pool
    at: int


def plan(snapshot: Snapshot) -> list[Placement]:
    """Return a placement for every task of the snapshot that an agent is free for, in serving order."""
    turns = snapshot.turns
    taken: dict[int, int] = {}
    spent: Spent = {}
    placements: list[Placement] = []
    wave = len(turns)
    number = 0
    while number < wave:
        task, pool, aged = turns[number]
        pool.rank(pool.wanted)
        if pool.demand.style.policy is SchedulingPolicy.BEST_MATCH and not aged:
            group = _matched_together(turns, number)
            if len(group) > 1:
                placements += _match(group, taken)
                number += len(group)
                continue
        at = pool.take_owed(taken, spent) if aged else pool.take(taken, spent, task.wish)
        if at >= 0:
            placements.append(Placement(task, pool.row(at), aged, pool, at))
        number += 1
    return placements


def _matched_together(
    turns: Sequence[tuple[Any, Pool, bool]], first: int
) -> Sequence[tuple[Any, Pool, bool]]:
    """Return the turns from `first` on that one matching decides: of one class, one after the other."""
    priority = turns[first][0].priority
    end = first
    while end < len(turns) and end - first < MATCHED_MAX:
        task, pool, aged = turns[end]
        style = pool.demand.style
        if aged or pool.demand.needs or task.priority != priority or style.policy is not _BEST_MATCH:
            break
        end += 1
    return turns[first:end]


_BEST_MATCH = SchedulingPolicy.BEST_MATCH


def _match(group: Sequence[tuple[Any, Pool, bool]], taken: dict[int, int]) -> list[Placement]:
    """Place the tasks of a group together; see `core.matching` for what is best."""
    choices: dict[Demand, list[tuple[int, int, int, float]]] = {}
    for _, pool, _ in group:
        pool.rank(2 * len(group) + pool.wanted)
        if pool.demand not in choices:
            choices[pool.demand] = pool.left_over(taken)[: len(group)]
    found = best_match(
        [[((row, j), score) for _, row, j, score in choices[pool.demand]] for _, pool, _ in group]
    )
    placements: list[Placement] = []
    for (task, pool, _), position in zip(group, found, strict=True):
        if position is not None:
            at, row, *_ = choices[pool.demand][position]
            taken[row] = taken.get(row, 0) + 1
            placements.append(Placement(task, row, False, pool, at))
    return placements


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
