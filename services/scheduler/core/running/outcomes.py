"""How attempts, tasks and collaborations end, and what follows from it."""

from __future__ import annotations

from services.common.core.backoff import backoff_ms
from services.common.core.entries import Outcome
from services.common.core.instants import NEVER, after
from services.scheduler.core.book import Step
from services.scheduler.core.course import Attempt, Collaboration, Task
from services.scheduler.core.locking import claims
from services.scheduler.core.machine import COLLABORATION, TASK, AttemptInput, CollaborationInput, TaskInput
from services.scheduler.core.model import Failure, FailureKind, Payload, TaskState
from services.scheduler.core.monitoring import observing
from services.scheduler.core.placing import gangs, places
from services.scheduler.core.policies import adapting
from services.scheduler.core.prediction import learning
from services.scheduler.core.running import attempts, lateness

#: Who acts when nobody asked: the scheduler itself.
SELF = "service/scheduler"
#: Why an assignment ended that was taken back before it was started.
MOVED = "MOVED"


# An attempt of a task is over.


def succeed(step: Step, task: Task, attempt: Attempt, result: Payload) -> Attempt:
    """Accept the one result of a task (guarantee T3); return the attempt as it ended."""
    cause = str(task.ref(attempt))
    ended = attempts.close(step, task, attempt, AttemptInput.SUCCEED)
    excuse_open(step, task, "another attempt of this task was done first")
    collaboration = task.collaboration
    task.result = result
    task.progress = 1.0
    collaboration.succeeded.append(task.key.task_id)
    _end_task(step, task, TaskInput.SUCCEED)
    _entry(step, task, "task.succeed", f"agent/{attempt.instance.agent_id}", cause_id=cause)
    for task_id in task.dependents:
        dependent = collaboration.tasks[task_id]
        dependent.unmet -= 1
        if dependent.unmet == 0 and dependent.state is TaskState.PENDING:
            make_ready(step, dependent, cause)
    end_if_done(step, collaboration, cause)
    return ended


def fail(
    step: Step,
    task: Task,
    attempt: Attempt,
    failure: Failure,
    *,
    given: AttemptInput = AttemptInput.FAIL,
    notice: str = "",
) -> None:
    """The attempt failed: try again within the retry policy, else the task has failed."""
    cause = str(task.ref(attempt))
    attempts.close(step, task, attempt, given, failure, notice=notice)
    if attempt.speculative and task.open_attempts:
        # It was our idea to run the task twice: that must not cost the task a try.
        task.excused_count += 1
        _go_on_beside(step, task, "task.retry", cause, failure)
        return
    task.failure_count += 1
    retry = task.spec.retry
    if failure.kind is FailureKind.PERMANENT or task.failure_count >= retry.attempt_max:
        excuse_open(step, task, "the task has failed")
        fail_task(step, task, failure, cause)
        return
    if task.open_attempts:
        _go_on_beside(step, task, "task.retry", cause, failure)
        return
    delay_ms = backoff_ms(
        task.failure_count, base_ms=retry.backoff_ms, max_ms=retry.backoff_max_ms, jitter=step.draw()
    )
    _try_again(step, task, "task.retry", cause, delay_ms)


def lose(step: Step, task: Task, attempt: Attempt, message: str) -> None:
    """The attempt's agent is gone, or came back without it: no failure of the task."""
    failure = Failure(FailureKind.TRANSIENT, "AGENT_LOST", message)
    _return(step, task, attempt, AttemptInput.LOSE, failure, operation="task.lose")


def give_back(step: Step, task: Task, attempt: Attempt) -> None:
    """The agent stopped the attempt without a result, for example because it drains."""
    failure = Failure(FailureKind.TRANSIENT, "GIVEN_BACK", "the agent stopped the attempt")
    _return(step, task, attempt, AttemptInput.CANCEL, failure, operation="task.return")


