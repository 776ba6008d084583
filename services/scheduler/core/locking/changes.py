"""What the store says about locks: keys that became durable, keys of other programs, keys that are gone."""

from __future__ import annotations

from services.common.core.fencing import FencingToken
from services.scheduler.core.book import LockUse, Step
from services.scheduler.core.effects import Assign, DeleteLock, GrantLocks
from services.scheduler.core.events import HeldLock, LockKeysChanged, LocksWritten, LockWritten
from services.scheduler.core.locking import claims
from services.scheduler.core.locking import requests as lock_requests
from services.scheduler.core.locking.queue import ForeignKey, LockId
from services.scheduler.core.model import Failure, FailureKind
from services.scheduler.core.running import outcomes


def locks_written(step: Step, event: LocksWritten) -> None:
    """Let locks count whose keys are durable, and hand over what waited for that.

    Where a key of another program came before, the grant is undone: of all keys under a resource the oldest
    one holds, which is the rule that every etcd client follows.
    """
    for lock in event.locks:
        use = step.book.lock_uses[LockId(lock.claim_id)]
        if lock.beaten_by:
            _beaten(step, use, lock)
        else:
            _counts(step, use, lock.revision)


def keys_changed(step: Step, event: LockKeysChanged) -> None:
    """Take in other programs' keys, and end locks whose key is gone."""
    book = step.book
    for foreign in event.foreign:
        book.locks.put_foreign(ForeignKey(foreign.resource, foreign.claim_id, foreign.create_revision))
    for resource, claim_id in event.deleted:
        claims.carry_out(step, book.locks.remove_foreign(resource, claim_id))
        use = book.lock_uses.get(LockId(claim_id))
        if use is None or use.token is None or resource in use.ended:
            continue
        why = f"the key of {resource} is gone from the store: its lease ran out or somebody deleted it"
        if use.declared and use.task is not None:
            # The attempt was placed on the promise of all its claims.
            failure = Failure(FailureKind.TRANSIENT, "LOCK_LOST", why)
            if use.attempt is not None and (attempt := use.task.find(use.attempt.token)) is not None:
                outcomes.fail(step, use.task, attempt, failure, notice=why)
            continue
        claims.revoke(step, use, [HeldLock(resource, use.token)], why)
        claims.carry_out(step, book.locks.release(use.request.lock_id, [resource]))


def _counts(step: Step, use: LockUse, revision: int) -> None:
    book, instance, lock_id = step.book, use.instance, use.request.lock_id
    if instance is None:
        raise AssertionError(f"{lock_id} was written for nobody")
    token = FencingToken(book.epoch, revision)
    claims.carry_out(step, book.locks.confirm(lock_id, token, instance.key, step.now))
    if use.abandoned:
        return
    use.token = token
    until = claims.until_of(step, instance)
    book.locks.renew(use.request.owner, until)
    claims.entry(step, use, "lock.grant")
    if instance.stream is None:
        return
    if not use.declared:
        if use.stream == instance.stream:
            step.effects.append(GrantLocks(use.stream, use.lock_request_id, use.held_locks, until))
    elif use.task is not None and (attempt := use.task.at(instance.key)) is not None:
        step.effects.append(
            Assign(instance.stream, use.task.collaboration, use.task, attempt, use.held_locks)
        )


def _beaten(step: Step, use: LockUse, lock: LockWritten) -> None:
    for foreign in lock.beaten_by:
        key = ForeignKey(foreign.resource, foreign.claim_id, foreign.create_revision)
        step.book.locks.put_foreign(key)
    step.effects += [DeleteLock(claim.resource, lock.claim_id) for claim in use.request.claims]
    task = use.task if use.declared and not use.abandoned else None
    attempt = None if task is None or use.instance is None else task.at(use.instance.key)
    lock_requests.take_back(step, use)
    if task is not None and attempt is not None:
        outcomes.withdraw(
            step, task, attempt, f"{lock.beaten_by[0].resource} is held by a key that came before"
        )
