"""The queues of ready tasks, one for each demand, and which of them an instance can serve.

What an instance can serve is remembered; queues that came since are looked at alone, and those that are gone
are passed over. So a freed slot asks a few dozen queues that it knows, however many there are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from services.common.core.ids import AgentId, Skill
from services.scheduler.core.instances import Instance, Levels
from services.scheduler.core.model import Priority
from services.scheduler.core.placing.fairness import Account
from services.scheduler.core.placing.fleet import Eligible, Fleet
from services.scheduler.core.placing.lanes import Lane
from services.scheduler.core.placing.placement import Demand

#: Demands without a waiting task that are kept, so that a steady stream of tasks does not make them anew.
_IDLE_QUEUES_MAX = 1_024
#: Queues that are remembered for one instance.
_SERVED_KEPT_MAX = 256
#: So many new queues are looked at one by one; of more, what an instance serves is found anew.
_NEW_MAX = 64
#: New queues that are noted before all that is remembered is forgotten: the dead among it go.
_LOG_MAX = 4_096

#: Up to this many requesters are asked whether they have a task; of more, a list is made.
_ACCOUNTS_FEW = 64


class Family:
    """Demands that differ in their needs alone: the instances that have the skills are the same."""

    __slots__ = ("demand", "edition", "eligible", "queue_count")

    def __init__(self, demand: Demand) -> None:
        #: Without needs.
        self.demand = demand
        self.queue_count = 0
        #: The instances with the skills, as the fleet was at this edition.
        self.eligible: Eligible | None = None
        self.edition = -1

    def among(self, fleet: Fleet) -> Eligible:
        """Return the instances with the skills, free or not."""
        if self.eligible is None or self.edition != fleet.edition:
            self.eligible = fleet.eligible(self.demand.skills, self.demand.agents)
            self.edition = fleet.edition
        return self.eligible


class Queue:
    """The ready tasks of one demand."""

    __slots__ = ("classes", "demand", "family", "live", "number", "others", "skill")

    def __init__(self, demand: Demand, skill: Skill | None, family: Family, number: int) -> None:
        self.demand = demand
        self.family = family
        #: Its place in arrays, small: no other queue has it.
        self.number = number
        #: Under which it is found; None when it is found under its agents.
        self.skill = skill
        self.others = demand.skills - {skill}
        #: Lanes by class, then by requester; none of them is empty.
        self.classes: dict[Priority, dict[Account, Lane]] = {}
        self.live = 0


class _Served(NamedTuple):
    """What is remembered of one instance."""

    #: Its skills and the state of the log at that time.
    levels: Levels
    forgotten: int
    seen: int
    queues: list[Queue]


class Queues:
    """See the module. Owned by `placing.index`."""

    def __init__(self) -> None:
        self._queues: dict[Demand, Queue] = {}
        self._families: dict[Demand, Family] = {}
        #: Numbers of queues that are gone.
        self._spare: list[int] = []
        self._idle: dict[Queue, None] = {}
        self._by_skill: dict[Skill, dict[Queue, None]] = {}
        self._by_agent: dict[AgentId, dict[Queue, None]] = {}
        #: Queues in the order in which they came, since it was last emptied, and how often that was.
        self._log: list[Queue] = []
        self._forgotten = 0
        #: By row.
        self._served: dict[int, _Served] = {}

    def __len__(self) -> int:
        return len(self._queues)

    def get(self, demand: Demand) -> Queue:
        """Return a demand's queue."""
        return self._queues[demand]

    def open(self, demand: Demand) -> Queue:
        """Return a demand's queue for one more task."""
        queue = self._queues.get(demand)
        if queue is None:
            queue = self._new(demand)
        elif queue.live == 0:
            self._idle.pop(queue, None)
        queue.live += 1
        return queue

    def leave(self, queue: Queue) -> bool:
        """Note that one task less waits in a queue; return whether none does."""
        queue.live -= 1
        if queue.live:
            return False
        self._idle[queue] = None
        if len(self._idle) > _IDLE_QUEUES_MAX:
            self._drop(next(iter(self._idle)))
        return True

    def forget(self, row: int) -> None:
        """Forget what an instance serves, which is gone for good."""
        self._served.pop(row, None)

    def served(self, instance: Instance) -> list[Queue]:
        """Return the queues that an instance can serve, and perhaps some that are gone and empty."""
        row, levels, log = instance.row, instance.levels, self._log
        known = self._served.get(row)
        if known is not None and known.levels is levels and known.forgotten == self._forgotten:
            seen = known.seen
            if seen == len(log):
                return known.queues
            if len(log) - seen <= _NEW_MAX:
                agent_id = instance.key.agent_id
                for queue in log[seen:]:
                    demand = queue.demand
                    if (not demand.agents or agent_id in demand.agents) and _can(levels, demand):
                        known.queues.append(queue)
                self._keep(row, known._replace(seen=len(log)))
                return known.queues
        found = self._find(instance)
        self._keep(row, _Served(levels, self._forgotten, len(log), found))
        return found

    def _keep(self, row: int, served: _Served) -> None:
        if len(served.queues) <= _SERVED_KEPT_MAX:
            self._served[row] = served
        else:
            self._served.pop(row, None)

    def _find(self, instance: Instance) -> list[Queue]:
        levels = instance.levels
        having = frozenset(levels)
        found = [
            queue
            for skill in levels
            for queue in self._by_skill.get(skill, ())
            if queue.others <= having and _can(levels, queue.demand)
        ]
        named = self._by_agent.get(instance.key.agent_id, ())
        return found + [queue for queue in named if _can(levels, queue.demand)]

    def _new(self, demand: Demand) -> Queue:
        # Found under the skill that fewest others are found under.
        skill = None
        if not demand.agents:
            skill = min(sorted(demand.skills), key=lambda each: len(self._by_skill.get(each, ())))
        bare = demand._replace(needs=())
        family = self._families.get(bare)
        if family is None:
            family = self._families[bare] = Family(bare)
        family.queue_count += 1
        number = self._spare.pop() if self._spare else len(self._queues)
        queue = self._queues[demand] = Queue(demand, skill, family, number)
        if len(self._log) >= _LOG_MAX:
            self._log.clear()
            self._forgotten += 1
            self._served.clear()
        self._log.append(queue)
        if skill is not None:
            self._by_skill.setdefault(skill, {})[queue] = None
        for agent_id in demand.agents:
            self._by_agent.setdefault(agent_id, {})[queue] = None
        return queue

    def _drop(self, queue: Queue) -> None:
        # Where it is still remembered it is passed over: nobody waits in it any more.
        del self._queues[queue.demand]
        del self._idle[queue]
        self._spare.append(queue.number)
        queue.family.queue_count -= 1
        if not queue.family.queue_count:
            del self._families[queue.family.demand]
        if queue.skill is not None:
            _discard(self._by_skill, queue.skill, queue)
        for agent_id in queue.demand.agents:
            _discard(self._by_agent, agent_id, queue)


