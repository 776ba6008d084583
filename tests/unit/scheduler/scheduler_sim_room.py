"""Part of the checker of simulated planes: what urgent work may take from others, and what it must get.

ROOM   EMERGENCY work does not wait while less urgent work could make room for all of it.
VAIN   nobody makes room for work that does not start.
KEPT   a slot is kept idle only while somebody who makes room still saves.
VICTIM nobody makes room who is as urgent, or a member of a gang.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

from services.common.core.fencing import FencingToken
from services.common.core.ids import CollaborationId, TaskId
from services.common.core.instants import Instant
from services.scheduler.core.events import StreamId
from services.scheduler.core.model import (
    TASK_ENDED,
    AttemptRef,
    AttemptState,
    InstanceKey,
    Priority,
    TaskKey,
)
from tests.unit.scheduler.scheduler_sim_seen import BrokenPromise, Case, Link, Seen

_FOR = re.compile(r"task (\S+?)/(\S+) of class ")


class History(Protocol):
    """What is asked of the checker."""

    cases: dict[CollaborationId, Case]
    links: dict[StreamId, Link]
    waiting: dict[TaskKey, Seen]
    open_at: dict[InstanceKey, dict[TaskKey, Seen]]

    def is_ready(self, seen: Seen) -> bool: ...

    def is_paused(self, seen: Seen) -> bool: ...


class Debt(NamedTuple):
    """Somebody was asked to make room for a task."""

    who: Seen
    #: Its newest token then.
    newest: FencingToken
    instance: InstanceKey
    #: When it must have started at the latest.
    until: Instant


class Given(NamedTuple):
    """A slot for which others had made room was given to somebody."""

    seen: Seen
    link: Link
    #: Slots that were left then, and whose they should have been.
    credits: int
    debts: list[Debt]


class RoomChecker:
    """Fed by the checker."""

    def __init__(self, history: History, *, grace_ms: int, class_lent: bool) -> None:
        self._history = history
        self._grace_ms = grace_ms
        #: Agents' code may hold locks, so that what runs may count in a more urgent class than its own.
        self._class_lent = class_lent
        #: How many slots of an instance are kept: the scheduler's own word. The plane sets it.
        self.kept: Callable[[InstanceKey], int] = lambda _: 0
        self._asked: set[AttemptRef] = set()
        self._debts: list[Debt] = []
        #: In this batch. Whether it was wrong is known at its end: whoever was to have the slot may have been
        #: cancelled before, which is told after it.
        self._given: list[Given] = []

    def disturbed(self) -> None:
        """A link, a skill, a leader or an order changed: what was promised may not be possible any more."""
        self._debts.clear()

    def asked(self, ref: AttemptRef, reason: str, now: Instant) -> None:
        """An agent is asked to save and stop an attempt."""
        history = self._history
        victim = history.cases[ref.collaboration_id].tasks[ref.task_id]
        named = _FOR.match(reason)
        if ref in self._asked or named is None:
            # Asked again on a new link, or because its collaboration was paused.
            return
        self._asked.add(ref)
        seen = history.cases[CollaborationId(named[1])].tasks[TaskId(named[2])]
        fair = victim.priority > seen.priority and victim.spec.gang is None
        _must(fair, "VICTIM", f"{victim.key} of class {victim.priority.name} makes room for {seen.key}")
        mates = _group(history, seen)
        if any(mate.spec.resources for mate in mates):
            # Another program's key may come before its own.
            return
        waits = any(mate.spec.needs for mate in mates)
        until = Instant(now + self._grace_ms) if waits else now
        self._debts.append(Debt(seen, seen.newest, _instance_of(victim, ref), until))

    def started(self, seen: Seen, link: Link) -> None:
        """Something is handed over: if it is urgent, whoever made room at its agent did so for it.

        What was kept for it elsewhere is for all then.
        """
        self._debts = [debt for debt in self._debts if debt.who is not seen]
        here = [debt for debt in self._debts if debt.instance == link.instance]
        if seen.priority is Priority.EMERGENCY:
            self._debts = [debt for debt in self._debts if debt not in here]
        elif len(here) > link.credits:
            self._given.append(Given(seen, link, link.credits, here))

    def settled(self, now: Instant) -> None:
        """A batch is over, and nothing of it is left to be done."""
        history = self._history
        for seen, link, left, debts in self._given:
            owed = [debt for debt in debts if not self._is_paid(debt)]
            if len(owed) > left:
                raise BrokenPromise(
                    "KEPT", f"{seen.key} gets the slot at {link.instance} of {owed[0].who.key}"
                )
        self._given.clear()
        for debt in [*self._debts]:
            if self._is_paid(debt):
                self._debts.remove(debt)
            elif now >= debt.until:
                raise BrokenPromise(
                    "VAIN", f"at {debt.instance} room was made for {debt.who.key}, which waits"
                )
        saving = any(
            attempt.open and attempt.state is AttemptState.SUSPENDING
            for seens in history.open_at.values()
            for seen in seens.values()
            for attempt in (() if seen.record is None else seen.record.attempts)
        )
        keeps = [link.instance for link in history.links.values() if self.kept(link.instance)]
        urgent = [seen for seen in history.waiting.values() if seen.priority is Priority.EMERGENCY]
        _must(not keeps or (saving and bool(urgent)), "KEPT", f"slots of {keeps} are kept for nobody")
        if urgent and not saving and not self._class_lent:
            self._check_room(urgent)

    def _is_paid(self, debt: Debt) -> bool:
        """Return whether whoever room was made for has started, or does not wait any more."""
        who = debt.who
        return who.newest > debt.newest or who.state in TASK_ENDED or self._history.is_paused(who)

    def _check_room(self, urgent: Iterable[Seen]) -> None:
        history = self._history
        for seen in urgent:
            mates = [mate for mate in _group(history, seen) if mate.state not in TASK_ENDED]
            if seen is not mates[0] or any(mate.spec.resources for mate in mates):
                continue
            if not all(mate.key in history.waiting and history.is_ready(mate) for mate in mates):
                continue
            able = [{link.instance for link in self._could_have(mate)} for mate in mates]
            _must(not all_served(able), "ROOM", f"{seen.key} waits, {able} could make room")

    def _could_have(self, seen: Seen) -> Iterator[Link]:
        spec = seen.spec
        for link in self._history.links.values():
            if (
                link.draining
                or not link.skills.issuperset(spec.required_skills)
                or (spec.required_agents and link.instance.agent_id not in spec.required_agents)
            ):
                continue
            held = self._history.open_at.get(link.instance, {})
            if link.credits > 0 and _fits(link.capacities, held.values(), seen):
                yield link
            elif link.suspendable:
                for name, other in held.items():
                    rest = [each for key, each in held.items() if key != name]
                    light = other.spec.gang is None and not other.spec.resources
                    if light and other.priority > seen.priority and _fits(link.capacities, rest, seen):
                        yield link
                        break


def _group(history: History, seen: Seen) -> list[Seen]:
    place = seen.spec.gang
    return [seen] if place is None else history.cases[seen.key.collaboration_id].gangs[place.gang_id]


def _instance_of(seen: Seen, ref: AttemptRef) -> InstanceKey:
    assert seen.record is not None
    return next(attempt.instance for attempt in seen.record.attempts if attempt.token == ref.token)


def _fits(capacities: Mapping[str, int], held: Iterable[Seen], seen: Seen) -> bool:
    taken = [*held]
    return all(
        sum(dict(each.spec.needs).get(name, 0) for each in taken) + amount <= capacities.get(name, 0)
        for name, amount in seen.spec.needs
    )


def all_served(able: list[set[InstanceKey]]) -> bool:
    """Return whether each can have an instance of its own. Method: augmenting paths (Kuhn, 1955)."""
    owner: dict[InstanceKey, int] = {}

    def serve(number: int, tried: set[InstanceKey]) -> bool:
        for instance in able[number] - tried:
            tried.add(instance)
            if instance not in owner or serve(owner[instance], tried):
                owner[instance] = number
                return True
        return False

    return all(serve(number, set()) for number in range(len(able)))


def _must(holds: bool, promise: str, story: str) -> None:
    if not holds:
        raise BrokenPromise(promise, story)
