"""Locks that agents' code asks for: `async with agent.lock("bridge-3")`."""

from __future__ import annotations

from services.common.core.entries import Outcome
from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import after
from services.scheduler.core.book import Book, LockUse, Step
from services.scheduler.core.course import Task
from services.scheduler.core.effects import RefuseLocks, RevokeLock
from services.scheduler.core.events import HeldLock, LockReleased, LockRequested, StreamId
from services.scheduler.core.instances import Instance
from services.scheduler.core.intake.validation import validate_claims
from services.scheduler.core.locking import claims
from services.scheduler.core.locking.queue import (
    InstanceOwner,
    LockId,
    LockOwner,
    LockRequest,
    TaskOwner,
)
from services.scheduler.core.model import AttemptRef, Priority
from services.scheduler.core.refusals import stale_token
from services.scheduler.core.timers import TimerKind


def request(step: Step, instance: Instance, stream: StreamId, asked: LockRequested) -> None:
    """Grant what an agent asks for, let it wait, or refuse it."""
    try:
        task = _check(step.book, instance, asked)
    except ServiceError as error:
        refuse(step, instance, stream, asked.lock_request_id, error)
        return
    owner: LockOwner = InstanceOwner(instance.key) if task is None else TaskOwner(task.key)
    priority = Priority.NORMAL if task is None else task.priority
    use = LockUse(
        LockRequest(_next_lock_id(step.book, instance), owner, asked.claims, priority),
        step.now,
        declared=False,
        instance=instance,
        task=task,
        attempt=asked.attempt,
        stream=stream,
        lock_request_id=asked.lock_request_id,
        wait_until=None if asked.wait_ms_max is None else after(step.now, asked.wait_ms_max),
    )
    _ask(step, use, may_wait=asked.wait_ms_max != 0)


def release(step: Step, instance: Instance, released: LockReleased) -> None:
    """Take locks back, or withdraw what waits; what is not there is passed over: it may be repeated."""
    if not released.locks:
        lock_id = instance.lock_requests.get(released.lock_request_id)
        if lock_id is not None:
            claims.end_use(step, step.book.lock_uses[lock_id])
        return
    for lock in released.locks:
        use = _find(step.book, instance, lock)
        if use is not None:
            claims.entry(step, use, "lock.release")
            claims.carry_out(step, step.book.locks.release(use.request.lock_id, [lock.resource]))


def give_up(step: Step, use: LockUse) -> None:
    """Refuse a request that waited as long as its owner wanted to."""
    claims.carry_out(step, step.book.locks.give_up(use.request.lock_id))


def end_waiting(step: Step, instance: Instance) -> None:
    """Withdraw what an instance asked for on a stream that is gone."""
    for lock_id in [*instance.lock_ids]:
        use = step.book.lock_uses[lock_id]
        if use.token is None:
            claims.end_use(step, use)
    instance.lock_requests.clear()


def reconcile(step: Step, instance: Instance, stream: StreamId, held: tuple[HeldLock, ...]) -> None:
    """Compare what an instance that came back believes to hold with what it holds.

    A grant of which it never heard is given back; a lock that ended meanwhile is revoked.
    """
    for lock in held:
        if _find(step.book, instance, lock, declared=True) is None:
            step.effects.append(RevokeLock(stream, lock, "it ended while the link was down"))
    believed = frozenset(held)
    for lock_id in [*instance.lock_ids]:
        use = step.book.lock_uses[lock_id]
        for lock in use.held_locks:
            if lock not in believed:
                claims.carry_out(step, step.book.locks.release(lock_id, [lock.resource]))


def take_back(step: Step, use: LockUse) -> None:
    """Undo a grant that another program's older key has beaten: its keys are being deleted.

    A declared request ends, since its attempt does; one of an agent's code takes its place again.
    """
    step.book.locks.release(use.request.lock_id)
    outcomes = step.book.locks.roll_back(use.request.lock_id)
    claims.drop(step, use)
    claims.carry_out(step, outcomes)
    instance = use.instance
    if use.declared or use.abandoned or instance is None or use.stream != instance.stream:
        return
    # Under a new id: the old one's keys are on their way out, and a deleted key must not come back to life.
    request = LockRequest(
        _next_lock_id(step.book, instance), use.request.owner, use.request.claims, use.request.priority
    )
    again = LockUse(
        request,
        use.asked,
        declared=False,
        instance=instance,
        task=use.task,
        attempt=use.attempt,
        stream=use.stream,
        lock_request_id=use.lock_request_id,
        wait_until=use.wait_until,
    )
    _ask(step, again, may_wait=use.wait_until is None or use.wait_until > step.now)


def refuse(
    step: Step, instance: Instance, stream: StreamId, lock_request_id: int, error: ServiceError
) -> None:
    """Answer a request that will not be granted."""
    step.effects.append(RefuseLocks(stream, lock_request_id, error))
    step.entry(
        "lock.grant",
        f"lock/{error.metadata.get('resource', '')}",
        f"agent/{instance.key.agent_id}",
        outcome=Outcome.REFUSED,
        reason=error.reason,
    )


def _ask(step: Step, use: LockUse, *, may_wait: bool) -> None:
    instance, lock_id = use.instance, use.request.lock_id
    if instance is None:
        raise AssertionError(f"{lock_id} is asked for by nobody")
    step.book.lock_uses[lock_id] = use
    instance.lock_ids[lock_id] = None
    instance.lock_requests[use.lock_request_id] = lock_id
    claims.carry_out(step, step.book.locks.request(use.request, use.asked, may_wait=may_wait))
    if lock_id in step.book.lock_uses and not use.proposed and use.wait_until is not None:
        use.timer = step.book.timers.set(use.wait_until, TimerKind.LOCK_WAIT, use)


def _check(book: Book, instance: Instance, asked: LockRequested) -> Task | None:
    """Return the task on whose behalf is asked; raise `ServiceError` when the request makes no sense."""
    validate_claims(asked.claims, "lock_requests.claims", book.settings.limits)
    if asked.lock_request_id in instance.lock_requests:
        raise ServiceError(
            Reason.INVALID_FIELD,
            f"lock_requests.lock_request_id: {asked.lock_request_id} is in use on this stream: take another",
        )
    if len(instance.lock_ids) >= book.settings.lock_request_max:
        raise ServiceError(
            Reason.QUOTA_EXCEEDED,
            f"this instance holds or awaits {len(instance.lock_ids)} locks already: release some",
            metadata={"limit": "lock_request_max"},
        )
    return None if asked.attempt is None else _owning_task(book, instance, asked.attempt)


def _owning_task(book: Book, instance: Instance, ref: AttemptRef) -> Task:
    task = instance.held.get(ref.task_key)
    current = None if task is None else task.at(instance.key)
    if task is None or current is None or current.token != ref.token:
        raise stale_token(book, ref)
    return task


def _find(book: Book, instance: Instance, lock: HeldLock, *, declared: bool = False) -> LockUse | None:
    """Return the use under which an instance holds `lock`; with `declared` its attempts' claims count too."""
    lock_ids = [*instance.lock_ids]
    if declared:
        lock_ids += [task.lock_id for task in instance.held.values() if task.lock_id is not None]
    for lock_id in lock_ids:
        if lock in book.lock_uses[lock_id].held_locks:
            return book.lock_uses[lock_id]
    return None


def _next_lock_id(book: Book, instance: Instance) -> LockId:
    book.lock_serial += 1
    return LockId(f"{instance.key.agent_id}.{instance.key.instance_id}.{book.epoch:x}.{book.lock_serial:x}")
