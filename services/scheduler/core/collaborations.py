"""Submission, cancellation on request, and retention; what lies between is in `outcomes`."""

from __future__ import annotations

import weakref

from services.common.core.entries import Outcome
from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import CollaborationId, TaskId
from services.common.core.instants import Instant, after
from services.scheduler.core.book import Book, Step
from services.scheduler.core.course import Collaboration, Task, Trial
from services.scheduler.core.effects import Accepted, Answer, Forget, SaveSpecs
from services.scheduler.core.events import CancelRequested, Submitted
from services.scheduler.core.history import History
from services.scheduler.core.intake.admission import admit, size_of
from services.scheduler.core.intake.due import FREE, due_times
from services.scheduler.core.intake.graph import upward_ranks
from services.scheduler.core.machine import TASK, TaskInput
from services.scheduler.core.model import CollaborationState, Submission, TaskKey
from services.scheduler.core.monitoring import observing
from services.scheduler.core.placing import places
from services.scheduler.core.placing.placement import demand_of
from services.scheduler.core.policies import adapting
from services.scheduler.core.prediction.learning import expected_ms
from services.scheduler.core.refusals import ordered
from services.scheduler.core.running import outcomes
from services.scheduler.core.timers import TimerKind


def submit(step: Step, event: Submitted) -> None:
    """Accept a submission, answer it as before when it is a repetition, or refuse it (guarantee T1)."""
    submission = event.submission
    try:
        accepted = _repeated(step.book, event) or _accept(step, event)
    except ServiceError as error:
        step.entry(
            "collaboration.submit",
            f"collaboration/{event.collaboration_id}",
            submission.requester,
            outcome=Outcome.REFUSED,
            reason=error.reason,
            attributes={"request_id": submission.request_id},
        )
        step.effects.append(Answer(event.reply, error))
        return
    step.effects.append(Answer(event.reply, accepted))


def cancel(step: Step, event: CancelRequested) -> None:
    """Cancel a collaboration; one that was cancelled before is answered as it is."""
    collaboration = ordered(
        step,
        event,
        "collaboration.cancel",
        "nothing is left to cancel",
        repeated=CollaborationState.CANCELLED,
    )
    if collaboration is None:
        return
    if not collaboration.ended:
        outcomes.cancel(step, collaboration, event.actor, event.reason)
    step.effects.append(Answer(event.reply, collaboration))


def forget_ended(step: Step) -> None:
    """Let go of the collaborations whose retention is over: the window, or the bound on their number."""
    book, settings = step.book, step.book.settings
    while book.ended:
        collaboration = book.collaborations[book.ended[0]]
        if (
            collaboration.end_time is not None
            and step.now < after(collaboration.end_time, settings.retention_ms)
            and len(book.ended) <= settings.retained_max
            and book.retained_task_count <= settings.retained_task_max
        ):
            break
        book.ended.popleft()
        book.retained_task_count -= len(collaboration.tasks)
        del book.collaborations[collaboration.collaboration_id]
        # Views in the history refer back to the collaboration: without this it would not be freed at once.
        collaboration.history.clear()
        step.effects.append(Forget(collaboration.collaboration_id))


def build(  # noqa: PLR0917  # a collaboration is made of all of these, in one place
    book: Book,
    collaboration_id: CollaborationId,
    submission: Submission,
    submit_time: Instant,
    arrival: int,
    trial: Trial | None = None,
) -> Collaboration:
    """Return a collaboration as it is before anything happened, counted as open in the book."""
    spec = submission.spec
    collaboration = Collaboration(
        collaboration_id,
        submission,
        submit_time,
        {},
        History(book.settings.history_max),
        arrival=arrival,
        account=book.accounts.open(submission.requester),
        coordinator_agent=spec.coordinator_agent,
        open_count=len(spec.tasks),
        size_bytes=size_of(spec),
        trial=trial,
    )
    chosen = adapting.styled(book, spec, trial)
    home = weakref.ref(collaboration)
    dependents: dict[TaskId, list[TaskId]] = {}
    for task_spec in spec.tasks:
        for dependency in task_spec.dependencies:
            dependents.setdefault(dependency, []).append(task_spec.task_id)
    ranks = {task.task_id: expected_ms(book, task) for task in spec.tasks}
    if dependents:
        ranks = upward_ranks({task.task_id: task.dependencies for task in spec.tasks}, ranks)
    due = due_times(spec, dependents)
    for task_spec in spec.tasks:
        task_id = task_spec.task_id
        task_due = due.get(task_id, FREE)
        collaboration.tasks[task_id] = Task(
            home,
            TaskKey(collaboration_id, task_id),
            task_spec,
            spec.priority_of(task_spec),
            spec.deadline_of(task_spec),
            ranks[task_id],
            demand_of(task_spec, chosen, book.settings.policy),
            collaboration.account,
            arrival,
            tuple(dependents.get(task_id, ())),
            len(task_spec.dependencies),
            due=task_due.time,
            deadline_of=task_due.deadline_of,
        )
    book.collaborations[collaboration_id] = collaboration
    book.arrival = max(book.arrival, arrival)
    book.open_collaboration_count += 1
    book.open_task_count += len(spec.tasks)
    book.open_bytes += collaboration.size_bytes
    return collaboration


def open_task(step: Step, task: Task, collaboration: Collaboration) -> None:
    """Begin the life of a task to which nothing has happened yet: its deadline counts, and it may be ready.

    That it is ready belongs to the submission's own generation and follows from the specification: it needs
    no record of its own.
    """
    if task.deadline is not None:
        task.deadline_timer = step.book.timers.set(task.deadline, TimerKind.DEADLINE, task)
    if task.unmet == 0:
        task.state = TASK.next(task.key, task.state, TaskInput.DEPENDENCIES_MET)
        task.ready_time = collaboration.submit_time
        task.cause_id = collaboration.submission.request_id
        places.enter_queue(step, task)


def _repeated(book: Book, event: Submitted) -> Accepted | None:
    """Return the answer to a submission that was accepted before; raise when its content differs."""
    known = book.collaborations.get(event.collaboration_id)
    if known is None:
        return None
    if known.submission.content_hash != event.submission.content_hash:
        raise ServiceError(
            Reason.REQUEST_ID_REUSED,
            f"request_id {event.submission.request_id} was used before with other content: "
            "a new collaboration needs a new request_id",
            metadata={"collaboration_id": event.collaboration_id},
        )
    return Accepted(event.collaboration_id, known.generation, already_accepted=True, warnings=())


def _accept(step: Step, event: Submitted) -> Accepted:
    book, submission = step.book, event.submission
    warnings = admit(book, submission.spec, step.now)
    trial, why = adapting.choose(book, submission.spec)
    collaboration = build(book, event.collaboration_id, submission, step.now, book.arrival + 1, trial)
    observing.keep_looking(step)
    step.effects.append(SaveSpecs(collaboration))
    step.collaboration_changed(collaboration)
    for task in collaboration.tasks.values():
        open_task(step, task, collaboration)
    attributes: dict[str, str] = {
        "request_id": submission.request_id,
        "tasks": str(len(collaboration.tasks)),
    }
    if why:
        attributes["policy"] = why
    step.entry(
        "collaboration.submit",
        f"collaboration/{event.collaboration_id}",
        submission.requester,
        collaboration_id=event.collaboration_id,
        attributes=attributes,
    )
    return Accepted(
        event.collaboration_id, collaboration.generation, already_accepted=False, warnings=warnings
    )
