"""Ready tasks and free agents, indexed so that no event looks at all of them.

Tasks wait in queues, one for each demand (skills, named agents, needs, style); a queue's lanes tell classes
and requesters apart (`core.lanes`). Instances are columns (`core.fleet`). `_runnable` holds the queues that
have a task and may have an agent: what a placement looks at. A queue comes there when a task enters it, or
when an instance that could serve it may have a free slot; it leaves when a placement finds none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from services.common.core.ids import AgentId, Skill
from services.common.core.instants import Instant
from services.scheduler.core.course import Task
from services.scheduler.core.fairness import Account
from services.scheduler.core.fleet import Fleet
from services.scheduler.core.instances import Instance, Levels
from services.scheduler.core.lanes import Lane, Offer, order_of, serve, serve_aged
from services.scheduler.core.model import GangPlace, InstanceKey, Priority, TaskKey
from services.scheduler.core.placement import Demand, Pool, Snapshot
from services.scheduler.core.policies.base import Columns
from services.scheduler.core.policies.registry import POLICIES
from services.scheduler.core.prospects import Estimate, durations

#: Demands without a waiting task that are kept, so that a steady stream of tasks does not make them anew.
_IDLE_QUEUES_MAX = 1_024
#: Up to this many rows with a free slot are looked at one by one; beyond it array operations are cheaper.
_FEW_ROWS = 8


def level_for(levels: Levels, demand: Demand) -> float | None:
    """Return the level of the weakest required skill; None when one is missing."""
    weakest = 1.0
    for skill in demand.skills:
        level = levels.get(skill)
        if level is None:
            return None
        weakest = min(weakest, level)
    return weakest


class _Queue:
    """The ready tasks of one demand."""

    __slots__ = ("demand", "lanes", "live", "skill")

    def __init__(self, demand: Demand, skill: Skill | None) -> None:
        self.demand = demand
        #: Under which it is found; None when it is found under its agents.
        self.skill = skill
        self.lanes: dict[tuple[Priority, Account], Lane] = {}
        self.live = 0


class PlacementIndex:
    """See the module. Owned by `SchedulerState`; `snapshot` is the only way to read it."""

    def __init__(self, ageing_ms: int = 60_000, ageing_share: int = 4) -> None:
        self._ageing_ms = ageing_ms
        self._ageing_share = ageing_share
        self._queues: dict[Demand, _Queue] = {}
        self._idle: dict[_Queue, None] = {}
        self._by_skill: dict[Skill, dict[_Queue, None]] = {}
        self._by_agent: dict[AgentId, dict[_Queue, None]] = {}
        self._runnable: dict[_Queue, None] = {}
        self._touched: dict[Instance, None] = {}
        self._number = 0
        self.fleet = Fleet()
        #: What predicts durations; None takes what the task declares.
        self.estimate: Estimate | None = None
        #: Ready tasks that wait for an agent.
        self.waiting_count = 0
        #: Members that wait, by their gang; they are in no queue. See `core.gangs`.
        self.gangs: dict[TaskKey, dict[int, Task]] = {}
        #: Rows that an aged gang keeps from everything but EMERGENCY, in this placement.
        self.withheld: set[int] = set()

    # Tasks.

    def add_task(self, task: Task) -> None:
        """Let a ready task wait for an agent."""
        if (gang := task.spec.gang) is not None:
            task.queue_number = self._next()
            self.gangs.setdefault(_gang_key(task, gang), {})[gang.rank] = task
            self.waiting_count += 1
            return
        queue = self._queues.get(task.demand)
        if queue is None:
            queue = self._new_queue(task.demand)
        elif queue.live == 0:
            self._idle.pop(queue, None)
        key = (task.priority, task.account)
        lane = queue.lanes.get(key)
        if lane is None:
            lane = queue.lanes[key] = Lane(*key)
        task.queue_number = number = self._next()
        task.lane = lane
        lane.add(task, number)
        queue.live += 1
        self.waiting_count += 1
        # Whether an agent is free is found out by the next snapshot: cheaper than asking for every task.
        self._runnable[queue] = None

    def remove_task(self, task: Task) -> None:
        """Take out a task that waits."""
        if (gang := task.spec.gang) is not None:
            task.queue_number = 0
            self.waiting_count -= 1
            waiting = self.gangs[_gang_key(task, gang)]
            del waiting[gang.rank]
            if not waiting:
                del self.gangs[_gang_key(task, gang)]
            return
        queue, lane = self._queues[task.demand], task.lane
        task.queue_number = 0
        task.lane = None
        queue.live -= 1
        self.waiting_count -= 1
        if lane is not None:
            lane.remove()
            if lane.live == 0:
                del queue.lanes[lane.priority, lane.account]
        if queue.live == 0:
            self._runnable.pop(queue, None)
            self._idle[queue] = None
            if len(self._idle) > _IDLE_QUEUES_MAX:
                self._drop_queue(next(iter(self._idle)))

    # Instances.

    def touch(self, instance: Instance) -> None:
        """Take note that an instance's slots, link or skills may have changed."""
        # Indexed by the next snapshot: an instance that gets a hundred attempts in one batch is moved once.
        self._touched[instance] = None

    def forget_instance(self, instance: Instance) -> None:
        """Take an instance out for good."""
        self._touched.pop(instance, None)
        self.fleet.forget(instance)

    def next_turn(self) -> int:
        """Return a number larger than any before, for the instance that gets work now."""
        return self._next()

    def settle(self) -> None:
        """Take in the instances that were touched."""
        for instance in self._touched:
            self.fleet.put(instance)
            if instance.free:
                self._wake(instance)
        self._touched.clear()

    def _wake(self, instance: Instance) -> None:
        """Let the queues be looked at that an instance with a free slot may serve."""
        levels = instance.levels
        for skill in levels:
            for queue in self._by_skill.get(skill, ()):
                if queue.live and queue.demand.skills <= levels.keys():
                    self._runnable[queue] = None
        for queue in self._by_agent.get(instance.key.agent_id, ()):
            if queue.live:
                self._runnable[queue] = None

    # Reading.

    def gang_classes(self) -> list[Priority]:
        """Return the classes in which a gang waits, the most urgent first."""
        return sorted({next(iter(waiting.values())).priority for waiting in self.gangs.values()})

    def gangs_of(self, priority: Priority) -> list[Task]:
        """Return one member of each gang of a class of which somebody waits, in serving order."""
        found = [next(iter(waiting.values())) for waiting in self.gangs.values()]
        return sorted((each for each in found if each.priority is priority), key=order_of)

    def snapshot(self, task_max: int, now: Instant, above: Priority | None = None) -> Snapshot | None:
        """Return up to `task_max` ready tasks in serving order, with the agents that are free for them.

        None when no ready task has a free agent. With `above`, only tasks of more urgent classes than it.
        """
        self.settle()
        offers: list[Offer] = []
        for queue in [*self._runnable]:
            pool = self.pool(queue.demand)
            if pool is None:
                del self._runnable[queue]
            else:
                offers += self._offers(queue, pool, above)
        if not offers:
            return None
        fleet = self.fleet
        # More than there are slots could not be placed; what is left over is seen by the next snapshot.
        most = min(task_max, fleet.free_count)
        aged = serve_aged(offers, now, self._ageing_ms, most, self._next)
        if not aged:
            return Snapshot(serve(offers, fleet.totals, most), self.key_of)
        urgent = serve(
            [each for each in offers if each.lane.priority is Priority.EMERGENCY], fleet.totals, most
        )
        served = frozenset(task.queue_number for task, _, _ in aged)
        others = [each for each in offers if each.lane.priority is not Priority.EMERGENCY]
        rest = serve(others, fleet.totals, most, served)
        return Snapshot([*urgent, *aged, *rest], self.key_of)

    def _offers(self, queue: _Queue, pool: Pool, above: Priority | None) -> Iterator[Offer]:
        """Yield a queue's lanes with the slots that they may have."""
        kept = self.pool(queue.demand, spare_withheld=True) if self.withheld else pool
        for lane in queue.lanes.values():
            if above is None or lane.priority < above:
                if lane.priority is Priority.EMERGENCY:
                    yield Offer(lane, pool)
                elif kept is not None:
                    yield Offer(lane, kept)

    def pool(self, demand: Demand, *, spare_withheld: bool = False) -> Pool | None:
        """Return the free slots for a demand, None when there is none."""
        fleet = self.fleet
        if len(fleet.live) <= _FEW_ROWS:
            found = self._few(demand)
            if not found:
                return None
            rows = np.array([row for row, _ in found], np.int64)
            level = np.array([each for _, each in found])
        else:
            rows, level = fleet.eligible(demand.skills, demand.agents)
            open_rows = fleet.free[rows] > 0
            rows, level = rows[open_rows], level[open_rows]
        if spare_withheld:
            mine = np.array([row not in self.withheld for row in rows.tolist()], bool)
            rows, level = rows[mine], level[mine]
        left = []
        for name, amount in demand.needs:
            column = fleet.left(name)
            if column is None:
                return None
            fits = column[rows] >= amount
            rows, level = rows[fits], level[fits]
        if not len(rows):
            return None
        free = fleet.free[rows]
        for name, _ in demand.needs:
            column = fleet.left(name)
            if column is not None:
                left.append(column[rows])
        owed = fleet.fresh[rows] >= self._ageing_share - 1
        pool = Pool(
            demand, rows, self._columns(demand, rows, level, free), free, owed if owed.any() else None
        )
        pool.left = tuple(left)
        return pool

    def _few(self, demand: Demand) -> list[tuple[int, float]]:
        found = []
        for row in self.fleet.live:
            instance = self.fleet.instances[row]
            if instance is None or (demand.agents and instance.key.agent_id not in demand.agents):
                continue
            level = level_for(instance.levels, demand)
            if level is not None:
                found.append((row, level))
        return found

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
            self._number,
            cost,
            duration,
            np.zeros(len(rows), np.int64),
            least_cost,
            least,
        )

    def key_of(self, row: int) -> InstanceKey:
        """Return whose row this is; only rows of the present snapshot have an owner for sure."""
        instance = self.fleet.instances[row]
        if instance is None:
            raise KeyError(row)
        return instance.key

    # Queues.

    def _new_queue(self, demand: Demand) -> _Queue:
        # Found under the skill that fewest others are found under.
        skill = None
        if not demand.agents:
            skill = min(sorted(demand.skills), key=lambda each: len(self._by_skill.get(each, ())))
        queue = self._queues[demand] = _Queue(demand, skill)
        if skill is not None:
            self._by_skill.setdefault(skill, {})[queue] = None
        for agent_id in demand.agents:
            self._by_agent.setdefault(agent_id, {})[queue] = None
        return queue

    def _drop_queue(self, queue: _Queue) -> None:
        del self._queues[queue.demand]
        del self._idle[queue]
        if queue.skill is not None:
            _discard(self._by_skill, queue.skill, queue)
        for agent_id in queue.demand.agents:
            _discard(self._by_agent, agent_id, queue)

    def _next(self) -> int:
        self._number += 1
        return self._number


def _gang_key(task: Task, gang: GangPlace) -> TaskKey:
    return TaskKey(task.key.collaboration_id, gang.gang_id)


def _discard(table: dict[Any, dict[_Queue, None]], key: Any, queue: _Queue) -> None:
    del table[key][queue]
    if not table[key]:
        del table[key]
