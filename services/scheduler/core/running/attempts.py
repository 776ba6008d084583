"""One try of a task: placed, started, over. What its end means for the task is decided in `outcomes`."""

from __future__ import annotations

from services.common.core.fencing import FencingToken
from services.common.core.ids import AgentId
from services.common.core.instants import after
from services.scheduler.core.book import Step
from services.scheduler.core.course import Attempt, Collaboration, Task
from services.scheduler.core.effects import Assign, CancelAttempt
from services.scheduler.core.instances import Instance
from services.scheduler.core.locking import claims
from services.scheduler.core.machine import (
    ATTEMPT,
    COLLABORATION,
    TASK,
    AttemptInput,
    CollaborationInput,
    TaskInput,
)
from services.scheduler.core.model import AttemptState, CollaborationState, Failure, Speculation, TaskState
from services.scheduler.core.monitoring import observing
from services.scheduler.core.placing import places
from services.scheduler.core.prediction import learning
from services.scheduler.core.prediction.estimate import Estimate
from services.scheduler.core.running import lateness, savepoints
from services.scheduler.core.timers import TimerKind


def assign(step: Step, task: Task, instance: Instance, explanation: str) -> None:
    """Give a task that waits, its claims granted, to an instance with a free slot."""
    places.leave(step, task)
    resumes = task.state is TaskState.SUSPENDED
    task.state = TASK.next(task.key, task.state, TaskInput.ASSIGN)
    attempt = _hand_over(step, task, instance, explanation)
    observing.stage(step, "assigned", step.now - (task.ready_time or step.now))
    token = attempt.token
    collaboration, agent_id = task.collaboration, instance.key.agent_id
    claims.bind(step, task, attempt, instance)
    _join(step, collaboration, agent_id)
    step.task_changed(task)
    step.entry(
        "task.assign",
        f"task/{task.key!s}",
        f"agent/{agent_id}",
        collaboration_id=collaboration.collaboration_id,
        cause_id=task.cause_id,
        attributes={"token": str(token), "instance": str(instance.key), "why": explanation},
    )
    if resumes:
        saved = task.savepoint
        step.entry(
            "task.resume",
            f"task/{task.key!s}",
            f"agent/{agent_id}",
            collaboration_id=collaboration.collaboration_id,
            cause_id=task.cause_id,
            attributes={
                "token": str(token),
                "savepoint_of_attempt": "" if saved is None else str(saved.attempt_number),
            },
        )
    if not task.spec.resources and instance.stream is not None:
        # With claims it goes out when the keys' revision, their token, is known: `lock_changes.written`.
        step.effects.append(Assign(instance.stream, collaboration, task, attempt, ()))


def _hand_over(
    step: Step, task: Task, instance: Instance, explanation: str, *, speculative: bool = False
) -> Attempt:
    """Make the next attempt of a task, at an instance with a free slot."""
    book = step.book
    token = FencingToken(book.epoch, task.attempt_count + 1)
    expected = learning.expect(step, task, instance.key.agent_id)
    attempt = Attempt(
        token,
        instance.key,
        instance.incarnation,
        AttemptState.ASSIGNED,
        step.now,
        explanation,
        predicted=learning.predicted(expected),
        speculative=speculative,
    )
    task.add_attempt(attempt)
    watch(step, task, attempt)
    instance.hold(task)
    instance.credits -= 1
    instance.turn = book.index.next_turn()
    book.index.touch(instance)
    book.victims.put(task, attempt, instance)
    watch_straggling(step, task, attempt, expected)
    lateness.watch(step, task)
    return attempt


def assign_beside(step: Step, task: Task, instance: Instance, why: str) -> Attempt:
    """Let a second attempt of a running task begin beside the first one."""
    attempt = _hand_over(step, task, instance, why, speculative=True)
    _join(step, task.collaboration, instance.key.agent_id)
    step.task_changed(task)
    if instance.stream is not None:
        step.effects.append(Assign(instance.stream, task.collaboration, task, attempt, ()))
    return attempt


def expected_at(step: Step, task: Task, instance: Instance) -> int:
    """Return how long a task is expected to take at an instance, in milliseconds."""
    return round(learning.expect(step, task, instance.key.agent_id).mean_ms)


