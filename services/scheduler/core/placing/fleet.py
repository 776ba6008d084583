"""The fleet in columns: what a placement needs to know of ten thousand instances, as arrays.

Each instance that the index knows has a row. Skills are one column each (0 where an instance lacks it), so
that the agents for a demand are found by a few array operations instead of a walk; the answer is kept until
an instance or its skills change.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from services.common.core.ids import AgentId, Skill
from services.scheduler.core.instances import NO_CAPACITIES, NO_SKILLS, Instance, Levels
from services.scheduler.core.placing.fairness import Totals
from services.scheduler.core.policies.base import Floats

#: Answers of `eligible` that are kept, and rows in all of them: 16 bytes each.
_ANSWERS_MAX = 8_192
_ANSWER_ROWS_MAX = 2_000_000
_ROWS_MIN = 64

Rows = npt.NDArray[np.int64]


class Eligible(NamedTuple):
    """Instances that have the skills of a demand, free or not."""

    rows: Rows
    #: Level of the weakest required skill.
    level: Floats


class _Seen:
    """What the columns say of one row, as plain values: most of an instance's changes leave most of it."""

    __slots__ = ("capacities", "cost", "free", "fresh", "held", "levels", "turn")

    def __init__(self) -> None:
        self.levels = NO_SKILLS
        self.capacities: Mapping[str, int] = NO_CAPACITIES
        self.held = self.free = self.turn = self.fresh = 0
        self.cost = 0.0


