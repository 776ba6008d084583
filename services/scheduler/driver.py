"""The one loop of a leadership: events and ticks in, effects out. Owns the state and the clock.

A batch is everything that waits when the loop is free. The order that makes it safe: step every event, place
what can be placed, answer queries from the state as it then is (but keep the answers); make writes and audit
entries durable, side by side; only then send, publish and answer. While a commit is on its way the next
batch gathers, so that under load batches grow and etcd sees few, large transactions. When much has gathered,
it is decided about meanwhile; its own commit begins when the one before has been told, so that what the
store, the log and everybody see has one order.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from services.common import logs
from services.common.clock import Clock
from services.common.core.backoff import backoff_ms
from services.common.core.entries import EntryDraft
from services.common.core.errors import Reason, ServiceError
from services.common.election import Leadership
from services.common.outbox import Outbox
from services.scheduler.batches import Sorted, sort, split_written
from services.scheduler.core.book import Settings
from services.scheduler.core.changes import Change, Progress
from services.scheduler.core.effects import (
    Assign,
    CloseStream,
    Effect,
    GrantLocks,
    Publish,
    SearchPlan,
    WorkItem,
)
from services.scheduler.core.events import (
    AgentsChanged,
    Event,
    LockKeysChanged,
    LocksWritten,
    LockWritten,
    PlacementDue,
    PlanFound,
    Recovered,
    Ticked,
)
from services.scheduler.core.planning.rolling import places_of
from services.scheduler.core.state import SchedulerState
from services.scheduler.entries import together
from services.scheduler.inbox import Inbox, Query, settle
from services.scheduler.metrics import SchedulerMetrics
from services.scheduler.planner import Planner
from services.scheduler.store import Batch, LeadershipLostError, SchedulerStore, Stored

_log = logs.get("scheduler.driver")
#: Submissions and results that wait, from which on they are decided about while a commit is on its way. Fewer
#: are better off in one batch with what comes until it is told: a batch has a price of its own.
PLENTY = 64
#: Pause between tries of a commit that may or may not be there.
_RETRY_BASE_MS = 20
_RETRY_MAX_MS = 1_000
#: Why a commit may fail and succeed later: the store is away, full, or a lock's lease has just run out.
_PASSING = frozenset({Reason.STORE_UNAVAILABLE, Reason.DISK_FULL, Reason.LOCK_LOST})

#: What an agent begins to work on, or goes on with, when it is told.
_BEGINNINGS = frozenset({Assign, GrantLocks})


@dataclass(frozen=True, slots=True)
class DriverLimits:
    """Bounds of one driver; `services.scheduler.config` explains them."""

    batch_events_max: int = 2_048
    queue_max: int = 8_192
    audit_group_max: int = 128


@dataclass(frozen=True, slots=True)
class DriverParts:
    """What every driver of one replica works with."""

    store: SchedulerStore
    outbox: Outbox
    clock: Clock
    metrics: SchedulerMetrics
    settings: Settings
    replica_id: str
    limits: DriverLimits = DriverLimits()
    #: Searches for better standing plans; None leaves what PREDICTIVE does to its rule.
    planner: Planner | None = None


@dataclass(slots=True)
class _Made:
    """A batch that is decided about: all that is left is to make it durable and to tell it."""

    found: Sorted
    #: What was asked and by whom, with the answers.
    answers: Sequence[tuple[Query[Any], Any]]
    event_count: int
    #: Of deciding, and of the commit; the latter is 0 until it has ended.
    step_seconds: float
    commit_seconds: float = 0.0


class Driver(Inbox):
    """One leadership from its first load to its loss; made anew for each. Owned by the event loop."""

    def __init__(self, leadership: Leadership, parts: DriverParts) -> None:
        super().__init__(parts.limits.queue_max)
        self.leadership = leadership
        self.settings = parts.settings
        self.metrics = parts.metrics
        self._parts = parts
        self._store, self._outbox, self._clock = parts.store, parts.outbox, parts.clock
        self._state = SchedulerState(parts.settings, leadership.epoch)
        #: Decided after a commit, to be made durable with the next one.
        self._carried: list[Effect] = []
        self._helpers: list[asyncio.Task[None]] = []
        #: The newest commit with all that follows from it, until it has been looked at.
        self._flight: asyncio.Task[None] | None = None
        #: The search for a better standing plan, while there is one.
        self._searching: asyncio.Task[None] | None = None
        self._stopping = False

    def __repr__(self) -> str:
        return f"<Driver {self._state!r}>"

    # The life of a leadership.

    async def run(self, agents: Callable[[], AgentsChanged]) -> None:
        """Load, serve, and return when the leadership is lost. Raises what is a defect.

        `agents` gives the registry's view as it is when the state has been loaded.
        """
        loop, metrics = asyncio.get_running_loop(), self.metrics
        started = loop.time()
        try:
            stored = await self._store.load(self.leadership)
            self.put(agents())
            self.put(self._recovered(stored))
            self._help("lock-leases", self._store.keep_leases())
            self._help("lock-watch", self._watch_locks())
            self._help("leadership-watch", self._watch_leadership())
            self._carried.append(self._won())
            await self._run_batch()
            await self._land()
            metrics.takeover_seconds.observe(loop.time() - started)
            metrics.leading.set(1)
            metrics.follow(self._state.book, lambda: len(self._events), lambda: len(self.hub))
            metrics.epoch.set(self.leadership.epoch)
            self.serving.set()
            while self.leadership.held and not self._stopping:
                await self._wait_work()
                await self._run_batch()
            await self._land()
        except LeadershipLostError:
            _log.warning("another replica leads", epoch=self.leadership.epoch)
        finally:
            self.ended.set()
            metrics.leading.set(0)
            metrics.unfollow()
            self._helpers += [task for task in (self._searching, self._flight) if task is not None]
            for helper in self._helpers:
                helper.cancel()
            await asyncio.gather(*self._helpers, return_exceptions=True)

    def _recovered(self, stored: Stored) -> Recovered:
        return Recovered("recovery", stored.collaborations, stored.locks, stored.foreign, stored.learned)

    def stop(self) -> None:
        """Let `run` return after the batch that is being worked on."""
        self._stopping = True
        self._work.set()

    def _help(self, name: str, loop: Coroutine[Any, Any, None]) -> None:
        helper = asyncio.create_task(loop, name=name)
        helper.add_done_callback(lambda _: self._work.set())
        self._helpers.append(helper)

    async def _watch_leadership(self) -> None:
        await self.leadership.wait_lost()

    async def _watch_locks(self) -> None:
        async with contextlib.aclosing(self._store.watch_locks()) as changes:
            async for keys in changes:
                await self.wait_room()
                cause = f"locks-{self._next()}"
                self.put(LockKeysChanged(cause, random.random(), keys.foreign, keys.deleted))

    # One batch.

    async def _wait_work(self) -> None:
        """Return when there is something to do: an event, a query, a due timer, or the end.

        Raises what a helper raised: without its leases, say, a leader must not go on.
        """
        if not self._carried:
            left_ms = self._state.next_due() - self._clock.now()
            if left_ms > 0:
                alarm = asyncio.get_running_loop().call_later(left_ms / 1_000, self._work.set)
                try:
                    await self._work.wait()
                finally:
                    alarm.cancel()
        # What becomes ready in the same turn of the loop belongs to this batch.
        await asyncio.sleep(0)
        if self._flight is not None:
            await self._wait_plenty(self._flight)
        self._work.clear()
        for helper in self._helpers:
            if helper.done() and not helper.cancelled():
                helper.result()

    async def _wait_plenty(self, flight: asyncio.Task[None]) -> None:
        """Return when the commit on its way has been told, or when so much waits that it is worth a batch."""
        while not flight.done() and self._waiting < PLENTY:
            self._stirred.clear()
            await self._stirred.wait()
        if flight.done():
            await self._land()

    async def _land(self) -> None:
        """Return when what was decided about has been committed and told; raises what became of it."""
        if self._flight is not None:
            await self._flight
            self._flight = None

    async def _run_batch(self) -> None:
        """Decide about what waits, and begin to carry it out as soon as the batch before has been told."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        events, queries = self._take_events(self._parts.limits.batch_events_max), self._take_queries()
        try:
            effects = self._step(events)
            answers = [self._ask(query) for query in queries]
            # From here on nothing of this batch reads the state, which may move on.
            found = sort(effects)
            step_seconds = loop.time() - started
            await self._land()
        except LeadershipLostError:
            self._queries = queries + self._queries
            raise
        made = _Made(found, [*zip(queries, answers, strict=True)], len(events), step_seconds)
        self._flight = asyncio.create_task(self._carry_out(made), name="commit")
        self._flight.add_done_callback(self._landed)
        if found.batch.put_locks:
            # What follows from new locks is decided before anything else is.
            await self._land()

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._stirred.set()
        if flight.cancelled() or flight.exception() is not None:
            self._work.set()

    async def _carry_out(self, made: _Made) -> None:
        """Make a batch durable, then say what follows from it."""
        found, loop = made.found, asyncio.get_running_loop()
        started = loop.time()
        try:
            locks = await self._commit(found)
            if locks:
                written = LocksWritten(f"commit-{self._next()}", locks)
                now, self._carried = split_written(self._state.handle(written, self._clock.now()))
                granted = sort(now)
                await self._record(granted.entries)
                found.sends += granted.sends
        except LeadershipLostError:
            self._queries = [query for query, _ in made.answers] + self._queries
            raise
        # Commit point. Everything that follows was decided and is durable; a crash from here on loses only
        # the telling, and whoever was not told asks again.
        made.commit_seconds = loop.time() - started
        self._publish(found)
        for query, answer in made.answers:
            settle(query, answer)
        # In the next turn of the loop: those who were told go on first.
        loop.call_soon(self._measure, made)

    def _step(self, events: Sequence[Event]) -> list[Effect]:
        state, now = self._state, self._clock.now()
        effects, self._carried = self._carried, []
        for event in events:
            effects += state.handle(event, now)
        # Time last: an agent whose frame waited while the store was away has not been silent.
        if state.next_due() <= now:
            effects += state.handle(Ticked(f"tick-{self._next()}", random.random()), now)
        effects += state.handle(PlacementDue(f"place-{self._next()}"), now)
        return effects

    def _ask(self, query: Query[Any]) -> Any:
        try:
            return query.ask(self._state.book)
        except ServiceError as error:
            return error
        except Exception as error:  # noqa: BLE001  # a question changes nothing: its defect is its asker's
            _log.error("a query failed", error=error)
            return ServiceError(Reason.INTERNAL, "a defect of the service; its log has the story")

    async def _commit(self, found: Sorted) -> tuple[LockWritten, ...]:
        """Make a batch and its entries durable; raises `LeadershipLostError` when it is not ours to write."""
        if found.batch.empty:
            await self._record(found.entries)
            return ()
        # Side by side: the slower of the two is what a batch costs.
        recording = self._record(found.entries)
        try:
            locks = await self._commit_until_known(found.batch)
        except BaseException:
            # Never left running. Entries of a commit that another leader forestalled stay: they say what this
            # replica tried under its epoch.
            await asyncio.gather(recording, return_exceptions=True)
            raise
        await recording
        return locks

    def _record(self, entries: Sequence[EntryDraft]) -> Awaitable[None]:
        return self._outbox.record(together(entries, self._parts.limits.audit_group_max))

    async def _commit_until_known(self, batch: Batch) -> tuple[LockWritten, ...]:
        """Commit the same batch until it is known to be there, or to be another leader's business.

        The writes are idempotent, so that a try which failed and was there all the same does no harm.
        """
        failures = 0
        while True:
            try:
                return await self._store.commit(batch, self.leadership)
            except ServiceError as error:
                if error.reason not in _PASSING:
                    # Nothing that waiting could mend: better to fail at once, with the story, than for ever.
                    raise
                failures += 1
                self.metrics.commit_failures.labels(error.reason).inc()
                if failures == 1:
                    _log.warning("a commit failed and is tried again", why=error)
                if not self.leadership.held:
                    # It may or may not be there. The next leader reads what is; nobody was told anything.
                    raise LeadershipLostError from error
                pause_ms = backoff_ms(failures, base_ms=_RETRY_BASE_MS, max_ms=_RETRY_MAX_MS)
                await asyncio.sleep(pause_ms / 1_000)

    def _publish(self, found: Sorted) -> None:
        # One stream has an order, several have none among them, and each one's frame is a system call or two.
        # So those go first with whom work begins; what else agents get are acks, for which nobody waits.
        changes = [effect.change for effect in found.sends if isinstance(effect, Publish)]
        items = [effect for effect in found.sends if not isinstance(effect, Publish)]
        if any(type(item) in _BEGINNINGS for item in items):
            self._say_all(items)
            self._publish_all(changes)
        else:
            self._publish_all(changes)
            self._say_all(items)
        for lease in found.leases:
            self._store.end_lease(lease.instance)
        for answer in found.answers:
            self._reply(answer)
        for asked in found.searches:
            self._search(asked)

    def _say_all(self, items: Sequence[WorkItem | CloseStream]) -> None:
        for item in items:
            self._say(item)

    def _publish_all(self, changes: Sequence[Change | Progress]) -> None:
        for change in changes:
            self.hub.publish(self._state.book, change)

    def _search(self, asked: SearchPlan) -> None:
        """Let a search run beside the loop; there is one at a time, and its end is an event."""
        if self._parts.planner is not None:
            self._searching = asyncio.create_task(self._improve(self._parts.planner, asked), name="search")

    async def _improve(self, planner: Planner, asked: SearchPlan) -> None:
        found = await planner.improve(asked.problem, asked.places, asked.budget_ms)
        before = after = None
        if found is not None:
            before, after = places_of(found.before), places_of(found.after)
        self.put(PlanFound(f"plan-{asked.number}", asked.number, before, after))

    def _won(self) -> EntryDraft:
        return EntryDraft(
            self._clock.now(),
            "service/scheduler",
            "leadership.win",
            f"replica/{self._parts.replica_id}",
            attributes={"epoch": str(self.leadership.epoch)},
        )

    def _measure(self, made: _Made) -> None:
        metrics, found = self.metrics, made.found
        metrics.batch_events.observe(made.event_count)
        metrics.step_seconds.observe(made.step_seconds)
        if not found.batch.empty:
            metrics.commit_seconds.observe(made.commit_seconds)
            metrics.commit_writes.observe(found.batch.size)
        metrics.take(self._state.book)
        for (operation, outcome), count in Counter(
            (entry.operation, entry.outcome) for entry in found.entries
        ).items():
            metrics.operations.labels(operation, outcome.name).inc(count)