def withdraw(step: Step, task: Task, attempt: Attempt, message: str) -> None:
    """Undo an assignment that never went out."""
    instance = step.book.instance_of(attempt)
    if instance is not None:
        instance.credits += 1
    failure = Failure(FailureKind.TRANSIENT, "RESOURCE_HELD", message)
    _return(step, task, attempt, AttemptInput.CANCEL, failure, operation="task.return")


def move(step: Step, task: Task, attempt: Attempt, why: str) -> None:
    """Take back an assignment that its agent has not started; another agent gets the task."""
    task.excused_count += 1
    failure = Failure(FailureKind.TRANSIENT, MOVED, why)
    _return(step, task, attempt, AttemptInput.CANCEL, failure, operation="task.move", notice=why)


def time_out(step: Step, subject: tuple[Task, int]) -> None:
    """The attempt ran longer than the task's attempt_timeout."""
    task, number = subject
    attempt = next(each for each in task.open_attempts if each.token.number == number)
    message = f"the attempt ran longer than {task.spec.attempt_timeout_ms} ms"
    failure = Failure(FailureKind.TRANSIENT, "ATTEMPT_TIMED_OUT", message)
    fail(step, task, attempt, failure, given=AttemptInput.TIME_OUT, notice=message)
    learning.learn(step, task, task.find(attempt.token) or attempt)


def excuse_open(step: Step, task: Task, why: str) -> None:
    """End what still runs of a task whose fate is settled; its agents are told that they are fenced."""
    for attempt in task.open_attempts:
        excuse(step, task, attempt, why)


def excuse(step: Step, task: Task, attempt: Attempt, why: str) -> None:
    """End one attempt that is not needed; the caller makes it durable."""
    task.excused_count += 1
    learning.learn_stopped(step, task, attempt)
    attempts.close(step, task, attempt, AttemptInput.CANCEL, notice=why)


def suspend(step: Step, task: Task, attempt: Attempt, notice: str = "") -> None:
    """The attempt made room: the task waits for an agent, to go on from its newest savepoint.

    With a `notice` its agent did not stop within its grace and is told that it is fenced.
    """
    cause = str(task.ref(attempt))
    failure = Failure(FailureKind.TRANSIENT, "SUSPENDED", notice or "it saved and stopped as it was asked to")
    attempts.close(step, task, attempt, AttemptInput.SUSPEND, failure, notice=notice)
    task.excused_count += 1
    saved = task.savepoint
    step.entry(
        "task.suspend",
        f"task/{task.key}",
        SELF if notice else f"agent/{attempt.instance.agent_id}",
        collaboration_id=task.key.collaboration_id,
        cause_id=cause,
        attributes={
            "savepoint_of_attempt": "" if saved is None else str(saved.attempt_number),
            **({"why": notice} if notice else {}),
        },
    )
    if not task.open_attempts:
        task.state = TASK.next(task.key, task.state, TaskInput.SUSPEND)
        task.ready_time = step.now
        task.cause_id = cause
        places.enter_queue(step, task)
    step.task_changed(task)


# A task goes on, or ends.


def make_ready(step: Step, task: Task, cause_id: str) -> None:
    """The last dependency of a task succeeded: it may be placed, unless its inputs cannot be handed over."""
    tasks = task.collaboration.tasks
    results = [tasks[name].result for name in task.spec.dependencies]
    size = sum(len(result.data) for result in results if result is not None)
    if size > (most := step.book.settings.input_bytes_max):
        message = f"its inputs have {size} bytes, at most {most} travel with a task: hand over references"
        fail_task(step, task, Failure(FailureKind.PERMANENT, "INPUTS_TOO_LARGE", message), cause_id)
        return
    task.state = TASK.next(task.key, task.state, TaskInput.DEPENDENCIES_MET)
    task.ready_time = step.now
    task.cause_id = cause_id
    observing.stage(step, "ready", step.now - task.collaboration.submit_time)
    places.enter_queue(step, task)
    step.task_changed(task)


