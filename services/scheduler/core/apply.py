"""The single place where plans become attempts: each placement is verified against the state as it is now.

A plan is made from a snapshot and may be old, or made by somebody who knew less; what does not fit any more
is passed over, and the next plan takes it up.
"""

from __future__ import annotations

from services.scheduler.core import attempts, claims
from services.scheduler.core.book import Step
from services.scheduler.core.course import Place
from services.scheduler.core.index import level_for
from services.scheduler.core.placement import Placement, Plan, plan


def place(step: Step) -> None:
    """Assign every ready task for which an agent is free and whose claims are granted."""
    book = step.book
    while True:
        snapshot = book.index.snapshot(book.settings.wave_max)
        moved = snapshot is not None and apply(step, plan(snapshot))
        # What a task gives back may go to one that has an agent: look again. This ends: every round assigns a
        # task, or moves one from the index to the lock table for want of a lock or back for want of an agent,
        # and none of them makes a lock or an agent free that was not.
        if not moved and not claims.give_back(step):
            return


def apply(step: Step, proposed: Plan) -> bool:
    """Carry out what fits of a plan; return whether anything changed."""
    changed = False
    for placement in proposed.placements:
        changed = _apply_one(step, placement) or changed
    return changed


def _apply_one(step: Step, placement: Placement) -> bool:
    task = step.book.task(placement.task)
    instance = step.book.instances.get(placement.instance)
    if task is None or instance is None or task.place is not Place.QUEUE or instance.free < 1:
        return False
    named = task.demand.agents
    if level_for(instance.levels, task.demand) is None or (named and instance.key.agent_id not in named):
        return False
    if claims.claim(step, task):
        attempts.assign(step, task, instance, placement.explanation)
    # A task without its claims has left the index: that is a change, too.
    return True
