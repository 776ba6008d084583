"""Locks as tasks and agents use them: what the lock table decides, turned into writes, sends and places.

A task's declared claims are asked for when an agent is free for it, and are granted together with the
placement or not at all: the attempt and the keys of its locks are one commit. A task that must wait for a
lock leaves the placement index; when its turn comes it returns there, and when then no agent is free it gives
its turn back. So a lock is never idle for want of an agent, and an agent never for want of a lock.

Locks that an agent's code asks for belong to an attempt, whose end ends them, or to the instance.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.common.core.instants import Instant, after
from services.scheduler.core.book import LockUse, Step
from services.scheduler.core.course import Attempt, Place, Task
from services.scheduler.core.effects import (
    DeleteLock,
    PutLock,
    RefuseLocks,
    RevokeLock,
)
from services.scheduler.core.events import HeldLock
from services.scheduler.core.instances import Instance
from services.scheduler.core.locking.queue import LockId, LockRequest, TaskOwner
from services.scheduler.core.locking.table import Freed, Lent, LockOutcome, Proposed, Refused
from services.scheduler.core.placing import places
from services.scheduler.core.records import StoredLock

#: Pause before a task whose claims were refused asks again, in milliseconds. That happens only when its
#: attempt before has locks on their way into the store, which this batch's commit settles.
_REFUSED_DELAY_MS = 20


# Declared claims.


def claim(step: Step, task: Task) -> bool:
    """Return whether a task's claims are granted, now that an agent is free; if not, it waits for them."""
    if not task.spec.resources:
        return True
    if task.lock_id is None:
        key = task.key
        lock_id = LockId(f"{key.collaboration_id}.{key.task_id}.{task.attempt_count + 1}")
        request = LockRequest(lock_id, TaskOwner(key), task.spec.resources, task.priority)
        task.lock_id = lock_id
        # Its place in the line is that of the moment at which it became ready, however often it gives its
        # turn back for want of an agent.
        asked = step.now if task.ready_time is None else task.ready_time
        step.book.lock_uses[lock_id] = LockUse(request, asked, declared=True, instance=None, task=task)
        carry_out(step, step.book.locks.request(request, asked))
    use = None if task.lock_id is None else step.book.lock_uses.get(task.lock_id)
    if use is not None and use.proposed:
        return True
    if use is not None:
        places.enter_locks(step, task)
    return False


def bind(step: Step, task: Task, attempt: Attempt, instance: Instance) -> None:
    """Write the granted claims of a task for the attempt that was placed."""
    if task.lock_id is None:
        return
    use = step.book.lock_uses[task.lock_id]
    step.book.reserved.pop(task.lock_id, None)
    use.instance = instance
    use.attempt = task.ref(attempt)
    _write(step, use)


def give_back(step: Step) -> bool:
    """Withdraw the requests of tasks whose turn came and for whom no agent was free; return whether any was.

    A reservation that waits for an agent could block a lock on which that agent's present work waits.
    """
    if not step.book.reserved:
        return False
    reserved, step.book.reserved = step.book.reserved, {}
    for lock_id in reserved:
        end_use(step, step.book.lock_uses[lock_id])
    return True


# Ends.


def end_attempt(step: Step, task: Task, attempt: Attempt, reason: str) -> None:
    """End every lock of an attempt; with a `reason` its agent is told that they are gone."""
    if task.lock_id is not None and (use := step.book.lock_uses.get(task.lock_id)) is not None:
        end_use(step, use, reason)
    instance = step.book.instance_of(attempt)
    if instance is None or not instance.lock_ids:
        return
    ref = task.ref(attempt)
    for lock_id in [*instance.lock_ids]:
        if (use := step.book.lock_uses.get(lock_id)) is not None and use.attempt == ref:
            end_use(step, use, reason)


def end_instance(step: Step, instance: Instance) -> None:
    """End every lock of an instance's code; its attempts' ends end the others."""
    for lock_id in [*instance.lock_ids]:
        if (use := step.book.lock_uses.get(lock_id)) is not None:
            end_use(step, use)


def end_use(step: Step, use: LockUse, reason: str = "") -> None:
    """End a request in whatever stage it is; with a `reason` a holder is told."""
    lock_id = use.request.lock_id
    outcomes = step.book.locks.release(lock_id)
    if use.token is not None:
        if reason:
            revoke(step, use, use.held_locks, reason)
        else:
            entry(step, use, "lock.release")
    elif use.written:
        # Its keys are on their way: `LocksWritten` will end it.
        use.abandoned = True
        if use.task is not None and use.task.lock_id == lock_id:
            use.task.lock_id = None
    else:
        if use.proposed:
            # Released it became abandoned; nothing was written, so nothing else will end it.
            outcomes = step.book.locks.roll_back(lock_id)
        drop(step, use)
    carry_out(step, outcomes)


