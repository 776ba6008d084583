"""Urgent tasks that find no free agent take the slot of less urgent work (guarantee: no more than needed).

The rule. A ready task of `preempting_priority` (EMERGENCY by default) or a more urgent class preempts when no
instance that could run it has a free slot. HIGH does not, unless configured: it is served first when a slot
is free. The victim is, among the running attempts at suitable agents,
  - of a class that is less urgent than the task's, also counting what is lent to it for the locks it holds,
  - one whose locks, if any, are durable, at an agent that heeds the request to suspend,
  - the cheapest: see `victims`; one that is expected to end within `SPARE_MS` only if there is no other.
One urgent task takes one slot, and none again before the grace of the first one is over. A task whose
declared claims are not free gets no slot: it waits for them, and lends its class to their holders.
"""

from __future__ import annotations

from services.common.core.instants import after
from services.scheduler.core.book import Step
from services.scheduler.core.course import Attempt, Place, Task
from services.scheduler.core.locking import claims
from services.scheduler.core.locking.queue import TaskOwner
from services.scheduler.core.placing.placement import Demand
from services.scheduler.core.placing.victims import WEIGHTS, Victim
from services.scheduler.core.running import suspension

#: An attempt that is expected to end this soon, in milliseconds, frees its slot by itself.
SPARE_MS = 500


def make_room(step: Step) -> bool:
    """Ask attempts to make room for the urgent tasks that wait for an agent; return whether anything changed.

    To be called when no ready task has a free agent.
    """
    book = step.book
    if not book.urgent or not len(book.victims):
        return False
    hopeless: set[tuple[Demand, int]] = set()
    changed = False
    for task in sorted(book.urgent.values(), key=lambda each: (each.priority, each.arrival)):
        if (task.demand, task.priority) in hopeless or (
            task.room_time is not None and step.now < after(task.room_time, book.settings.suspend_grace_ms)
        ):
            continue
        victim = _choose(step, task)
        if victim is None:
            hopeless.add((task.demand, task.priority))
            continue
        changed = True
        if not claims.claim(step, task):
            continue
        if task.lock_id is not None and task.place is Place.QUEUE:
            # Its claims are granted and not written: given back if the slot goes to another after all.
            book.reserved[task.lock_id] = task
        _take_slot(step, task, victim)
    return changed


def _take_slot(step: Step, task: Task, victim: tuple[Victim, Attempt]) -> None:
    chosen, attempt = victim
    task.room_time = step.now
    weight = WEIGHTS[chosen.task.priority]
    why = (
        f"task {task.key} of class {task.priority.name} needs its slot: {chosen.lost_ms} ms of work lost, "
        f"weight {weight} of class {chosen.task.priority.name}"
    )
    step.entry(
        "task.preempt",
        f"task/{chosen.task.key}",
        "service/scheduler",
        collaboration_id=chosen.task.key.collaboration_id,
        cause_id=str(task.key),
        attributes={
            "token": str(attempt.token),
            "instance": str(chosen.instance.key),
            "for": str(task.key),
            "lost_ms": str(chosen.lost_ms),
            "why": why,
        },
    )
    suspension.ask(step, chosen.task, attempt, chosen.instance, why)


def _choose(step: Step, task: Task) -> tuple[Victim, Attempt] | None:
    """Return the cheapest attempt that may make room for `task`, None when there is none."""
    spare: tuple[Victim, Attempt] | None = None
    for victim in step.book.victims.candidates(task.demand, task.priority, step.now):
        attempt = victim.task.at(victim.instance.key)
        if attempt is None:
            continue
        # Cheapest first: of those that end soon one is enough, and there may be many.
        soon = _ends_soon(step, victim.task, attempt)
        if (soon and spare is not None) or not _may_go(step, task, victim):
            continue
        if not soon:
            return victim, attempt
        spare = victim, attempt
    return spare


def _may_go(step: Step, task: Task, victim: Victim) -> bool:
    if not _would_fit(task, victim):
        return False
    use = None if victim.task.lock_id is None else step.book.lock_uses.get(victim.task.lock_id)
    if use is not None and use.token is None:
        # Its assignment goes out when its locks are written: the request would come before it.
        return False
    lent = step.book.locks.lent_to(TaskOwner(victim.task.key))
    return lent is None or lent.priority > task.priority


def _would_fit(task: Task, victim: Victim) -> bool:
    """Return whether an instance's capacities are enough for `task` once the victim has gone."""
    if not task.demand.needs:
        return True
    instance, back = victim.instance, dict(victim.task.demand.needs)
    return all(
        instance.used.get(name, 0) - back.get(name, 0) + amount <= instance.capacities.get(name, 0)
        for name, amount in task.demand.needs
    )


def _ends_soon(step: Step, task: Task, attempt: Attempt) -> bool:
    began = attempt.assign_time if attempt.start_time is None else attempt.start_time
    left_ms = task.spec.estimated_duration_ms - (step.now - began)
    return 0 <= left_ms <= SPARE_MS
