"""Urgent work that finds no free agent takes the slots of less urgent work (guarantee: no more than needed).

The rule. A ready task of `preempting_priority` (EMERGENCY by default) or a more urgent class preempts when no
instance that could run it has a free slot; a gang of such a class when not enough have, and then for all its
members at once or for none. HIGH does not, unless configured: it is served first when a slot is free. A
victim is a running attempt at a suitable agent,
  - of a class that is less urgent than the task's, also counting what is lent to it for the locks it holds,
  - not a member of a gang: the others would stop with it,
  - one whose locks, if any, are durable, at an agent that heeds the request to suspend.
Which of them: see `slots`. A task, and a member of a gang, takes at most one slot. The slot is used at once
while the victim saves; who needs what the victim still has of the capacities waits for that, and its slots
are kept: see `rooms`. A task whose declared claims are not free gets no slot: it waits for them, and lends
its class to their holders.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from services.scheduler.core.book import Book, Step
from services.scheduler.core.course import Attempt, Place, Task
from services.scheduler.core.locking import claims
from services.scheduler.core.model import Priority
from services.scheduler.core.placing import gangs, rooms
from services.scheduler.core.placing.fairness import Account
from services.scheduler.core.placing.index import gang_key
from services.scheduler.core.placing.lanes import order_of
from services.scheduler.core.placing.placement import Demand
from services.scheduler.core.placing.pools import has_left
from services.scheduler.core.placing.slots import Slot, choose
from services.scheduler.core.placing.victims import WEIGHTS, Victim
from services.scheduler.core.running import attempts, suspension


def make_room(step: Step) -> bool:
    """Ask attempts to make room for the urgent work that waits for agents; return whether anything changed.

    To be called when no ready task has a free agent.
    """
    if not step.book.victims:
        return False
    hopeless: set[tuple[Demand, Priority]] = set()
    changed = False
    for tasks in _in_turn(step.book):
        first = tasks[0]
        alone = first.spec.gang is None
        if alone and (first.demand, first.priority) in hopeless:
            continue
        chosen = choose(step, tasks)
        if chosen is not None:
            _take(step, tasks, chosen)
            changed = True
        elif alone:
            hopeless.add((first.demand, first.priority))
    return changed


def _in_turn(book: Book) -> Iterator[list[Task]]:
    """Yield the urgent tasks that wait for an agent, and the members of each urgent gang, one by one.

    In serving order: by class, then the requester with the smallest share, counting what it got meanwhile.
    """
    lines: dict[tuple[Priority, Account], list[list[Task]]] = {}
    for tasks in _wanting(book):
        if gang_key(tasks[0]) not in book.rooms:
            lines.setdefault((tasks[0].priority, tasks[0].account), []).append(tasks)
    if not lines:
        return
    totals = book.index.fleet.totals
    for line in lines.values():
        # Taken from the end.
        line.sort(key=lambda tasks: order_of(tasks[0]), reverse=True)
    heap = [
        (priority, account.share(totals), order_of(line[-1][0]), account, line)
        for (priority, account), line in lines.items()
    ]
    heapq.heapify(heap)
    while heap:
        priority, _, _, account, line = heapq.heappop(heap)
        yield line.pop()
        if line:
            heapq.heappush(heap, (priority, account.share(totals), order_of(line[-1][0]), account, line))


def _wanting(book: Book) -> list[list[Task]]:
    """Return the urgent tasks that wait for an agent, and the members of each urgent gang."""
    found = [[task] for task in book.urgent.values()]
    if book.index.gangs:
        for priority in Priority:
            if priority <= book.settings.preempting_priority:
                found += gangs.complete(book, priority)
    return found


def _take(step: Step, tasks: list[Task], chosen: list[Slot]) -> None:
    """Have the slots that were chosen for `tasks` made free; they start there, or have them kept."""
    fit = all(has_left(slot.instance, task.demand) for task, slot in zip(tasks, chosen, strict=True))
    # Only rank 0 of a gang has claims. Without them it leaves the index, and the gang waits for it.
    for task in tasks:
        if not claims.claim(step, task):
            return
        if task.lock_id is not None and task.place is Place.QUEUE:
            # Granted and not written: given back if it does not start now.
            step.book.reserved[task.lock_id] = task
    for task, slot in zip(tasks, chosen, strict=True):
        if slot.victim is not None and slot.attempt is not None:
            _ask(step, task, slot.victim, slot.attempt)
    if fit:
        _start(step, tasks, chosen)
    else:
        rooms.keep(step, tasks, [slot.instance for slot in chosen])


def _start(step: Step, tasks: Sequence[Task], chosen: Sequence[Slot]) -> None:
    asked = sum(slot.victim is not None for slot in chosen)
    whole = f"gang of {len(tasks)}, {asked} make room for it: " if len(tasks) > 1 else ""
    for task, slot in zip(tasks, chosen, strict=True):
        here = "free" if slot.victim is None else f"made free by {slot.victim.task.key}"
        attempts.assign(step, task, slot.instance, f"{whole}this slot is {here}; {task.priority.name}")
        if task.priority is not Priority.EMERGENCY and task.spec.gang is None:
            # As any start beside those that are owed to age: see `lanes`.
            slot.instance.fresh_starts += 1


def _ask(step: Step, task: Task, victim: Victim, attempt: Attempt) -> None:
    weight = WEIGHTS[victim.task.priority]
    gang = task.spec.gang
    whole = "" if gang is None else f" for its gang of {gang.size} to start at once"
    why = (
        f"task {task.key} of class {task.priority.name} needs its slot{whole}: {victim.lost_ms} ms of work "
        f"lost, weight {weight} of class {victim.task.priority.name}"
    )
    step.entry(
        "task.preempt",
        f"task/{victim.task.key}",
        "service/scheduler",
        collaboration_id=victim.task.key.collaboration_id,
        cause_id=str(task.key),
        attributes={
            "token": str(attempt.token),
            "instance": str(victim.instance.key),
            "for": str(task.key),
            "lost_ms": str(victim.lost_ms),
            "why": why,
        },
    )
    suspension.ask(step, victim.task, attempt, victim.instance, why)
