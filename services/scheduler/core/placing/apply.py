"""The single place where plans become attempts: each placement is verified against the state as it is now.

A plan is made from a snapshot and may be old, or made by somebody who knew less; what does not fit any more
is passed over, and the next plan takes it up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from services.common.core.instants import NEVER, rfc3339
from services.scheduler.core.book import Step
from services.scheduler.core.course import Place, Task
from services.scheduler.core.foreseeing import predictive, standing
from services.scheduler.core.instances import Instance
from services.scheduler.core.locking import claims
from services.scheduler.core.model import Priority, SchedulingPolicy
from services.scheduler.core.placing import gangs, preemption, rooms
from services.scheduler.core.placing.placement import Placement, plan
from services.scheduler.core.placing.pools import fits
from services.scheduler.core.running import attempts, speculation

#: The names of the classes: an enum's own `name` is a search.
_CLASSES = {priority: priority.name for priority in Priority}


def place(step: Step) -> None:
    """Assign every ready task for which an agent is free and whose claims are granted."""
    book = step.book
    while True:
        if book.rooms:
            rooms.settle(step)
        if not book.index.gangs:
            # The gang that instances were kept for may be gone without having started.
            book.index.withheld.clear()
        withheld = frozenset(book.index.withheld)
        if foreseen := bool(book.foresight.waiting):
            predictive.choose(step)
        moved = bool(book.index.gangs) and _place_gangs(step)
        moved = _wave(step) or moved
        if foreseen:
            predictive.settle(step)
            # What the forecast took for kept by an aged gang is for all again: it was made without that.
            moved = moved or not withheld <= book.index.withheld
        # What a task gives back may go to one that has an agent: look again. This ends: every round assigns a
        # task, or moves one from the index to the lock table for want of a lock or back for want of an agent,
        # and none of them makes a lock or an agent free that was not.
        if moved or preemption.make_room(step) or claims.give_back(step):
            continue
        if not speculation.help_stragglers(step):
            break
    if book.foresight.waiting:
        standing.ask(step)


def _place_gangs(step: Step) -> bool:
    """Start the gangs that can start, each after the single tasks of more urgent classes."""
    index = step.book.index
    index.withheld.clear()
    moved = False
    for priority in index.gang_classes():
        while _wave(step, priority):
            moved = True
        while gangs.start_next(step, priority):
            moved = True
    return moved


def _wave(step: Step, above: Priority | None = None) -> bool:
    """Place one wave of single tasks; return whether anything changed."""
    book = step.book
    snapshot = book.index.snapshot(book.settings.wave_max, step.now, above)
    return snapshot is not None and apply(step, plan(snapshot))


def apply(step: Step, placements: Iterable[Placement]) -> bool:
    """Carry out what fits of a plan; return whether anything changed."""
    changed = False
    for placement in placements:
        changed = _apply_one(step, placement) or changed
    return changed


def _apply_one(step: Step, placement: Placement) -> bool:
    task: Task = placement.task
    instance = step.book.index.fleet.instances[placement.row]
    if instance is None or task.place is not Place.QUEUE or not fits(instance, task.demand):
        return False
    if claims.claim(step, task):
        why = placement.pool.explain(placement.at, _name_of(step))
        if task.demand.style.policy is SchedulingPolicy.PREDICTIVE:
            why += predictive.why_waited(step, task)
        attempts.assign(step, task, instance, f"{why}; {_turn(task, aged=placement.aged)}")
        _note_start(step, task, instance, aged=placement.aged)
    # A task without its claims has left the index: that is a change, too.
    return True


def _note_start(step: Step, task: Task, instance: Instance, *, aged: bool) -> None:
    """Count what an instance owes to tasks that have waited beyond their age; see `placing.lanes`."""
    if aged:
        instance.fresh_starts = 0
        task.account.aged_turn = step.now, step.book.index.next_turn()
    elif task.priority is not Priority.EMERGENCY:
        instance.fresh_starts += 1


def _name_of(step: Step) -> Callable[[int], str]:
    return lambda row: str(step.book.index.key_of(row))


def _turn(task: Task, *, aged: bool) -> str:
    """Return why it was this task's turn, for people."""
    due = "" if task.due == NEVER else f", due {rfc3339(task.due)}"
    return f"{'aged ' if aged else ''}{_CLASSES[task.priority]}{due}, critical path {task.rank_ms} ms"