def watch_straggling(step: Step, task: Task, attempt: Attempt, expected: Estimate | None = None) -> None:
    """Have an attempt noticed when it takes longer than predicted, if a second one may help it.

    `expected` is what is predicted, if that is known already.
    """
    spec, settings = task.spec, step.book.settings
    if (
        settings.speculation_share <= 0.0
        or spec.speculation is Speculation.NEVER
        or spec.resources
        or spec.gang is not None
    ):
        return
    if expected is None:
        expected = learning.estimate(step.book, spec, attempt.instance.agent_id, task.task_type)
    slow_ms = round(expected.quantile(settings.straggle_quantile))
    subject = (task, attempt.token.number)
    due = after(attempt.assign_time, slow_ms)
    # Of two attempts the newer one is watched.
    step.book.timers.cancel(task.straggle_timer)
    task.straggle_timer = step.book.timers.set(due, TimerKind.STRAGGLE, subject)


def start(step: Step, task: Task, attempt: Attempt, *, ended: bool) -> None:
    """The agent says that an open attempt runs; a repetition changes nothing.

    With `ended` its result came in the same frame: when it started is noted, and not a change of its own.
    """
    if attempt.state is not AttemptState.ASSIGNED:
        return
    observing.stage(step, "started", step.now - attempt.assign_time)
    if ended:
        task.replace(attempt.moved_on(attempt.state, step.now))
        return
    state = ATTEMPT.next(task.key, attempt.state, AttemptInput.START)
    task.replace(attempt.moved_on(state, step.now))
    if task.state is TaskState.ASSIGNED:
        task.state = TASK.next(task.key, task.state, TaskInput.START)
    step.task_changed(task)
    step.entry(
        "task.start",
        f"task/{task.key}",
        f"agent/{attempt.instance.agent_id}",
        collaboration_id=task.key.collaboration_id,
        cause_id=str(task.ref(attempt)),
    )
    lateness.watch(step, task)


def watch(step: Step, task: Task, attempt: Attempt) -> None:
    """Give up an open attempt when it has run for longer than its task allows."""
    until = after(attempt.assign_time, task.spec.attempt_timeout_ms)
    number = attempt.token.number
    task.watches[number] = step.book.timers.set(until, TimerKind.ATTEMPT_TIMEOUT, (task, number))


def close(
    step: Step,
    task: Task,
    attempt: Attempt,
    given: AttemptInput,
    failure: Failure | None = None,
    *,
    notice: str = "",
) -> Attempt:
    """End an open attempt and all that hangs on it; what the task does next is the caller's business.

    With a `notice` its agent is told why its token and its locks are void; without one the agent said so
    itself, or is gone. Returns the attempt as it ended.
    """
    book = step.book
    state = ATTEMPT.next(task.key, attempt.state, given)
    ended = attempt.moved_on(state, attempt.start_time, step.now, failure)
    task.replace(ended)
    book.timers.cancel(task.watches.pop(attempt.token.number, None))
    if task.savepoint_unacked:
        # A savepoint that waits for its turn becomes durable with the attempt's end.
        book.timers.cancel(task.savepoint_timer)
        task.savepoint_timer = None
        savepoints.acknowledge(step, task)
    book.victims.drop(task, attempt)
    elapsed_ms = step.now - attempt.assign_time
    if attempt.speculative:
        predicted = attempt.predicted
        book.budget.settle(0 if predicted is None else predicted.mean_ms, elapsed_ms, step.now)
    else:
        book.budget.done(elapsed_ms, step.now)
    if not task.open_attempts:
        book.timers.cancel(task.straggle_timer)
        task.straggle_timer = None
        book.stragglers.pop(task.key, None)
        task.progress, task.stage = 0.0, ""
    instance = book.instances.get(attempt.instance)
    if instance is not None:
        instance.drop(task)
        book.index.touch(instance)
        if notice and instance.stream is not None:
            step.effects.append(CancelAttempt(instance.stream, task.ref(attempt), notice))
    if task.lock_id is not None or (instance is not None and instance.lock_ids):
        claims.end_attempt(step, task, attempt, notice)
    return ended


def begin(step: Step, collaboration: Collaboration, first: AgentId) -> None:
    """The first attempt of a collaboration was made, by `first`."""
    collaboration.state = COLLABORATION.next(
        collaboration.collaboration_id, collaboration.state, CollaborationInput.BEGIN
    )
    # The preferred agent was set at submission; without one the first that gets work coordinates.
    collaboration.coordinator_agent = collaboration.coordinator_agent or first
    step.collaboration_changed(collaboration)


def _join(step: Step, collaboration: Collaboration, agent_id: AgentId) -> None:
    """Make an agent a member; the first one begins the collaboration."""
    if agent_id in collaboration.members:
        return
    collaboration.members[agent_id] = None
    if collaboration.state is CollaborationState.INITIALIZING:
        begin(step, collaboration, agent_id)
    else:
        step.collaboration_changed(collaboration)
