"""A collaboration is paused: nothing of it begins, what runs goes on; and it is resumed.

While it is paused
  - its ready tasks wait outside of the placement index (`Place.PAUSE`) and give up their places in the lines
    of locks; a retry delay goes on, and its end changes nothing;
  - attempts that are open go on and their results count, so that it may end while it is paused. When asked
    for, they are told to save and stop as if they made room (`running.suspension`); members of gangs, and
    attempts whose agent does not heed that or whose locks are on their way, go on all the same;
  - no second attempt begins beside a slow one;
  - deadlines go on: they are absolute, are warned of, and what is not done fails when they pass (T4).
When it is resumed its tasks wait as if they had become ready then: the time before does not count as age.
"""

from __future__ import annotations

from services.scheduler.core.book import Step
from services.scheduler.core.course import Attempt, Collaboration, Place, Task
from services.scheduler.core.effects import Answer
from services.scheduler.core.events import PauseRequested, ResumeRequested
from services.scheduler.core.instances import Instance
from services.scheduler.core.locking import claims
from services.scheduler.core.machine import COLLABORATION, CollaborationInput
from services.scheduler.core.model import AttemptState, CollaborationState
from services.scheduler.core.placing import places
from services.scheduler.core.policies import adapting
from services.scheduler.core.refusals import ordered
from services.scheduler.core.running import suspension

_SUSPENDABLE = frozenset({AttemptState.ASSIGNED, AttemptState.RUNNING})


def pause(step: Step, event: PauseRequested) -> None:
    """Pause a collaboration; one that is paused stays it, and what runs is suspended if that is asked now."""
    collaboration = ordered(step, event, "collaboration.pause", "there is nothing to pause")
    if collaboration is None:
        return
    if collaboration.state is not CollaborationState.SUSPENDED:
        _change(step, collaboration, CollaborationInput.PAUSE)
        adapting.abandon(step.book, collaboration)
        _let_wait(step, collaboration)
        _entry(step, event, "collaboration.pause")
    if event.suspend_running:
        _suspend_running(step, collaboration, event.actor)
    step.effects.append(Answer(event.reply, collaboration))


def resume(step: Step, event: ResumeRequested) -> None:
    """Let a paused collaboration go on; one that is not paused is answered as it is."""
    collaboration = ordered(step, event, "collaboration.resume", "there is nothing to resume")
    if collaboration is None:
        return
    if collaboration.state is CollaborationState.SUSPENDED:
        begun = next(iter(collaboration.members), None)
        if begun is not None:
            collaboration.coordinator_agent = collaboration.coordinator_agent or begun
        unbegun = CollaborationInput.RESUME_UNBEGUN
        _change(step, collaboration, unbegun if begun is None else CollaborationInput.RESUME)
        for task in collaboration.open_tasks():
            if task.place is Place.PAUSE:
                places.leave(step, task)
                task.ready_time = step.now
                places.enter_queue(step, task)
                step.task_changed(task)
        _entry(step, event, "collaboration.resume")
    step.effects.append(Answer(event.reply, collaboration))


def _let_wait(step: Step, collaboration: Collaboration) -> None:
    """Take what is ready out of the queue and out of the lines of locks."""
    waiting = [task for task in collaboration.open_tasks() if task.place in (Place.QUEUE, Place.LOCKS)]
    # All first: a lock that one gives up must not call another one of them back.
    for task in waiting:
        places.leave(step, task)
    for task in waiting:
        if task.lock_id is not None:
            claims.end_use(step, step.book.lock_uses[task.lock_id])
    for task in waiting:
        places.enter_queue(step, task)


def _change(step: Step, collaboration: Collaboration, given: CollaborationInput) -> None:
    collaboration.state = COLLABORATION.next(collaboration.collaboration_id, collaboration.state, given)
    step.collaboration_changed(collaboration)


def _suspend_running(step: Step, collaboration: Collaboration, actor: str) -> None:
    for task in [*collaboration.open_tasks()]:
        for attempt in task.open_attempts:
            instance = step.book.instance_of(attempt)
            if instance is not None and _may_stop(step, task, attempt, instance):
                suspension.ask(step, task, attempt, instance, f"{actor} paused its collaboration")


def _may_stop(step: Step, task: Task, attempt: Attempt, instance: Instance) -> bool:
    if instance.stream is None or not instance.suspendable:
        return False
    if attempt.state not in _SUSPENDABLE or task.spec.gang is not None:
        return False
    use = None if task.lock_id is None else step.book.lock_uses.get(task.lock_id)
    # While its locks are on their way its assignment has not gone out: the request would come before it.
    return use is None or use.token is not None


def _entry(step: Step, event: PauseRequested | ResumeRequested, operation: str) -> None:
    step.entry(
        operation,
        f"collaboration/{event.collaboration_id}",
        event.actor,
        collaboration_id=event.collaboration_id,
        attributes={"why": event.reason} if event.reason else None,
    )
