"""The standing plan of PREDICTIVE: improved in the background, replaced by nothing that is not better.

The rule of `foreseeing.forecast` needs no plan. While tasks wait by it, a search looks for something better
in a process of its own, on a snapshot of what is open: at most one at a time, `plan_interval_ms` apart, for
`plan_budget_ms`. What comes back was made for a moment that is over. So it is carried over to now (what has
started or ended since is dropped, agents that are gone too), must pass the validator there, and is adopted
only if it ends earlier than the standing plan carried over likewise. It says on which agent a task is best
placed; whose turn it is, and what is free, is decided when the time comes.

The plan is derived: it is kept in the leader's memory, and the next leader makes its own.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from services.common.core.instants import Instant, after
from services.scheduler.core.book import Book, Step
from services.scheduler.core.course import Place, Task
from services.scheduler.core.effects import SearchPlan
from services.scheduler.core.events import PlanFound
from services.scheduler.core.foreseeing.foresight import Asked
from services.scheduler.core.instances import Instance
from services.scheduler.core.model import (
    TASK_HELD,
    CollaborationState,
    InstanceKey,
    LockMode,
    Priority,
    TaskKey,
    TaskState,
)
from services.scheduler.core.placing.lanes import order_of
from services.scheduler.core.placing.pools import level_for
from services.scheduler.core.planning.problem import Dependency, DurationRow, Problem
from services.scheduler.core.planning.rolling import Places, carry_over, places_of
from services.scheduler.core.planning.schedule import Schedule
from services.scheduler.core.planning.validate import find_violations
from services.scheduler.core.prediction import learning
from services.scheduler.core.running import lateness

#: What one search plans at most: of more tasks those that are served first, of more agents those that have
#: the skills of the first tasks. Their product is bounded, too: each is one prediction on the leader's loop.
TASKS_MAX = 256
INSTANCES_MAX = 64
PREDICTIONS_MAX = 4_096
SLOTS_MAX = 16
#: Of fewer tasks the rule's placement is as good as any.
TASKS_MIN = 3


def ask(step: Step) -> None:
    """Have a better plan searched for, if tasks wait by the forecast and it is time to."""
    book, plan = step.book, step.book.foresight.plan
    settings = book.settings
    if settings.plan_budget_ms <= 0 or plan.asked is not None or step.now < plan.next_time:
        return
    plan.next_time = after(step.now, settings.plan_interval_ms)
    instances = _instances(book)
    most = min(TASKS_MAX, PREDICTIONS_MAX // max(1, len(instances)))
    tasks, rows = _open_tasks(book, instances, most)
    if len(tasks) < TASKS_MIN:
        return
    problem = _problem(book, step.now, tasks, rows, instances)
    places: Places | None = None
    if plan.places:
        number_of = {instance.key: number for number, instance in enumerate(instances)}
        places = [_place(plan.places.get(task.key), number_of) for task in tasks]
    plan.number += 1
    keys = tuple(instance.key for instance in instances)
    plan.asked = Asked(plan.number, tuple(task.key for task in tasks), tuple(rows), keys)
    plan.note("asked")
    step.effects.append(SearchPlan(plan.number, problem, places, settings.plan_budget_ms))


def take(step: Step, event: PlanFound) -> None:
    """Adopt what a search found if it is still better than the standing plan, both carried over to now."""
    book, plan = step.book, step.book.foresight.plan
    asked = plan.asked
    if asked is None or asked.number != event.number:
        return
    plan.asked = None
    if event.before is None or event.after is None:
        plan.note("failed")
        return
    instances = [
        instance
        for key in asked.instances
        if (instance := book.instances.get(key)) is not None and _works(instance)
    ]
    old = {key: number for number, key in enumerate(asked.instances)}
    columns = [old[instance.key] for instance in instances]
    tasks, rows, kept = _still_open(book, asked, columns)
    if not tasks:
        plan.note("late")
        return
    problem = _problem(book, step.now, tasks, rows, instances)
    new = {number: column for column, number in enumerate(columns)}

    def now(places: Places) -> Schedule:
        return carry_over(problem, [_moved(places[number], new) for number in kept])

    before, found = now(event.before), now(event.after)
    gain_ms = before.makespan_ms - found.makespan_ms
    if find_violations(problem, found) or _worth(tasks, found) >= _worth(tasks, before):
        plan.note("refused")
        return
    plan.places = {
        task.key: (place[0], instances[place[1]].key)
        for task, place in zip(tasks, places_of(found), strict=True)
        if place is not None
    }
    plan.note("adopted", max(0, gain_ms))


def _worth(tasks: Sequence[Task], schedule: Schedule) -> tuple[int, ...]:
    """Return how bad a plan is: when each class's last task ends, the most urgent first, then every end."""
    latest = dict.fromkeys(Priority, 0)
    ends: dict[str, int] = {}
    for task, slot in zip(tasks, schedule.slots, strict=True):
        latest[task.priority] = max(latest[task.priority], slot.finish_ms)
        name = task.key.collaboration_id
        ends[name] = max(ends.get(name, 0), slot.finish_ms)
    return (*latest.values(), sum(ends.values()))


def _place(
    known: tuple[int, InstanceKey] | None, number_of: dict[InstanceKey, int]
) -> tuple[int, int] | None:
    agent = None if known is None else number_of.get(known[1])
    return None if known is None or agent is None else (known[0], agent)


