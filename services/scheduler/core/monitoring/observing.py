"""What the scheduler watches itself by: stages of every task, misses of every prediction, and alerts.

It looks at what runs every `LOOK_INTERVAL_MS` while anything is open or linked, a few instances at a time
(nobody waits for a look at ten thousand); the rest is noted as it happens. Nothing here decides about work:
an alert is recorded, counted and shown.
"""

from __future__ import annotations

from services.common.core.instants import after
from services.scheduler.core.book import Book, Step
from services.scheduler.core.course import Attempt, Task
from services.scheduler.core.instances import Instance
from services.scheduler.core.monitoring.alerts import Alert, AlertKind
from services.scheduler.core.monitoring.detectors import (
    FLAP_CLEAR_COUNT,
    FLAP_COUNT,
    FLAP_WINDOW_MS,
    STUCK_MS_MIN,
    UNBEGUN_MS_MAX,
    DriftCounter,
    LinkCounter,
    queue_grows,
    stuck_after_ms,
)
from services.scheduler.core.monitoring.observed import Miss, Round
from services.scheduler.core.prediction.estimate import Estimate
from services.scheduler.core.timers import TimerKind

#: How often what runs is looked at, and over how many looks a growing queue must have grown: two minutes.
LOOK_INTERVAL_MS = 5_000
#: Instances that are looked at at once, and the pause before the next ones.
LOOKED_AT_MAX = 128
LOOK_PAUSE_MS = 10
#: Instances whose links are counted, and types whose predictions are; the oldest go first.
LINKS_MAX = 20_000
DRIFTS_MAX = 2_048

_SELF = "service/scheduler"


def keep_looking(step: Step) -> None:
    """Have what runs looked at while there is anything to look at."""
    observed = step.book.observed
    if observed.timer is None:
        due = after(step.now, LOOK_INTERVAL_MS)
        observed.timer = step.book.timers.set(due, TimerKind.OBSERVE, None)


def stage(step: Step, name: str, milliseconds: int) -> None:
    """Note how long a task was in one stage."""
    step.book.observed.stages.append((name, milliseconds))


def linked(step: Step, instance: Instance) -> None:
    """Note that an instance opened its link: too often is flapping."""
    observed = step.book.observed
    counter = observed.links.pop(instance.key, None) or LinkCounter()
    if len(observed.links) >= LINKS_MAX:
        del observed.links[next(iter(observed.links))]
    observed.links[instance.key] = counter
    count = counter.add(step.now)
    if count >= FLAP_COUNT:
        minutes = FLAP_WINDOW_MS // 60_000
        _raise(
            step,
            AlertKind.FLAPPING_AGENT,
            f"agent/{instance.key}",
            f"its link was opened {count} times within {minutes} min: look at its network and its log",
        )
    keep_looking(step)


def missed(step: Step, task_type: str, expected: Estimate, actual_ms: int) -> None:
    """Note how far a prediction was off: one run after the other in one direction is drift."""
    observed = step.book.observed
    inside = expected.low_ms <= actual_ms <= expected.high_ms
    observed.misses.append(Miss(max(actual_ms, 1) / expected.mean_ms, inside))
    counter = observed.drifts.get(task_type)
    if counter is None:
        if len(observed.drifts) >= DRIFTS_MAX:
            del observed.drifts[next(iter(observed.drifts))]
        counter = observed.drifts[task_type] = DriftCounter()
    counter.add(expected.score(actual_ms))
    if counter.drifting:
        way = "longer" if counter.longer > counter.shorter else "shorter"
        message = (
            f"its runs are {way} than predicted, one after the other; the last one took {actual_ms} ms "
            f"where {expected.mean_ms:.0f} were expected: something about this work has changed"
        )
        _raise(step, AlertKind.DRIFTING_PREDICTION, f"type/{task_type}", message)
    elif observed.alerts.standing and counter.settled:
        _clear(step, AlertKind.DRIFTING_PREDICTION, f"type/{task_type}")


