"""From what the store holds to a state, at the start of a leadership.

A batch of the leader before may be in the store in part: nothing of it was published, and every record is
consistent in itself. What the records leave open is settled by the decisions of normal operation: readiness,
completion and failure follow from the tasks' states, and an attempt that should hold locks and does not is
lost. Open attempts are adopted: their tokens, though of an older epoch, stay valid, and their agents get the
takeover grace to come back and say that they run them.
"""

from __future__ import annotations

from services.common.core.fencing import FencingToken
from services.common.core.ids import ResourceName
from services.common.core.instants import after
from services.scheduler.core import collaborations
from services.scheduler.core.agents import give_up, is_over, note_instance
from services.scheduler.core.book import LockUse, Step
from services.scheduler.core.course import Collaboration, Place, Task
from services.scheduler.core.effects import DeleteLock
from services.scheduler.core.events import Recovered
from services.scheduler.core.history import History
from services.scheduler.core.locking import claims
from services.scheduler.core.locking.queue import (
    ForeignKey,
    InstanceOwner,
    LockId,
    LockOwner,
    LockRequest,
    TaskOwner,
)
from services.scheduler.core.model import (
    TASK_WAITING,
    AttemptState,
    CollaborationState,
    LockMode,
    ResourceClaim,
    TaskState,
)
from services.scheduler.core.monitoring import observing
from services.scheduler.core.placing import gangs, places
from services.scheduler.core.policies import adapting
from services.scheduler.core.policies.bandit import PolicyCell
from services.scheduler.core.records import StoredCollaboration, StoredLock, TaskRecord
from services.scheduler.core.running import attempts, lateness, outcomes, suspension
from services.scheduler.core.running.deadlines import restored
from services.scheduler.core.timers import TimerKind


def recover(step: Step, event: Recovered) -> None:
    """Take over everything that the store holds. Called once, on an empty book."""
    step.book.predictor.restore(event.learned)
    for _, cell in event.learned:
        if isinstance(cell, PolicyCell):
            adapting.restore(step.book, cell)
    observing.keep_looking(step)
    stored = sorted(event.collaborations, key=lambda each: each.spec.arrival)
    restored = [_restore(step, each) for each in stored]
    ended = [collaboration for collaboration in restored if collaboration.ended]
    ended.sort(key=lambda collaboration: collaboration.end_time or 0)
    for collaboration in ended:
        step.book.note_end(collaboration)
    _restore_locks(step, event)
    for collaboration in restored:
        if not collaboration.ended:
            _resume(step, collaboration)
    until = after(step.now, step.book.settings.takeover_grace_ms)
    for instance in step.book.instances.values():
        instance.recovered = True
        instance.timer = step.book.timers.set(until, TimerKind.GRACE, instance)
        view = step.book.directory.instance(instance.key)
        if view is not None and is_over(view, instance):
            give_up(step, instance)
        claims.renew(step, instance)


def _restore(step: Step, stored: StoredCollaboration) -> Collaboration:
    """Return the collaboration with every task as it was last committed; nothing is decided yet."""
    spec, record = stored.spec, stored.record
    collaboration = collaborations.build(
        step.book, spec.collaboration_id, spec.submission, spec.submit_time, spec.arrival, record.trial
    )
    if record.end_time is None:
        adapting.adopt(step.book, record.trial)
    collaboration.state = record.state
    collaboration.end_time = record.end_time
    collaboration.coordinator_agent = record.coordinator_agent
    collaboration.failure = record.failure
    collaboration.lateness = restored(record.warnings)
    for task_record in stored.tasks:
        _restore_task(step, collaboration.tasks[task_record.task_id], task_record)
    ends = sorted(stored.tasks, key=lambda task_record: task_record.collaboration_generation)
    for task_id, state in ((task_record.task_id, task_record.state) for task_record in ends):
        if state is TaskState.FAILED:
            collaboration.failed.append(task_id)
        if state is TaskState.SUCCEEDED:
            collaboration.succeeded.append(task_id)
            for dependent in collaboration.tasks[task_id].dependents:
                collaboration.tasks[dependent].unmet -= 1
    made = [attempt for task in collaboration.tasks.values() for attempt in task.attempts]
    made.sort(key=lambda attempt: attempt.assign_time)
    collaboration.members = {attempt.instance.agent_id: None for attempt in made}
    collaboration.generation = max([record.generation, *(row.collaboration_generation for row in ends)])
    collaboration.history = History(step.book.settings.history_max, collaboration.generation)
    over = sum(task.ended for task in collaboration.tasks.values())
    collaboration.open_count -= over
    step.book.open_task_count -= over
    return collaboration


def _restore_task(step: Step, task: Task, record: TaskRecord) -> None:
    task.state = record.state
    task.generation = record.generation
    task.collaboration_generation = record.collaboration_generation
    task.keep_attempts(record.attempts)
    task.attempt_count = record.attempt_count
    task.failure_count = record.failure_count
    task.result = record.result
    task.failure = record.failure
    task.ready_time = record.ready_time
    task.end_time = record.end_time
    task.retry_time = record.retry_time
    task.cause_id = record.cause_id
    if task.state is TaskState.SUCCEEDED:
        task.progress = 1.0
    task.savepoint = record.savepoint
    task.excused_count = record.excused_count
    for attempt in task.open_attempts:
        book, key = step.book, attempt.instance
        instance = book.instances.get(key) or note_instance(book, key, attempt.incarnation)
        instance.incarnation = max(instance.incarnation, attempt.incarnation)
        instance.hold(task)


