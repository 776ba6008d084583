"""Which tasks decide when a schedule ends."""

from __future__ import annotations

from services.scheduler.core.planning.problem import Problem
from services.scheduler.core.planning.schedule import Schedule


def critical_chain(problem: Problem, schedule: Schedule) -> tuple[int, ...]:
    """Return the tasks that decide the end, first one first: each could not start before the one ahead of it.

    A task waits for what it needs, for its slot, or for a resource; of several that it waited for until its
    start, the one named first in this sentence is taken. The chain begins with a task that waited for nobody.
    """
    slots = schedule.slots
    if not slots:
        return ()
    by_place: dict[tuple[int, int, int], int] = {
        (slot.agent, slot.slot, slot.finish_ms): task for task, slot in enumerate(slots)
    }
    by_lock = {(name, slots[task].finish_ms): task for task, names in problem.locks.items() for name in names}
    chain = [max(range(len(slots)), key=lambda task: (slots[task].finish_ms, -task))]
    while True:
        task = chain[-1]
        slot = slots[task]
        ahead = next(
            (
                other
                for other, edge in problem.before[task]
                if slots[other].finish_ms + _delay_ms(problem, edge, slots[other].agent, slot.agent)
                == slot.start_ms
            ),
            None,
        )
        if ahead is None:
            ahead = by_place.get((slot.agent, slot.slot, slot.start_ms))
        if ahead is None:
            held = sorted(problem.locks.get(task, ()))
            ahead = next(
                (by_lock[name, slot.start_ms] for name in held if (name, slot.start_ms) in by_lock), None
            )
        if ahead is None:
            return tuple(reversed(chain))
        chain.append(ahead)


def _delay_ms(problem: Problem, edge: int, source: int, target: int) -> int:
    if problem.network is None:
        return 0
    return problem.network.delay_ms(problem.dependencies[edge].size_bytes, source, target)
