"""Whether a schedule is one: every rule of the problem, checked from its fields alone.

Independent on purpose: nothing here is shared with a planner, not even how long data travels, so that an
error in what the planners have in common cannot hide itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from services.scheduler.core.planning.problem import Problem
from services.scheduler.core.planning.schedule import Schedule, Slot


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule that a schedule breaks."""

    #: "task-count", "ineligible", "duration", "unavailable", "release", "capacity", "overlap", "dependency",
    #: "lock".
    rule: str
    #: The tasks concerned, in the order of the sentence.
    tasks: tuple[int, ...]
    text: str


class InvalidScheduleError(Exception):
    """A schedule breaks rules; the message names them."""

    def __init__(self, violations: list[Violation]) -> None:
        self.violations = violations
        super().__init__("; ".join(violation.text for violation in violations[:5]))


def check(problem: Problem, schedule: Schedule) -> None:
    """Return when the schedule keeps every rule; raises `InvalidScheduleError` otherwise."""
    violations = find_violations(problem, schedule)
    if violations:
        raise InvalidScheduleError(violations)


def find_violations(problem: Problem, schedule: Schedule) -> list[Violation]:
    """Return what is broken. Of a schedule of other tasks or agents than the problem's, only that."""
    wanted, found = len(problem.duration_ms), len(schedule.slots)
    if wanted != found:
        return [Violation("task-count", (), f"{found} slots for {wanted} tasks")]
    strange = [task for task, slot in enumerate(schedule.slots) if slot.agent not in problem.agents]
    if strange:
        text = f"tasks {strange[:5]} are on agents that are not there"
        return [Violation("ineligible", tuple(strange), text)]
    return [
        *_places(problem, schedule),
        *_overlaps(schedule),
        *_dependencies(problem, schedule),
        *_locks(problem, schedule),
    ]


def _places(problem: Problem, schedule: Schedule) -> Iterator[Violation]:
    for task, slot in enumerate(schedule.slots):
        duration = problem.duration_ms[task][slot.agent]
        if duration is None:
            yield Violation("ineligible", (task,), f"agent {slot.agent} may not have task {task}")
        elif slot.finish_ms - slot.start_ms != duration:
            lasts = slot.finish_ms - slot.start_ms
            yield Violation("duration", (task,), f"task {task} lasts {lasts} ms where it takes {duration}")
        free_from = sorted(problem.slots_from_ms[slot.agent])
        if not 0 <= slot.slot < len(free_from):
            text = f"task {task} is on slot {slot.slot} of agent {slot.agent}, which has {len(free_from)}"
            yield Violation("capacity", (task,), text)
        elif slot.start_ms < free_from[slot.slot]:
            text = f"task {task} starts at {slot.start_ms}, its slot is free from {free_from[slot.slot]} on"
            yield Violation("unavailable", (task,), text)
        if task in problem.release_ms and slot.start_ms < problem.release_ms[task][slot.agent]:
            text = f"task {task} starts at {slot.start_ms}, before its release on agent {slot.agent}"
            yield Violation("release", (task,), text)


def _overlaps(schedule: Schedule) -> Iterator[Violation]:
    by_slot: dict[tuple[int, int], list[int]] = {}
    for task, slot in enumerate(schedule.slots):
        by_slot.setdefault((slot.agent, slot.slot), []).append(task)
    for (agent, number), tasks in by_slot.items():
        for one, other in _clashes(schedule.slots, tasks):
            text = f"tasks {one} and {other} are on slot {number} of agent {agent} at once"
            yield Violation("overlap", (one, other), text)


def _dependencies(problem: Problem, schedule: Schedule) -> Iterator[Violation]:
    for dependency in problem.dependencies:
        before, after = schedule.slots[dependency.before], schedule.slots[dependency.after]
        delay = 0.0
        if problem.network is not None and before.agent != after.agent:
            delay = problem.network.latency_ms[before.agent][after.agent]
            delay += dependency.size_bytes * problem.network.ms_per_byte[before.agent][after.agent]
        arrival = before.finish_ms + math.ceil(delay - 1e-9)
        if after.start_ms < arrival:
            text = (
                f"task {dependency.after} starts at {after.start_ms}, what it needs of task "
                f"{dependency.before} is there at {arrival}"
            )
            yield Violation("dependency", (dependency.after, dependency.before), text)


def _locks(problem: Problem, schedule: Schedule) -> Iterator[Violation]:
    holders: dict[str, list[int]] = {}
    for task, resources in problem.locks.items():
        for resource in sorted(resources):
            holders.setdefault(resource, []).append(task)
    for resource, tasks in holders.items():
        for one, other in _clashes(schedule.slots, tasks):
            text = f"tasks {one} and {other} hold {resource} at once"
            yield Violation("lock", (one, other), text)


def _clashes(slots: tuple[Slot, ...], tasks: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield neighbours in time that overlap: where any two overlap, two neighbours do."""
    in_time = sorted(tasks, key=lambda task: (slots[task].start_ms, slots[task].finish_ms))
    for one, other in pairwise(in_time):
        if slots[other].start_ms < slots[one].finish_ms:
            yield one, other
