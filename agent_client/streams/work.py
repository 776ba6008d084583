"""The Work stream: assignments from the coordinator, results to it, locks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from muster.scheduler.v1 import work_pb2
from muster.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub

from agent_client.core.records import AttemptRef, HeldLock, Outcome, Payload
from agent_client.core.retry import Reconnect
from agent_client.core.work import Effect, Stop, Suspend, WorkCore
from agent_client.errors import (
    AgentLeftError,
    LockLostError,
    MusterError,
    PreconditionError,
    UnavailableError,
    from_status,
)
from agent_client.link import LockWish, Profile, Sink
from agent_client.pending import Pending
from agent_client.streams.discovery import Discovery
from agent_client.streams.duplex import Duplex, keep_open, monotonic_ms
from agent_client.streams.load import LoadMeter
from agent_client.streams.session import SessionStream
from agent_client.tls import Dialer
from agent_client.wire import (
    VERSIONS,
    assignment_from_proto,
    attempt_from_proto,
    attempt_to_proto,
    held_lock_to_proto,
    held_locks_from_proto,
    token_from_proto,
    work_frame_to_proto,
)

log = logging.getLogger("agent_client")


class WorkStream:
    """Follows the coordinator for ever; its core holds what must survive a broken stream."""

    def __init__(
        self,
        dialer: Dialer,
        discovery: Discovery,
        profile: Profile,
        *,
        session: SessionStream,
        load: LoadMeter,
        sink: Sink,
    ) -> None:
        self._dialer, self._discovery, self._profile = dialer, discovery, profile
        self._session, self._load, self._sink = session, load, sink
        self._core = WorkCore(profile.slots)
        self._wishes: dict[int, LockWish] = {}
        # Who waits for a savepoint to be durable, by its number; gone with the attempt.
        self._saves: dict[AttemptRef, dict[int, Pending[None]]] = {}
        self._reconnect = Reconnect()
        self._left = False
        # Of the current stream.
        self._wake = asyncio.Event()
        self._restart_due = False
        self._silence_max_ms = 0
        self._heard_at = 0
        self.open = asyncio.Event()
        # Set when nothing is held any more: no handler runs and every result is acked.
        self.idle = asyncio.Event()
        self.idle.set()

    def __repr__(self) -> str:
        return f"WorkStream({self._core!r})"

    async def run(self) -> None:
        """Keep the stream until cancelled; raises MusterError when there is no use in going on."""
        await keep_open("work from the scheduler", self._live, self._reconnect)

    def restart(self) -> None:
        """A new incarnation began: the stream must be opened under it."""
        self._restart_due = self.open.is_set()
        self._wake.set()

    # From the handlers; on the link loop.

    def started(self, attempt: AttemptRef) -> None:
        """The handler of an attempt runs."""
        self._core.started(attempt)
        self._wake.set()

    def progressed(self, attempt: AttemptRef, fraction: float, stage: str) -> None:
        """The handler of an attempt reported."""
        self._core.progressed(attempt, fraction, stage)
        self._wake.set()

    def saved(self, attempt: AttemptRef, savepoint: Payload, durable: Pending[None]) -> None:
        """The handler of an attempt saved."""
        number = self._core.saved(attempt, savepoint)
        if number:
            self._saves.setdefault(attempt, {})[number] = durable
        else:
            durable.fail(_over())
        self._wake.set()

    def ended(self, attempt: AttemptRef, outcome: Outcome) -> None:
        """The handler of an attempt returned."""
        self._core.ended(attempt, outcome)
        self._changed()

    def lock(self, wish: LockWish) -> None:
        """Ask for locks."""
        if self._left:
            wish.granted.fail(AgentLeftError())
            return
        self._wishes[wish.handle] = wish
        self._core.locks.wanted(
            wish.handle, wish.claims, wait_ms=wish.wait_ms, attempt=wish.attempt, now=monotonic_ms()
        )
        self._time_wishes()
        self._wake.set()

    def unlock(self, handle: int) -> None:
        """Give locks back, or withdraw a wish."""
        self._wishes.pop(handle, None)
        self._core.locks.released(handle)
        self._wake.set()

    def drain(self) -> None:
        """Take nothing new from now on."""
        self._core.drain()
        self._wake.set()

    def leave(self) -> None:
        """The agent leaves: nobody waits for a lock any more."""
        self._left = True
        for attempt in list(self._saves):
            self._end_saves(attempt, AgentLeftError())
        for handle in list(self._wishes):
            self._refuse(handle, AgentLeftError())

    # The stream's life.

    async def _live(self, hint: str) -> None:
        await self._session.open.wait()
        address = hint or await self._discovery.coordinator()
        channel = await self._dialer.open("scheduler", address)
        try:
            duplex: Duplex[work_pb2.WorkRequest, work_pb2.WorkResponse]
            duplex = Duplex.begin(SchedulerServiceStub(channel).Work, self._wake)
            self._restart_due = False
            answer = await duplex.greet(self._hello())
            self._welcomed(answer, address)
            await duplex.converse(self)
        finally:
            self.open.clear()
            self._core.closed()
            self._time_wishes()
            self._load.closed()
            self._session.hurry()
            await channel.close(None)

    def _hello(self) -> work_pb2.WorkRequest:
        hello = self._core.hello()
        return work_pb2.WorkRequest(
            hello=work_pb2.WorkHello(
                versions=VERSIONS,
                instance_id=self._profile.instance,
                incarnation=self._session.incarnation,
                held=[attempt_to_proto(attempt) for attempt in hello.held],
                held_locks=[held_lock_to_proto(lock) for lock in hello.held_locks],
                suspendable=True,
            )
        )

    def _welcomed(self, answer: work_pb2.WorkResponse, address: str) -> None:
        self._reconnect.welcomed(monotonic_ms())
        self._core.opened()
        self._silence_max_ms = answer.welcome.silence_max.ToMilliseconds()
        self._load.coordinator_epoch = answer.welcome.epoch
        self.open.set()
        self._session.hurry()
        log.info("ready for work from %s (epoch %d)", address, answer.welcome.epoch)
        # The first frame may carry more than the welcome.
        self.receive(answer)

    # The conversation.

    def take(self, now: int) -> work_pb2.WorkRequest | None:
        """Return what the core has to say."""
        if self._restart_due:
            raise UnavailableError("a new incarnation began", definite=True)
        frame = self._core.take_frame(now)
        return None if frame is None else work_frame_to_proto(frame)

    def receive(self, frame: work_pb2.WorkResponse) -> None:
        """Take assignments, cancels, acks, probes and locks."""
        self._heard_at = monotonic_ms()
        if frame.probe_nonce:
            self._core.probed(frame.probe_nonce)
            if self._load.probed():
                self._session.hurry()
        for assignment in frame.assignments:
            self._carry_out(self._core.assigned(attempt_from_proto(assignment.attempt)), assignment)
        for cancel in frame.cancels:
            attempt = attempt_from_proto(cancel.attempt)
            self._carry_out(self._core.cancelled(attempt, fenced=cancel.fenced, reason=cancel.reason))
        for suspend in frame.suspends:
            attempt = attempt_from_proto(suspend.attempt)
            grace_ms = suspend.grace.ToMilliseconds()
            self._carry_out(self._core.suspend_asked(attempt, reason=suspend.reason, grace_ms=grace_ms))
        for saved in frame.savepoint_acks:
            self._save_acked(attempt_from_proto(saved.attempt), saved)
        for ack in frame.result_acks:
            self._acked(attempt_from_proto(ack.attempt), ack)
        self._receive_locks(frame)
        self._changed()

    def due_at(self) -> None:
        """Say that nothing is due by itself."""
        return

    def silent_at(self) -> int | None:
        """Return when the coordinator, which probes regularly, is to be taken for gone."""
        return self._heard_at + self._silence_max_ms if self._silence_max_ms else None

    def _acked(self, attempt: AttemptRef, ack: work_pb2.ResultAck) -> None:
        if not self._core.acked(attempt):
            return
        error = from_status(ack.error) if ack.HasField("error") else None
        if error is not None:
            log.warning("%s: the result was refused: %s", attempt, error)
        self._end_saves(attempt, error or _over())

    def _save_acked(self, attempt: AttemptRef, ack: work_pb2.SavepointAck) -> None:
        number = self._core.save_acked(attempt)
        waiting = self._saves.get(attempt, {})
        for each in [each for each in waiting if each <= number]:
            durable = waiting.pop(each)
            if ack.HasField("error"):
                durable.fail(from_status(ack.error))
            else:
                durable.resolve(None)
        if not waiting:
            self._saves.pop(attempt, None)

    def _end_saves(self, attempt: AttemptRef, error: MusterError) -> None:
        for durable in self._saves.pop(attempt, {}).values():
            durable.fail(error)

    def _carry_out(self, effects: Iterable[Effect], assignment: work_pb2.Assignment | None = None) -> None:
        for effect in effects:
            if isinstance(effect, Suspend):
                self._sink.suspend_asked(effect.attempt, reason=effect.reason, grace_ms=effect.grace_ms)
            elif isinstance(effect, Stop):
                if effect.fenced:
                    self._end_saves(effect.attempt, _over())
                self._sink.stopped(effect.attempt, fenced=effect.fenced, reason=effect.reason)
            elif assignment is not None:
                self._sink.assigned(assignment_from_proto(assignment))

    def _receive_locks(self, frame: work_pb2.WorkResponse) -> None:
        for grant in frame.lock_grants:
            locks = held_locks_from_proto(grant.locks)
            wish = self._wishes.get(grant.lock_request_id)
            if self._core.locks.granted(grant.lock_request_id, locks) and wish is not None:
                wish.granted.resolve(locks)
        for refusal in frame.lock_refusals:
            if self._core.locks.refused(refusal.lock_request_id):
                self._refuse(refusal.lock_request_id, from_status(refusal.error))
        for revocation in frame.lock_revocations:
            lock = HeldLock(revocation.lock.resource, token_from_proto(revocation.lock.token))
            handle = self._core.locks.revoked(lock)
            if handle is not None:
                self._lose(handle, f"the lock on {lock.resource} ended: {revocation.reason}", lock.resource)

    def _refuse(self, handle: int, error: MusterError) -> None:
        wish = self._wishes.pop(handle, None)
        if wish is not None:
            wish.granted.fail(error)

    def _lose(self, handle: int, message: str, resource: str = "") -> None:
        wish = self._wishes.pop(handle, None)
        if wish is not None:
            error = LockLostError(message, metadata={"resource": resource})
            # Only one of the two has somebody who listens.
            wish.granted.fail(error)
            wish.lost(error)

    def _changed(self) -> None:
        for handle in self._core.locks.take_orphans():
            self._lose(handle, "the attempt ended and its locks with it")
        self._load.slots_used = self._core.busy_count
        if self._core.held_count:
            self.idle.clear()
        else:
            self.idle.set()
        self._wake.set()

    def _time_wishes(self) -> None:
        """While there is no stream, nobody else watches how long wishes for locks may wait."""
        due_at = self._core.locks.overdue_at()
        if due_at is not None:
            delay_s = max(0, due_at - monotonic_ms()) / 1000
            asyncio.get_running_loop().call_later(delay_s, self._refuse_overdue)

    def _refuse_overdue(self) -> None:
        for handle in self._core.locks.overdue(monotonic_ms()):
            self._refuse(handle, _not_connected())
        self._time_wishes()


def _over() -> MusterError:
    return PreconditionError(
        "the attempt ended before this savepoint was durable", reason="STALE_FENCING_TOKEN"
    )


def _not_connected() -> MusterError:
    return UnavailableError("the wait for the lock ended while no scheduler was reachable", definite=True)
