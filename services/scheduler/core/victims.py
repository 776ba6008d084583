"""Running attempts that may make room for more urgent work, cheapest first, found without looking at all.

What an attempt costs if it stops now is the work since its newest savepoint, or since its assignment, plus
`REPEAT_MS` for each time that its task made room before, times a weight of its class. The order inside one
class never changes while time passes, so that one heap for each class and each profile (instances with the
same skills at the same levels) is enough: the cheapest is the cheapest of the heads.

Heaps delete lazily, as those of the placement index do.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from services.common.core.ids import Skill
from services.common.core.instants import Instant
from services.scheduler.core.course import Attempt, Task
from services.scheduler.core.instances import Instance, Levels
from services.scheduler.core.model import AttemptState, Priority, TaskKey
from services.scheduler.core.placement import Demand
from services.scheduler.core.pools import level_for

#: What one earlier suspension of a task counts, in milliseconds of lost work: it spreads the burden.
REPEAT_MS = 10_000
#: What a millisecond of lost work weighs in each class.
WEIGHTS = MappingProxyType({Priority.HIGH: 4, Priority.NORMAL: 2, Priority.LOW: 1})
#: Candidates of one class and profile that are looked at; those that may not be taken lie among them.
_LOOK_MAX = 64
#: Below this size a rebuild costs more than it frees.
_REBUILD_SIZE_MIN = 64
#: Up to so many pools empty ones are kept.
_POOLS_MIN = 64

_Name = tuple[TaskKey, int]


class Victim(NamedTuple):
    """An attempt that could make room."""

    task: Task
    instance: Instance
    #: Its place among all: weighted work that would be lost, in milliseconds; smaller is cheaper.
    cost: int
    #: Milliseconds of work that would be lost.
    lost_ms: int


class _Entry(NamedTuple):
    #: Smaller is cheaper: the later the work began that would be lost, the better.
    negative_since: int
    number: int
    name: _Name
    task: Task
    instance: Instance


@dataclass(slots=True, eq=False)
class _Stream:
    """The attempts of one class and profile, cheapest first; found once the first of them is asked for."""

    pool: _Pool
    priority: Priority
    rest: Iterator[Victim] | None = None


class _Pool:
    """The attempts at instances of one profile."""

    __slots__ = ("heaps", "levels", "live")

    def __init__(self, levels: Levels) -> None:
        self.levels = levels
        self.heaps: dict[Priority, list[_Entry]] = {priority: [] for priority in WEIGHTS}
        self.live = 0


class Victims:
    """See the module. Owned by `SchedulerState`."""

    def __init__(self) -> None:
        self._pools: dict[frozenset[tuple[str, float]], _Pool] = {}
        self._by_skill: dict[Skill, dict[_Pool, None]] = {}
        #: With so many pools the empty ones go.
        self._pools_max = _POOLS_MIN
        self._pool_of: dict[Instance, _Pool] = {}
        #: The number of each attempt's valid entry, and its pool.
        self._numbers: dict[_Name, tuple[int, _Pool]] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._numbers)

    def put(self, task: Task, attempt: Attempt, instance: Instance) -> None:
        """Note an attempt, or that less would be lost with it than before; passed over if it can never go."""
        name = (task.key, attempt.token.number)
        self._drop(name)
        if (
            task.priority not in WEIGHTS
            # Stopping one member would stop its whole gang.
            or task.spec.gang is not None
            or attempt.state not in (AttemptState.ASSIGNED, AttemptState.RUNNING)
            or not instance.suspendable
            or instance.stream is None
            or instance.draining
        ):
            return
        pool = self._pool(instance)
        saved = task.savepoint
        since = attempt.assign_time if saved is None else max(attempt.assign_time, saved.save_time)
        self._number += 1
        entry = _Entry(
            repeats_ms(task) - since,
            self._number,
            name,
            task,
            instance,
        )
        heapq.heappush(pool.heaps[task.priority], entry)
        pool.live += 1
        self._numbers[name] = self._number, pool
        heap = pool.heaps[task.priority]
        if len(heap) > max(_REBUILD_SIZE_MIN, 2 * pool.live):
            pool.heaps[task.priority] = [each for each in heap if self._is_live(each)]
            heapq.heapify(pool.heaps[task.priority])

    def drop(self, task: Task, attempt: Attempt) -> None:
        """Take out an attempt; one that is not here is passed over."""
        self._drop((task.key, attempt.token.number))

    def put_instance(self, instance: Instance) -> None:
        """Note all attempts of an instance: its link or its skills have changed."""
        self._pool_of.pop(instance, None)
        for task in instance.held.values():
            if (attempt := task.at(instance.key)) is not None:
                self.put(task, attempt, instance)

    def drop_instance(self, instance: Instance) -> None:
        """Take out all attempts of an instance: its slots are of no use."""
        self._pool_of.pop(instance, None)
        for task in instance.held.values():
            if (attempt := task.at(instance.key)) is not None:
                self.drop(task, attempt)

    def candidates(self, demand: Demand, above: Priority, now: Instant) -> Iterator[Victim]:
        """Yield attempts of classes less urgent than `above` whose slot would serve `demand`.

        Cheapest first within a class and a profile, and over all of them by the price of each.
        """
        heads: list[tuple[int, int, int, Victim | None, _Stream]] = []
        for pool in self._suitable(demand):
            for priority, heap in pool.heaps.items():
                if heap and priority > above:
                    while heap and not self._is_live(heap[0]):
                        heapq.heappop(heap)
                    if heap:
                        cost = (now + heap[0].negative_since) * WEIGHTS[priority]
                        heads.append((cost, -priority, len(heads), None, _Stream(pool, priority)))
        heapq.heapify(heads)
        while heads:
            _, _, number, victim, stream = heads[0]
            if victim is not None:
                yield victim
            elif stream.rest is None:
                # Its first one may be another than the head: one at a named agent.
                stream.rest = self._of(stream.pool, stream.priority, demand, now)
            following = None if stream.rest is None else next(stream.rest, None)
            if following is None:
                heapq.heappop(heads)
            else:
                place = (following.cost, -following.task.priority, number, following, stream)
                heapq.heapreplace(heads, place)

    def _suitable(self, demand: Demand) -> list[_Pool]:
        """Return the pools with an attempt whose instances have the skills."""
        having = [self._by_skill.get(skill) for skill in demand.skills]
        if any(pools is None for pools in having):
            return []
        few = min((pools for pools in having if pools is not None), key=len, default={})
        return [pool for pool in few if pool.live and level_for(pool.levels, demand) is not None]

    def _of(self, pool: _Pool, priority: Priority, demand: Demand, now: Instant) -> Iterator[Victim]:
        heap = pool.heaps[priority]
        while heap and not self._is_live(heap[0]):
            heapq.heappop(heap)
        # Best-first search of the heap's tree, as in the placement index.
        frontier = [(heap[0], 0)] if heap else []
        looked = 0
        while frontier and looked < _LOOK_MAX:
            entry, position = heapq.heappop(frontier)
            for child in (2 * position + 1, 2 * position + 2):
                if child < len(heap):
                    heapq.heappush(frontier, (heap[child], child))
            if not self._is_live(entry):
                continue
            if demand.agents and entry.instance.key.agent_id not in demand.agents:
                # Named agents are few: the bound is on those that could be meant.
                continue
            looked += 1
            price = now + entry.negative_since
            yield Victim(
                entry.task, entry.instance, price * WEIGHTS[priority], price - repeats_ms(entry.task)
            )

    def _pool(self, instance: Instance) -> _Pool:
        pool = self._pool_of.get(instance)
        if pool is None:
            key = frozenset(instance.levels.items())
            pool = self._pools.get(key)
            if pool is None:
                if len(self._pools) >= self._pools_max:
                    self._forget_empty()
                pool = self._pools[key] = _Pool(instance.levels)
                for skill in instance.levels:
                    self._by_skill.setdefault(skill, {})[pool] = None
            self._pool_of[instance] = pool
        return pool

    def _forget_empty(self) -> None:
        """Let go of the pools that have no attempt and no instance: now and then, for it looks at all."""
        used = {*self._pool_of.values()}
        for key in [key for key, pool in self._pools.items() if not pool.live and pool not in used]:
            pool = self._pools.pop(key)
            for skill in pool.levels:
                del self._by_skill[skill][pool]
                if not self._by_skill[skill]:
                    del self._by_skill[skill]
        self._pools_max = max(_POOLS_MIN, 2 * len(self._pools))

    def _drop(self, name: _Name) -> None:
        found = self._numbers.pop(name, None)
        if found is not None:
            found[1].live -= 1

    def _is_live(self, entry: _Entry) -> bool:
        found = self._numbers.get(entry.name)
        return found is not None and found[0] == entry.number


def repeats_ms(task: Task) -> int:
    """Return what the earlier suspensions of a task count, in milliseconds of lost work."""
    return REPEAT_MS * task.excused_count