def _resume(step: Step, collaboration: Collaboration) -> None:
    """Set an open collaboration going again."""
    lateness.restore_alerts(step, collaboration)
    for task in collaboration.tasks.values():
        if not task.ended:
            _resume_task(step, task)
    # What the leader before had decided and not got into the store is decided again.
    if collaboration.members and collaboration.state is CollaborationState.INITIALIZING:
        attempts.begin(step, collaboration, next(iter(collaboration.members)))
    for task in [*collaboration.tasks.values()]:
        if task.state is TaskState.PENDING and task.unmet == 0:
            outcomes.make_ready(step, task, collaboration.submission.request_id)
        elif task.state is TaskState.FAILED:
            outcomes.cancel_dependents(step, task)
        elif task.spec.resources and task.lock_id is None:
            for attempt in task.open_attempts:
                outcomes.lose(step, task, attempt, "its locks are not in the store")
    for task in collaboration.tasks.values():
        if task.spec.gang is not None and task.place is not Place.NOWHERE:
            # The leader before may have written the end, or the start, of some members only.
            gangs.regroup(step, task, step.cause_id)
    cancelled = [task for task in collaboration.tasks.values() if task.state is TaskState.CANCELLED]
    if cancelled and not collaboration.failed:
        failure = cancelled[0].failure
        outcomes.cancel(step, collaboration, outcomes.SELF, "" if failure is None else failure.message)
    outcomes.end_if_done(step, collaboration, step.cause_id)


def _resume_task(step: Step, task: Task) -> None:
    """Put an open task back where it waited, or watch its open attempt."""
    if task.generation == 0:
        collaborations.open_task(step, task, task.collaboration)
        return
    if task.deadline is not None:
        task.deadline_timer = step.book.timers.set(task.deadline, TimerKind.DEADLINE, task)
    for attempt in task.open_attempts:
        if attempt.state is AttemptState.SUSPENDING:
            suspension.watch_again(step, task, attempt)
        else:
            attempts.watch(step, task, attempt)
        attempts.watch_straggling(step, task, attempt)
    if task.open_attempts:
        lateness.watch(step, task)
    if task.state is TaskState.READY and task.retry_time is not None:
        places.enter_delay(step, task, task.retry_time)
    elif task.state in TASK_WAITING:
        places.enter_queue(step, task)


def _restore_locks(step: Step, event: Recovered) -> None:
    """Adopt the locks whose owners live; delete the keys of others, and of the younger of two in conflict."""
    oldest_foreign: dict[ResourceName, int] = {}
    for foreign in event.foreign:
        key = ForeignKey(foreign.resource, foreign.claim_id, foreign.create_revision)
        step.book.locks.put_foreign(key)
        known = oldest_foreign.get(foreign.resource, foreign.create_revision)
        oldest_foreign[foreign.resource] = min(known, foreign.create_revision)
    by_claim: dict[str, list[StoredLock]] = {}
    for lock in event.locks:
        by_claim.setdefault(lock.claim_id, []).append(lock)
    held: dict[ResourceName, LockMode] = {}
    for claim_id, rows in sorted(by_claim.items(), key=lambda row: row[1][0].revision):
        beaten = any(oldest_foreign.get(row.resource, row.revision) < row.revision for row in rows)
        if _is_wanted(step, rows) and not beaten and not _conflicts(held, rows):
            held.update((row.resource, row.mode) for row in rows)
            _restore_lock(step, LockId(claim_id), rows)
        else:
            step.effects += [DeleteLock(row.resource, claim_id) for row in rows]


def _is_wanted(step: Step, rows: list[StoredLock]) -> bool:
    """Return whether the owner of one request's keys lives, and all of them are there."""
    first = rows[0]
    if first.attempt is None:
        return True
    task = step.book.task(first.attempt)
    current = None if task is None else task.find(first.attempt.token)
    if task is None or current is None or not current.open:
        return False
    return not first.declared or len(rows) == len(task.spec.resources)


def _conflicts(held: dict[ResourceName, LockMode], rows: list[StoredLock]) -> bool:
    return any(row.resource in held and LockMode.EXCLUSIVE in (row.mode, held[row.resource]) for row in rows)


def _restore_lock(step: Step, lock_id: LockId, rows: list[StoredLock]) -> None:
    book, first = step.book, rows[0]
    task = None if first.attempt is None else book.task(first.attempt)
    instance = book.instances.get(first.instance) or note_instance(book, first.instance, 0)
    owner: LockOwner = InstanceOwner(first.instance) if task is None else TaskOwner(task.key)
    wanted = tuple(ResourceClaim(row.resource, row.mode) for row in rows)
    request = LockRequest(lock_id, owner, wanted, first.priority)
    token = FencingToken(first.epoch, first.revision)
    book.locks.restore(request, token, instance.key, first.since)
    use = LockUse(
        request, first.since, declared=first.declared, instance=instance, task=task, attempt=first.attempt
    )
    use.proposed = use.written = True
    use.token = token
    book.lock_uses[lock_id] = use
    if use.declared and task is not None:
        task.lock_id = lock_id
    else:
        instance.lock_ids[lock_id] = None
