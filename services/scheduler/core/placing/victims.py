"""Running attempts that may make room for more urgent work, cheapest first, found without looking at all.

What an attempt costs if it stops now is the work since its newest savepoint, or since its assignment, plus
`REPEAT_MS` for each time that its task made room before, times a weight of its class. The order inside one
class never changes while time passes, so that one sorted line for each class and each skill is enough: an
attempt is in the lines of all the skills of its instance, and a demand is answered from those of its rarest.

Lines delete lazily, as the heaps of the placement index do.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Iterator
from types import MappingProxyType
from typing import NamedTuple

from services.common.core.ids import AgentId, Skill
from services.common.core.instants import Instant
from services.scheduler.core.course import Attempt, Task
from services.scheduler.core.instances import Instance
from services.scheduler.core.model import AttemptState, Priority, TaskKey
from services.scheduler.core.placing.placement import Demand
from services.scheduler.core.placing.pools import level_for

#: What one earlier suspension of a task counts, in milliseconds of lost work: it spreads the burden.
REPEAT_MS = 10_000
#: What a millisecond of lost work weighs in each class.
WEIGHTS = MappingProxyType({Priority.HIGH: 4, Priority.NORMAL: 2, Priority.LOW: 1})
#: Candidates of one class that are told at most; those that may not be taken lie among them.
_LOOK_MAX = 1_024
#: Below this size a rebuild costs more than it frees.
_REBUILD_SIZE_MIN = 64
_Name = tuple[TaskKey, int]


class Victim(NamedTuple):
    """An attempt that could make room."""

    task: Task
    instance: Instance
    #: Its place among all: weighted work that would be lost, in milliseconds; smaller is cheaper.
    cost: int
    #: Milliseconds of work that would be lost.
    lost_ms: int


class _Held:
    """An attempt in the lines."""

    __slots__ = ("instance", "live", "name", "skills", "task")

    def __init__(self, name: _Name, task: Task, instance: Instance) -> None:
        self.name = name
        self.task = task
        self.instance = instance
        #: Under which it is found.
        self.skills = tuple(instance.levels)
        #: Whether its entries count: they leave the lines when they come up.
        self.live = True


class _Entry(NamedTuple):
    #: Since when work would be lost; larger is cheaper. Of equals the one that was noted first.
    since: int
    negative_number: int
    held: _Held


class _Line:
    """The attempts of one class at instances with one skill."""

    __slots__ = ("entries", "live")

    def __init__(self) -> None:
        #: In growing order, the cheapest last: most new ones are the cheapest.
        self.entries: list[_Entry] = []
        self.live = 0


class Victims:
    """See the module. Owned by `SchedulerState`."""

    def __init__(self) -> None:
        #: None of them is empty.
        self._lines: dict[Skill, dict[Priority, _Line]] = {}
        self._by_agent: dict[AgentId, dict[_Name, _Entry]] = {}
        #: The valid entry of each attempt.
        self._entries: dict[_Name, _Entry] = {}
        #: Attempts that make room already and save, with their instance.
        self._saving: dict[_Name, Instance] = {}
        self._number = 0

    def __bool__(self) -> bool:
        """Whether any attempt could make room, or does already."""
        return bool(self._entries or self._saving)

    def saving(self) -> list[Instance]:
        """Return the instances at which an attempt makes room already."""
        return [*dict.fromkeys(self._saving.values())]

    def put(self, task: Task, attempt: Attempt, instance: Instance) -> None:
        """Note an attempt, that it was asked to go, or that less would be lost with it than before.

        Passed over if it can never go.
        """
        name = (task.key, attempt.token.number)
        self._drop(name)
        if attempt.state is AttemptState.SUSPENDING:
            self._saving[name] = instance
            return
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
        saved = task.savepoint
        since = attempt.assign_time if saved is None else max(attempt.assign_time, saved.save_time)
        self._number += 1
        entry = _Entry(since - repeats_ms(task), -self._number, _Held(name, task, instance))
        self._entries[name] = entry
        self._by_agent.setdefault(instance.key.agent_id, {})[name] = entry
        for skill in instance.levels:
            lines = self._lines.setdefault(skill, {})
            line = lines.get(task.priority)
            if line is None:
                line = lines[task.priority] = _Line()
            insort(line.entries, entry)
            line.live += 1
            if len(line.entries) > max(_REBUILD_SIZE_MIN, 2 * line.live):
                line.entries = [each for each in line.entries if each.held.live]

    def drop(self, task: Task, attempt: Attempt) -> None:
        """Take out an attempt; one that is not here is passed over."""
        self._drop((task.key, attempt.token.number))

    def put_instance(self, instance: Instance) -> None:
        """Note all attempts of an instance: its link or its skills have changed."""
        for task in instance.held.values():
            if (attempt := task.at(instance.key)) is not None:
                self.put(task, attempt, instance)

    def drop_instance(self, instance: Instance) -> None:
        """Take out all attempts of an instance: its slots are of no use."""
        for task in instance.held.values():
            if (attempt := task.at(instance.key)) is not None:
                self.drop(task, attempt)

    def candidates(self, demand: Demand, above: Priority, now: Instant) -> Iterator[Victim]:
        """Yield attempts of classes less urgent than `above` whose slot serves `demand`, cheapest first."""
        if demand.agents:
            # Named agents are few: all that they do is looked at.
            found = [
                entry
                for agent_id in demand.agents
                for entry in self._by_agent.get(agent_id, {}).values()
                if entry.held.task.priority > above
                and level_for(entry.held.instance.levels, demand) is not None
            ]
            return iter(sorted((_victim(entry, now) for entry in found), key=_place))
        having = [(skill, self._lines.get(skill, {})) for skill in demand.skills]
        if not all(lines for _, lines in having):
            return iter(())
        rarest, lines = min(having, key=lambda each: sum(line.live for line in each[1].values()))
        others = demand.skills - {rarest}
        streams = [self._of(line, others, now) for priority, line in lines.items() if priority > above]
        return streams[0] if len(streams) == 1 else heapq.merge(*streams, key=_place)

    @staticmethod
    def _of(line: _Line, others: frozenset[Skill], now: Instant) -> Iterator[Victim]:
        """Yield the attempts of a line at instances that have the other skills, too."""
        entries, told = line.entries, 0
        while entries and not entries[-1].held.live:
            entries.pop()
        for entry in reversed(entries):
            held = entry.held
            if held.live and (not others or others <= held.instance.levels.keys()):
                yield _victim(entry, now)
                told += 1
                if told == _LOOK_MAX:
                    return

    def _drop(self, name: _Name) -> None:
        self._saving.pop(name, None)
        entry = self._entries.pop(name, None)
        if entry is None:
            return
        held = entry.held
        held.live = False
        agent_id = held.instance.key.agent_id
        del self._by_agent[agent_id][name]
        if not self._by_agent[agent_id]:
            del self._by_agent[agent_id]
        for skill in held.skills:
            lines = self._lines[skill]
            line = lines[held.task.priority]
            line.live -= 1
            if not line.live:
                del lines[held.task.priority]
                if not lines:
                    del self._lines[skill]


def _victim(entry: _Entry, now: Instant) -> Victim:
    price = now - entry.since
    task = entry.held.task
    return Victim(task, entry.held.instance, price * WEIGHTS[task.priority], price - repeats_ms(task))


def _place(victim: Victim) -> tuple[int, int]:
    return victim.cost, -victim.task.priority


def repeats_ms(task: Task) -> int:
    """Return what the earlier suspensions of a task count, in milliseconds of lost work."""
    return REPEAT_MS * task.excused_count
