"""Schedulers and stores that break one promise, chosen by name: what the checker is there to notice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.common.core.entries import EntryDraft
from services.common.core.instants import Instant
from services.common.election import Leadership
from services.scheduler.core.book import Book, Settings, Step
from services.scheduler.core.course import Attempt, Collaboration, Place, Task
from services.scheduler.core.effects import (
    AckResult,
    Answer,
    Assign,
    Effect,
    Publish,
    PutLock,
    SaveSpecs,
    SaveTask,
)
from services.scheduler.core.events import AgentsChanged, Event, LockWritten, WorkFrame
from services.scheduler.core.instances import Instance
from services.scheduler.core.locking import claims
from services.scheduler.core.model import AttemptRef, Payload, TaskState
from services.scheduler.core.placing import gangs, index, places, preemption, rooms, slots, victims
from services.scheduler.core.running import attempts, outcomes, pausing, reports
from services.scheduler.core.state import _ON_TIMER, SchedulerState
from services.scheduler.core.timers import TimerKind
from services.scheduler.store import Batch
from services.scheduler.stores.memory import MemoryPlane, MemoryStore

Tamper = Callable[["BrokenState", list[Effect]], list[Effect]]


class BrokenState(SchedulerState):
    """The core, whose effects are tampered with."""

    def __init__(self, settings: Settings, epoch: int, bug: Bug) -> None:
        super().__init__(settings, epoch)
        self.bug = bug
        self.count = 0

    def handle(self, event: Event, now: Instant) -> list[Effect]:
        bug = self.bug
        self.count += 1
        effects = super().handle(event if bug.event is None else bug.event(event), now)
        return effects if bug.tamper is None else bug.tamper(self, effects)


class BrokenStore(MemoryStore):
    """A store that does not keep to its contract."""

    def __init__(self, plane: MemoryPlane, bug: str) -> None:
        super().__init__(plane)
        self.bug = bug
        self.commits = 0

    async def commit(self, batch: Batch, leadership: Leadership) -> tuple[LockWritten, ...]:
        self.commits += 1
        if self.bug == "a store without a guard":
            guard = self._guard
            self._guard = lambda _: None  # type: ignore[method-assign,assignment]
            try:
                return await super().commit(batch, leadership)
            finally:
                self._guard = guard  # type: ignore[method-assign]
        if self.bug == "a lost commit" and self.commits % 5 == 0:
            for name in [name for name in batch.specs if name not in self._plane.specs]:
                written = await super().commit(batch, leadership)
                del self._plane.specs[name], self._plane.collaborations[name]
                return written
        return await super().commit(batch, leadership)


def _reports_without_tokens(instance: Instance, ref: AttemptRef) -> tuple[Task, Attempt] | None:
    """Any attempt of the task counts, whatever its token."""
    task = instance.held.get(ref.task_key)
    attempt = None if task is None else task.at(instance.key)
    return None if task is None or attempt is None else (task, attempt)


def _ack_all(_: BrokenState, effects: list[Effect]) -> list[Effect]:
    return [replace(one, error=None) if isinstance(one, AckResult) else one for one in effects]


def _skip_a_change(state: BrokenState, effects: list[Effect]) -> list[Effect]:
    return [one for one in effects if not (isinstance(one, Publish) and state.count % 11 == 0)]


def _forget_a_write(state: BrokenState, effects: list[Effect]) -> list[Effect]:
    return [one for one in effects if not (isinstance(one, SaveTask) and state.count % 13 == 0)]


def _hand_over_twice(state: BrokenState, effects: list[Effect]) -> list[Effect]:
    return [twin for one in effects for twin in ((one, one) if isinstance(one, Assign) else (one,))]


def _no_lock_keys(_: BrokenState, effects: list[Effect]) -> list[Effect]:
    return [one for one in effects if not isinstance(one, PutLock)]


def _forget_a_submission(state: BrokenState, effects: list[Effect]) -> list[Effect]:
    saved = any(isinstance(one, SaveSpecs) for one in effects)
    if not saved or state.count % 3:
        return effects
    return [one for one in effects if isinstance(one, Answer | EntryDraft)]


def _richer(event: Event) -> Event:
    """Agents seem to have more than they have."""
    if not isinstance(event, AgentsChanged):
        return event
    views = [
        view._replace(
            instances=tuple(
                one._replace(capacities=tuple((name, 10 * amount) for name, amount in one.capacities))
                for one in view.instances
            )
        )
        for view in event.agents
    ]
    return event._replace(agents=tuple(views))


def _more_slots(event: Event) -> Event:
    return event._replace(credits=event.credits * 2) if isinstance(event, WorkFrame) else event


def _starts_one_by_one(step: Step, open_members: list[Task]) -> bool:
    """Members of a gang start as agents become free."""
    book = step.book
    book.index.settle()
    for member in open_members:
        pool = book.index.pool(member.demand)
        if pool is not None:
            pool.rank(1)
            instance = book.index.fleet.instances[pool.row(0)]
            if instance is not None and claims.claim(step, member):
                attempts.assign(step, member, instance, "whoever is free")
                return True
    return False


def _never_aged(*_: Any) -> bool:
    return False


def _delay_of_nothing(step: Step, task: Task, until: Instant) -> None:
    places.enter_queue(step, task)
    task.retry_time = until


def _lose_and_leave(step: Step, task: Task, attempt: Attempt, message: str) -> None:
    """A task whose agent is gone is never placed again."""
    _REAL_LOSE(step, task, attempt, message)
    if task.state is TaskState.READY and task.place is Place.QUEUE:
        places.leave(step, task)


_REAL_LOSE = outcomes.lose


def _succeed_again(step: Step, task: Task, attempt: Attempt, result: Payload) -> Attempt:
    """The result that counts is changed on its way."""
    return _REAL_SUCCEED(step, task, attempt, Payload(result.content_type, result.data + b"!"))


_REAL_SUCCEED = outcomes.succeed


def _cancel_nothing(step: Step, collaboration: Collaboration, actor: str, reason: str) -> None:
    """Who cancels is told so, and all goes on."""


def _ready_too_early(step: Step, task: Task, attempt: Attempt, *args: Any, **more: Any) -> None:
    """What depends on a task is ready when its attempt has begun."""
    _REAL_START(step, task, attempt, *args, **more)
    for name in task.dependents:
        dependent = task.collaboration.tasks[name]
        if dependent.state is TaskState.PENDING:
            dependent.unmet = 0
            outcomes.make_ready(step, dependent, "too early")


_REAL_START = attempts.start


def _pause_in_name_only(step: Step, collaboration: Collaboration) -> None:
    """What is ready stays in the queue."""


def _no_deadline(step: Step, task: Task) -> None:
    """Time passes and nobody cares."""


def _ask_in_vain(step: Step, tasks: Sequence[Task]) -> list[slots.Slot] | None:
    """Whoever could make room for one member is asked, whether the others have a place or not."""
    chosen = _REAL_CHOOSE(step, tasks)
    for task in tasks if chosen is None and len(tasks) > 1 else ():
        for slot in _REAL_CHOOSE(step, [task]) or ():
            if slot.victim is not None and slot.attempt is not None:
                preemption._ask(step, task, slot.victim, slot.attempt)
    return chosen


_REAL_CHOOSE = slots.choose


def _singles_only(book: Book) -> list[list[Task]]:
    """Urgent gangs wait."""
    return [[task] for task in book.urgent.values()]


def _all_credits(self: Instance) -> int:
    """What is kept for somebody is free for all."""
    return self.credits if self.stream is not None and not self.draining else 0


def _keep_for_ever(_: Step) -> None:
    """What is kept is neither used nor given back."""


def _put_members(self: victims.Victims, task: Task, attempt: Attempt, instance: Instance) -> None:
    """Members of gangs can be asked like anybody else."""
    spec = task.spec
    task.spec = replace(spec, gang=None)
    _REAL_PUT(self, task, attempt, instance)
    task.spec = spec


_REAL_PUT = victims.Victims.put


@dataclass(frozen=True)
class Bug:
    """One defect, and the promises of which it breaks one."""

    promises: frozenset[str]
    event: Callable[[Event], Event] | None = None
    tamper: Tamper | None = None
    # (owner, name, replacement): what is replaced inside the core; an owner may be a dictionary.
    patch: tuple[Any, Any, object] | None = None
    # A seed from which on it is soon noticed: some show in rare planes only.
    first: int = 0


def _bug(promises: str, **how: Any) -> Bug:
    return Bug(frozenset(promises.split()), **how)


BUGS = {
    "a store without a guard": _bug("L1", first=20),
    "a lost commit": _bug("T1"),
    "tokens are not compared": _bug("T2", patch=(reports, "_current", _reports_without_tokens), first=100),
    "every result is acked": _bug("T2", tamper=_ack_all),
    "a result is changed": _bug("T2", patch=(outcomes, "succeed", _succeed_again)),
    "an assignment goes out twice": _bug("T3", tamper=_hand_over_twice),
    "a task's write is forgotten": _bug("T2", tamper=_forget_a_write),
    "a submission is answered and not kept": _bug("T1", tamper=_forget_a_submission),
    "cancelling does nothing": _bug("T1", patch=(outcomes, "cancel", _cancel_nothing)),
    "deadlines pass": _bug("T4", patch=(_ON_TIMER, TimerKind.DEADLINE, _no_deadline), first=70),
    "a pause stops nothing": _bug("T12", patch=(pausing, "_let_wait", _pause_in_name_only)),
    "a retry does not wait": _bug("T5", patch=(places, "enter_delay", _delay_of_nothing)),
    "a change is not published": _bug("T6", tamper=_skip_a_change),
    "age counts for nothing": _bug("T9", patch=(index.PlacementIndex, "_any_aged", _never_aged)),
    "a gang starts one by one": _bug("T11", patch=(gangs, "_start", _starts_one_by_one)),
    "dependents do not wait": _bug("DAG", patch=(attempts, "start", _ready_too_early)),
    "agents have more than they have": _bug("NEEDS", event=_richer),
    "agents have twice the slots": _bug("SLOTS", event=_more_slots),
    "a lost task is left": _bug("PROGRESS", patch=(outcomes, "lose", _lose_and_leave)),
    "victims are asked for a gang that cannot start": _bug(
        "VAIN", patch=(preemption, "choose", _ask_in_vain)
    ),
    "urgent gangs wait": _bug("ROOM", patch=(preemption, "_wanting", _singles_only)),
    "slots are not kept": _bug("KEPT", patch=(Instance, "free", property(_all_credits))),
    "slots are kept for ever": _bug("KEPT", patch=(rooms, "settle", _keep_for_ever), first=80),
    "members of gangs make room": _bug("VICTIM", patch=(victims.Victims, "put", _put_members), first=115),
    "locks are not written": _bug("PROGRESS", tamper=_no_lock_keys),
    "a gang keeps agents in vain": _bug(
        "PROGRESS", patch=(gangs, "_can_ever_start", lambda *_: True), first=50
    ),
}
