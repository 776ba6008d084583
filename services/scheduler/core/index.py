"""Ready tasks and free agents, indexed so that no event looks at all of them.

Tasks wait in one heap for each demand (skills and named agents); instances with a free slot wait in one heap
for each profile (skills with their levels). A demand knows which profiles serve it and a profile which
demands it serves; these links change only when a demand or a profile comes or goes. `_runnable` holds the
demands that have a task and may have an agent: what a placement looks at.

Heaps delete lazily: an entry counts when its number is its subject's newest. A heap is rebuilt when it is
more than twice as long as what lives in it.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from services.common.core.ids import AgentId, Skill
from services.common.core.instants import NEVER
from services.scheduler.core.course import Task
from services.scheduler.core.instances import Instance, Levels
from services.scheduler.core.placement import Candidates, Demand, FreeInstance, Order, Snapshot, WaitingTask

#: Below this size a rebuild costs more than it frees.
_REBUILD_SIZE_MIN = 64
#: Demands without a waiting task whose links are kept, so that a steady stream of tasks does not make them
#: anew each time.
_IDLE_QUEUES_MAX = 1_024

Entry = TypeVar("Entry", bound=tuple[Any, ...])
#: An instance's skills with their levels, as a value.
ProfileKey = frozenset[tuple[Skill, float]]


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

    __slots__ = ("demand", "heap", "live", "profiles")

    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        self.heap: list[tuple[Order, int, Task]] = []
        self.live = 0
        #: Profiles that serve it, with their level; empty when the demand names agents.
        self.profiles: dict[_Profile, float] = {}


class _Profile:
    """The instances with the same skills at the same levels; the heap holds those with a free slot."""

    __slots__ = ("heap", "levels", "live", "members", "number", "queues", "slots")

    def __init__(self, levels: Levels, number: int) -> None:
        self.levels = levels
        self.number = number
        self.members: set[Instance] = set()
        self.heap: list[tuple[float, int, int, Instance]] = []
        #: Instances with a free slot, and their free slots together.
        self.live = self.slots = 0
        self.queues: set[_Queue] = set()


class PlacementIndex:
    """See the module. Owned by `SchedulerState`; `snapshot` is the only way to read it."""

    def __init__(self) -> None:
        self._queues: dict[Demand, _Queue] = {}
        self._idle: dict[_Queue, None] = {}
        self._profiles: dict[ProfileKey, _Profile] = {}
        self._profile_of: dict[Instance, _Profile] = {}
        self._agents: dict[AgentId, set[Instance]] = {}
        self._named: dict[AgentId, set[_Queue]] = {}
        self._runnable: dict[_Queue, None] = {}
        self._touched: dict[Instance, None] = {}
        self._number = 0
        #: Ready tasks that wait for an agent.
        self.waiting_count = 0

    # Tasks.

    def add_task(self, task: Task) -> None:
        """Let a ready task wait for an agent."""
        queue = self._queue(task.demand)
        deadline = NEVER if task.deadline is None else task.deadline
        order = Order(task.priority, -task.rank_ms, deadline, task.arrival)
        task.queue_number = self._next()
        heapq.heappush(queue.heap, (order, task.queue_number, task))
        queue.live += 1
        self.waiting_count += 1
        if queue.live == 1:
            self._idle.pop(queue, None)
        # Whether an agent is free is found out by the next snapshot: cheaper than asking for every task.
        self._runnable[queue] = None

    def remove_task(self, task: Task) -> None:
        """Take out a task that waits."""
        queue = self._queues[task.demand]
        task.queue_number = 0
        queue.live -= 1
        self.waiting_count -= 1
        if queue.live == 0:
            queue.heap.clear()
            self._runnable.pop(queue, None)
            self._idle[queue] = None
            if len(self._idle) > _IDLE_QUEUES_MAX:
                self._drop_queue(next(iter(self._idle)))
        elif len(queue.heap) > max(_REBUILD_SIZE_MIN, 2 * queue.live):
            queue.heap = [entry for entry in queue.heap if _task_live(entry)]
            heapq.heapify(queue.heap)

    # Instances.

    def touch(self, instance: Instance) -> None:
        """Take note that an instance's slots, link or skills may have changed."""
        # Indexed by the next snapshot: an instance that gets a hundred attempts in one batch is moved once.
        self._touched[instance] = None

    def _put_instance(self, instance: Instance) -> None:
        profile = self._settle_profile(instance)
        if profile is None:
            return
        free = instance.free
        if (instance.index_free == 0) != (free == 0):
            profile.live += 1 if free else -1
        profile.slots += free - instance.index_free
        instance.index_free = free
        instance.index_number = self._next()
        if not free:
            return
        heapq.heappush(profile.heap, (instance.load, instance.turn, instance.index_number, instance))
        if len(profile.heap) > max(_REBUILD_SIZE_MIN, 2 * profile.live):
            profile.heap = [entry for entry in profile.heap if _instance_live(entry)]
            heapq.heapify(profile.heap)
        for queue in profile.queues:
            if queue.live:
                self._runnable[queue] = None
        for queue in self._named.get(instance.key.agent_id, ()):
            if queue.live:
                self._runnable[queue] = None

    def forget_instance(self, instance: Instance) -> None:
        """Take an instance out for good."""
        self._touched.pop(instance, None)
        self._leave_profile(instance)
        if (instances := self._agents.get(instance.key.agent_id)) is not None:
            instances.discard(instance)
            if not instances:
                del self._agents[instance.key.agent_id]

    def next_turn(self) -> int:
        """Return a number larger than any before, for the instance that gets work now."""
        return self._next()

    # Reading.

    def snapshot(self, task_max: int) -> Snapshot | None:
        """Return up to `task_max` ready tasks in serving order, with the agents that are free for them.

        None when no ready task has a free agent.
        """
        for instance in self._touched:
            self._put_instance(instance)
        self._touched.clear()
        groups: dict[int, tuple[FreeInstance, ...]] = {}
        candidates: dict[Demand, tuple[Candidates, ...]] = {}
        choices: dict[Demand, int] = {}
        serving: dict[Demand, list[_Profile]] = {}
        heads: list[Iterator[tuple[Order, int, Task]]] = []
        for queue in [*self._runnable]:
            demand = queue.demand
            if demand.agents:
                slots, choices[demand], candidates[demand] = self._named_agents(demand, groups)
            else:
                profiles = [profile for profile in queue.profiles if profile.live]
                slots = sum(profile.slots for profile in profiles)
                choices[demand] = sum(profile.live for profile in profiles)
                candidates[demand] = tuple(
                    Candidates(queue.profiles[profile], profile.number) for profile in profiles
                )
                serving[demand] = profiles
            if slots:
                heads.append(_smallest(queue.heap, slots, _task_live))
            else:
                del self._runnable[queue]
        if not heads:
            return None
        # Merged as they come: no more is looked at than is returned.
        entries = itertools.islice(heapq.merge(*heads), task_max)
        tasks = tuple(WaitingTask(order, task.key, task.demand) for order, _, task in entries)
        wanted: Counter[_Profile] = Counter()
        for demand, count in Counter(task.demand for task in tasks).items():
            for profile in serving.get(demand, ()):
                wanted[profile] += count
        for profile, count in wanted.items():
            groups[profile.number] = tuple(
                _row(entry[3]) for entry in _smallest(profile.heap, count, _instance_live)
            )
        return Snapshot(tasks, groups, candidates, choices)

    def _named_agents(
        self, demand: Demand, groups: dict[int, tuple[FreeInstance, ...]]
    ) -> tuple[int, int, tuple[Candidates, ...]]:
        """Return (slots, instances, candidates) among the agents that a demand names."""
        slots = choices = 0
        found: list[Candidates] = []
        for agent_id in sorted(demand.agents):
            for instance in self._agents.get(agent_id, ()):
                level = level_for(instance.levels, demand)
                if level is not None and instance.free > 0:
                    # A group of one; negative numbers are not profiles'.
                    group = -instance.index_number
                    groups[group] = (_row(instance),)
                    found.append(Candidates(level, group))
                    slots += instance.free
                    choices += 1
        return slots, choices, tuple(found)

    # Links between demands and profiles.

    def _queue(self, demand: Demand) -> _Queue:
        queue = self._queues.get(demand)
        if queue is None:
            queue = self._queues[demand] = _Queue(demand)
            if demand.agents:
                for agent_id in demand.agents:
                    self._named.setdefault(agent_id, set()).add(queue)
            else:
                for profile in self._profiles.values():
                    self._link(queue, profile)
        return queue

    def _drop_queue(self, queue: _Queue) -> None:
        del self._queues[queue.demand]
        del self._idle[queue]
        for profile in queue.profiles:
            profile.queues.discard(queue)
        for agent_id in queue.demand.agents:
            self._named[agent_id].discard(queue)
            if not self._named[agent_id]:
                del self._named[agent_id]

    def _link(self, queue: _Queue, profile: _Profile) -> None:
        level = level_for(profile.levels, queue.demand)
        if level is not None:
            queue.profiles[profile] = level
            profile.queues.add(queue)

    def _settle_profile(self, instance: Instance) -> _Profile | None:
        """Return the profile of an instance's present skills, None when it has none."""
        profile = self._profile_of.get(instance)
        if profile is not None and profile.levels == instance.levels:
            return profile
        self._leave_profile(instance)
        self._agents.setdefault(instance.key.agent_id, set()).add(instance)
        if not instance.levels:
            return None
        key: ProfileKey = frozenset(instance.levels.items())
        profile = self._profiles.get(key)
        if profile is None:
            profile = self._profiles[key] = _Profile(instance.levels, self._next())
            for queue in self._queues.values():
                if not queue.demand.agents:
                    self._link(queue, profile)
        profile.members.add(instance)
        self._profile_of[instance] = profile
        return profile

    def _leave_profile(self, instance: Instance) -> None:
        profile = self._profile_of.pop(instance, None)
        if profile is None:
            return
        if instance.index_free:
            profile.live -= 1
            profile.slots -= instance.index_free
        instance.index_free = 0
        instance.index_number = self._next()
        profile.members.discard(instance)
        if not profile.members:
            del self._profiles[frozenset(profile.levels.items())]
            for queue in profile.queues:
                del queue.profiles[profile]

    def _next(self) -> int:
        self._number += 1
        return self._number


def _task_live(entry: tuple[Order, int, Task]) -> bool:
    return entry[1] == entry[2].queue_number


def _instance_live(entry: tuple[float, int, int, Instance]) -> bool:
    return entry[2] == entry[3].index_number


def _row(instance: Instance) -> FreeInstance:
    return FreeInstance(instance.load, instance.turn, instance.key, len(instance.held), instance.free)


def _smallest(heap: list[Entry], count: int, live: Callable[[Entry], bool]) -> Iterator[Entry]:
    """Yield the `count` smallest live entries in order; dead ones at the top are dropped for good.

    Method: best-first search of the heap's tree, O(count log count) whatever the heap's length; a simple form
    of Frederickson, "An optimal algorithm for selection in a min-heap" (1993).
    """
    while heap and not live(heap[0]):
        heapq.heappop(heap)
    frontier = [(heap[0], 0)] if heap else []
    while frontier and count > 0:
        entry, position = heapq.heappop(frontier)
        if live(entry):
            count -= 1
            yield entry
        for child in (2 * position + 1, 2 * position + 2):
            if child < len(heap):
                heapq.heappush(frontier, (heap[child], child))