def fail_task(step: Step, task: Task, failure: Failure, cause_id: str) -> None:
    """Give a task up, and with it all that depends on it; what does not depend on it goes on."""
    task.failure = failure
    task.collaboration.failed.append(task.key.task_id)
    _end_task(step, task, TaskInput.FAIL)
    _entry(step, task, "task.fail", SELF, Outcome.FAILED, cause_id=cause_id)
    cancel_dependents(step, task)
    if task.spec.gang is not None:
        _fail_gang(step, task, cause_id)
    end_if_done(step, task.collaboration, cause_id)


def _fail_gang(step: Step, task: Task, cause_id: str) -> None:
    """A gang without one of its members can not be done: the others that are open fail with it."""
    story = f"member {task.key.task_id} of its gang failed"
    failure = Failure(FailureKind.PERMANENT, "GANG_FAILED", story)
    for mate in [*gangs.members(task)]:
        if not mate.ended:
            for attempt in mate.open_attempts:
                attempts.close(step, mate, attempt, AttemptInput.CANCEL, failure, notice=story)
            _leave(step, mate)
            fail_task(step, mate, failure, cause_id)


def cancel_dependents(step: Step, task: Task) -> None:
    """Cancel what can never be ready because `task` failed."""
    collaboration = task.collaboration
    story = f"it depends on task {task.key.task_id}, which failed"
    pending = [*task.dependents]
    while pending:
        dependent = collaboration.tasks[pending.pop()]
        if not dependent.ended:
            _cancel_task(step, dependent, Failure(FailureKind.PERMANENT, "DEPENDENCY_FAILED", story), SELF)
            pending += dependent.dependents


def pass_deadline(step: Step, task: Task) -> None:
    """A task's deadline passed: whatever it may still find comes too late (guarantee T4)."""
    message = "its deadline passed before it was done"
    failure = Failure(FailureKind.PERMANENT, "DEADLINE_PASSED", message)
    cause = step.cause_id
    for attempt in task.open_attempts:
        cause = str(task.ref(attempt))
        attempts.close(step, task, attempt, AttemptInput.FAIL, failure, notice=message)
    _leave(step, task)
    fail_task(step, task, failure, cause)


def cancel(step: Step, collaboration: Collaboration, actor: str, reason: str) -> None:
    """Cancel what has not ended. Final at once: running attempts are fenced and asked to stop."""
    failure = Failure(FailureKind.PERMANENT, "CANCELLED", reason)
    collaboration.failure = failure
    for task in [*collaboration.open_tasks()]:
        _cancel_task(step, task, failure, actor)
    _end(step, collaboration, CollaborationInput.CANCEL)
    step.entry(
        "collaboration.cancel",
        f"collaboration/{collaboration.collaboration_id}",
        actor,
        collaboration_id=collaboration.collaboration_id,
        attributes={"why": reason} if reason else None,
    )


def end_if_done(step: Step, collaboration: Collaboration, cause_id: str) -> None:
    """Tell whose deadline will be met after all, and end a collaboration whose last task has ended."""
    lateness.settle(step, collaboration)
    if collaboration.open_count or collaboration.ended:
        return
    completed = len(collaboration.succeeded) == len(collaboration.tasks)
    if collaboration.failed:
        first = collaboration.tasks[collaboration.failed[0]]
        why = first.failure or Failure(FailureKind.PERMANENT, "TASK_FAILED")
        message = f"task {first.key.task_id}: {why.message}"
        collaboration.failure = Failure(FailureKind.PERMANENT, why.reason, message)
    _end(step, collaboration, CollaborationInput.COMPLETE if completed else CollaborationInput.FAIL)
    failure = collaboration.failure
    step.entry(
        "collaboration.complete" if completed else "collaboration.fail",
        f"collaboration/{collaboration.collaboration_id}",
        SELF,
        outcome=Outcome.OK if completed else Outcome.FAILED,
        reason="" if failure is None else failure.reason,
        collaboration_id=collaboration.collaboration_id,
        cause_id=cause_id,
    )