def revoke(step: Step, use: LockUse, locks: Iterable[HeldLock], reason: str) -> None:
    """Tell the holder and the log that locks ended without being released."""
    entry(step, use, "lock.revoke", reason)
    if use.instance is not None and use.instance.stream is not None:
        step.effects += [RevokeLock(use.instance.stream, lock, reason) for lock in locks]


def carry_out(step: Step, outcomes: Iterable[LockOutcome]) -> None:
    """Turn what the lock table decided into writes, sends and places."""
    for outcome in outcomes:
        match outcome:
            case Proposed(request):
                _proposed(step, step.book.lock_uses[request.lock_id])
            case Refused(request, error):
                use = step.book.lock_uses[request.lock_id]
                drop(step, use)
                if use.stream is not None:
                    step.effects.append(RefuseLocks(use.stream, use.lock_request_id, error))
                elif use.task is not None:
                    places.leave(step, use.task)
                    places.enter_delay(step, use.task, after(step.now, _REFUSED_DELAY_MS))
            case Lent(request, lender, priority):
                use = step.book.lock_uses[request.lock_id]
                why = f"{lender.owner} waits for it and lends it the class {priority.name}"
                entry(step, use, "lock.lend", why)
            case Freed(lock_id, resources):
                step.effects += [DeleteLock(resource, lock_id) for resource in resources]
                use = step.book.lock_uses[lock_id]
                use.ended.update(resources)
                if len(use.ended) == len(use.request.claims):
                    drop(step, use)


def until_of(step: Step, instance: Instance) -> Instant:
    """Return until when an instance's locks stand if nothing more is heard of it."""
    if instance.heard is None:
        return step.now if instance.timer is None else instance.timer.at
    settings = step.book.settings
    return after(instance.heard, settings.silence_ms_max + settings.reconnect_grace_ms)


def _proposed(step: Step, use: LockUse) -> None:
    use.proposed = True
    step.book.timers.cancel(use.timer)
    use.timer = None
    task = use.task
    if not use.declared:
        _write(step, use)
    elif task is not None and task.place is Place.LOCKS:
        places.enter_queue(step, task)
        step.book.reserved[use.request.lock_id] = task


def _write(step: Step, use: LockUse) -> None:
    if use.instance is None:
        raise AssertionError(f"{use.request.lock_id} is granted to nobody")
    use.written = True
    request = use.request
    step.effects += [
        PutLock(
            StoredLock(
                claim.resource,
                request.lock_id,
                claim.mode,
                use.instance.key,
                use.attempt,
                use.declared,
                request.priority,
                step.now,
                step.book.epoch,
            )
        )
        for claim in request.claims
    ]


def drop(step: Step, use: LockUse) -> None:
    """Forget a request that is over."""
    lock_id = use.request.lock_id
    del step.book.lock_uses[lock_id]
    step.book.reserved.pop(lock_id, None)
    step.book.timers.cancel(use.timer)
    if use.declared:
        if use.task is not None and use.task.lock_id == lock_id:
            use.task.lock_id = None
    elif use.instance is not None:
        use.instance.lock_ids.pop(lock_id, None)
        if use.instance.lock_requests.get(use.lock_request_id) == lock_id:
            del use.instance.lock_requests[use.lock_request_id]


def entry(step: Step, use: LockUse, operation: str, reason: str = "") -> None:
    """Have something about a lock recorded in the audit log."""
    resources = ",".join(claim.resource for claim in use.request.claims)
    step.entry(
        operation,
        f"lock/{resources}"[:256],
        "service/scheduler" if use.instance is None else f"agent/{use.instance.key.agent_id}",
        collaboration_id=use.task.key.collaboration_id if use.task is not None else "",
        attributes={
            "claim": use.request.lock_id,
            "token": "" if use.token is None else str(use.token),
            **({"why": reason} if reason else {}),
        },
    )


def renew(step: Step, instance: Instance) -> None:
    """Note until when an instance's locks stand, for those who are told that they must wait."""
    until = until_of(step, instance)
    uses = step.book.lock_uses
    for lock_id in instance.lock_ids:
        step.book.locks.renew(uses[lock_id].request.owner, until)
    for task in instance.held.values():
        if task.lock_id is not None:
            step.book.locks.renew(uses[task.lock_id].request.owner, until)