def look(step: Step, _: None = None) -> None:
    """Look at what runs and what waits; clear alerts whose reason is gone."""
    book = step.book
    observed = book.observed
    observed.timer = None
    if observed.round is None:
        observed.round = Round(after(step.now, LOOK_INTERVAL_MS), [*book.instances.values()])
        _look_at_queue(step)
        _look_at_links(step)
    now = observed.round
    for instance in now.left[-LOOKED_AT_MAX:]:
        _look_at_attempts(step, instance, now.stuck)
    del now.left[-LOOKED_AT_MAX:]
    if now.left:
        due = after(step.now, LOOK_PAUSE_MS)
        observed.timer = book.timers.set(due, TimerKind.OBSERVE, None)
        return
    observed.round = None
    for subject in observed.alerts.of(AlertKind.STUCK_TASK):
        if subject not in now.stuck:
            _clear(step, AlertKind.STUCK_TASK, subject)
    if book.open_task_count or book.streams or observed.alerts.standing:
        due = max(now.next_time, after(step.now, LOOK_PAUSE_MS))
        observed.timer = book.timers.set(due, TimerKind.OBSERVE, None)


def _look_at_links(step: Step) -> None:
    observed = step.book.observed
    for subject in observed.alerts.of(AlertKind.FLAPPING_AGENT):
        key = next((key for key in observed.links if f"agent/{key}" == subject), None)
        if key is None or observed.links[key].count(step.now) <= FLAP_CLEAR_COUNT:
            _clear(step, AlertKind.FLAPPING_AGENT, subject)


def _look_at_attempts(step: Step, instance: Instance, stuck: set[str]) -> None:
    for task in instance.held.values():
        # Of several attempts of one task (one may be speculative) this instance's own counts.
        attempt = task.at(instance.key)
        story = "" if attempt is None else _stuck(step, task, attempt, instance)
        if story:
            subject = f"task/{task.key}"
            stuck.add(subject)
            _raise(step, AlertKind.STUCK_TASK, subject, story)


def _stuck(step: Step, task: Task, attempt: Attempt, instance: Instance) -> str:
    """Return why an attempt counts as stuck, empty when it does not."""
    if attempt.start_time is None:
        waited_ms = step.now - attempt.assign_time
        if instance.stream is not None and waited_ms > UNBEGUN_MS_MAX:
            return f"{instance.key} holds it for {waited_ms} ms and has not begun: look at that agent"
        return ""
    spec, ran_ms = task.spec, step.now - attempt.start_time
    if ran_ms <= STUCK_MS_MIN:
        return ""
    task_type = task.task_type or spec.required_skills[0]
    estimate = step.book.predictor.estimate(
        instance.key.agent_id, task_type, spec.estimated_duration_ms, spec.required_skills[0]
    )
    most_ms = stuck_after_ms(estimate)
    if ran_ms <= most_ms:
        return ""
    return (
        f"it runs at {instance.key} for {ran_ms} ms; {estimate.mean_ms:.0f} ms were expected, and more than "
        f"{most_ms:.0f} are out of the ordinary"
    )


def _look_at_queue(step: Step) -> None:
    samples = step.book.observed.queue
    samples.append(step.book.index.waiting_count)
    if queue_grows([*samples]):
        seconds = (len(samples) - 1) * LOOK_INTERVAL_MS // 1_000
        message = (
            f"{samples[-1]} ready tasks wait for an agent, {samples[0]} did {seconds} s ago: "
            "more agents are needed, or fewer submissions"
        )
        _raise(step, AlertKind.GROWING_QUEUE, "queue", message)
    elif samples[-1] <= min(samples):
        _clear(step, AlertKind.GROWING_QUEUE, "queue")


def _raise(step: Step, kind: AlertKind, subject: str, message: str) -> None:
    alert = step.book.observed.alerts.put(kind, subject, message, step.now)
    if alert is not None:
        _record(step, "alert.raise", alert)


def _clear(step: Step, kind: AlertKind, subject: str) -> None:
    alert = step.book.observed.alerts.clear(kind, subject, step.now)
    if alert is not None:
        _record(step, "alert.clear", alert)


def _record(step: Step, operation: str, alert: Alert) -> None:
    collaboration_id = ""
    if alert.kind is AlertKind.STUCK_TASK:
        collaboration_id = alert.subject.removeprefix("task/").partition("/")[0]
    step.entry(
        operation,
        alert.subject,
        _SELF,
        collaboration_id=collaboration_id,
        attributes={"kind": alert.kind.name, "what": alert.message},
    )


def standing_counts(book: Book) -> dict[str, int]:
    """Return how many alerts stand, by the name of their kind."""
    counts = {kind.name: 0 for kind in AlertKind}
    for kind, _ in book.observed.alerts.standing:
        counts[kind.name] += 1
    return counts