def _end(step: Step, collaboration: Collaboration, given: CollaborationInput) -> None:
    collaboration.state = COLLABORATION.next(collaboration.collaboration_id, collaboration.state, given)
    collaboration.end_time = step.now
    lateness.close(step, collaboration)
    adapting.ended(step, collaboration)
    observing.stage(step, "collaboration", step.now - collaboration.submit_time)
    step.collaboration_changed(collaboration)
    step.book.note_end(collaboration)


def _return(
    step: Step,
    task: Task,
    attempt: Attempt,
    given: AttemptInput,
    failure: Failure,
    *,
    operation: str,
    notice: str = "",
) -> None:
    """End an attempt that neither succeeded nor failed, and try again at once."""
    cause = str(task.ref(attempt))
    attempts.close(step, task, attempt, given, failure, notice=notice)
    if task.open_attempts:
        _go_on_beside(step, task, operation, cause, failure)
        return
    losses = task.attempt_count - task.failure_count - task.excused_count
    if losses > step.book.settings.loss_max:
        # A task that takes every agent down with it must not take the whole fleet.
        message = f"{losses} attempts ended without an outcome, the last one: {failure.message}"
        fail_task(step, task, Failure(FailureKind.PERMANENT, failure.reason, message), cause)
        return
    _try_again(step, task, operation, cause, 0)


def _try_again(step: Step, task: Task, operation: str, cause_id: str, delay_ms: int) -> None:
    task.state = TASK.next(task.key, task.state, TaskInput.RETURN)
    task.ready_time = step.now
    task.cause_id = cause_id
    if delay_ms:
        places.enter_delay(step, task, after(step.now, delay_ms))
    else:
        places.enter_queue(step, task)
    step.task_changed(task)
    _entry(step, task, operation, SELF, Outcome.FAILED, cause_id=cause_id)
    gangs.regroup(step, task, cause_id)


def _go_on_beside(step: Step, task: Task, operation: str, cause_id: str, failure: Failure) -> None:
    """An attempt is over and another one of the task goes on: that is all."""
    lateness.watch(step, task)
    step.task_changed(task)
    step.entry(
        operation,
        f"task/{task.key}",
        SELF,
        outcome=Outcome.FAILED,
        reason=failure.reason,
        collaboration_id=task.key.collaboration_id,
        cause_id=cause_id,
    )


def _cancel_task(step: Step, task: Task, failure: Failure, actor: str) -> None:
    task.failure = failure
    cause = step.cause_id
    for attempt in task.open_attempts:
        cause = str(task.ref(attempt))
        notice = failure.message or "the collaboration was cancelled"
        attempts.close(step, task, attempt, AttemptInput.CANCEL, failure, notice=notice)
    _leave(step, task)
    _end_task(step, task, TaskInput.CANCEL)
    _entry(step, task, "task.cancel", actor, Outcome.CANCELLED, cause_id=cause)


def _end_task(step: Step, task: Task, given: TaskInput) -> None:
    task.state = TASK.next(task.key, task.state, given)
    task.end_time = step.now
    if task.deadline is not None:
        step.book.timers.cancel(task.deadline_timer)
        task.deadline_timer = None
    if task.due != NEVER:
        lateness.leave(step, task)
    task.savepoint = None
    task.collaboration.open_count -= 1
    step.book.open_task_count -= 1
    step.task_changed(task)


def _leave(step: Step, task: Task) -> None:
    """Take a task that will not be tried (again) out of where it waits, its claims included."""
    places.leave(step, task)
    if task.lock_id is not None:
        claims.end_use(step, step.book.lock_uses[task.lock_id])


def _entry(
    step: Step, task: Task, operation: str, actor: str, outcome: Outcome = Outcome.OK, *, cause_id: str
) -> None:
    # The failure is the task's own when it has ended, else its newest attempt's.
    failure = task.failure or (task.attempts[-1].failure if task.attempts else None)
    step.entry(
        operation,
        f"task/{task.key!s}",
        actor,
        outcome=outcome,
        reason="" if failure is None or outcome is Outcome.OK else failure.reason,
        collaboration_id=task.key.collaboration_id,
        cause_id=cause_id,
    )
