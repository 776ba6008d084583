"""What the plane learns from what ends, and when that is kept.

Learned values ride in commits that happen anyway: what changed is gathered for `save_interval_ms` and then a
bounded number of records joins the next batch. They are estimates, not promises: a crash loses at most what
was learned since, and no decision waits for them.
"""

from __future__ import annotations

from services.common.core.instants import after
from services.scheduler.core.analysis import analysing
from services.scheduler.core.book import Book, Step
from services.scheduler.core.course import Attempt, Predicted, Task
from services.scheduler.core.effects import SaveLearned
from services.scheduler.core.model import AttemptState, TaskSpec
from services.scheduler.core.monitoring import observing
from services.scheduler.core.prediction.estimate import Estimate
from services.scheduler.core.timers import TimerKind

#: How long changes are gathered before they are written, and records in one batch.
SAVE_INTERVAL_MS = 1_000
SAVED_MAX = 64


#: Texts that are read in one event: the others are counted under their first skill.
CLASSIFIED_MAX = 64


def type_of(spec: TaskSpec) -> str:
    """Return a task's type as its specification says it: its own, else its first required skill."""
    return spec.task_type or spec.required_skills[0]


def learned_type(step: Step, task: Task) -> str:
    """Return the type under which a task's course is learned: its own, that of its text, its first skill."""
    if not task.task_type:
        spec = task.spec
        if spec.task_type or not (spec.task_name or spec.description):
            task.task_type = spec.task_type or spec.required_skills[0]
        elif step.classified < CLASSIFIED_MAX:
            step.classified += 1
            task.task_type = analysing.classify(step.book, spec).task_type or spec.required_skills[0]
        else:
            return spec.required_skills[0]
    return task.task_type


def estimate(book: Book, spec: TaskSpec, agent_id: str, task_type: str = "") -> Estimate:
    """Return how long a task is expected to take on an agent; `task_type` if it is known better."""
    declared_ms, skill = spec.estimated_duration_ms, spec.required_skills[0]
    return book.predictor.estimate(agent_id, task_type or type_of(spec), declared_ms, skill)


def mean_ms(book: Book, spec: TaskSpec, agent_id: str, task_type: str = "") -> int:
    """Return the centre of `estimate` in whole milliseconds, at least 1."""
    return max(1, round(estimate(book, spec, agent_id, task_type).mean_ms))


def expected_ms(book: Book, spec: TaskSpec) -> int:
    """Return how long a task will take on an average agent: what ranks count with."""
    declared_ms, skill = spec.estimated_duration_ms, spec.required_skills[0]
    return round(book.predictor.typical(type_of(spec), declared_ms, skill).mean_ms)


def expect(step: Step, task: Task, agent_id: str) -> Estimate:
    """Return how long a task is expected to take on an agent, now that it may go there."""
    return estimate(step.book, task.spec, agent_id, learned_type(step, task))


def predicted(found: Estimate) -> Predicted:
    """Return an estimate as it is kept with the attempt."""
    return Predicted(
        round(found.mean_ms), round(found.low_ms), round(found.high_ms), round(found.observations, 1)
    )


def learn(step: Step, task: Task, attempt: Attempt) -> None:
    """Learn from an attempt that has just ended by its agent's doing: success, failure or time-out."""
    spec, agent_id = task.spec, attempt.instance.agent_id
    predictor, task_type = step.book.predictor, learned_type(step, task)
    success = attempt.state is AttemptState.SUCCEEDED
    if success:
        start = attempt.start_time
        # A result that came with its start in one frame: all that is known is how long it held its slot.
        since = attempt.assign_time if start is None or start == attempt.end_time else start
        ran_ms = step.now - since
        expected = predictor.finished(
            agent_id,
            task_type,
            spec.estimated_duration_ms,
            ran_ms,
            now=step.now,
            skill=spec.required_skills[0],
        )
        observing.stage(step, "done", ran_ms)
        observing.missed(step, task_type, expected, ran_ms)
        analysing.learn_text(step.book, task)
    predictor.ended(agent_id, task_type, spec.required_skills, success=success, now=step.now)
    save_later(step)


def learn_stopped(step: Step, task: Task, attempt: Attempt) -> None:
    """Learn from an attempt that is stopped because it is not needed: it would have taken longer."""
    if attempt.start_time is None:
        return
    spec = task.spec
    step.book.predictor.stopped(
        attempt.instance.agent_id,
        learned_type(step, task),
        spec.estimated_duration_ms,
        step.now - attempt.start_time,
        now=step.now,
        skill=spec.required_skills[0],
    )
    save_later(step)


def save(step: Step, _: None = None) -> None:
    """Have a bounded part of what changed written with this batch, the rest with later ones."""
    book = step.book
    book.learned_timer = None
    changed = book.predictor.changed
    for key in [*changed][:SAVED_MAX]:
        del changed[key]
        step.effects.append(SaveLearned(key, book.predictor.value(key)))
    if changed:
        save_later(step)


def save_later(step: Step) -> None:
    """Have what changed written before long."""
    book = step.book
    if book.learned_timer is None:
        due = after(step.now, SAVE_INTERVAL_MS)
        book.learned_timer = book.timers.set(due, TimerKind.LEARNED, None)
