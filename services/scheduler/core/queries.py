"""What can be asked of the state. Nothing here changes it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from services.common.core.errors import Reason, ServiceError, invalid
from services.common.core.ids import CollaborationId, TaskId
from services.scheduler.core.book import Book, Room
from services.scheduler.core.course import Collaboration, Place, Task
from services.scheduler.core.locking.words import LockView
from services.scheduler.core.model import AttemptState, CollaborationState, TaskState
from services.scheduler.core.placing import gangs
from services.scheduler.core.placing.index import gang_key
from services.scheduler.core.placing.placement import Demand

#: Names in one explanation; the others are counted.
_NAMED_MAX = 5


def find(book: Book, collaboration_id: CollaborationId) -> Collaboration:
    """Return a collaboration; raises COLLABORATION_NOT_FOUND, or INVALID_FIELD without an id."""
    if not collaboration_id:
        raise invalid("collaboration_id", "is empty: `muster collaborations list` names what there is")
    collaboration = book.collaborations.get(collaboration_id)
    if collaboration is None:
        raise ServiceError(
            Reason.COLLABORATION_NOT_FOUND,
            f"collaboration {collaboration_id} is not known (any more); the audit log keeps its course",
        )
    return collaboration


def find_task(book: Book, collaboration_id: CollaborationId, task_id: TaskId) -> Task:
    """Return a task; raises COLLABORATION_NOT_FOUND or TASK_NOT_FOUND."""
    collaboration = find(book, collaboration_id)
    task = collaboration.tasks.get(task_id)
    if task is None:
        raise ServiceError(
            Reason.TASK_NOT_FOUND,
            f"collaboration {collaboration_id} has no task {task_id[:64]!r}: `muster task list` names them",
        )
    return task


def newest_first(
    book: Book, *, requester: str | None, states: Collection[CollaborationState], before: int | None
) -> Iterator[Collaboration]:
    """Yield collaborations by falling arrival.

    `requester` None is everybody's, `states` empty is every state, `before` is the arrival of the last one
    that was seen.
    """
    for collaboration in reversed(book.collaborations.values()):
        if (
            (before is None or collaboration.arrival < before)
            and (requester is None or collaboration.requester == requester)
            and (not states or collaboration.state in states)
        ):
            yield collaboration


def waiting_for(book: Book, task: Task) -> str:
    """Return why a task waits, for people; empty when it does not."""
    if task.state is TaskState.PENDING:
        open_ones = [
            name
            for name in task.spec.dependencies
            if task.collaboration.tasks[name].state is not TaskState.SUCCEEDED
        ]
        return f"tasks {_some(open_ones)}" if open_ones else ""
    match task.place:
        case Place.DELAY:
            return f"its retry delay after {task.failure_count} failed attempts"
        case Place.LOCKS:
            return f"locks: {_holders(book, task)}"
        case Place.QUEUE:
            resumes = "to go on: " if task.state is TaskState.SUSPENDED else ""
            hold = book.foresight.holds.get(task.key)
            return f"{resumes}{_agents(book, task) if hold is None else hold.wait.words()}"
        case Place.PAUSE:
            return "its collaboration to be resumed: it is paused"
        case Place.NOWHERE:
            return ""


def _agents(book: Book, task: Task) -> str:
    demand = task.demand
    if (room := book.rooms.get(gang_key(task))) is not None:
        return _kept(room)
    if (gang := task.spec.gang) is not None:
        mates = [mate for mate in gangs.members(task) if not mate.ended]
        away = [mate.key.task_id for mate in mates if mate.place is not Place.QUEUE]
        if away:
            return f"its gang: {_some(away)} {'is' if len(away) == 1 else 'are'} not ready yet"
        wish = f"{len(mates)} free agents at once for its gang {gang.gang_id}, with the skills of its members"
        alike = sum(mate.demand == demand for mate in mates)
        known = book.directory.count(demand)
        return f"{wish}: only {known} that could be a member like this one known" if known < alike else wish
    wanted = " + ".join(sorted(demand.skills))
    if missing := _missing(book, task, wanted):
        return missing
    wanted = _and_needs(wanted, demand)
    if demand.agents:
        return f"a free slot of {_some(sorted(demand.agents))} with {wanted}"
    return f"a free agent with {wanted}"


def _kept(room: Room) -> str:
    """Return for what the slots wait that are kept for a task or a gang."""
    instances = [instance for _, instance, _ in room.places]
    leaving = [
        key.task_id
        for instance in instances
        for key, held in instance.held.items()
        if (attempt := held.at(instance.key)) is not None and attempt.state is AttemptState.SUSPENDING
    ]
    return f"{_some(leaving)} to save: kept for it meanwhile: {_some([str(each.key) for each in instances])}"


def _missing(book: Book, task: Task, wanted: str) -> str:
    """Return what no known agent has, live or not; empty when waiting may help."""
    demand = task.demand
    unknown = book.directory.unknown_skills(demand)
    if unknown:
        return f"an agent with the skill {_some(unknown)}: none is known"
    if not book.directory.serves(demand):
        # Who was named may come, and learn; of the others none has them.
        return "" if demand.agents else f"an agent with {_and_needs(wanted, demand)}: none has them together"
    lacking = book.directory.lacking(demand)
    if lacking:
        needs = " and ".join(f"{amount} {name} (the most is {most})" for name, amount, most in lacking)
        return f"an agent with {wanted} and {needs}: none is known"
    return ""


def _and_needs(wanted: str, demand: Demand) -> str:
    return " and ".join([wanted, *(f"{amount} {name}" for name, amount in demand.needs)])


def _holders(book: Book, task: Task) -> str:
    stories = []
    for claim in task.spec.resources:
        holders = [_holder(view) for view in book.locks.snapshot(claim.resource) if view.held]
        stories.append(f"{claim.resource} held by {_some(holders)}" if holders else claim.resource)
    return "; ".join(stories)


def _holder(view: LockView) -> str:
    return view.holder if view.lent is None else f"{view.holder} (counts as {view.lent.priority.name})"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED_MAX])
    return f"{shown} and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else shown
