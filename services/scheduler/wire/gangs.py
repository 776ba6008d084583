"""A gang as requesters write it, made into one task for each member."""

from __future__ import annotations

from collections.abc import Iterable

from muster.scheduler.v1 import task_pb2 as task_pb

from services.common.core.errors import invalid
from services.scheduler.core.model import Limits
from services.scheduler.core.placing.gangs import member_id

_SIZE_MAX = Limits().gang_size_max


def expand(tasks: Iterable[task_pb.TaskSpec]) -> list[task_pb.TaskSpec]:
    """Return the tasks with a task for each gang member, those of rank 1 and more at the end.

    Dependencies on a gang become dependencies on every member. Raises INVALID_FIELD for a gang that can not
    be understood.
    """
    every = [*tasks]
    sizes: dict[str, int] = {}
    for index, task in enumerate(every):
        if task.HasField("gang"):
            _check(task.gang, f"collaboration.tasks[{index}].gang")
            sizes[task.task_id] = task.gang.size
    if not sizes:
        return every
    found = [_member(task, 0, sizes) for task in every]
    for task in every:
        found += [_member(task, rank, sizes) for rank in range(1, sizes.get(task.task_id, 1))]
    return found


def _check(gang: task_pb.Gang, path: str) -> None:
    if not 2 <= gang.size <= _SIZE_MAX:
        raise invalid(f"{path}.size", f"is {gang.size}: choose 2 to {_SIZE_MAX}")
    if gang.members and len(gang.members) != gang.size:
        raise invalid(
            f"{path}.members", f"has {len(gang.members)} items: give none, or one for each of {gang.size}"
        )
    if gang.gang_id or gang.rank:
        raise invalid(f"{path}.gang_id", "and rank are set by the scheduler: leave them out")


def _member(task: task_pb.TaskSpec, rank: int, sizes: dict[str, int]) -> task_pb.TaskSpec:
    """Return one member's task; a task without a gang is its own only member."""
    member = task_pb.TaskSpec()
    member.CopyFrom(task)
    del member.dependencies[:]
    for name in task.dependencies:
        member.dependencies.extend(member_id(name, each) for each in range(sizes.get(name, 1)))
    if task.task_id not in sizes:
        return member
    member.task_id = member_id(task.task_id, rank)
    member.gang.gang_id = task.task_id
    member.gang.rank = rank
    del member.gang.members[:]
    if task.gang.members:
        member.required_skills[:] = task.gang.members[rank].required_skills
        if not task.task_type and task.required_skills:
            # The same handler runs every member, whatever their skills.
            member.task_type = task.required_skills[0]
    if rank:
        del member.resources[:]
    return member
