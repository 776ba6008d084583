"""A second attempt beside a slow one, and the move of an assignment that is not started.

An attempt straggles when it has taken longer than the `straggle_quantile` of what was predicted for it. Then,
as soon as nothing that is ready wants the slot, a second attempt begins at another agent, within a budget:
second attempts may take `speculation_share` of the work done lately. Both act under tokens of their own; the
first result is committed (guarantee T3) and the other attempt is fenced. The waiting tasks' slots are never
used for it, and it is the first to make room.

Method: LATE, Zaharia et al., "Improving MapReduce performance in heterogeneous environments" (OSDI 2008): the
ones whose end is farthest away first, a cap on what runs twice; with a predicted distribution in place of a
progress rate.

Never speculated: what says so (`speculation`), members of gangs, and what holds or claims locks.
"""

from __future__ import annotations

from services.scheduler.core.book import Book, Step
from services.scheduler.core.course import Attempt, Task
from services.scheduler.core.instances import Instance
from services.scheduler.core.model import AttemptState, CollaborationState
from services.scheduler.core.placing.placement import Demand
from services.scheduler.core.running import attempts, outcomes

#: Free slots that are looked at for one second attempt.
_LOOK_MAX = 16
#: Second attempts of one task in all, one after another, and attempts that are open at once.
SECONDS_MAX = 3
MAX_OPEN = 2
#: Moves of one task before it has started anywhere. Where what is learned is shorter than an agent's way, it
#: would be taken back from each agent before that could begin.
MOVES_MAX = 3


def notice(step: Step, subject: tuple[Task, int]) -> None:
    """An attempt has taken longer than predicted: it is helped when there is room."""
    task, number = subject
    task.straggle_timer = None
    if any(attempt.token.number == number for attempt in task.open_attempts):
        step.book.stragglers[task.key] = task
        step.book.budget.wanted(task.spec.estimated_duration_ms)


def help_stragglers(step: Step) -> bool:
    """Begin second attempts, and move what was not started; return whether an assignment was moved.

    To be called when no ready task can be placed.
    """
    book = step.book
    if not book.stragglers:
        return False
    moved = False
    book.index.settle()
    if not book.index.fleet.live:
        # A full fleet may have thousands of slow attempts: none of them is looked at for each event.
        return False
    free = _Free(book)
    for task in sorted(book.stragglers.values(), key=lambda each: (-each.rank_ms, each.arrival)):
        slow = task.open_attempts
        if task.collaboration.state is CollaborationState.SUSPENDED:
            # Helped when it goes on, if that is still of use.
            continue
        if not _may_help(step, task, slow):
            del book.stragglers[task.key]
            continue
        instance = _other(free.of(task.demand), slow)
        if instance is None:
            continue
        if len(slow) == 1 and slow[0].state is AttemptState.ASSIGNED and slow[0].start_time is None:
            if _moves(task) >= MOVES_MAX:
                continue
            outcomes.move(step, task, slow[0], f"{slow[0].instance} has not started it, {instance.key} can")
            if not task.ended:
                attempts.assign(step, task, instance, "moved: its agent before had not started it")
            free.changed()
            moved = True
            continue
        expected_ms = attempts.expected_at(step, task, instance)
        if book.budget.allows(expected_ms, step.now):
            del book.stragglers[task.key]
            if len(slow) == MAX_OPEN:
                # The second one is slow as well: a third in its place has the better chance.
                outcomes.excuse(step, task, slow[-1], "it takes longer than predicted, too")
            book.budget.reserve(expected_ms, step.now)
            _begin(step, task, slow[0], instance)
            free.changed()
    return moved


class _Free:
    """The best instances with a free slot for a demand: looked for once, until one of them gets something."""

    def __init__(self, book: Book) -> None:
        self._index = book.index
        #: Each instance once, best first.
        self._found: dict[Demand, list[Instance]] = {}
        #: Those for which nobody was free: for this time that stays so.
        self._hopeless: set[Demand] = set()

    def of(self, demand: Demand) -> list[Instance]:
        """Return them, best first."""
        if demand in self._hopeless:
            return []
        if demand not in self._found:
            self._found[demand] = self._find(demand)
        return self._found[demand]

    def changed(self) -> None:
        """Look for them anew."""
        self._found.clear()

    def _find(self, demand: Demand) -> list[Instance]:
        index = self._index
        # Also what the one before has just taken.
        index.settle()
        pool = index.pool(demand, spare_withheld=True)
        if pool is None:
            self._hopeless.add(demand)
            return []
        pool.rank(_LOOK_MAX)
        best = (index.fleet.instances[row] for row in dict.fromkeys(row for row, _, _ in pool.ranking()))
        return [instance for instance in best if instance is not None and instance.free > 0]


def _may_help(step: Step, task: Task, slow: tuple[Attempt, ...]) -> bool:
    if not slow or sum([attempt.speculative for attempt in task.attempts]) >= SECONDS_MAX:
        return False
    for attempt in slow:
        if attempt.state is AttemptState.SUSPENDING or _locks(step, task, attempt):
            return False
    return True


def _moves(task: Task) -> int:
    return sum(each.failure is not None and each.failure.reason == outcomes.MOVED for each in task.attempts)


def _begin(step: Step, task: Task, slow: Attempt, instance: Instance) -> None:
    taken_ms = step.now - slow.assign_time
    predicted = "" if slow.predicted is None else f", {slow.predicted.mean_ms} ms were predicted"
    why = f"beside attempt {slow.token.number}, which has taken {taken_ms} ms{predicted}"
    attempt = attempts.assign_beside(step, task, instance, why)
    step.entry(
        "task.speculate",
        f"task/{task.key}",
        outcomes.SELF,
        collaboration_id=task.key.collaboration_id,
        cause_id=str(task.ref(slow)),
        attributes={"token": str(attempt.token), "instance": str(instance.key), "why": why},
    )


def _other(free: list[Instance], slow: tuple[Attempt, ...]) -> Instance | None:
    """Return the best instance for a second attempt: of an agent that does not run one."""
    taken = [attempt.instance.agent_id for attempt in slow]
    for instance in free:
        if instance.key.agent_id not in taken:
            return instance
    return None


def _locks(step: Step, task: Task, attempt: Attempt) -> bool:
    """Return whether an attempt's code holds a lock or waits for one."""
    instance = step.book.instance_of(attempt)
    if instance is None:
        return True
    if not instance.lock_ids:
        return False
    ref = task.ref(attempt)
    return any(step.book.lock_uses[lock_id].attempt == ref for lock_id in instance.lock_ids)
