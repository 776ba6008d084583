"""The free slots for one demand, taken from the columns of the fleet."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any

import numpy as np

from services.scheduler.core.instances import Instance, Levels
from services.scheduler.core.placing.fleet import Fleet
from services.scheduler.core.placing.placement import Demand
from services.scheduler.core.placing.prospects import Estimate, durations
from services.scheduler.core.placing.queues import Queue
from services.scheduler.core.placing.ranking import LonePool, Pool
from services.scheduler.core.policies.base import Columns
from services.scheduler.core.policies.registry import POLICIES


def has_left(instance: Instance, demand: Demand) -> bool:
    """Return whether an instance has left what a demand needs of its capacities."""
    for name, amount in demand.needs:
        if instance.capacities.get(name, 0) - instance.used.get(name, 0) < amount:
            return False
    return True


def fits(instance: Instance, demand: Demand) -> bool:
    """Return whether an instance can take a task with a demand now."""
    if instance.free < 1 or level_for(instance.levels, demand) is None:
        return False
    if demand.agents and instance.key.agent_id not in demand.agents:
        return False
    return has_left(instance, demand)


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
    """Makes pools. Owned by `placing.index`."""

    def __init__(self, fleet: Fleet, ageing_share: int) -> None:
        self.fleet = fleet
        #: Of so many starts of an instance one belongs to an aged task, if there is any.
        self.ageing_share = ageing_share
        #: What predicts durations; None takes what the task declares.
        self.estimate: Estimate | None = None

    def owes(self, instance: Instance) -> bool:
        """Return whether an instance owes its next start to an aged task, if there is any."""
        return instance.fresh_starts >= self.ageing_share - 1

    def any_owes(self) -> bool:
        """Return whether any instance with a free slot does."""
        return bool(np.any((self.fleet.fresh >= self.ageing_share - 1) & (self.fleet.free > 0)))

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
        return self.of(demand, rows, level, fleet.free[rows]) if len(rows) else None

    def of(self, demand: Demand, rows: Any, level: Any, free: Any, slots: int = -1) -> Pool:
        """Return the pool of several instances, all of them free; `slots` if their sum is known."""
        fleet, share = self.fleet, self.ageing_share
        return Pool(
            demand,
            rows,
            free,
            int(free.sum()) if slots < 0 else slots,
            columns=lambda: self._columns(demand, rows, level, free),
            owed=lambda: fleet.fresh[rows] >= share - 1,
            left=self._left,
        )

    def alone(self, demand: Demand, instance: Instance) -> LonePool:
        """Return the pool of the only instance with a free slot: the usual case on a busy fleet."""
        return LonePool(demand, instance.row, lambda: self._plain_columns(demand, [instance])[0])

    def few(self, demand: Demand, instances: list[Instance]) -> Pool:
        """Return the pool of a handful of instances in order of rows, without any array."""
        rows = [instance.row for instance in instances]
        free = [instance.free for instance in instances]
        return Pool(
            demand,
            rows,
            free,
            sum(free),
            columns=lambda: self._plain_columns(demand, instances),
            owed=lambda: [self.owes(instance) for instance in instances],
            left=self._left,
        )

    def _left(self, row: int, name: str) -> int:
        """Return what an instance has left of a capacity."""
        instance = self.fleet.instances[row]
        return 0 if instance is None else instance.capacities.get(name, 0) - instance.used.get(name, 0)

    def _plain_columns(self, demand: Demand, instances: list[Instance]) -> list[Columns]:
        """Return columns of plain numbers, one for each instance: see `Columns`."""
        newest = self.fleet.newest_turn
        costs, times = None, None
        least_cost = least_ms = 0.0
        if POLICIES[demand.style.policy].predicts:
            costs = [instance.cost for instance in instances]
            least_cost = min(costs)
            rows = np.array([instance.row for instance in instances], np.int64)
            array = durations(self.estimate, self.fleet, rows, demand.style)
            if array is not None:
                times = array.tolist()
                least_ms = min(times)
        columns: list[Any] = []
        for number, instance in enumerate(instances):
            levels, held = instance.levels, len(instance.held)
            columns.append(
                (
                    min([levels[skill] for skill in demand.skills]),
                    held,
                    held + instance.free,
                    instance.turn,
                    newest,
                    0.0 if costs is None else costs[number],
                    None if times is None else times[number],
                    0,
                    least_cost,
                    least_ms,
                )
            )
        return [Columns(*each) for each in columns]

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


class FewPools(dict[Queue, Pool]):
    """The pools of what a few instances can serve, each made when it is first asked for."""

    def __init__(self, pools: Pools, able: dict[Queue, list[Instance]]) -> None:
        super().__init__()
        self._pools = pools
        #: The queues, each with those that can serve it.
        self.able = able

    def __missing__(self, queue: Queue) -> Pool:
        """Make the pool of a queue."""
        pool = self[queue] = self._pools.few(queue.demand, self.able[queue])
        return pool


class ManyPools(dict[Queue, Pool]):
    """The pools of what many instances can serve, each made when it is first asked for."""

    def __init__(self, pools: Pools, able: Iterable[Queue]) -> None:
        super().__init__()
        self._pools = pools
        #: The queues for which an instance is free.
        self.able = dict.fromkeys(able)

    def __missing__(self, queue: Queue) -> Pool:
        """Make the pool of a queue."""
        pool = self._pools.among_all(queue.demand)
        if pool is None:
            raise AssertionError(f"nobody is free for {queue.demand}")
        self[queue] = pool
        return pool