class Waiting:
    """The lanes in which somebody waits in one class, by requester and queue."""

    __slots__ = ("accounts",)

    def __init__(self) -> None:
        #: Nothing in it is empty.
        self.accounts: dict[Account, dict[Queue, Lane]] = {}

    def lane(self, queue: Queue, priority: Priority, account: Account) -> Lane:
        """Return the lane for one more task, a new one if there is none."""
        lanes = queue.classes.get(priority)
        if lanes is None:
            lanes = queue.classes[priority] = {}
        lane = lanes.get(account)
        if lane is None:
            lane = lanes[account] = Lane(priority, account, queue)
            mine = self.accounts.get(account)
            if mine is None:
                mine = self.accounts[account] = {}
            mine[queue] = lane
        return lane

    def drop(self, queue: Queue, lane: Lane) -> None:
        """Take out a lane in which nobody waits any more."""
        lanes, account = queue.classes[lane.priority], lane.account
        del lanes[account]
        if not lanes:
            del queue.classes[lane.priority]
        mine = self.accounts[account]
        del mine[queue]
        if not mine:
            del self.accounts[account]

    def among(self, queues: Collection[Queue], priority: Priority) -> Mapping[Account, dict[Queue, Lane]]:
        """Return, with all their lanes, the requesters that may have a task in one of these queues."""
        accounts = self.accounts
        if len(accounts) <= _ACCOUNTS_FEW:
            return accounts
        lanes = (queue.classes.get(priority) for queue in queues)
        return {account: accounts[account] for mine in lanes if mine is not None for account in mine}


def _can(levels: Levels, demand: Demand) -> bool:
    """Return whether somebody with these levels has all skills that a demand asks for."""
    return all(levels.get(skill, 0.0) > 0.0 for skill in demand.skills)


def _discard(table: dict[Any, dict[Queue, None]], key: Any, queue: Queue) -> None:
    del table[key][queue]
    if not table[key]:
        del table[key]
