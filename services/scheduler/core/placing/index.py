"""Ready tasks and free agents, indexed so that no event looks at all of them.

Tasks wait in queues (`queues`), one for each demand (skills, named agents, needs, style); a queue's lanes
tell classes and requesters apart (`lanes`). Instances are columns (`fleet`). `_runnable` holds the queues
that have a task and may have an agent: what a placement looks at. A queue comes there when a task enters it,
or when an instance that could serve it may have a free slot; it leaves when a placement finds none.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from services.common.core.instants import Instant
from services.scheduler.core.course import Task
from services.scheduler.core.instances import Instance
from services.scheduler.core.model import InstanceKey, Priority, TaskKey
from services.scheduler.core.placing.fairness import Account
from services.scheduler.core.placing.filling import Held, fill
from services.scheduler.core.placing.fleet import Fleet
from services.scheduler.core.placing.lanes import Lane, is_live, order_of
from services.scheduler.core.placing.placement import Demand, Snapshot
from services.scheduler.core.placing.pools import FewPools, ManyPools, Pools, has_left
from services.scheduler.core.placing.queues import Queue, Queues, Waiting
from services.scheduler.core.placing.ranking import Pool
from services.scheduler.core.placing.roster import Numbers, Roster
from services.scheduler.core.placing.serving import Asking, Offer, Turn, first, first_aged, serve, serve_aged
from services.scheduler.core.placing.wave import Wave, WavePlacements

#: A class is sorted as a whole when no more than so many times what can be served waits.
_WHOLE_MAX = 8
_CLASSES = (*Priority,)
#: Below this length the line of all tasks is not cleaned.
_LINE_MIN = 1_024
_AGEING = (Priority.HIGH, Priority.NORMAL, Priority.LOW)
#: Up to this many rows with a free slot are looked at one by one; beyond it array operations are cheaper.
_FEW_ROWS = 256

#: The pools that a snapshot may use.
Open = FewPools | ManyPools


class PlacementIndex:
    """See the module. Owned by `SchedulerState`; `snapshot` is the only way to read it."""

    def __init__(self, ageing_ms: int = 60_000, ageing_share: int = 4) -> None:
        self._ageing_ms = ageing_ms
        self._queues = Queues()
        self._runnable: dict[Queue, None] = {}
        #: Instances with a free slot whose queues belong there, too: found when they are asked for.
        self._woken: dict[Instance, None] = {}
        #: Requesters with a waiting task by class.
        self._waiting = {priority: Waiting() for priority in Priority}
        #: A heap of every task under its number, by the instant at which it became ready: whether anything is
        #: aged at all. Who comes back is in it anew, and its older entry is dead.
        self._line: list[tuple[int, int, Task]] = []
        self._touched: dict[Instance, None] = {}
        self._number = 0
        #: The tasks in the queues, as arrays.
        self._roster = Roster()
        self.fleet = Fleet()
        self.pools = Pools(self.fleet, ageing_share)
        #: Ready tasks that wait for an agent.
        self.waiting_count = 0
        #: Members that wait, by their gang; they are in no queue. See `placing.gangs`.
        self.gangs: dict[TaskKey, dict[int, Task]] = {}
        #: Rows that an aged gang keeps from everything but EMERGENCY, in this placement.
        self.withheld: set[int] = set()

    # Tasks.

    def add_task(self, task: Task) -> None:
        """Let a ready task wait for an agent."""
        if (gang := task.spec.gang) is not None:
            task.queue_number = self._next()
            self.gangs.setdefault(gang_key(task), {})[gang.rank] = task
            self.waiting_count += 1
            return
        queue = self._queues.open(task.demand)
        lane = self._waiting[task.priority].lane(queue, task.priority, task.account)
        task.queue_number = number = self._next()
        task.lane = lane
        lane.add(task, number)
        self._roster.add(task)
        line = self._line
        heapq.heappush(line, (task.ready_time or 0, number, task))
        if len(line) > max(_LINE_MIN, 2 * self.waiting_count):
            self._line = [entry for entry in line if is_live(entry)]
            heapq.heapify(self._line)
        self.waiting_count += 1
        # Whether an agent is free is found out by the next snapshot: cheaper than asking for every task.
        self._runnable[queue] = None

    def remove_task(self, task: Task) -> None:
        """Take out a task that waits."""
        if (gang := task.spec.gang) is not None:
            task.queue_number = 0
            self.waiting_count -= 1
            key = gang_key(task)
            waiting = self.gangs[key]
            del waiting[gang.rank]
            if not waiting:
                del self.gangs[key]
            return
        lane = task.lane
        if lane is None:
            raise AssertionError(f"{task} waits in no lane")
        queue: Queue = lane.queue
        task.queue_number = 0
        task.lane = None
        self.waiting_count -= 1
        self._roster.remove(task)
        lane.remove()
        if lane.live == 0:
            self._waiting[lane.priority].drop(queue, lane)
        if self._queues.leave(queue):
            self._runnable.pop(queue, None)

    # Instances.

    def touch(self, instance: Instance) -> None:
        """Take note that an instance's slots, link or skills may have changed."""
        # Indexed by the next snapshot: an instance that gets a hundred attempts in one batch is moved once.
        self._touched[instance] = None

    def forget_instance(self, instance: Instance) -> None:
        """Take an instance out for good."""
        self._touched.pop(instance, None)
        self._queues.forget(instance.row)
        self.fleet.forget(instance)

    def next_turn(self) -> int:
        """Return a number larger than any before, for whoever has had its turn now."""
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
                for queue in self._queues.served(instance):
                    if queue.live:
                        self._runnable[queue] = None
        self._woken.clear()

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
            if lone is not None:
                return self._next_for(lone, now, above)
        self._wake()
        if not self._runnable:
            return None
        owed = above is not Priority.EMERGENCY and self._any_aged(now)
        if len(fleet.live) > _FEW_ROWS:
            return self._wave(most, now, above, owed=owed and self.pools.any_owes())
        instances = [each for row in sorted(fleet.live) if (each := fleet.instances[row]) is not None]
        able = self._able(instances)
        self._runnable = dict.fromkeys(able)
        aged = self._able([each for each in instances if self.pools.owes(each)]) if owed else ()
        return self._one_by_one(FewPools(self.pools, able), aged, most, now, above)

    def _wave(self, most: int, now: Instant, above: Priority | None, *, owed: bool) -> Snapshot | None:
        """Return the turns of a wave as arrays, if nothing about them asks for more."""
        wave = Wave(self.fleet, self._runnable)
        queues = wave.queues
        self._runnable = dict.fromkeys(queues)
        if not queues:
            return None
        waiters = self._roster.waiters()
        place = wave.places(waiters.queue)
        old = np.zeros(0, np.int64)
        if owed:
            is_old = (waiters.ready + self._ageing_ms <= now) & (waiters.priority != Priority.EMERGENCY)
            old = np.unique(place[is_old & (place >= 0)])
        if self.withheld or len(old) or not wave.is_plain(len(place)):
            aged = [queues[at] for at in old.tolist()]
            return self._one_by_one(ManyPools(self.pools, queues), aged, most, now, above)
        turns: list[Numbers] = []
        left = most
        for priority in _CLASSES:
            if left == 0 or (above is not None and priority >= above):
                break
            begin, end = np.searchsorted(waiters.priority, (priority, priority + 1)).tolist()
            mine = begin + np.flatnonzero(place[begin:end] >= 0)
            if len(mine):
                held = Held(self._waiting[priority].accounts, self.fleet.totals, wave.room.needs)
                chosen = fill(waiters.account[mine], place[mine], held, wave.room, left)
                turns.append(mine[chosen])
                left -= len(chosen)
        if left == most:
            return None
        chosen = np.concatenate(turns)
        seats, place = waiters.seat[chosen], place[chosen]

        def give() -> WavePlacements:
            slots = wave.give(place)
            given = np.flatnonzero(slots >= 0)
            return WavePlacements(wave, self._roster.tasks(seats[given]), place[given], slots[given])

        return Snapshot((), self.key_of, give)

    def _one_by_one(
        self, pools: Open, aged: Collection[Queue], most: int, now: Instant, above: Priority | None
    ) -> Snapshot | None:
        turns = self._turns(pools, aged, most, now, above) if self._runnable else []
        return Snapshot(turns, self.key_of) if turns else None

    def _turns(
        self, pools: Open, aged: Collection[Queue], most: int, now: Instant, above: Priority | None
    ) -> list[Turn]:
        """Return whose turn it is; in the queues of `aged` a slot may be owed to one that has aged."""
        turns: list[Turn] = []
        served: frozenset[int] = frozenset()
        for priority in _CLASSES:
            if priority is Priority.HIGH and aged:
                # After every emergency and before the rest, gangs too: what is owed to age.
                less = [each for other in _AGEING for each in self._offers(aged, pools, other)]
                turns += serve_aged(less, now, self._ageing_ms, most - len(turns))
                served = frozenset(task.queue_number for task, _, is_aged in turns if is_aged)
            if above is not None and priority >= above:
                break
            if self._waiting[priority].accounts and len(turns) < most:
                turns += self._serve(pools, priority, most - len(turns), served)
        return turns

    def _next_for(self, instance: Instance, now: Instant, above: Priority | None) -> Snapshot | None:
        """Return the task that comes next for the only free slot of all: the usual case on a busy fleet.

        What `serve` would choose, without a pool for any other task.
        """
        served = self._queues.served(instance)
        for priority in _CLASSES:
            if priority is Priority.HIGH and above is not Priority.EMERGENCY and self._owes(instance, now):
                able = [queue for queue in served if queue.live and has_left(instance, queue.demand)]
                lanes = [
                    lane
                    for queue in able
                    for other, mine in queue.classes.items()
                    if other is not Priority.EMERGENCY
                    for lane in mine.values()
                ]
                task = first_aged(lanes, now, self._ageing_ms)
                if task is not None:
                    return self._alone(task, instance, aged=True)
            if above is not None and priority >= above:
                return None
            waiting = self._waiting[priority]
            if not waiting.accounts:
                continue
            left: Collection[Queue] = served
            while (task := first(waiting.among(left, priority), left, self.fleet.totals)) is not None:
                if not task.demand.needs or has_left(instance, task.demand):
                    return self._alone(task, instance, aged=False)
                full = None if task.lane is None else task.lane.queue
                left = [queue for queue in left if queue is not full]
        self._runnable.clear()
        self._woken.clear()
        return None

    def _alone(self, task: Task, instance: Instance, *, aged: bool) -> Snapshot:
        return Snapshot([(task, self.pools.alone(task.demand, instance), aged)], self.key_of)

    def _owes(self, instance: Instance, now: Instant) -> bool:
        """Return whether an instance's next start may belong to an aged task."""
        return self.pools.owes(instance) and self._any_aged(now)

    def _any_aged(self, now: Instant) -> bool:
        line = self._line
        while line and not is_live(line[0]):
            heapq.heappop(line)
        return bool(line) and line[0][0] + self._ageing_ms <= now

    def _serve(self, pools: Open, priority: Priority, most: int, served: frozenset[int]) -> list[Turn]:
        """Return the tasks of one class that come next, each with its pool."""
        queues: Mapping[Queue, object] = pools.able
        found: Mapping[Queue, Pool] = pools
        if self.withheld and priority is not Priority.EMERGENCY:
            queues = found = self._spared(queues)
        waiting = self._waiting[priority].among(queues, priority)

        def lanes_of(account: Account) -> Iterable[Lane]:
            lanes = waiting[account]
            if len(lanes) <= len(queues):
                return [lane for queue, lane in lanes.items() if queue in queues]
            return filter(None, map(lanes.get, queues))

        whole = self.waiting_count <= _WHOLE_MAX * most
        return serve(
            Asking(waiting, lanes_of, found.__getitem__), self.fleet.totals, most, served, whole=whole
        )

    def _spared(self, queues: Iterable[Queue]) -> dict[Queue, Pool]:
        """Return the pools of what classes below EMERGENCY may have while a gang keeps instances."""
        found = {queue: self.pool(queue.demand, spare_withheld=True) for queue in queues if queue.live}
        return {queue: pool for queue, pool in found.items() if pool is not None}

    def _offers(self, queues: Collection[Queue], pools: Open, priority: Priority) -> list[Offer]:
        """Return the lanes of one class below EMERGENCY with the slots that they may have."""
        mine = [queue for queue in queues if priority in queue.classes]
        if self.withheld:
            return [Offer(queue.classes[priority], pool) for queue, pool in self._spared(mine).items()]
        return [Offer(queue.classes[priority], pools[queue]) for queue in mine]

    def _able(self, instances: list[Instance]) -> dict[Queue, list[Instance]]:
        """Return the queues with a task that one of a few instances can serve, each with these."""
        found: dict[Queue, list[Instance]] = {}
        for instance in instances:
            for queue in self._queues.served(instance):
                if queue.live and (not queue.demand.needs or has_left(instance, queue.demand)):
                    able = found.get(queue)
                    if able is None:
                        found[queue] = [instance]
                    else:
                        able.append(instance)
        return found

    def pool(self, demand: Demand, *, spare_withheld: bool = False) -> Pool | None:
        """Return the free slots for a demand, None when there is none."""
        return self.pools.among_all(demand, self.withheld if spare_withheld else frozenset())

    def key_of(self, row: int) -> InstanceKey:
        """Return whose row this is; only rows of the present snapshot have an owner for sure."""
        instance = self.fleet.instances[row]
        if instance is None:
            raise KeyError(row)
        return instance.key

    def _next(self) -> int:
        self._number += 1
        return self._number


def gang_key(task: Task) -> TaskKey:
    """Return the name of a task's gang: that of its rank 0; a task without a gang has its own."""
    gang = task.spec.gang
    return task.key if gang is None else TaskKey(task.key.collaboration_id, gang.gang_id)