def _moved(place: tuple[int, int] | None, new: dict[int, int]) -> tuple[int, int] | None:
    return None if place is None or place[1] not in new else (place[0], new[place[1]])


def _works(instance: Instance) -> bool:
    linked = instance.stream is not None and not instance.draining
    return linked and (instance.free > 0 or bool(instance.held))


def _instances(book: Book) -> list[Instance]:
    """Return the agents that the first parked tasks may have, each once."""
    fleet = book.index.fleet
    chosen: dict[int, None] = {}
    for task in book.foresight.first(TASKS_MAX):
        for row in fleet.eligible(task.demand.skills, task.demand.agents).rows.tolist():
            instance = fleet.instances[row]
            if instance is not None and _works(instance):
                chosen[row] = None
            if len(chosen) == INSTANCES_MAX:
                break
    return [instance for row in chosen if (instance := fleet.instances[row]) is not None]


def _open_tasks(book: Book, instances: Sequence[Instance], most: int) -> tuple[list[Task], list[DurationRow]]:
    """Return what is open of the collaborations that have parked tasks, in an order that dependencies allow.

    Left out: gangs, what waits for a lock or a retry, and all that depends on something left out.
    """
    homes = {task.key.collaboration_id: task.collaboration for task in book.foresight.first(TASKS_MAX)}
    line: list[tuple[Priority, int, int, Task]] = []
    covered: dict[TaskKey, int] = {}
    pushed = 0

    def push(task: Task) -> None:
        nonlocal pushed
        pushed += 1
        heapq.heappush(line, (task.priority, order_of(task), pushed, task))

    def cover(task: Task) -> None:
        for name in task.dependents:
            later = task.collaboration.tasks[name]
            covered[later.key] = covered.get(later.key, 0) + 1
            if covered[later.key] == later.unmet and later.state is TaskState.PENDING:
                push(later)

    for home in homes.values():
        if home.state is CollaborationState.SUSPENDED:
            continue
        for task in home.open_tasks():
            if task.place is Place.QUEUE:
                push(task)
            elif task.state in TASK_HELD:
                cover(task)
    tasks: list[Task] = []
    rows: list[DurationRow] = []
    while line and len(tasks) < most:
        *_, task = heapq.heappop(line)
        row = _row(book, task, instances)
        if task.spec.gang is None and any(ms is not None for ms in row):
            tasks.append(task)
            rows.append(row)
            cover(task)
    return tasks, rows


def _row(book: Book, task: Task, instances: Iterable[Instance]) -> DurationRow:
    demand = task.demand
    return tuple(
        None
        if level_for(instance.levels, demand) is None
        or (demand.agents and instance.key.agent_id not in demand.agents)
        or any(instance.capacities.get(name, 0) < amount for name, amount in demand.needs)
        else learning.mean_ms(book, task.spec, instance.key.agent_id, task.task_type)
        for instance in instances
    )


def _still_open(
    book: Book, asked: Asked, columns: Sequence[int]
) -> tuple[list[Task], list[DurationRow], list[int]]:
    """Return what of a question still is one: its tasks, their durations, and their numbers in it."""
    tasks: list[Task] = []
    rows: list[DurationRow] = []
    kept: list[int] = []
    known: set[TaskKey] = set()
    for number, key in enumerate(asked.tasks):
        task = book.task(key)
        if task is None or not (task.place is Place.QUEUE or task.state is TaskState.PENDING):
            continue
        row = tuple(asked.rows[number][column] for column in columns)
        others = task.collaboration.tasks
        waits_for = [others[name] for name in task.spec.dependencies]
        if any(ms is not None for ms in row) and all(
            each.state is TaskState.SUCCEEDED or each.state in TASK_HELD or each.key in known
            for each in waits_for
        ):
            known.add(key)
            tasks.append(task)
            rows.append(row)
            kept.append(number)
    return tasks, rows, kept


def _problem(
    book: Book,
    now: Instant,
    tasks: Sequence[Task],
    rows: Sequence[DurationRow],
    instances: Sequence[Instance],
) -> Problem:
    """Return the problem as it is now: slots by when they are predicted to be free."""
    index = {task.key: number for number, task in enumerate(tasks)}
    dependencies: list[Dependency] = []
    release: dict[int, tuple[int, ...]] = {}
    for number, task in enumerate(tasks):
        others, ready_ms = task.collaboration.tasks, 0
        for name in dict.fromkeys(task.spec.dependencies):
            before = others[name]
            if before.key in index:
                dependencies.append(Dependency(index[before.key], number))
            elif before.open_attempts:
                ready_ms = max(ready_ms, lateness.predicted_end(book, before, now) - now)
        if ready_ms > 0:
            release[number] = (ready_ms,) * len(instances)
    slots = []
    for instance in instances:
        ends = [
            max(1, lateness.attempt_end(task, attempt, now) - now)
            for task in instance.held.values()
            if (attempt := task.at(instance.key)) is not None
        ]
        slots.append(tuple(([0] * instance.free + sorted(ends))[:SLOTS_MAX]))
    locks = {
        number: names
        for number, task in enumerate(tasks)
        if (names := frozenset(str(c.resource) for c in task.spec.resources if c.mode is LockMode.EXCLUSIVE))
    }
    return Problem(tuple(rows), tuple(dependencies), tuple(slots), None, locks, release)
