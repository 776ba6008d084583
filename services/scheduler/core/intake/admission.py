"""Whether a submission is taken: its own faults, the plane's bounds, skills that nobody has."""

from __future__ import annotations

from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import Instant
from services.scheduler.core.book import Book
from services.scheduler.core.intake.validation import validate
from services.scheduler.core.model import CollaborationSpec, TaskSpec, UnknownSkillPolicy
from services.scheduler.core.placing.placement import Demand, demand_of

#: When a full plane may be asked again.
RETRY_AFTER_MS = 1_000
#: Tasks named in one answer; the others are counted.
_NAMED_MAX = 10
#: Tasks that lack the same and are named.
_TOGETHER_MAX = 5


def size_of(spec: CollaborationSpec) -> int:
    """Return the bytes of a submission as counted against the plane's bound."""
    return len(spec.shared_context.data) + sum([len(task.encoded) for task in spec.tasks])


def admit(book: Book, spec: CollaborationSpec, now: Instant) -> tuple[str, ...]:
    """Return warnings for people, or raise `ServiceError` when `spec` is not taken.

    Raises what `validate` raises, QUOTA_EXCEEDED with "limit" when the plane is full, and UNKNOWN_SKILL with
    "skills" when the requester asked for that instead of waiting.
    """
    # What costs least is asked first: a plane that is full must not be kept busy by what it refuses.
    _check_bounds(book, spec)
    validate(spec, now, book.settings.limits)
    return (*_check_skills(book, spec), *_check_meetable(book, spec))


def _check_meetable(book: Book, spec: CollaborationSpec) -> tuple[str, ...]:
    """Return what no known agents could do, however long one waits; refuse it when that was asked for."""
    missing: dict[str, None] = {}
    for task in spec.tasks:
        # Skills that nobody has are another story: `_check_skills` tells it.
        if task.needs and book.directory.serves(demand := demand_of(task)):
            missing.update(dict.fromkeys(_lacking(book, task.task_id, demand)))
    for task in spec.tasks:
        if task.gang is not None and task.gang.rank == 0:
            demand = demand_of(task)
            known = book.directory.count(demand)
            alike = sum(
                each.gang is not None and each.gang.gang_id == task.task_id and demand_of(each) == demand
                for each in spec.tasks
            )
            if known < alike:
                wanted = " + ".join(sorted(demand.skills))
                missing[
                    f"task {task.task_id}: a gang of {alike} with {wanted} needed, {known} such agents known"
                ] = None
    if not missing:
        return ()
    stories = [*missing][:_NAMED_MAX]
    if len(missing) > _NAMED_MAX:
        stories.append(f"and {len(missing) - _NAMED_MAX} more of the kind")
    if spec.unknown_skill_policy is UnknownSkillPolicy.FAIL:
        raise ServiceError(
            Reason.UNMEETABLE,
            "; ".join(stories) + ": register such agents first, or submit with UNKNOWN_SKILL_POLICY_WAIT",
            metadata={"missing": "; ".join(stories)[:1_024]},
        )
    return tuple(stories)


def _lacking(book: Book, task_id: str, demand: Demand) -> list[str]:
    lacking = book.directory.lacking(demand)
    wanted = " + ".join(sorted(demand.skills))
    if all(most >= amount for _, amount, most in lacking):
        needs = " and ".join(f"{amount} {name}" for name, amount, _ in lacking)
        return (
            [f"task {task_id}: {needs} needed, no agent with {wanted} has them together"] if lacking else []
        )
    return [
        f"task {task_id}: {amount} {name} needed, the most that any agent with {wanted} has is {most}"
        for name, amount, most in lacking
    ]


def _check_bounds(book: Book, spec: CollaborationSpec) -> None:
    settings = book.settings
    most = settings.open_collaboration_max
    _check_bound("open_collaboration_max", book.open_collaboration_count, 1, most)
    _check_bound("open_task_max", book.open_task_count, len(spec.tasks), settings.open_task_max)
    _check_bound("open_bytes_max", book.open_bytes, size_of(spec), settings.open_bytes_max)


def _check_bound(name: str, used: int, more: int, most: int) -> None:
    if used + more > most:
        raise ServiceError(
            Reason.QUOTA_EXCEEDED,
            f"the plane holds {used} of at most {most} ({name}) and {more} more do not fit: "
            "try again when open collaborations have ended",
            metadata={"limit": name},
            retry_after_ms=RETRY_AFTER_MS,
        )


def _check_skills(book: Book, spec: CollaborationSpec) -> tuple[str, ...]:
    unserved = [task for task in spec.tasks if not book.directory.serves(demand_of(task))]
    if not unserved:
        return ()
    stories = _stories(book, unserved)
    if spec.unknown_skill_policy is UnknownSkillPolicy.FAIL:
        skills = {skill for task in unserved for skill in book.directory.unknown_skills(demand_of(task))}
        raise ServiceError(
            Reason.UNKNOWN_SKILL,
            "; ".join(stories) + ": register such an agent first, or submit with UNKNOWN_SKILL_POLICY_WAIT",
            metadata={"skills": ",".join(sorted(skills))},
        )
    return tuple(stories)


def _stories(book: Book, unserved: list[TaskSpec]) -> list[str]:
    """Say what is missing, once for all tasks that lack the same."""
    lacking: dict[str, list[str]] = {}
    for task in unserved:
        lacking.setdefault(_lack(book, task), []).append(task.task_id)
    stories = [f"{_named(tasks)}: {lack}" for lack, tasks in [*lacking.items()][:_NAMED_MAX]]
    left = sum(len(tasks) for tasks in [*lacking.values()][_NAMED_MAX:])
    if left:
        stories.append(f"and {left} more tasks that no known agent can do")
    return stories


def _named(tasks: list[str]) -> str:
    if len(tasks) == 1:
        return f"task {tasks[0]}"
    more = f" and {len(tasks) - _TOGETHER_MAX} more" if len(tasks) > _TOGETHER_MAX else ""
    return f"tasks {', '.join(tasks[:_TOGETHER_MAX])}{more}"


def _lack(book: Book, task: TaskSpec) -> str:
    demand = demand_of(task)
    unknown = book.directory.unknown_skills(demand)
    if unknown:
        return f"no known agent has the skill {', '.join(unknown)}"
    wanted = " + ".join(sorted(demand.skills))
    if demand.agents:
        return f"none of {', '.join(sorted(demand.agents))} is known to have {wanted}"
    return f"no known agent has {wanted} together"
