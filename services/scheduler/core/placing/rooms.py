"""Slots that are kept for urgent work while what makes room for it saves.

A slot can be used as soon as its victim was asked, but what the victim takes of the capacities it takes until
it has stopped. Who needs that waits, all members of a gang together, and keeps its slots meanwhile: nobody
else, however free they look, gets them. A room ends
  - when everybody fits: all start, in that batch;
  - when a slot is lost (link, drain, skills, capacities) or one of those who wait does not wait any more (it
    was cancelled, paused, or started elsewhere): the slots are free for all again. Whoever still waits
    chooses anew, and counts what saves already as leaving: nobody else stops for it in vain.
It cannot last longer than what saves: an attempt that does not stop within `suspend_grace_ms` is fenced.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.scheduler.core.book import Room, Step
from services.scheduler.core.course import Place, Task
from services.scheduler.core.instances import Instance
from services.scheduler.core.locking import claims
from services.scheduler.core.model import TaskKey
from services.scheduler.core.placing.index import gang_key
from services.scheduler.core.placing.pools import level_for
from services.scheduler.core.placing.slots import has_once_saved
from services.scheduler.core.running import attempts


def keep(step: Step, tasks: Sequence[Task], instances: Sequence[Instance]) -> None:
    """Keep a slot of each instance for the task that goes with it."""
    places = []
    for task, instance in zip(tasks, instances, strict=True):
        if instance.stream is None:
            raise AssertionError(f"{instance} was chosen for {task}")
        instance.keep(task)
        step.book.index.touch(instance)
        places.append((task, instance, instance.stream))
    key = gang_key(tasks[0])
    step.book.rooms[key] = Room(tuple(places), step.now)
    where = ", ".join(str(instance.key) for instance in instances)
    _entry(step, "task.keep", key, f"{where}: kept until what makes room there has saved")


def settle(step: Step) -> None:
    """Start those who fit into what was kept for them, and end what cannot be used any more."""
    for key, room in [*step.book.rooms.items()]:
        why = _obstacle(step, room)
        if why:
            _end(step, key, room)
            _entry(step, "task.unkeep", key, why)
        elif all(_fits(task, instance) for task, instance, _ in room.places):
            _end(step, key, room)
            _start(step, room)


def _start(step: Step, room: Room) -> None:
    tasks = [task for task, *_ in room.places]
    # Whose claims somebody took meanwhile waits for them, and takes a slot when it has them.
    if all(claims.claim(step, task) for task in tasks):
        waited_ms = step.now - room.since
        whole = "" if len(tasks) == 1 else f"gang of {len(tasks)}: "
        why = f"{whole}its slot was kept for {waited_ms} ms while what made room saved"
        for task, instance, _ in room.places:
            attempts.assign(step, task, instance, f"{why}; {task.priority.name}")


def _obstacle(step: Step, room: Room) -> str:
    """Return why a room is of no use any more, empty when it is."""
    for task, instance, stream in room.places:
        if task.place is not Place.QUEUE:
            return f"{task.key} does not wait for an agent any more"
        if step.book.instances.get(instance.key) is not instance or instance.stream != stream:
            return f"the link of {instance.key} broke"
        if instance.draining:
            return f"{instance.key} drains"
        if level_for(instance.levels, task.demand) is None:
            return f"{instance.key} has lost a skill"
        needs = task.spec.needs
        # Its own needs are counted as taken already.
        if instance.credits < len(instance.kept) or not has_once_saved(instance, needs, back=needs):
            return f"{instance.key} has not enough left"
    return ""


def _fits(task: Task, instance: Instance) -> bool:
    """Return whether a task could start in its slot now, beside what was kept there before it."""
    waiting = [*instance.kept.values()]
    behind = waiting[waiting.index(task) :]
    for name, amount in task.spec.needs:
        kept = sum(dict(other.spec.needs).get(name, 0) for other in behind)
        if instance.used.get(name, 0) - kept + amount > instance.capacities.get(name, 0):
            return False
    return True


def _end(step: Step, key: TaskKey, room: Room) -> None:
    del step.book.rooms[key]
    for task, instance, _ in room.places:
        instance.let_go(task)
        if step.book.instances.get(instance.key) is instance:
            step.book.index.touch(instance)


def _entry(step: Step, operation: str, key: TaskKey, why: str) -> None:
    step.entry(
        operation,
        f"task/{key}",
        "service/scheduler",
        collaboration_id=key.collaboration_id,
        attributes={"why": why},
    )
