"""The scheduler's state and its one mutating method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from services.common.core.entries import Outcome
from services.common.core.instants import Instant, after
from services.scheduler.core import agents, collaborations, recovery
from services.scheduler.core.book import Book, Settings, Step
from services.scheduler.core.course import Place, Task
from services.scheduler.core.effects import Answer, Effect
from services.scheduler.core.events import (
    AgentsChanged,
    AssessRequested,
    CancelRequested,
    Event,
    LockKeysChanged,
    LocksWritten,
    PauseRequested,
    PlacementDue,
    PlanFound,
    PolicyOrdered,
    Recovered,
    Refused,
    ResumeRequested,
    Submitted,
    Ticked,
    WorkClosed,
    WorkFrame,
    WorkOpened,
)
from services.scheduler.core.foreseeing import predictive, standing
from services.scheduler.core.instances import Instance
from services.scheduler.core.invariants import check
from services.scheduler.core.locking import changes as lock_changes
from services.scheduler.core.locking import requests as lock_requests
from services.scheduler.core.monitoring import observing
from services.scheduler.core.placing import apply
from services.scheduler.core.placing.places import enter_queue, leave
from services.scheduler.core.policies import adapting
from services.scheduler.core.prediction import assessing, learning
from services.scheduler.core.running import lateness, outcomes, pausing, savepoints, speculation, suspension
from services.scheduler.core.timers import TimerKind


class SchedulerState:
    """What one leadership knows and decides. Only `handle` changes it; `book` is for reading.

    Deterministic: the same events at the same instants give the same effects.
    """

    def __init__(self, settings: Settings, epoch: int) -> None:
        self.book = Book(settings, epoch)

    def __repr__(self) -> str:
        book = self.book
        return (
            f"<SchedulerState epoch {book.epoch}: {book.open_collaboration_count} open collaborations, "
            f"{book.open_task_count} open tasks, {len(book.streams)} streams>"
        )

    def handle(self, event: Event, now: Instant) -> list[Effect]:
        """Take in one event and return what follows from it, in order.

        `now` must not go back. An event that cannot be is a defect of the caller and raises; what agents and
        requesters get wrong comes back as an effect that tells them.
        """
        step = Step(self.book, now, event.cause_id, getattr(event, "jitter", 0.0))
        _HANDLERS[type(event)](step, event)
        return step.effects

    def next_due(self) -> Instant:
        """Return when the next `Ticked` is wanted at the latest; NEVER when nothing waits for time."""
        due = self.book.timers.next_due()
        if self.book.ended:
            oldest = self.book.collaborations[self.book.ended[0]]
            if oldest.end_time is not None:
                due = min(due, after(oldest.end_time, self.book.settings.retention_ms))
        return due

    def validate(self) -> None:
        """Raise `AssertionError` naming the first invariant that does not hold."""
        check(self.book)


def _tick(step: Step, _: Ticked) -> None:
    while (timer := step.book.timers.pop_due(step.now)) is not None:
        _ON_TIMER[timer.kind](step, timer.subject)
    collaborations.forget_ended(step)


def _place(step: Step, _: PlacementDue) -> None:
    apply.place(step)
    collaborations.forget_ended(step)


def _refuse(step: Step, event: Refused) -> None:
    step.entry(
        event.operation, event.subject, event.actor, outcome=Outcome.REFUSED, reason=event.error.reason
    )
    if event.reply is not None:
        step.effects.append(Answer(event.reply, event.error))


def _retry(step: Step, task: Task) -> None:
    if task.place is Place.DELAY:
        leave(step, task)
        enter_queue(step, task)


def _lose(step: Step, instance: Instance) -> None:
    agents.lose(step, instance, "it did not come back in time")


_HANDLERS: dict[type[Any], Callable[[Step, Any], None]] = {
    Submitted: collaborations.submit,
    CancelRequested: collaborations.cancel,
    PauseRequested: pausing.pause,
    ResumeRequested: pausing.resume,
    AssessRequested: assessing.assess,
    PolicyOrdered: adapting.order,
    Refused: _refuse,
    WorkOpened: agents.open_stream,
    WorkFrame: agents.take_frame,
    WorkClosed: agents.close_stream,
    AgentsChanged: agents.change_agents,
    LockKeysChanged: lock_changes.keys_changed,
    LocksWritten: lock_changes.locks_written,
    Recovered: recovery.recover,
    Ticked: _tick,
    PlanFound: standing.take,
    PlacementDue: _place,
}

_ON_TIMER: dict[TimerKind, Callable[[Step, Any], None]] = {
    TimerKind.RETRY: _retry,
    TimerKind.ATTEMPT_TIMEOUT: outcomes.time_out,
    TimerKind.SUSPEND_GRACE: suspension.take_away,
    TimerKind.SAVEPOINT: savepoints.settle,
    TimerKind.STRAGGLE: speculation.notice,
    TimerKind.DEADLINE: outcomes.pass_deadline,
    TimerKind.LATE: lateness.notice,
    TimerKind.FORESEEN: predictive.stop_waiting,
    TimerKind.GRACE: _lose,
    TimerKind.PROBE: agents.probe,
    TimerKind.LOCK_WAIT: lock_requests.give_up,
    TimerKind.LEARNED: learning.save,
    TimerKind.OBSERVE: observing.look,
}
