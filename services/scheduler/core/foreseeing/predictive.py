"""How tasks under PREDICTIVE enter a placement, and for how long they may wait.

A ready task whose agent is free is kept from it by nothing but a forecast that says why. Waiting ends at the
latest when it can gain nothing any more: at `Wait.until`, which is set when the waiting begins and never
moved. Then, or when it has aged and an instance owes a start to such tasks, or when the forecast did not get
as far as the task, it takes the first agent that is free like under any other policy.
"""

from __future__ import annotations

from itertools import takewhile

from services.scheduler.core.book import Step
from services.scheduler.core.course import Place, Task
from services.scheduler.core.foreseeing import forecast
from services.scheduler.core.foreseeing.foresight import ANY_ROW, Hold
from services.scheduler.core.placing.fairness import Account
from services.scheduler.core.placing.pools import fits
from services.scheduler.core.timers import TimerKind

#: Parked tasks that are looked at for one that has aged: those that came first.
_AGED_MAX = 64


def choose(step: Step) -> None:
    """Let the parked tasks that start now into the placement index, each with the row that it wishes for."""
    book, foresight = step.book, step.book.foresight
    taken = _let_aged_in(step)
    found = forecast.forecast(book, step.now, taken)
    for task, row in found.starts:
        _let_in(step, task, row)
    waiting = {task.key for task, _ in found.waits}
    starting = {task.key for task, _ in found.starts}
    for key in [key for key in foresight.holds if key not in waiting and key not in starting]:
        # No agent is free for it now: what it waits for is not its choice.
        foresight.release(key, book.timers)
    for task, wait in found.waits:
        hold = foresight.holds.get(task.key)
        if hold is None:
            timer = book.timers.set(wait.until, TimerKind.FORESEEN, task)
            foresight.holds[task.key] = Hold(wait, step.now, timer)
        else:
            hold.wait = wait._replace(until=hold.wait.until)
    if not found.complete:
        for task in [*foresight.first(len(waiting) + book.index.fleet.free_count)]:
            if task.key not in waiting:
                _let_in(step, task, ANY_ROW)


def settle(step: Step) -> None:
    """Park again what was let in and did not start."""
    book, foresight = step.book, step.book.foresight
    for task in foresight.chosen:
        if task.place is Place.QUEUE and task.key not in foresight.waiting:
            book.index.remove_task(task)
            task.wish = ANY_ROW
            foresight.park(task, book.index)
    foresight.chosen.clear()


def stop_waiting(step: Step, task: Task) -> None:
    """Waiting for a better agent can gain nothing any more: take the first one that is free."""
    book, foresight = step.book, step.book.foresight
    foresight.release(task.key, book.timers)
    if foresight.unpark(task, book.index):
        foresight.overdue[task.key] = task
        book.index.add_task(task)


def why_waited(step: Step, task: Task) -> str:
    """Return for how long a task that starts now waited by choice, and for what; empty when it did not."""
    hold = step.book.foresight.holds.get(task.key)
    if hold is not None:
        return f"; waited {step.now - hold.since} ms by choice: {hold.wait.words()}"
    return "; waited until that could gain nothing more" if task.key in step.book.foresight.overdue else ""


def _let_in(step: Step, task: Task, row: int) -> None:
    foresight, index = step.book.foresight, step.book.index
    foresight.unpark(task, index)
    task.wish = row
    index.add_task(task)
    foresight.chosen.append(task)


def _let_aged_in(step: Step) -> dict[int, int]:
    """Let aged tasks in for each free row that owes a start to one; return these rows.

    Of each requester the oldest that the row can take: which of them it will be is for the index to say,
    where requesters take turns, and where tasks of other policies have aged, too.
    """
    book, foresight = step.book, step.book.foresight
    old = step.now - book.settings.ageing_ms
    oldest = next(foresight.oldest(1), None)
    if oldest is None or (oldest.ready_time or 0) > old:
        return {}
    index, taken = book.index, dict[int, int]()
    index.settle()
    owing = [row for row in index.fleet.live if index.fleet.fresh[row] >= book.settings.ageing_share - 1]
    aged = (
        [*takewhile(lambda task: (task.ready_time or 0) <= old, foresight.oldest(_AGED_MAX))] if owing else []
    )
    for row in owing:
        instance = index.fleet.instances[row]
        served: set[Account] = set()
        for task in aged:
            waits = task.account not in served and task.key in foresight.waiting
            if waits and instance is not None and fits(instance, task.demand):
                served.add(task.account)
                taken[row] = 1
                _let_in(step, task, row)
    return taken
