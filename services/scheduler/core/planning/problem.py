"""What a planner is asked: tasks, what they need of each other, and agents that differ.

The model is the field's R | prec, c_ij | Cmax with eligibility: a task has its own duration on each agent,
or none where the agent may not have it; a task that depends on another waits for its data to travel when both
are on different agents; an agent has slots, each with the instant from which it is free. On top of that come
resources that one task at a time may hold. Tasks and agents are indices; times are integer milliseconds
after the start of the plan.

Planners place tasks on *lanes*: the slots of all agents in a row. Lanes of one agent are equally good, but
for the instant from which they are free, and data between them takes no time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
#: A task's duration on each agent; None where the agent may not have it.
DurationRow = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Dependency:
    """`after` needs what `before` made."""

    before: int
    after: int
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Network:
    """How long data travels: latency plus size over bandwidth, each from one agent to another."""

    #: [from][to], milliseconds. The diagonal is not looked at: data on the same agent is there.
    latency_ms: tuple[tuple[float, ...], ...]
    #: [from][to], the inverse of the bandwidth.
    ms_per_byte: tuple[tuple[float, ...], ...]

    @classmethod
    def uniform(cls, agents: int, latency_ms: float, ms_per_byte: float) -> Network:
        """Return a network in which all pairs of agents are equally far apart."""
        return cls(((latency_ms,) * agents,) * agents, ((ms_per_byte,) * agents,) * agents)

    def delay_ms(self, size_bytes: int, source: int, target: int) -> int:
        """Return how long `size_bytes` travel, in whole milliseconds, rounded up."""
        if source == target:
            return 0
        delay = self.latency_ms[source][target] + size_bytes * self.ms_per_byte[source][target]
        # A sum that floats put a hair above a whole number is that number.
        return -int(-(delay - 1e-9) // 1)


@dataclass(frozen=True)
class Problem:
    """One planning problem. Raises `ValueError` when it is not one: the message says what is wrong."""

    #: [task][agent]; each at least 1 ms.
    duration_ms: tuple[DurationRow, ...]
    dependencies: tuple[Dependency, ...] = ()
    #: For each agent the instants from which its slots are free.
    slots_from_ms: tuple[tuple[int, ...], ...] = ()
    #: None: data travels in no time.
    network: Network | None = None
    #: Task -> the resources that it alone may hold while it runs.
    locks: Mapping[int, frozenset[str]] = field(default_factory=dict)
    #: Task -> for each agent the earliest start there: data of finished tasks that is still on its way, or an
    #: instant that was asked for.
    release_ms: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        agents = len(self.slots_from_ms)
        for task, row in enumerate(self.duration_ms):
            if len(row) != agents:
                raise ValueError(f"task {task} has {len(row)} durations for {agents} agents")
            if not any(ms is not None and self.slots_from_ms[agent] for agent, ms in enumerate(row)):
                raise ValueError(f"no agent with a slot may have task {task}")
            if any(ms is not None and ms < 1 for ms in row):
                raise ValueError(f"task {task} takes less than 1 ms somewhere")
        if any(slot < 0 for slots in self.slots_from_ms for slot in slots):
            raise ValueError("a slot is free before the start of the plan; its instant is 0 then")
        if any(len(row) != agents for row in self.release_ms.values()):
            raise ValueError(f"a release has other than {agents} instants")
        known = range(len(self.duration_ms))
        if any(d.before not in known or d.after not in known for d in self.dependencies):
            raise ValueError("a dependency names a task that is not there")
        if len({(d.before, d.after) for d in self.dependencies}) < len(self.dependencies):
            raise ValueError("a dependency is named twice; add up the sizes")
        if len(self.order) < len(self.duration_ms):
            raise ValueError("the dependencies have a cycle")

    @property
    def tasks(self) -> range:
        """All tasks."""
        return range(len(self.duration_ms))

    @property
    def agents(self) -> range:
        """All agents."""
        return range(len(self.slots_from_ms))

    @cached_property
    def before(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each task what it waits for: (task, index of the dependency)."""
        rows: list[list[tuple[int, int]]] = [[] for _ in self.tasks]
        for index, dependency in enumerate(self.dependencies):
            rows[dependency.after].append((dependency.before, index))
        return tuple(map(tuple, rows))

    @cached_property
    def after(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each task what waits for it: (task, index of the dependency)."""
        rows: list[list[tuple[int, int]]] = [[] for _ in self.tasks]
        for index, dependency in enumerate(self.dependencies):
            rows[dependency.before].append((dependency.after, index))
        return tuple(map(tuple, rows))

    @cached_property
    def order(self) -> tuple[int, ...]:
        """A topological order, by Kahn's method; shorter than `tasks` when there is a cycle."""
        waits_for = [len(row) for row in self.before]
        order = [task for task in self.tasks if not waits_for[task]]
        for task in order:
            for dependent, _ in self.after[task]:
                waits_for[dependent] -= 1
                if not waits_for[dependent]:
                    order.append(dependent)
        return tuple(order)

    @cached_property
    def lanes(self) -> Lanes:
        """The same problem in lanes."""
        return Lanes(self)


class Lanes:
    """The slots of all agents in a row, and what a planner asks of them most."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        #: Lane -> its agent.
        self.agent: list[int] = [a for a, slots in enumerate(problem.slots_from_ms) for _ in slots]
        #: Lane -> the instant from which it is free.
        self.from_ms: list[int] = [instant for slots in problem.slots_from_ms for instant in sorted(slots)]
        self.count = len(self.agent)
        #: Task -> (lane, duration there) of each lane that may have it.
        self.choices: list[list[tuple[int, int]]] = [
            [(lane, ms) for lane, agent in enumerate(self.agent) if (ms := row[agent]) is not None]
            for row in problem.duration_ms
        ]
        #: Task -> the earliest start on each lane, whatever the others do.
        self.earliest: list[list[int]] = [
            [max(instant, release[agent]) for instant, agent in zip(self.from_ms, self.agent, strict=True)]
            if (release := problem.release_ms.get(task))
            else self.from_ms
            for task in problem.tasks
        ]
        self._zero = (0,) * self.count
        #: By size and lane: equal sizes travel equally long.
        self._outward: dict[tuple[int, int], tuple[int, ...]] = {}
        self._inward: dict[tuple[int, int], tuple[int, ...]] = {}
        self._sizes = [dependency.size_bytes for dependency in problem.dependencies]
        network = problem.network
        # [from][to], between lanes; no latency and no time for any size on the same agent.
        self._latency_ms, self._ms_per_byte = (
            (np.zeros((0, 0)), np.zeros((0, 0)))
            if network is None
            else (self._between(network.latency_ms), self._between(network.ms_per_byte))
        )

    def outward(self, dependency: int, source: int) -> tuple[int, ...]:
        """Return how long a dependency's data travels from lane `source` to each lane."""
        if self._problem.network is None:
            return self._zero
        key = self._sizes[dependency], source
        row = self._outward.get(key)
        if row is None:
            row = _delays_ms(key[0], self._latency_ms[source], self._ms_per_byte[source])
            self._outward[key] = row
        return row

    def inward(self, dependency: int, target: int) -> tuple[int, ...]:
        """Return how long a dependency's data travels from each lane to lane `target`."""
        if self._problem.network is None:
            return self._zero
        key = self._sizes[dependency], target
        row = self._inward.get(key)
        if row is None:
            row = _delays_ms(key[0], self._latency_ms[:, target], self._ms_per_byte[:, target])
            self._inward[key] = row
        return row

    def _between(self, agents: Sequence[Sequence[float]]) -> Floats:
        agent = np.array(self.agent, int)
        table: Floats = np.array(agents, float)[np.ix_(agent, agent)]
        table[agent[:, None] == agent] = 0.0
        return table


def _delays_ms(size_bytes: int, latency_ms: Floats, ms_per_byte: Floats) -> tuple[int, ...]:
    """Return what `Network.delay_ms` says of a whole row, at a tenth of the price."""
    delays = np.ceil(latency_ms + size_bytes * ms_per_byte - 1e-9)
    return tuple(np.maximum(delays, 0.0).astype(int).tolist())


def whole_agents(count: int, from_ms: Sequence[int] | None = None) -> tuple[tuple[int, ...], ...]:
    """Return `slots_from_ms` of agents with one slot each."""
    return tuple((instant,) for instant in (from_ms or [0] * count))
