"""When a task will end as far as can be predicted, and who is told when that is too late.

Each open task that can go on (it waits for an agent, or an attempt is open) and on which a deadline hangs has
one timer: the instant from which it is late if nothing happens to it before. So nothing is looked at again
and again: a task is predicted anew when it becomes ready, starts, is tried again or is moved, and its timer
does the rest. Tasks that wait for others need none: what they wait for is due so much earlier (`intake.due`).
Whoever watches is told once for each deadline, when the first task becomes late for it, and once more when no
task is.

What a prediction leaves out: that an agent must first become free. A task that waits is late when even an
agent that took it now would be too slow.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from services.common.core.ids import TaskId
from services.common.core.instants import NEVER, Instant, after, rfc3339
from services.scheduler.core.book import Book, Step
from services.scheduler.core.course import Attempt, Collaboration, Task
from services.scheduler.core.model import TaskState
from services.scheduler.core.monitoring.alerts import AlertKind
from services.scheduler.core.prediction import learning
from services.scheduler.core.running.deadlines import STANDING_MAX, DeadlineView, DeadlineWarning, Lateness
from services.scheduler.core.timers import TimerKind

#: Hysteresis: a late task counts as in time again when it will end so much before it is due, the larger one.
MARGIN_MS_MIN = 1_000
MARGIN_SHARE = 0.1

_NORMAL = NormalDist()
#: How far above the median the upper end of an 80 % interval is, in standard deviations.
_HIGH = _NORMAL.inv_cdf(0.9)
_ALMOST_ONE = 1.0 - 1e-12
_SELF = "service/scheduler"


# Predictions.


def predicted_end(book: Book, task: Task, now: Instant) -> Instant:
    """Return when a task that has not ended will end at the earliest, without any waiting.

    One that runs goes on from its start; another needs its whole duration, after the slowest open chain of
    what it depends on.
    """
    if attempts := task.open_attempts:
        return min(attempt_end(task, attempt, now) for attempt in attempts)
    start = now
    if task.state is TaskState.PENDING:
        start = _dependencies_end(book, task, now)
    elif task.retry_time is not None:
        start = max(now, task.retry_time)
    return after(start, learning.expected_ms(book, task.spec))


def attempt_end(task: Task, attempt: Attempt, now: Instant) -> Instant:
    """Return when an open attempt will end: as predicted, or, once it takes longer, in half of such cases."""
    begun, mean_ms, spread = _run_of(task, attempt)
    ran_ms = now - begun
    if ran_ms < mean_ms or not spread:
        return Instant(max(now, begun + mean_ms))
    shorter = _NORMAL.cdf(math.log(ran_ms / mean_ms) / spread)
    return after(begun, _longer(mean_ms, spread, (1.0 + shorter) / 2.0))


def _late_from(task: Task, attempt: Attempt) -> Instant:
    """Return from when on an open attempt will not be in time: `attempt_end` solved for `now`."""
    begun, mean_ms, spread = _run_of(task, attempt)
    allowed_ms = task.due - begun
    if allowed_ms < mean_ms:
        return begun
    if not spread:
        return Instant(task.due + 1)
    # Still running after t, half of such runs last longer than what is allowed: F(t) = 2 F(allowed) - 1.
    share = 2.0 * _NORMAL.cdf(math.log(allowed_ms / mean_ms) / spread) - 1.0
    at_ms = _longer(mean_ms, spread, share) if share > 0.5 else mean_ms
    return Instant(min(begun + max(at_ms, mean_ms), task.due) + 1)


def _run_of(task: Task, attempt: Attempt) -> tuple[Instant, int, float]:
    """Return when an attempt began, how long it was predicted to take, and the spread of the logarithm.

    The interval's own distribution is Student's t; the normal one between the same bounds serves here, where
    a millisecond matters more than the tails.
    """
    begun = attempt.assign_time if attempt.start_time is None else attempt.start_time
    if (predicted := attempt.predicted) is None:
        return begun, max(1, task.spec.estimated_duration_ms), 0.0
    mean_ms = max(1, predicted.mean_ms)
    return begun, mean_ms, math.log(max(predicted.high_ms, mean_ms) / mean_ms) / _HIGH


def _longer(mean_ms: int, spread: float, share: float) -> int:
    return math.ceil(mean_ms * math.exp(min(spread * _NORMAL.inv_cdf(min(share, _ALMOST_ONE)), 50.0)))


def _dependencies_end(book: Book, task: Task, now: Instant) -> Instant:
    """Return when the last open dependency will have ended; every task of the chain is looked at once."""
    tasks = task.collaboration.tasks
    ends: dict[str, Instant] = {}
    walk = [task]
    while walk:
        last = walk[-1]
        waits = [tasks[name] for name in last.spec.dependencies if name not in ends and not tasks[name].ended]
        if waits and last.state is TaskState.PENDING:
            walk += waits
            continue
        walk.pop()
        if last is task or last.key.task_id in ends:
            continue
        if last.state is TaskState.PENDING:
            begin = max((ends[name] for name in last.spec.dependencies if name in ends), default=now)
            ends[last.key.task_id] = after(begin, learning.expected_ms(book, last.spec))
        else:
            ends[last.key.task_id] = predicted_end(book, last, now)
    return max((ends[name] for name in task.spec.dependencies if name in ends), default=now)


# Warnings.


def watch(step: Step, task: Task) -> None:
    """Predict an open task that can go on anew; tell if it is late, or has stopped being it.

    To be called when it begins to wait, and when an attempt begins, starts or ends. Costs nothing for a task
    on which no deadline hangs, and one timer for another.
    """
    if task.due == NEVER:
        return
    book = step.book
    book.timers.cancel(task.late_timer)
    task.late_timer = None
    if attempts := task.open_attempts:
        late_from = max(_late_from(task, attempt) for attempt in attempts)
    else:
        need_ms = learning.expected_ms(book, task.spec)
        late_from = Instant(task.due - need_ms + 1)
        if task.retry_time is not None and task.retry_time + need_ms > task.due:
            late_from = step.now
    if late_from <= step.now:
        _warn(step, task)
        return
    task.late_timer = book.timers.set(late_from, TimerKind.LATE, task)
    collaboration = task.collaboration
    lateness = collaboration.lateness
    if lateness is not None and task.key.task_id in lateness.causes:
        end = predicted_end(book, task, step.now)
        if end + max(MARGIN_MS_MIN, MARGIN_SHARE * (end - step.now)) <= task.due:
            lateness.drop(task.key.task_id)
            settle(step, collaboration)


def notice(step: Step, task: Task) -> None:
    """A task has become late unless its prediction has changed meanwhile."""
    task.late_timer = None
    watch(step, task)


def leave(step: Step, task: Task) -> None:
    """A task has ended: it is not late any more, and `settle` says what that means when all is done."""
    step.book.timers.cancel(task.late_timer)
    task.late_timer = None
    if (lateness := task.collaboration.lateness) is not None:
        lateness.drop(task.key.task_id)


def settle(step: Step, collaboration: Collaboration) -> None:
    """Tell of the deadlines for which no task is late any more."""
    lateness = collaboration.lateness
    if lateness is None:
        return
    for warning in lateness.over():
        _end(step, collaboration, lateness, warning)


def close(step: Step, collaboration: Collaboration) -> None:
    """A collaboration has ended: so have its warnings, without a further word to who is told of the end."""
    lateness, collaboration.lateness = collaboration.lateness, None
    if lateness is None:
        return
    for warning in lateness.standing.values():
        _clear(step, collaboration, warning, _failure_of(collaboration, warning.task_id) or "over")


def _warn(step: Step, task: Task) -> None:
    collaboration, task_id, whose = task.collaboration, task.key.task_id, task.deadline_of
    lateness = collaboration.lateness
    if lateness is None:
        lateness = collaboration.lateness = Lateness()
    lateness.add(task_id, whose)
    if whose in lateness.standing or len(lateness.standing) >= STANDING_MAX:
        return
    if _failure_of(collaboration, whose):
        # It is known already that there will be no result.
        return
    late_ms = max(1, predicted_end(step.book, task, step.now) - task.due)
    deadline = collaboration.deadline_at(whose)
    warning = DeadlineWarning(whose, deadline, after(deadline, late_ms), task_id, step.now)
    lateness.standing[whose] = warning
    what = _words(warning)
    step.book.observed.alerts.put(AlertKind.LATE, _subject(collaboration, whose), what, step.now)
    step.book.observed.deadlines.append("warned")
    _entry(step, collaboration, "deadline.warn", warning, what)
    step.deadline_changed(collaboration, DeadlineView(warning, None))


def _end(step: Step, collaboration: Collaboration, lateness: Lateness, warning: DeadlineWarning) -> None:
    del lateness.standing[warning.task_id]
    failed = _failure_of(collaboration, warning.task_id)
    _clear(step, collaboration, warning, failed or "recovered")
    if not failed:
        _entry(step, collaboration, "deadline.recover", warning, "it is predicted to be met after all")
        step.deadline_changed(collaboration, DeadlineView(warning, step.now))


def _clear(step: Step, collaboration: Collaboration, warning: DeadlineWarning, outcome: str) -> None:
    subject = _subject(collaboration, warning.task_id)
    step.book.observed.alerts.clear(AlertKind.LATE, subject, step.now)
    step.book.observed.deadlines.append(outcome)


def _failure_of(collaboration: Collaboration, whose: str) -> str:
    """Return "missed" or "over" when whose deadline it is cannot succeed any more, else nothing."""
    failures = [collaboration.tasks[TaskId(whose)].failure] if whose else [collaboration.failure]
    if not whose:
        # With one of its tasks it has failed, although others go on.
        failures += [collaboration.tasks[task_id].failure for task_id in collaboration.failed]
    reasons = {failure.reason for failure in failures if failure is not None}
    if "DEADLINE_PASSED" in reasons:
        return "missed"
    return "over" if reasons else ""


def _words(warning: DeadlineWarning) -> str:
    return (
        f"it will end at {rfc3339(warning.predicted_end)} as far as predicted, after its deadline "
        f"{rfc3339(warning.deadline)}: task {warning.cause} is late"
    )


def _subject(collaboration: Collaboration, whose: str) -> str:
    name = collaboration.collaboration_id
    return f"task/{name}/{whose}" if whose else f"collaboration/{name}"


def _entry(
    step: Step, collaboration: Collaboration, operation: str, warning: DeadlineWarning, what: str
) -> None:
    step.entry(
        operation,
        _subject(collaboration, warning.task_id),
        _SELF,
        collaboration_id=collaboration.collaboration_id,
        attributes={
            "deadline": rfc3339(warning.deadline),
            "predicted_end": rfc3339(warning.predicted_end),
            "late_task": warning.cause,
            "what": what,
        },
    )


def restore_alerts(step: Step, collaboration: Collaboration) -> None:
    """Let the alerts of warnings stand again that stood under the leader before."""
    if (lateness := collaboration.lateness) is not None:
        for warning in lateness.standing.values():
            subject = _subject(collaboration, warning.task_id)
            step.book.observed.alerts.put(AlertKind.LATE, subject, _words(warning), warning.warn_time)
