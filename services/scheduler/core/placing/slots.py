"""Which slots an urgent task, or all members of an urgent gang, get when not enough are free.

A slot is one that is free, or one that a victim gives up. Each member gets one, each at an agent of its own;
all do, or there is no choice. Of the possible choices the one is taken with
  1. the fewest victims,
  2. the fewest of them that end within `SPARE_MS` by themselves,
  3. the least weighted lost work in all (see `victims`).
For one task that is the cheapest victim. Method: minimum cost assignment of members to agents by shortest
augmenting paths (Crouse, "On implementing 2D rectangular assignment algorithms", 2016, as in scipy), with the
three criteria as one integer. Of each member's possible agents as many as there are members are looked at,
the cheapest: a member that had to go beyond them would find one of them free.

An amount of a capacity that attempts which save already will leave counts as left: nobody else need stop for
it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from services.common.core.ids import AgentId
from services.scheduler.core.book import Step
from services.scheduler.core.course import Attempt, Task
from services.scheduler.core.instances import Instance
from services.scheduler.core.locking.queue import TaskOwner
from services.scheduler.core.model import AttemptState, Priority
from services.scheduler.core.placing.placement import Demand
from services.scheduler.core.placing.pools import level_for
from services.scheduler.core.placing.victims import Victim

#: An attempt that is expected to end this soon, in milliseconds, frees its slot by itself.
SPARE_MS = 500
#: Lost work counts up to this, about 100 days of class LOW. With 64 members the three criteria together stay
#: below 2^53, up to which a float is exact.
_COST_MAX = 2**33
_SOON = 2**39
_TAKEN = 2**45


class Slot(NamedTuple):
    """A slot that one task could have."""

    instance: Instance
    #: Who gives it up, with its attempt there; None when it is free.
    victim: Victim | None
    attempt: Attempt | None
    #: By the three criteria; smaller is better.
    cost: int


def choose(step: Step, tasks: Sequence[Task]) -> list[Slot] | None:
    """Return a slot for each of `tasks`, all at different agents; None when that is not possible now."""
    step.book.index.settle()
    by_demand: dict[Demand, dict[AgentId, Slot]] = {}
    for task in tasks:
        if task.demand not in by_demand:
            found = _possible(step, task.demand, task.priority, len(tasks))
            if not found:
                return None
            by_demand[task.demand] = found
    if len(tasks) == 1:
        return [min(by_demand[tasks[0].demand].values(), key=lambda slot: slot.cost)]
    agents = [*dict.fromkeys(agent for found in by_demand.values() for agent in found)]
    if len(agents) < len(tasks):
        return None
    column_of = {agent: number for number, agent in enumerate(agents)}
    costs = np.full((len(tasks), len(agents)), np.inf)
    for number, task in enumerate(tasks):
        for agent, slot in by_demand[task.demand].items():
            costs[number, column_of[agent]] = slot.cost
    try:
        _, columns = linear_sum_assignment(costs)
    except ValueError:
        # No assignment of finite cost: some members have too few agents between them.
        return None
    return [by_demand[task.demand][agents[at]] for task, at in zip(tasks, columns.tolist(), strict=True)]


def has_once_saved(
    instance: Instance, needs: Iterable[tuple[str, int]], back: Iterable[tuple[str, int]] = ()
) -> bool:
    """Return whether an instance has left what is needed when all that saves there has stopped.

    `back` is what is given back besides.
    """
    given = Counter(dict(back))
    for task in instance.held.values():
        attempt = task.at(instance.key) if task.spec.needs else None
        if attempt is not None and attempt.state is AttemptState.SUSPENDING:
            given.update(dict(task.spec.needs))
    return all(
        instance.used.get(name, 0) - given[name] + amount <= instance.capacities.get(name, 0)
        for name, amount in needs
    )


def _possible(step: Step, demand: Demand, priority: Priority, count: int) -> dict[AgentId, Slot]:
    """Return the best slots for a demand by agent: at least the `count` cheapest, if there are so many."""
    found: dict[AgentId, Slot] = {}
    for instance in _free(step, demand):
        found.setdefault(instance.key.agent_id, Slot(instance, None, None, 0))
        if len(found) >= count:
            return found
    soon: dict[AgentId, Slot] = {}
    for victim in step.book.victims.candidates(demand, priority, step.now):
        # Cheapest first. Of those that end soon as many as are wanted are enough, and there may be many.
        agent_id = victim.instance.key.agent_id
        attempt = victim.task.at(victim.instance.key)
        if agent_id in found or attempt is None:
            continue
        ends_soon = _ends_soon(step, victim.task, attempt)
        if (ends_soon and (agent_id in soon or len(soon) >= count)) or not _may_go(
            step, demand, priority, victim
        ):
            continue
        cost = _TAKEN + (_SOON if ends_soon else 0) + min(victim.cost, _COST_MAX)
        (soon if ends_soon else found)[agent_id] = Slot(victim.instance, victim, attempt, cost)
        if len(found) >= count:
            break
    return soon | found


def _free(step: Step, demand: Demand) -> Iterator[Instance]:
    """Yield instances with a free slot for a demand; last those that have what it needs once others saved."""
    index = step.book.index
    pool = index.pool(demand)
    for row in () if pool is None else pool.rows.tolist():
        instance = index.fleet.instances[row]
        if instance is not None:
            yield instance
    if not demand.needs:
        return
    for instance in step.book.victims.saving():
        if (
            instance.free > 0
            and level_for(instance.levels, demand) is not None
            and (not demand.agents or instance.key.agent_id in demand.agents)
            and has_once_saved(instance, demand.needs)
        ):
            yield instance


def _may_go(step: Step, demand: Demand, priority: Priority, victim: Victim) -> bool:
    if demand.needs and not has_once_saved(victim.instance, demand.needs, back=victim.task.spec.needs):
        return False
    use = None if victim.task.lock_id is None else step.book.lock_uses.get(victim.task.lock_id)
    if use is not None and use.token is None:
        # Its assignment goes out when its locks are written: the request would come before it.
        return False
    lent = step.book.locks.lent_to(TaskOwner(victim.task.key))
    return lent is None or lent.priority > priority


def _ends_soon(step: Step, task: Task, attempt: Attempt) -> bool:
    began = attempt.assign_time if attempt.start_time is None else attempt.start_time
    left_ms = task.spec.estimated_duration_ms - (step.now - began)
    return 0 <= left_ms <= SPARE_MS
