"""Gangs: tasks that start together, each at an agent of its own, or not at all.

A gang waits until every member that has not ended waits for an agent; then agents for all of them are found
at once (`placing.matching`) or none is taken. A gang goes before single tasks of its class. One that has
waited for `ageing_ms` keeps the agents that it could have for itself as they become free (from everything but
EMERGENCY), one gang at a time, the oldest: so it starts as soon as enough of them have finished what they do,
and two gangs never keep agents from each other.

A member whose attempt ends without a result stops the others that still run; they wait and start again
together. A member that has its result keeps it. When one fails for good, all that are open fail with
GANG_FAILED.
"""

from __future__ import annotations

from collections.abc import Iterator

from services.common.core.ids import TaskId
from services.scheduler.core.book import Book, Step
from services.scheduler.core.course import Place, Task
from services.scheduler.core.locking import claims
from services.scheduler.core.machine import TASK, AttemptInput, TaskInput
from services.scheduler.core.model import Failure, FailureKind, Priority
from services.scheduler.core.placing import places
from services.scheduler.core.placing.matching import best_match
from services.scheduler.core.placing.ranking import Pool
from services.scheduler.core.running import attempts

#: Gangs of one class that a placement looks at: those that are served first.
_LOOKED_AT_MAX = 32


def members(task: Task) -> Iterator[Task]:
    """Yield the members of a task's gang, itself among them, by rank."""
    place = task.spec.gang
    if place is None:
        yield task
        return
    tasks = task.collaboration.tasks
    for rank in range(place.size):
        member = tasks.get(member_id(place.gang_id, rank))
        if member is not None:
            yield member


def member_id(gang_id: str, rank: int) -> TaskId:
    """Return the task_id of one member."""
    return TaskId(gang_id if rank == 0 else f"{gang_id}.{rank}")


def complete(book: Book, priority: Priority) -> Iterator[list[Task]]:
    """Yield the open members of each gang of a class of which all wait for an agent, in serving order."""
    for first in book.index.gangs_of(priority)[:_LOOKED_AT_MAX]:
        open_members = [each for each in members(first) if not each.ended]
        if all(each.place is Place.QUEUE for each in open_members):
            yield open_members


def start_next(step: Step, priority: Priority) -> bool:
    """Start the first gang of a class that can start; return whether anything changed."""
    return any(_start(step, open_members) for open_members in complete(step.book, priority))


def regroup(step: Step, task: Task, cause_id: str) -> None:
    """A member's attempt ended without a result: stop the others that run, to start again together."""
    if task.spec.gang is None:
        return
    story = f"member {task.key.task_id} of its gang stopped"
    for mate in members(task):
        if mate is task:
            continue
        for attempt in mate.open_attempts:
            failure = Failure(FailureKind.TRANSIENT, "GANG_STOPPED", story)
            attempts.close(step, mate, attempt, AttemptInput.CANCEL, failure, notice=story)
            mate.state = TASK.next(mate.key, mate.state, TaskInput.RETURN)
            mate.ready_time = step.now
            mate.cause_id = cause_id
            places.enter_queue(step, mate)
            step.task_changed(mate)


def _start(step: Step, open_members: list[Task]) -> bool:
    """Start all members, or note which agents an aged gang keeps; return whether anything changed."""
    book = step.book
    book.index.settle()
    pools = [book.index.pool(member.demand) for member in open_members]
    if any(pool is None for pool in pools):
        found: list[int | None] = [None] * len(open_members)
        choices = []
    else:
        choices = [_choices(book, pool, len(open_members)) for pool in pools if pool is not None]
        found = best_match([[(agent, score) for _, agent, score in rows] for rows in choices])
    if any(position is None for position in found):
        _keep(step, open_members, pools)
        return False
    for member in open_members:
        # Only rank 0 has claims. Without them it leaves the index, and the gang waits for it.
        if not claims.claim(step, member):
            return True
    size = len(open_members)
    for member, pool, rows, position in zip(open_members, pools, choices, found, strict=True):
        if pool is None or position is None:
            raise AssertionError(f"{member} has no agent although all were matched")
        at, _, score = rows[position]
        instance = book.index.fleet.instances[pool.row(at)]
        if instance is None:
            raise AssertionError(f"{member} was matched with nobody")
        why = f"gang of {size}, best match of {pool.count} free: score {score:.2f}; {member.priority.name}"
        attempts.assign(step, member, instance, why)
    return True


def _choices(book: Book, pool: Pool, size: int) -> list[tuple[int, str, float]]:
    """Return a pool's best slot of each agent: (position, agent, score)."""
    pool.rank(4 * size)
    seen: set[str] = set()
    rows = []
    for at, (row, score, _) in enumerate(pool.ranking()):
        agent = book.index.key_of(row).agent_id
        if agent not in seen:
            seen.add(agent)
            rows.append((at, str(agent), min(score, 2.0)))
    return rows


def _keep(step: Step, open_members: list[Task], pools: list[Pool | None]) -> None:
    """Let the oldest aged gang keep the free agents that its members could have."""
    index = step.book.index
    waiting_since = max(member.ready_time or step.now for member in open_members)
    if index.withheld or step.now - waiting_since < step.book.settings.ageing_ms:
        return
    if not _can_ever_start(step.book, open_members):
        # Kept for a gang that waits for agents that are not there, they would be idle for ever.
        return
    rows = {int(row) for pool in pools if pool is not None for row in pool.rows[: len(open_members)]}
    index.withheld.update(dict.fromkeys(rows))


def _can_ever_start(book: Book, open_members: list[Task]) -> bool:
    """Return whether the linked agents, once they are free, are enough for all members."""
    fleet, size = book.index.fleet, len(open_members)
    choices: list[list[tuple[str, float]]] = []
    for member in open_members:
        demand = member.demand
        able: dict[str, float] = {}
        for row in fleet.eligible(demand.skills, demand.agents).rows.tolist():
            instance = fleet.instances[row]
            if instance is None or instance.stream is None or instance.draining:
                continue
            if all(instance.capacities.get(name, 0) >= amount for name, amount in demand.needs):
                able[str(instance.key.agent_id)] = 1.0
            if len(able) == size:
                # As many as there are members: one is left for this one whatever the others take.
                break
        choices.append([*able.items()])
    return all(position is not None for position in best_match(choices))
