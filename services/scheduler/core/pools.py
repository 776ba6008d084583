"""The free slots for one demand, taken from the columns of the fleet."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import numpy as np

from services.scheduler.core.fleet import Fleet
from services.scheduler.core.instances import Levels
from services.scheduler.core.placement import Demand, Pool
from services.scheduler.core.policies.base import Columns
from services.scheduler.core.policies.registry import POLICIES
from services.scheduler.core.prospects import Estimate, durations


def level_for(levels: Levels, demand: Demand) -> float | None:
    """Return the level of the weakest required skill; None when one is missing."""
    weakest = 1.0
    for skill in demand.skills:
        level = levels.get(skill)
        if level is None:
            return None
        weakest = min(weakest, level)
    return weakest


class Pools:
    """Makes pools. Owned by `core.index`."""

    def __init__(self, fleet: Fleet, ageing_share: int) -> None:
        self.fleet = fleet
        self._ageing_share = ageing_share
        #: What predicts durations; None takes what the task declares.
        self.estimate: Estimate | None = None

    def among_all(self, demand: Demand, withheld: Set[int] = frozenset()) -> Pool | None:
        """Return the free slots for a demand, those of `withheld` rows left out; None when there is none."""
        fleet = self.fleet
        rows, level = fleet.eligible(demand.skills, demand.agents)
        open_rows = fleet.free[rows] > 0
        rows, level = rows[open_rows], level[open_rows]
        if withheld:
            mine = np.array([row not in withheld for row in rows.tolist()], bool)
            rows, level = rows[mine], level[mine]
        for name, amount in demand.needs:
            column = fleet.left(name)
            if column is None:
                return None
            fits = column[rows] >= amount
            rows, level = rows[fits], level[fits]
        return self.of(demand, rows, level) if len(rows) else None

    def has(self, row: int, demand: Demand) -> bool:
        """Return whether a row has left what a demand needs."""
        columns = [(self.fleet.left(name), amount) for name, amount in demand.needs]
        return all(column is not None and int(column[row]) >= amount for column, amount in columns)

    def of(self, demand: Demand, rows: Any, level: Any) -> Pool:
        """Return the pool of several instances, all of them free."""
        fleet, share = self.fleet, self._ageing_share
        free = fleet.free[rows]
        pool = Pool(
            demand,
            rows,
            free,
            lambda: self._columns(demand, rows, level, free),
            lambda: fleet.fresh[rows] >= share - 1,
        )
        if demand.needs:
            numbers = rows.tolist()
            left = [column for name, _ in demand.needs if (column := fleet.left(name)) is not None]
            pool.left = tuple(dict(zip(numbers, column[rows].tolist(), strict=True)) for column in left)
        return pool

    def alone(self, demand: Demand, row: int, level: float) -> Pool:
        """Return the pool of one instance alone, without any array: the usual case on a busy fleet."""
        fleet = self.fleet
        instance = fleet.instances[row]
        if instance is None:
            raise KeyError(row)

        def columns() -> Columns:
            held = len(instance.held)
            free = instance.free
            if POLICIES[demand.style.policy].predicts:
                one = np.array([row], np.int64)
                return self._columns(demand, one, np.array([level]), np.array([free])).pick(0)
            # Plain numbers: see `Columns`.
            number: Any = held + free
            return Columns(level, held, number, instance.turn, self.fleet.newest_turn, 0.0, None, 0)  # type: ignore[arg-type]

        pool = Pool(
            demand, row, instance.free, columns, lambda: instance.fresh_starts >= self._ageing_share - 1
        )
        if demand.needs:
            left = [column for name, _ in demand.needs if (column := fleet.left(name)) is not None]
            pool.left = tuple({row: int(column[row])} for column in left)
        return pool

    def _columns(self, demand: Demand, rows: Any, level: Any, free: Any) -> Columns:
        fleet = self.fleet
        held = fleet.held[rows]
        duration, least = None, 0.0
        cost, least_cost = level, 0.0
        if POLICIES[demand.style.policy].predicts:
            cost = fleet.cost[rows]
            least_cost = float(cost.min())
            duration = durations(self.estimate, fleet, rows, demand.style)
            least = 0.0 if duration is None else float(duration.min())
        return Columns(
            level,
            held,
            held + free,
            fleet.turn[rows],
            self.fleet.newest_turn,
            cost,
            duration,
            np.zeros(len(rows), np.int64),
            least_cost,
            least,
        )
