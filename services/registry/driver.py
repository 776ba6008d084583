"""The one loop: events and ticks go into the core, its effects are carried out, answers come back as events.

Order of what makes it safe: step, commit, publish, record, answer. The loop itself waits for nothing, so
heartbeats are answered while etcd is away; what takes time is done beside it (`exchange.py`, and the
recording here), all that is pending at once, and comes back as events.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

from services.common.clock import Clock
from services.common.core.entries import EntryDraft
from services.common.core.errors import ServiceError
from services.common.core.ids import AgentId
from services.common.core.instants import NEVER, Instant
from services.common.lifecycle import TaskSupervisor
from services.common.outbox import Outbox
from services.registry.core import events
from services.registry.core.effects import Ack, Changed, Commit, Effect, EndLink, RefuseOpen, Reload, Welcome
from services.registry.core.model import AgentRecord, LinkId
from services.registry.core.refusals import too_many
from services.registry.core.registry import Registry
from services.registry.exchange import StoreExchange
from services.registry.metrics import RegistryMetrics
from services.registry.store import FleetStore
from services.registry.watching import AgentWatch

# Events that may wait; beyond it streams are not read. Far above what one turn leaves behind.
INBOX_EVENTS_MAX = 16_384
# Events taken in one turn, so that the streams get theirs in between.
_TURN_EVENTS_MAX = 1_024

Answer = Welcome | RefuseOpen | EndLink


class Link(Protocol):
    """What the driver says to one Session stream. None of it waits."""

    def welcome(self, welcome: Welcome) -> None:
        """Confirm the session."""
        ...

    def ack(self, ack: Ack) -> None:
        """Confirm a heartbeat."""
        ...

    def end(self, error: ServiceError | None) -> None:
        """Close the stream."""
        ...


class Driver:
    """Owns the core and its time. Use it from one event loop."""

    def __init__(
        self,
        core: Registry,
        store: FleetStore,
        outbox: Outbox,
        clock: Clock,
        metrics: RegistryMetrics,
        *,
        watchers_max: int,
    ) -> None:
        self._core, self._outbox = core, outbox
        self._exchange = StoreExchange(store, metrics, self.post)
        self._clock, self._metrics, self._watchers_max = clock, metrics, watchers_max
        self._links: dict[LinkId, Link] = {}
        self._link_number = 0
        self._watches: set[AgentWatch] = set()
        # Owned by the step loop, filled by everybody.
        self._inbox: list[events.Event] = []
        self._inbox_stirred = asyncio.Event()
        self._inbox_room = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self._ticks = 0
        # Set after each turn, for those who wait for a state.
        self._turned = asyncio.Event()
        # Entries to record, and what may be said after that.
        self._records: list[tuple[list[EntryDraft], list[Answer]]] = []
        self._records_stirred = asyncio.Event()
        self._recording = False
        metrics.show(
            instances=lambda state: core.instance_counts()[state],
            agents=lambda: core.agent_count,
            sessions=lambda: core.session_count,
            links=lambda: core.link_count,
            inbox=lambda: len(self._inbox),
        )

    def start(self, supervisor: TaskSupervisor) -> None:
        """Start the loops."""
        supervisor.spawn("registry-steps", self._run_steps())
        supervisor.spawn("registry-records", self._run_records())
        self._exchange.start(supervisor)

    async def wait_ready(self) -> None:
        """Return when the fleet is loaded and a lease is held: not as long as the store is away."""
        await self._exchange.wait_ready()
        await self._wait_until(lambda: not self._inbox)

    async def wait_settled(self) -> None:
        """Return when nothing is on its way to the store or to the audit log."""
        await self._wait_until(
            lambda: not (self._inbox or self._records or self._recording) and self._core.settled
        )

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._turned.clear()
            await self._turned.wait()

    # Links.

    def connect(self, link: Link) -> LinkId:
        """Return the number of a new link."""
        self._link_number += 1
        link_id = LinkId(self._link_number)
        self._links[link_id] = link
        return link_id

    def disconnect(self, link_id: LinkId, cause: str) -> None:
        """Forget a link that has ended."""
        del self._links[link_id]
        self.post(events.LinkCut(cause, link_id))

    async def submit(self, event: events.Event) -> None:
        """Hand over an event from a stream; waits while too many wait already."""
        while len(self._inbox) >= INBOX_EVENTS_MAX:
            self._inbox_room.clear()
            await self._inbox_room.wait()
        self.post(event)

    def post(self, event: events.Event) -> None:
        """Hand over an event whose number is bounded by something else: answers, links, leaderships."""
        self._inbox.append(event)
        self._inbox_stirred.set()

    # Reads.

    def agent(self, agent_id: AgentId) -> AgentRecord | None:
        """Return an agent as it is published, or None."""
        return self._core.agent(agent_id, self._clock.now())

    def agents_after(self, last: str, skill: str) -> Iterator[AgentRecord]:
        """Yield the agents that have `skill` (empty: all) and come after `last`, by name."""
        now = self._clock.now()
        for agent_id in self._core.agents_after(last, skill):
            record = self._core.agent(agent_id, now)
            if record is not None:
                yield record

    @contextlib.contextmanager
    def watch(self) -> Iterator[AgentWatch]:
        """Follow all agents; raises QUOTA_EXCEEDED."""
        if len(self._watches) >= self._watchers_max:
            self._metrics.limits_reached.labels("watchers_max").inc()
            raise too_many("watchers_max", self._watchers_max, retry_after_ms=5_000)
        watch = AgentWatch(self._core.agents_after("", ""))
        self._watches.add(watch)
        self._metrics.watchers.set(len(self._watches))
        try:
            yield watch
        finally:
            self._watches.discard(watch)
            self._metrics.watchers.set(len(self._watches))

    # Steps.

    async def _run_steps(self) -> None:
        try:
            while True:
                await self._inbox_stirred.wait()
                self._inbox_stirred.clear()
                self._turn()
                if self._inbox:
                    self._inbox_stirred.set()
                    await asyncio.sleep(0)
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _turn(self) -> None:
        now = self._clock.now()
        taken, self._inbox = self._inbox[:_TURN_EVENTS_MAX], self._inbox[_TURN_EVENTS_MAX:]
        self._inbox_room.set()
        effects: list[Effect] = []
        for event in taken:
            effects += self._core.step(event, now)
        if self._core.next_deadline() <= now:
            self._ticks += 1
            effects += self._core.step(events.Tick(f"tick-{self._ticks}"), now)
        self._metrics.step_events.observe(len(taken))
        self._carry_out(effects)
        self._set_timer(now)
        self._turned.set()

    def _set_timer(self, now: Instant) -> None:
        """One timer for all sessions, moved when the earliest deadline does."""
        at = self._core.next_deadline()
        if at == self._timer_at and self._timer is not None and not self._timer.cancelled():
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = at
        if at != NEVER:
            delay_s = max(0, at - now) / 1_000
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._inbox_stirred.set()

    def _carry_out(self, effects: list[Effect]) -> None:
        entries: list[EntryDraft] = []
        answers: list[Answer] = []
        for effect in effects:
            match effect:
                case Ack():
                    self._metrics.heartbeats.inc()
                    if (link := self._links.get(effect.link)) is not None:
                        link.ack(effect)
                case Commit():
                    self._exchange.commit(effect)
                case Changed():
                    # Committed before: what is published survives a crash of this process.
                    for watch in self._watches:
                        watch.mark(effect.agent_id)
                case Reload():
                    self._exchange.reload(effect)
                case EntryDraft():
                    self._metrics.operations.labels(effect.operation, effect.reason).inc()
                    entries.append(effect)
                case _:
                    answers.append(effect)
        if entries or (answers and (self._records or self._recording)):
            self._records.append((entries, answers))
            self._records_stirred.set()
        else:
            self._answer(answers)

    def _answer(self, answers: list[Answer]) -> None:
        for answer in answers:
            link = self._links.get(answer.link)
            error = None if isinstance(answer, Welcome) else answer.error
            if error is not None and "limit" in error.metadata:
                self._metrics.limits_reached.labels(error.metadata["limit"]).inc()
            if link is None:
                # Its stream ended meanwhile.
                continue
            if isinstance(answer, Welcome):
                link.welcome(answer)
            else:
                link.end(error)

    # Audit.

    async def _run_records(self) -> None:
        while True:
            await self._records_stirred.wait()
            self._records_stirred.clear()
            self._recording = True
            while self._records:
                records, self._records = self._records, []
                await self._outbox.record([entry for entries, _ in records for entry in entries])
                # Only now: an operation that somebody was told of is on its way to the audit log.
                for _, answers in records:
                    self._answer(answers)
            self._recording = False
            self._turned.set()
