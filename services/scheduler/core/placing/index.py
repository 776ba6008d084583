"""Ready tasks and free agents, indexed so that no event looks at all of them.

Tasks wait in queues, one for each demand (skills, named agents, needs, style); a queue's lanes tell classes
and requesters apart (`core.lanes`). Instances are columns (`core.fleet`). `_runnable` holds the queues that
have a task and may have an agent: what a placement looks at. A queue comes there when a task enters it, or
when an instance that could serve it may have a free slot; it leaves when a placement finds none.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any

from services.common.core.ids import AgentId, Skill
from services.common.core.instants import Instant
from services.scheduler.core.course import Task
from services.scheduler.core.instances import Instance, Levels
from services.scheduler.core.model import GangPlace, InstanceKey, Priority, TaskKey
from services.scheduler.core.placing.fairness import Account
from services.scheduler.core.placing.fleet import Fleet
from services.scheduler.core.placing.lanes import (
    Lane,
    Offer,
    Turn,
    first,
    is_live,
    order_of,
    serve,
    serve_aged,
)
from services.scheduler.core.placing.placement import Demand, Pool, Snapshot
from services.scheduler.core.placing.pools import Pools, has_left, level_for

#: Demands without a waiting task that are kept, so that a steady stream of tasks does not make them anew.
_IDLE_QUEUES_MAX = 1_024
#: Queues that are remembered for one instance.
_SERVED_KEPT_MAX = 64
#: Up to this many requesters are asked whether they have a task; of more, a list is made.
_ACCOUNTS_FEW = 64
#: Below this length the line of all tasks is not cleaned.
_LINE_MIN = 1_024
_AGEING = (Priority.HIGH, Priority.NORMAL, Priority.LOW)
#: Up to this many rows with a free slot are looked at one by one; beyond it array operations are cheaper.
_FEW_ROWS = 8


class _Queue:
    """The ready tasks of one demand."""

    __slots__ = ("classes", "demand", "live", "others", "skill")

    def __init__(self, demand: Demand, skill: Skill | None) -> None:
        self.demand = demand
        #: Under which it is found; None when it is found under its agents.
        self.skill = skill
        self.others = demand.skills - {skill}
        #: Lanes by class, then by requester; none of them is empty.
        self.classes: dict[Priority, dict[Account, Lane]] = {}
        self.live = 0


class PlacementIndex:
    """See the module. Owned by `SchedulerState`; `snapshot` is the only way to read it."""

    def __init__(self, ageing_ms: int = 60_000, ageing_share: int = 4) -> None:
        self._ageing_ms = ageing_ms
        self._queues: dict[Demand, _Queue] = {}
        self._idle: dict[_Queue, None] = {}
        self._by_skill: dict[Skill, dict[_Queue, None]] = {}
        self._by_agent: dict[AgentId, dict[_Queue, None]] = {}
        self._runnable: dict[_Queue, None] = {}
        #: Instances with a free slot whose queues belong there, too: found when they are asked for.
        self._woken: dict[Instance, None] = {}
        #: Requesters with a waiting task by class, and in how many lanes.
        self._waiting: dict[Priority, dict[Account, int]] = {priority: {} for priority in Priority}
        #: A heap of every task under its number, by the instant at which it became ready: whether anything is
        #: aged at all. Who comes back is in it anew, and its older entry is dead.
        self._line: list[tuple[int, int, Task]] = []
        #: Which queues an instance serves, by row, while neither queues nor its skills have changed.
        self._served: dict[int, tuple[int, Levels, list[tuple[_Queue, float]]]] = {}
        self._queues_edition = 0
        self._touched: dict[Instance, None] = {}
        self._number = 0
        self.fleet = Fleet()
        self.pools = Pools(self.fleet, ageing_share)
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
        priority, account = task.priority, task.account
        lanes = queue.classes.get(priority)
        if lanes is None:
            lanes = queue.classes[priority] = {}
        lane = lanes.get(account)
        if lane is None:
            lane = lanes[account] = Lane(priority, account)
            waiting = self._waiting[priority]
            waiting[account] = waiting.get(account, 0) + 1
        task.queue_number = number = self._next()
        task.lane = lane
        lane.add(task, number)
        line = self._line
        heapq.heappush(line, (task.ready_time or 0, number, task))
        if len(line) > max(_LINE_MIN, 2 * self.waiting_count):
            self._line = [entry for entry in line if is_live(entry)]
            heapq.heapify(self._line)
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
                self._drop_lane(queue, lane)
        if queue.live == 0:
            self._runnable.pop(queue, None)
            self._idle[queue] = None
            if len(self._idle) > _IDLE_QUEUES_MAX:
                self._drop_queue(next(iter(self._idle)))

    def _drop_lane(self, queue: _Queue, lane: Lane) -> None:
        lanes, waiting = queue.classes[lane.priority], self._waiting[lane.priority]
        del lanes[lane.account]
        if not lanes:
            del queue.classes[lane.priority]
        waiting[lane.account] -= 1
        if not waiting[lane.account]:
            del waiting[lane.account]

    # Instances.

    def touch(self, instance: Instance) -> None:
        """Take note that an instance's slots, link or skills may have changed."""
        # Indexed by the next snapshot: an instance that gets a hundred attempts in one batch is moved once.
        self._touched[instance] = None

    def forget_instance(self, instance: Instance) -> None:
        """Take an instance out for good."""
        self._touched.pop(instance, None)
        self._served.pop(instance.row, None)
        self.fleet.forget(instance)

    def next_turn(self) -> int:
        """Return a number larger than any before, for the instance that gets work now."""
        return self._next()

    def settle(self) -> None:
        """Take in the instances that were touched."""
        for instance in self._touched:
            self.fleet.put(instance)
            if instance.free:
                self._woken[instance] = None
        self._touched.clear()

    def _wake(self) -> None:
        """Let the queues be looked at that an instance with a free slot may serve."""
        for instance in self._woken:
            if instance.row >= 0:
                for queue, _ in self._serves(instance):
                    if queue.live:
                        self._runnable[queue] = None
        self._woken.clear()

    def _serves(self, instance: Instance) -> list[tuple[_Queue, float]]:
        """Return the queues that an instance can serve, each with its level for it."""
        levels = instance.levels
        known = self._served.get(instance.row)
        if known is not None and known[0] == self._queues_edition and known[1] is levels:
            return known[2]
        found: list[tuple[_Queue, float]] = []
        having = frozenset(levels)
        for skill, level in levels.items():
            for queue in self._by_skill.get(skill, ()):
                if queue.others <= having:
                    weakest = min([level, *[levels[other] for other in queue.others]])
                    if weakest > 0.0:
                        found.append((queue, weakest))
        for queue in self._by_agent.get(instance.key.agent_id, ()):
            own = level_for(levels, queue.demand)
            if own is not None:
                found.append((queue, own))
        if len(found) <= _SERVED_KEPT_MAX:
            self._served[instance.row] = (self._queues_edition, levels, found)
        else:
            self._served.pop(instance.row, None)
        return found

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
        fleet = self.fleet
        if not fleet.live:
            self._runnable.clear()
            self._woken.clear()
        if not self._runnable and not self._woken:
            return None
        # More than there are slots could not be placed; what is left over is seen by the next snapshot.
        most = min(task_max, fleet.free_count)
        if most == 1 and len(fleet.live) == 1 and not self.withheld:
            [row] = fleet.live
            lone = fleet.instances[row]
            if lone is not None and (above is Priority.EMERGENCY or not self._owes(lone, now)):
                return self._next_for(lone, above)
        self._wake()
        if not self._runnable:
            return None
        pools = self._few() if len(fleet.live) <= _FEW_ROWS else self._many()
        if not pools:
            return None
        turns: list[Turn] = []
        served: frozenset[int] = frozenset()
        for priority in Priority:
            if priority is Priority.HIGH and above is not Priority.EMERGENCY and self._any_aged(now):
                # After every emergency and before the rest, gangs too: what is owed to age.
                less = [each for other in _AGEING for each in self._offers(pools, other)]
                turns += serve_aged(less, now, self._ageing_ms, most - len(turns), self._next)
                served = frozenset(task.queue_number for task, _, aged in turns if aged)
            if above is not None and priority >= above:
                break
            if self._waiting[priority] and len(turns) < most:
                offers = self._offers(pools, priority)
                accounts = self._accounts(offers, priority)
                turns += serve(offers, accounts, fleet.totals, most - len(turns), served)
        return Snapshot(turns, self.key_of) if turns else None

    def _next_for(self, instance: Instance, above: Priority | None) -> Snapshot | None:
        """Return the task that comes next for the only free slot of all: the usual case on a busy fleet.

        What `serve` would choose, without asking every requester and without a pool for any other task.
        """
        served = self._serves(instance)
        for priority in Priority:
            if above is not None and priority >= above:
                return None
            waiting = self._waiting[priority]
            if not waiting:
                continue
            # A queue in which nobody waits has no classes.
            offers = [(each[0].classes[priority], each) for each in served if priority in each[0].classes]
            while offers:
                accounts: Iterable[Account] = waiting
                if len(waiting) > _ACCOUNTS_FEW:
                    accounts = dict.fromkeys(account for lanes, _ in offers for account in lanes)
                task, chosen = first(offers, accounts, self.fleet.totals)
                queue, level = chosen
                if has_left(instance, queue.demand):
                    pool = self.pools.alone(queue.demand, instance.row, level)
                    pool.wanted = 1
                    return Snapshot([(task, pool, False)], self.key_of)
                offers = [each for each in offers if each[1] is not chosen]
        self._runnable.clear()
        self._woken.clear()
        return None

    def _owes(self, instance: Instance, now: Instant) -> bool:
        """Return whether an instance's next start may belong to an aged task."""
        return instance.fresh_starts >= self.pools.ageing_share - 1 and self._any_aged(now)

    def _any_aged(self, now: Instant) -> bool:
        line = self._line
        while line and not is_live(line[0]):
            heapq.heappop(line)
        return bool(line) and line[0][0] + self._ageing_ms <= now

    def _accounts(self, offers: list[Offer], priority: Priority) -> Iterable[Account]:
        """Return the requesters that may have a task in one of the offers."""
        waiting = self._waiting[priority]
        if len(waiting) <= _ACCOUNTS_FEW:
            return waiting
        return dict.fromkeys(account for lanes, _ in offers for account in lanes)

    def _offers(self, pools: list[tuple[_Queue, Pool]], priority: Priority) -> list[Offer]:
        """Return the lanes of one class with the slots that they may have."""
        offers = []
        for queue, pool in pools:
            lanes = queue.classes.get(priority)
            if lanes:
                mine: Pool | None = pool
                if self.withheld and priority is not Priority.EMERGENCY:
                    mine = self.pool(queue.demand, spare_withheld=True)
                if mine is not None:
                    offers.append(Offer(lanes, mine))
        return offers

    def _few(self) -> list[tuple[_Queue, Pool]]:
        """Return the pools of the queues that a handful of instances with free slots can serve."""
        fleet = self.fleet
        found: dict[_Queue, list[tuple[int, float]]] = {}
        for row in sorted(fleet.live):
            instance = fleet.instances[row]
            if instance is None:
                continue
            for queue, level in self._serves(instance):
                if queue.live and has_left(instance, queue.demand):
                    found.setdefault(queue, []).append((row, level))
        self._runnable = dict.fromkeys(found)
        pools = []
        for queue, rows in found.items():
            if len(rows) == 1:
                pools.append((queue, self.pools.alone(queue.demand, *rows[0])))
            else:
                pools.append((queue, self.pools.few(queue.demand, rows)))
        return pools

    def _many(self) -> list[tuple[_Queue, Pool]]:
        pools = []
        for queue in [*self._runnable]:
            pool = self.pool(queue.demand)
            if pool is None:
                del self._runnable[queue]
            else:
                pools.append((queue, pool))
        return pools

    def pool(self, demand: Demand, *, spare_withheld: bool = False) -> Pool | None:
        """Return the free slots for a demand, None when there is none."""
        return self.pools.among_all(demand, self.withheld if spare_withheld else frozenset())

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
        self._queues_edition += 1
        if skill is not None:
            self._by_skill.setdefault(skill, {})[queue] = None
        for agent_id in demand.agents:
            self._by_agent.setdefault(agent_id, {})[queue] = None
        return queue

    def _drop_queue(self, queue: _Queue) -> None:
        # Where it is still remembered it is passed over: nobody waits in it any more.
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
