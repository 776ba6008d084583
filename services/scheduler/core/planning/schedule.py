"""What a planner answers: where and when each task runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.scheduler.core.planning.problem import Problem


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one task runs, and when: milliseconds after the start of the plan, `finish_ms` not included."""

    agent: int
    #: Which of the agent's slots, from 0 in the order in which they become free.
    slot: int
    start_ms: int
    finish_ms: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """A slot for every task, by the task's index."""

    slots: tuple[Slot, ...]

    @property
    def makespan_ms(self) -> int:
        """When the last task ends."""
        return max((slot.finish_ms for slot in self.slots), default=0)


def of_lanes(
    problem: Problem, lane: Sequence[int], start_ms: Sequence[int], finish_ms: Sequence[int]
) -> Schedule:
    """Return the schedule in which each task has the lane and the times named."""
    agent = problem.lanes.agent
    first = {owner: index for index, owner in reversed(list(enumerate(agent)))}
    return Schedule(
        tuple(
            Slot(agent[where], where - first[agent[where]], start, finish)
            for where, start, finish in zip(lane, start_ms, finish_ms, strict=True)
        )
    )
