"""What must hold of preemption, savepoints and lent priority, whatever the random world does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from services.common.core.entries import EntryDraft
from services.common.core.fencing import FencingToken
from services.scheduler.core.course import Task
from services.scheduler.core.locking.queue import TaskOwner
from services.scheduler.core.model import LockMode, TaskKey
from tests.unit.scheduler.scheduler_stage import Stage

#: The agent of the random world that does not heed requests to suspend.
DEAF = "c"


def every_task(stage: Stage) -> Iterator[Task]:
    for collaboration in stage.state.book.collaborations.values():
        yield from collaboration.tasks.values()


def check_results_are_final(stage: Stage, committed: Mapping[TaskKey, bytes]) -> None:
    """T3: forgotten after its retention, or exactly what was acked."""
    for name, data in committed.items():
        found = stage.state.book.task(name)
        assert found is None or (found.result is not None and found.result.data == data)


def check_exclusive_locks(stage: Stage) -> None:
    """No two requests hold a resource of which one is exclusive."""
    holders: dict[str, str] = {}
    for use in stage.state.book.lock_uses.values():
        for lock in use.held_locks:
            claim = next(each for each in use.request.claims if each.resource == lock.resource)
            if claim.mode is LockMode.EXCLUSIVE:
                assert holders.setdefault(lock.resource, use.request.lock_id) == use.request.lock_id


def check_preemption(stage: Stage, entry: EntryDraft) -> None:
    """Never a victim of the same or a more urgent class; never one that is deaf to the request."""
    victim = next((task for task in every_task(stage) if f"task/{task.key}" == entry.subject), None)
    assert victim is not None, entry
    assert victim.priority > stage.settings.preempting_priority, victim
    assert not entry.attributes["instance"].startswith(f"{DEAF}/"), entry


def check_savepoints(stage: Stage, saved: Mapping[TaskKey, tuple[FencingToken, bytes]]) -> None:
    """What an agent was told is durable is there until the task ends, or something newer is."""
    for name, (token, data) in saved.items():
        found = stage.state.book.task(name)
        if found is not None and not found.ended:
            assert found.savepoint is not None, found
            # Of two attempts side by side the one that saved last counts: savepoints carry their number.
            assert int(found.savepoint.payload.data) >= int(data), (found.savepoint, token)


def check_nothing_urgent_waits_in_vain(stage: Stage) -> None:
    """No inversion: no EMERGENCY waits for a slot that less urgent work, lent to by nobody, could give."""
    book = stage.state.book
    for urgent in book.urgent.values():
        if urgent.key in book.rooms:
            continue
        for victim in book.victims.candidates(urgent.demand, urgent.priority, stage.now):
            use = None if victim.task.lock_id is None else book.lock_uses[victim.task.lock_id]
            lent = book.locks.lent_to(TaskOwner(victim.task.key))
            protected = lent is not None and lent.priority <= urgent.priority
            assert protected or (use is not None and use.token is None), f"{urgent} waits, {victim} runs"
