"""The one loop around the core: events in, one commit at a time, effects out.

The order that makes it safe is the core's: effects that promise something come only in answer to
`Persisted`. While a commit is on its way to the disk the next batch gathers, so that a busy broker does few
large commits and an idle one answers at once: a frame that finds nothing under way is stepped, and its commit
begun, in the call that brought it, and what the disk has answered goes out in the callback that says so.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from services.broker.alarm import Alarm
from services.broker.core import effects as fx
from services.broker.core import events as ev
from services.broker.core.machine import Machine
from services.broker.core.model import Batch, Limits, Subscription
from services.broker.entries import DeadLettersDropped
from services.broker.inquiries import Inquiries
from services.broker.intake import Intake
from services.broker.letters import DeadLetters
from services.broker.metrics import BrokerMetrics
from services.broker.outlet import Outlet
from services.broker.recorder import AuditRecorder
from services.broker.roster import Roster
from services.broker.store import MailboxStore, Retention, Work, taken_over
from services.common import logs
from services.common.clock import Clock
from services.common.core.backoff import backoff_ms
from services.common.core.errors import Reason, ServiceError

# Pause before the next commit after one that failed, in milliseconds.
COMMIT_RETRY_MS = 100
# Pause before the next compaction when one did not get through, in milliseconds: commits come in between.
COMPACT_AGAIN_MS = 20
# Pauses between tries to read the store again after it did not answer, in milliseconds.
RELOAD_BASE_MS = 50
RELOAD_MAX_MS = 5_000
# Events taken before the streams get their turn again; each is a frame of at most 1,024 items of a kind.
EVENTS_PER_TURN = 64

_log = logs.get("broker.driver")


@dataclass(frozen=True, slots=True)
class DriverSettings:
    """The numbers of the driver."""

    limits: Limits
    retention: Retention
    # Bytes that may wait for the disk before streams are not read any more.
    uncommitted_bytes_max: int
    compaction_interval_ms: int


class Driver:
    """Owned by the event loop; its methods may be called by anybody on it."""

    def __init__(
        self,
        store: MailboxStore,
        clock: Clock,
        metrics: BrokerMetrics,
        recorder: AuditRecorder,
        settings: DriverSettings,
        *,
        held: Callable[[], bool] = lambda: True,
    ) -> None:
        """`held` tells whether these mailboxes certainly are this driver's; once false it stays false."""
        self._store, self._clock, self._metrics = store, clock, metrics
        self._recorder, self._settings, self._held = recorder, settings, held
        # Why this driver has nothing to say any more.
        self._retired: ServiceError | None = None
        self._machine: Machine | None = None
        # What the registry said, for a core that begins anew.
        self._roster = Roster()
        self._outlets: dict[int, Outlet] = {}
        self._stream_count = 0
        # Requests about dead letters and subscriptions that wait for their answer.
        self._inquiries = Inquiries()
        self.letters = DeadLetters(store, lambda: self.machine.state, self._ask)
        self._events: deque[ev.Event] = deque()
        self._intake = Intake(settings.uncommitted_bytes_max)
        # Ends `run`; None while it does not run.
        self._over: asyncio.Future[None] | None = None
        # The turn that is due, and whether one is being taken.
        self._due: asyncio.Handle | None = None
        self._turning = False
        # Set when a turn has left nothing to do.
        self._quiet = asyncio.Event()
        self._alarm = Alarm(self._ring)
        # The store does one thing at a time: a commit, a compaction, a load.
        self._working: asyncio.Future[None] | None = None
        # The core's memory and the disk may differ: nothing is stepped until it is read again.
        self._lost_touch = False
        self._commit_at_ms = 0
        self._compact_at_ms = 0

    async def open(self) -> None:
        """Read the store; raises STORE_UNAVAILABLE."""
        await self._load()
        self._compact_at_ms = self._clock.monotonic_ms() + self._settings.compaction_interval_ms

    @property
    def machine(self) -> Machine:
        """The core, for reading."""
        if self._machine is None:
            raise RuntimeError("open the driver first")
        return self._machine

    @property
    def idle(self) -> bool:
        """Whether nothing waits for the core or the disk."""
        waits = self._events or self._working is not None or self.machine.has_work
        return self.retired or not waits

    @property
    def retired(self) -> bool:
        """Whether it has nothing to say any more."""
        return self._retired is not None

    def attach(self, outlet: Outlet) -> int:
        """Return a new stream's id; its effects go to `outlet` until it ends."""
        self._check_office()
        self._stream_count += 1
        self._outlets[self._stream_count] = outlet
        return self._stream_count

    def detach(self, stream_id: int) -> None:
        """The stream is gone, whoever ended it."""
        self._outlets.pop(stream_id, None)
        self.submit(ev.StreamClosed(stream_id))

    def submit(self, event: ev.Event, size_bytes: int = 0) -> None:
        """Have the core take in `event`; `size_bytes` is what it brings to the disk."""
        if self._retired is not None:
            return
        self._events.append(event)
        self._intake.came(size_bytes)
        self._ring()

    def hurry(self, event: ev.Event, size_bytes: int) -> None:
        """As `submit`, for what a peer waits for: when nothing is under way its commit begins at once."""
        first = not self._events and self._working is None and self._due is None
        self.submit(event, size_bytes)
        if first and self._due is not None and not self._turning:
            self._take_turn()

    def see_agents(self, seen: ev.AgentsSeen) -> None:
        """Take the registry's news; they outlast the core's memory."""
        self._roster.take(seen)
        self.submit(seen)

    async def wait_room(self) -> None:
        """Return when more may be read: what waits for the disk is bounded."""
        await self._intake.wait_room()

    async def subscribe(self, subscription: Subscription, *, wanted: bool, own: bool) -> None:
        """Add or end a subscription; returns when that is durable."""
        await self._ask(lambda request_id: ev.SubscriptionAsked(request_id, subscription, wanted, own))

    async def _ask(self, make: Callable[[int], ev.Event]) -> Any:
        """Return what the core answers to a request."""
        self._check_office()
        return await self._inquiries.ask(lambda request_id: self.submit(make(request_id)))

    async def run(self) -> None:
        """Drive until cancelled or retired; a defect comes out."""
        self._over = asyncio.get_running_loop().create_future()
        try:
            if self._retired is None:
                self._ring()
                await self._over
        finally:
            self._over = None
            if self._due is not None:
                self._due.cancel()
            self._alarm.stop()

    def retire(self, error: ServiceError) -> None:
        """End every stream and request with `error` and say nothing more: others keep these mailboxes."""
        if self._retired is None:
            self._retired = error
            self._let_everybody_go(error)
            self._intake.decide_all()
            self._quiet.set()
            if self._over is not None and not self._over.done():
                self._over.set_result(None)

    def begin_drain(self) -> None:
        """Refuse new envelopes from now on."""
        self.submit(ev.DrainBegan())

    async def wait_idle(self) -> None:
        """Return when nothing waits for the core or the disk; at once when it was never opened."""
        while self._machine is not None and not self.idle:
            self._quiet.clear()
            await self._quiet.wait()

    async def close(self) -> None:
        """Finish what the store was given and close it; stop `run` first."""
        if self._working is not None:
            await asyncio.wait([self._working])
        await self._store.close()

    def _ring(self) -> None:
        """Take a turn soon: the streams have theirs first, and what they bring shares the next batch."""
        if self._due is None and self._over is not None:
            self._due = self._over.get_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        if self._due is not None:
            # The one that is due is this one, also when something could not wait for it.
            self._due.cancel()
            self._due = None
        if self._over is None or self._over.done() or self._retired is not None:
            return
        self._turning = True
        try:
            if not self._lost_touch:
                self._turn()
            if self._events and not self._lost_touch:
                self._ring()
                return
            if self.idle:
                self._quiet.set()
            self._set_alarm()
        except BaseException as error:  # noqa: BLE001  # a defect, which comes out of `run`
            self._fail(error)
        finally:
            self._turning = False

    def _turn(self) -> None:
        if not self._held():
            # Another core may be at work on the same mailboxes: not even a delivery goes out from here.
            self.retire(taken_over())
            return
        for _ in range(min(len(self._events), EVENTS_PER_TURN)):
            self._step(self._events.popleft())
        due = self.machine.next_due()
        if due is not None and due <= self._clock.now():
            self._step(ev.Ticked())
        if self._working is None:
            now_ms = self._clock.monotonic_ms()
            if now_ms >= self._compact_at_ms:
                # Before the next commit: a busy broker always has one, and most space to free.
                self._give_store(self._compact(), self._worked)
            elif self.machine.has_work and now_ms >= self._commit_at_ms:
                self._intake.cut()
                self._step(ev.StoreReady())

    def _step(self, event: ev.Event) -> None:
        outlets, recorder = self._outlets, self._recorder
        for effect in self.machine.step(event, self._clock.now()):
            match effect:
                case fx.Commit(batch=batch):
                    then = partial(self._committed, batch, time.perf_counter())
                    self._give_store(self._store.commit(batch), then)
                case fx.End(stream_id=stream_id, error=error):
                    self._end(stream_id, error)
                case fx.Finish(stream_id=stream_id):
                    self._end(stream_id, None)
                case fx.TellLetters(request_id=request_id, outcomes=outcomes):
                    self._inquiries.answer(request_id, list(outcomes))
                case fx.TellSubscription(request_id=request_id, error=error):
                    self._inquiries.answer(request_id, None, error)
                case (
                    fx.NoteAccepted()
                    | fx.NoteUnheard()
                    | fx.NoteDone()
                    | fx.NoteDead()
                    | fx.NoteOpened()
                    | fx.NoteFenced()
                ):
                    recorder.note(effect)
                case _:
                    outlet = outlets.get(effect.stream_id)
                    if outlet is not None:
                        outlet.carry(effect)

    def _end(self, stream_id: int, error: ServiceError | None) -> None:
        outlet = self._outlets.pop(stream_id, None)
        if outlet is not None:
            outlet.end(error)

    def _set_alarm(self) -> None:
        """Be woken when time itself gives cause; everything else rings."""
        if self._lost_touch:
            return
        if (due := self.machine.next_due()) is not None:
            self._alarm.ring_within(due - self._clock.now())
        if self._working is None:
            at_ms = self._compact_at_ms
            if self.machine.has_work:
                at_ms = min(at_ms, self._commit_at_ms)
            self._alarm.ring_within(at_ms - self._clock.monotonic_ms())

    def _give_store(self, work: Work, then: Callable[[asyncio.Future[None]], None]) -> None:
        if not isinstance(work, asyncio.Future):
            work = asyncio.create_task(work, name="broker-store")
        self._working = work
        work.add_done_callback(then)

    def _committed(self, batch: Batch, began_s: float, done: asyncio.Future[None]) -> None:
        """The store is done with `batch`; what that makes true is told before anything else is looked at."""
        took_s = time.perf_counter() - began_s
        error = None if done.cancelled() else done.exception()
        if isinstance(error, ServiceError):
            self._metrics.commit_failures.labels(error.reason).inc()
            if not self._is_over(error) and error.reason is not Reason.DISK_FULL and self._over is not None:
                self._give_store(self._read_again(error), self._worked)
                return
            self._commit_at_ms = self._clock.monotonic_ms() + COMMIT_RETRY_MS
            # Before what came meanwhile: it frees what others wait for.
            self._events.appendleft(ev.PersistFailed(batch.number, error))
        elif error is None:
            # Commit point. From here a crash loses nothing of this batch; its senders and receivers are told
            # next, and who is not told asks again and gets the same answer.
            self._events.appendleft(ev.Persisted(batch.number))
        self._intake.decide()
        self._worked(done)
        self._metrics.commit_seconds.observe(took_s)
        if error is None:
            self._metrics.commit_envelopes.observe(len(batch.envelopes))

    def _worked(self, done: asyncio.Future[None]) -> None:
        """The store has ended a piece of work; any error but a service's is a defect."""
        self._working = None
        error = None if done.cancelled() else done.exception()
        if error is not None and not isinstance(error, ServiceError):
            self._fail(error)
        else:
            self._take_turn()

    def _fail(self, defect: BaseException) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_exception(defect)

    async def _compact(self) -> None:
        pause_ms = self._settings.compaction_interval_ms
        try:
            done = await self._store.compact(self._clock.now(), self._settings.retention)
        except ServiceError as error:
            if self._is_over(error):
                return
            # Freeing space can wait; a store that is really gone is found by the next commit.
            _log.warning("compaction failed", why=str(error))
        else:
            self._metrics.stored_bytes.set(done.bytes_stored)
            self._metrics.blocks_rewritten.inc(done.blocks_rewritten)
            self._metrics.dead_letters_dropped.inc(sum(done.dead_letters_dropped.values()))
            if done.dead_letters_dropped:
                self._recorder.note(DeadLettersDropped(done.dead_letters_dropped))
            if not done.is_done:
                pause_ms = COMPACT_AGAIN_MS
        self._compact_at_ms = self._clock.monotonic_ms() + pause_ms

    async def _read_again(self, error: ServiceError) -> None:
        """Whether the last batch is on disk is unknown: forget everything and believe the disk.

        All streams end with the indefinite error; their peers come back and repeat what was not answered.
        """
        _log.error("the store did not answer; reading it again", why=str(error))
        self._lost_touch = True
        self._let_everybody_go(error)
        failures = 0
        while self._retired is None:
            try:
                await self._load()
                break
            except ServiceError as again:
                if self._is_over(again):
                    return
                failures += 1
                _log.warning("the store still does not answer", why=str(again))
                await asyncio.sleep(backoff_ms(failures, base_ms=RELOAD_BASE_MS, max_ms=RELOAD_MAX_MS) / 1000)
        self._lost_touch = False
        self._intake.decide_all()

    async def _load(self) -> None:
        now = self._clock.now()
        recovered = await self._store.load(now)
        # In a thread: a million envelopes take seconds, and a lease has to be kept meanwhile.
        self._machine = await asyncio.to_thread(Machine, recovered, self._settings.limits, now)
        self._metrics.show(self._machine.state)
        if (seen := self._roster.all()) is not None:
            self._events.appendleft(seen)

    def _let_everybody_go(self, error: ServiceError) -> None:
        for stream_id in list(self._outlets):
            self._end(stream_id, error)
        self._inquiries.fail(error)
        self._events.clear()

    def _is_over(self, error: ServiceError) -> bool:
        if error.reason is Reason.NOT_COORDINATOR:
            self.retire(taken_over())
        return self._retired is not None

    def _check_office(self) -> None:
        if self._retired is not None:
            raise self._retired