class Fleet:
    """See the module. Owned by `placing.index`."""

    def __init__(self) -> None:
        self._size = _ROWS_MIN
        self.instances: list[Instance | None] = []
        self._spare: list[int] = []
        self.held = np.zeros(_ROWS_MIN, np.int64)
        self.free = np.zeros(_ROWS_MIN, np.int64)
        self.turn = np.zeros(_ROWS_MIN, np.int64)
        self.fresh = np.zeros(_ROWS_MIN, np.int64)
        self.cost = np.zeros(_ROWS_MIN, np.float64)
        self._levels: dict[Skill, Floats] = {}
        #: How many rows have each skill; a column that nobody needs goes.
        self._having: Counter[Skill] = Counter()
        #: What is left of each capacity.
        self._left: dict[str, Rows] = {}
        self._seen: list[_Seen] = []
        #: Rows with a free slot, and all slots that are free.
        self.live: dict[int, None] = {}
        self.free_count = 0
        self.totals = Totals()
        #: The largest turn of all.
        self.newest_turn = 0
        #: Rows by agent.
        self.agents: dict[AgentId, list[int]] = {}
        self._answers: OrderedDict[tuple[frozenset[Skill], frozenset[AgentId]], Eligible] = OrderedDict()
        self._answer_rows = 0
        #: Grows whenever answers of `eligible` may be others than before.
        self.edition = 0

    def put(self, instance: Instance) -> None:
        """Take in an instance as it is now."""
        row = instance.row
        if row < 0:
            row = self._new_row(instance)
        seen = self._seen[row]
        if seen.levels is not instance.levels:
            if seen.levels != instance.levels:
                self._put_levels(row, seen.levels, instance.levels)
            seen.levels = instance.levels
        if seen.capacities or instance.capacities:
            self._put_capacities(row, seen, instance)
        # Without skills it serves nobody.
        self._put_slots(row, seen, instance.free if instance.levels else 0, len(instance.held))
        if instance.turn != seen.turn:
            self.turn[row] = seen.turn = instance.turn
            self.newest_turn = max(self.newest_turn, instance.turn)
        if instance.fresh_starts != seen.fresh:
            self.fresh[row] = seen.fresh = instance.fresh_starts
        if instance.cost != seen.cost:
            self.cost[row] = seen.cost = instance.cost

    def _put_slots(self, row: int, seen: _Seen, free: int, held: int) -> None:
        before = seen.free
        more = held + free - seen.held - before
        if more:
            self.totals.slots += more
            self.totals.changes += 1
        if free != before:
            self.free_count += free - before
            if not before:
                self.live[row] = None
            elif not free:
                del self.live[row]
            self.free[row] = seen.free = free
        if held != seen.held:
            self.held[row] = seen.held = held

    def forget(self, instance: Instance) -> None:
        """Take an instance out for good."""
        row = instance.row
        if row < 0:
            return
        seen = self._seen[row]
        self._put_levels(row, seen.levels, NO_SKILLS)
        for name, amount in seen.capacities.items():
            self._add_total(name, -amount)
            self._left[name][row] = 0
        self.totals.slots -= seen.held + seen.free
        self.totals.changes += 1
        self.free_count -= seen.free
        for column in (self.held, self.free, self.turn, self.fresh, self.cost):
            column[row] = 0
        self.live.pop(row, None)
        rows = self.agents[instance.key.agent_id]
        rows.remove(row)
        if not rows:
            del self.agents[instance.key.agent_id]
        self.instances[row] = None
        self._seen[row] = _Seen()
        self._spare.append(row)
        instance.row = -1

    def eligible(self, skills: frozenset[Skill], agents: frozenset[AgentId]) -> Eligible:
        """Return the instances with all of `skills`, among `agents` if any are named."""
        key = (skills, agents)
        found = self._answers.get(key)
        if found is None:
            found = self._answers[key] = self._find(skills, agents)
            self._answer_rows += len(found.rows)
            while len(self._answers) > _ANSWERS_MAX or self._answer_rows > _ANSWER_ROWS_MAX:
                self._answer_rows -= len(self._answers.popitem(last=False)[1].rows)
        else:
            self._answers.move_to_end(key)
        return found

    def left(self, name: str) -> Rows | None:
        """Return what each row has left of a capacity; None when nobody has it."""
        return self._left.get(name)

    def _find(self, skills: frozenset[Skill], agents: frozenset[AgentId]) -> Eligible:
        columns = [self._levels.get(skill) for skill in skills]
        count = len(self.instances)
        if any(column is None for column in columns):
            return Eligible(np.zeros(0, np.int64), np.zeros(0, np.float64))
        weakest = np.minimum.reduce([column[:count] for column in columns if column is not None])
        if agents:
            named = sorted(row for agent in agents for row in self.agents.get(agent, ()))
            rows = np.array(named, np.int64)
            rows = rows[weakest[rows] > 0.0]
        else:
            rows = np.flatnonzero(weakest > 0.0)
        return Eligible(rows, weakest[rows])

    def _new_row(self, instance: Instance) -> int:
        if self._spare:
            row = self._spare.pop()
            self.instances[row] = instance
        else:
            row = len(self.instances)
            self.instances.append(instance)
            self._seen.append(_Seen())
            if row >= self._size:
                self._grow()
        self._forget_answers()
        self.agents.setdefault(instance.key.agent_id, []).append(row)
        instance.row = row
        return row

    def _grow(self) -> None:
        more = self._size
        self._size += more
        self.held, self.free, self.turn, self.fresh = (
            np.append(column, np.zeros(more, np.int64))
            for column in (self.held, self.free, self.turn, self.fresh)
        )
        self.cost = np.append(self.cost, np.zeros(more))
        self._levels = {skill: np.append(column, np.zeros(more)) for skill, column in self._levels.items()}
        self._left = {
            name: np.append(column, np.zeros(more, np.int64)) for name, column in self._left.items()
        }

    def _put_levels(self, row: int, before: Levels, levels: Levels) -> None:
        self._forget_answers()
        for skill in before:
            self._levels[skill][row] = 0.0
            self._having[skill] -= 1
        for skill, level in levels.items():
            column = self._levels.get(skill)
            if column is None:
                column = self._levels[skill] = np.zeros(self._size)
            column[row] = level
            self._having[skill] += 1
        for skill in before:
            if self._having[skill] == 0:
                del self._levels[skill], self._having[skill]

    def _forget_answers(self) -> None:
        self._answers.clear()
        self._answer_rows = 0
        self.edition += 1

    def _put_capacities(self, row: int, seen: _Seen, instance: Instance) -> None:
        now = instance.capacities
        if seen.capacities is not now:
            for name, amount in seen.capacities.items():
                self._add_total(name, -amount)
                self._left[name][row] = 0
            for name, amount in now.items():
                self._add_total(name, amount)
                if name not in self._left:
                    self._left[name] = np.zeros(self._size, np.int64)
            seen.capacities = now
        for name, amount in now.items():
            self._left[name][row] = amount - instance.used.get(name, 0)

    def _add_total(self, name: str, amount: int) -> None:
        self.totals.capacities[name] = self.totals.capacities.get(name, 0) + amount
        self.totals.changes += 1
