"""What is true of the state after every event. Used by tests and simulation; costs a walk over everything."""
# ruff: noqa: S101  # asserting is what this module is for

from __future__ import annotations

from collections import Counter

from services.scheduler.core.book import Book
from services.scheduler.core.course import Collaboration, Place, Task
from services.scheduler.core.instances import Instance
from services.scheduler.core.model import (
    TASK_HELD,
    TASK_WAITING,
    AttemptState,
    CollaborationState,
    LockMode,
    TaskState,
)
from services.scheduler.core.placing import gangs


def check(book: Book) -> None:
    """Raise `AssertionError` naming the first invariant that does not hold."""
    for collaboration in book.collaborations.values():
        _check_collaboration(book, collaboration)
    for instance in book.instances.values():
        _check_instance(book, instance)
    _check_counts(book)
    _check_locks(book)


def _check_collaboration(book: Book, collaboration: Collaboration) -> None:
    tasks = collaboration.tasks.values()
    assert collaboration.open_count == sum(not task.ended for task in tasks), collaboration
    assert len(collaboration.succeeded) == len(set(collaboration.succeeded)), collaboration
    done = {task.key.task_id for task in tasks if task.state is TaskState.SUCCEEDED}
    assert done == set(collaboration.succeeded), collaboration
    assert collaboration.ended == (collaboration.open_count == 0), collaboration
    assert collaboration.ended == (collaboration.end_time is not None), collaboration
    if collaboration.state is CollaborationState.COMPLETED:
        assert len(done) == len(collaboration.tasks), collaboration
    newest = collaboration.history.floor + len(collaboration.history)
    assert newest == collaboration.generation, f"{collaboration}: history ends at {newest}"
    for task in tasks:
        _check_task(book, task)
        if task.spec.gang is not None and not task.ended:
            together = {mate.state in TASK_HELD for mate in gangs.members(task) if not mate.ended}
            assert len(together) == 1, f"{task} is not where its gang is"


def _check_task(book: Book, task: Task) -> None:
    collaboration = task.collaboration
    assert task.ended == (task.end_time is not None), task
    # T3: exactly one result, committed with the attempt that found it.
    winners = [attempt for attempt in task.attempts if attempt.state is AttemptState.SUCCEEDED]
    succeeded = task.state is TaskState.SUCCEEDED
    assert len(winners) == (1 if succeeded else 0), f"{task}: {winners}"
    assert (task.result is not None) == succeeded, task
    assert (task.failure is not None) == (task.state in (TaskState.FAILED, TaskState.CANCELLED)), task
    # T2: tokens only grow; one attempt is open, or two of which the newer one is speculative (the
    # older one, too, when what it began beside has ended).
    tokens = [attempt.token for attempt in task.attempts]
    assert tokens == sorted(set(tokens)), task
    current = task.open_attempts
    assert current == tuple(attempt for attempt in task.attempts if attempt.open), task
    assert bool(current) == (task.state in TASK_HELD), task
    assert len(current) <= 2, f"{task}: {current}"
    assert len(current) < 2 or current[1].speculative, f"{task}: {current}"
    assert len({attempt.instance for attempt in current}) == len(current), f"{task}: {current}"
    assert set(task.watches) == {attempt.token.number for attempt in current}, f"{task} may run for ever"
    assert all(timer.live for timer in task.watches.values()), f"{task} may run for ever"
    for attempt in current:
        holder = book.instances.get(attempt.instance)
        assert holder is not None, f"{task} is held by nobody known"
        assert holder.held.get(task.key) is task, f"{task} is not with {holder}"
        suspending = attempt.state is AttemptState.SUSPENDING
        assert suspending == (attempt.suspend_time is not None), f"{task}: {attempt}"
    assert task.straggle_timer is None or current, task
    assert (task.key not in book.stragglers) or current, task
    assert task.excused_count + task.failure_count <= task.attempt_count, task
    assert task.savepoint is None or not task.ended, task
    assert task.savepoint_timer is None or current, task
    unmet = sum(
        collaboration.tasks[task_id].state is not TaskState.SUCCEEDED for task_id in task.spec.dependencies
    )
    assert task.unmet == unmet, f"{task}: {task.unmet} != {unmet}"
    if task.state in (*TASK_WAITING, *TASK_HELD, TaskState.SUCCEEDED):
        assert unmet == 0, f"{task} runs ahead of its dependencies"
    assert (task.place is not Place.NOWHERE) == (task.state in TASK_WAITING), f"{task}: {task.place!r}"
    paused = collaboration.state is CollaborationState.SUSPENDED
    assert not paused or task.place not in (Place.QUEUE, Place.LOCKS), f"{task} of a paused collaboration"
    assert paused or task.place is not Place.PAUSE, f"{task} waits for a pause that is over"
    urgent = task.place is Place.QUEUE and task.priority <= book.settings.preempting_priority
    urgent = urgent and task.spec.gang is None
    assert (task.key in book.urgent) == urgent, task
    assert (task.queue_number > 0) == (task.place is Place.QUEUE), task
    if task.place is Place.LOCKS:
        assert task.lock_id in book.lock_uses, f"{task} waits for a lock that nobody asked for"
    if task.spec.resources and current:
        assert len(current) == 1, f"{task} runs twice with locks"
        assert task.lock_id in book.lock_uses, f"{task} runs without its locks"


def _check_instance(book: Book, instance: Instance) -> None:
    assert instance.credits >= 0, f"{instance} got more than it granted"
    assert instance.credits <= book.settings.credit_max, instance
    for key, task in instance.held.items():
        assert key == task.key, instance
        assert task.at(instance.key) is not None, f"{instance} holds {task}"
    if instance.stream is None:
        assert instance.credits == 0, instance
    else:
        assert book.streams.get(instance.stream) is instance, instance
    assert instance.timer is not None, f"{instance} may stay for ever"
    assert instance.timer.live, f"{instance} may stay for ever"
    for lock_id in instance.lock_ids:
        assert book.lock_uses[lock_id].instance is instance, instance


def _check_counts(book: Book) -> None:
    every = [*book.collaborations.values()]
    running = [collaboration for collaboration in every if not collaboration.ended]
    assert book.open_collaboration_count == len(running), book.open_collaboration_count
    assert book.open_task_count == sum(collaboration.open_count for collaboration in every)
    assert book.open_bytes == sum(collaboration.size_bytes for collaboration in running)
    assert Counter(book.ended) == Counter(
        collaboration.collaboration_id for collaboration in every if collaboration.ended
    )
    queued = sum(
        task.place is Place.QUEUE for collaboration in every for task in collaboration.tasks.values()
    )
    assert book.index.waiting_count == queued, (book.index.waiting_count, queued)
    assert set(book.streams.values()) <= set(book.instances.values())
    assert all(task.place is Place.QUEUE for task in book.reserved.values()), book.reserved


def _check_locks(book: Book) -> None:
    views = book.locks.snapshot()
    ours = {view.lock_id for view in views if view.lock_id is not None}
    assert ours == set(book.lock_uses), ours ^ set(book.lock_uses)
    for resource in {view.resource for view in views}:
        held = [view for view in views if view.resource == resource and view.held and view.lock_id]
        exclusive = [view for view in held if view.mode is LockMode.EXCLUSIVE]
        assert not exclusive or len(held) == 1, f"{resource}: {held}"
