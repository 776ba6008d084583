"""The one loop of the log: gathers what arrived, steps the machine once, carries out what it wants.

Three threads touch the disk: one commits, one integrates, and `reader.py` reads. The loop itself never
blocks. The order is the machine's: an entry is acked after its commit, and seen by readers after the
checkpoint over it is durable.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from services.audit.core.checkpoint import Signer, TreeHead, sign, verifier_key
from services.audit.core.effects import (
    Acknowledge,
    Commit,
    Effect,
    Integrate,
    LimitReached,
    Publish,
    Refuse,
)
from services.audit.core.events import (
    CommitFailed,
    Committed,
    DrainBegan,
    Event,
    FrameArrived,
    Integrated,
    IntegrationFailed,
    TurnEnded,
)
from services.audit.core.machine import LogMachine
from services.audit.core.model import Batch, Frame, LogLimits, Producer
from services.audit.core.tree import Tree, grow
from services.audit.metrics import AuditMetrics
from services.audit.store import LogStore
from services.common import logs
from services.common.clock import Clock
from services.common.core.errors import Reason, ServiceError
from services.common.worker import Worker

_log = logs.get("audit.driver")


@dataclass(frozen=True, slots=True)
class Published:
    """What readers may see."""

    tree: Tree
    # The signed note over the tree.
    checkpoint: bytes

    @property
    def size(self) -> int:
        """Number of leaves."""
        return self.tree.size


class Driver:
    """Owned by the event loop; `open` before `run`, and `run` supervised."""

    def __init__(
        self, store: LogStore, origin: str, limits: LogLimits, clock: Clock, metrics: AuditMetrics
    ) -> None:
        self._store, self._origin, self._limits = store, origin, limits
        self._clock, self._metrics = clock, metrics
        self._committer = Worker("audit-commit")
        self._integrator = Worker("audit-integrate")
        self._machine: LogMachine
        self._signer: Signer
        self._published: Published
        # Replaced at each publication, so that everyone who waits is woken once.
        self._grown = asyncio.Event()
        # What happened since the last turn, and what wakes the loop for it.
        self._events: list[Event] = []
        self._stirred = asyncio.Event()
        # Who waits for which frame.
        self._answers: dict[int, asyncio.Future[int]] = {}
        self._next_ticket = 0
        self._draining = False
        # A defect in a thread; the loop raises it.
        self._defect: BaseException | None = None

    def __repr__(self) -> str:
        return f"Driver({self._machine!r}, {len(self._answers)} frames unanswered)"

    async def open(self, *, first_start: bool) -> None:
        """Open the log; raises `LogUnusableError` or `ContradictionError`."""
        opened = await self._committer.run(lambda: self._store.open(first_start=first_start))
        self._signer = opened.signer
        self._machine = LogMachine(opened.recovered, self._limits)
        self._published = Published(opened.recovered.tree, opened.recovered.checkpoint)
        self._show_metrics()
        _log.info(
            "opened the log",
            origin=self._origin,
            tree_size=self._published.size,
            pending=self._machine.durable_size - self._published.size,
            verifier_key=self.verifier_key,
        )

    @property
    def published(self) -> Published:
        """The newest durable checkpoint and its tree."""
        return self._published

    @property
    def origin(self) -> str:
        """The log's name."""
        return self._origin

    @property
    def verifier_key(self) -> str:
        """The key that others verify checkpoints with."""
        return verifier_key(self._origin, self._signer.public_key)

    @property
    def durable_size(self) -> int:
        """Number of leaves that are durable; readers see them with the next checkpoint."""
        return self._machine.durable_size

    def durable_sequence(self, producer: Producer) -> int:
        """Return the last durable number of `producer`, 0 when none is known."""
        return self._machine.durable_sequence(producer)

    def submit(
        self, producer: Producer, first_sequence: int, leaves: tuple[bytes, ...], *, contiguous: bool = True
    ) -> asyncio.Future[int]:
        """Have `leaves` logged; the future gives the producer's last durable number, or a ServiceError.

        A cancelled future does not take the leaves back.
        """
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self._draining:
            answer.set_exception(
                ServiceError(Reason.SHUTTING_DOWN, "the log is closing: send it again later")
            )
            return answer
        self._next_ticket += 1
        self._answers[self._next_ticket] = answer
        frame = Frame(producer, first_sequence, leaves, self._next_ticket, contiguous)
        self._happened(FrameArrived(frame))
        return answer

    async def wait_grown(self, size: int) -> None:
        """Return when more than `size` leaves are published."""
        while self._published.size <= size:
            await self._grown.wait()

    async def run(self) -> None:
        """Work until a drain has emptied everything."""
        try:
            while not (self._draining and self._machine.idle and not self._events):
                await self._wait_stirred()
                if self._defect is not None:
                    raise self._defect
                events, self._events = self._events, []
                for event in (*events, TurnEnded()):
                    for effect in self._machine.step(event, self._clock.now()):
                        self._carry_out(effect)
                self._show_metrics()
        finally:
            # After a crash of the loop too: nobody is left who would answer.
            self._draining = True
            gone = ServiceError(
                Reason.STORE_UNAVAILABLE, "the log was closed before it was known what is durable: send again"
            )
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(gone)
            self._answers.clear()

    def begin_drain(self) -> None:
        """Take no more frames; `run` ends when all that came is durable and published."""
        self._draining = True
        self._happened(DrainBegan())

    async def close(self) -> None:
        """Close the store after `run` has ended; what was acked is durable anyway."""
        loop = asyncio.get_running_loop()
        for worker in (self._integrator, self._committer):
            await loop.run_in_executor(None, worker.close)
        await loop.run_in_executor(None, self._store.close)

    async def _wait_stirred(self) -> None:
        wake_at = self._machine.wake_at()
        delay = None if wake_at is None else max(0, wake_at - self._clock.now()) / 1000
        try:
            async with asyncio.timeout(delay):
                await self._stirred.wait()
        except TimeoutError:
            # The instant that the machine wanted to be woken at has come.
            pass
        self._stirred.clear()

    def _happened(self, event: Event) -> None:
        self._events.append(event)
        self._stirred.set()

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Commit(batch, standing):
                self._begin(self._committer, self._commit, batch, standing)
            case Integrate(tree, leaves):
                self._begin(self._integrator, self._integrate, tree, leaves)
            case Acknowledge(ticket, sequence):
                self._answer(ticket, sequence)
            case Refuse(ticket, error):
                self._metrics.refused.labels(error.reason).inc()
                self._answer(ticket, error)
            case Publish(tree, checkpoint):
                self._published = Published(tree, checkpoint)
                grown, self._grown = self._grown, asyncio.Event()
                grown.set()
                self._begin(self._committer, self._release, tree.size)
            case LimitReached(limit):
                self._metrics.limits_reached.labels(limit).inc()

    def _answer(self, ticket: int, result: int | ServiceError) -> None:
        answer = self._answers.pop(ticket)
        if answer.done():
            return
        if isinstance(result, ServiceError):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    def _begin(self, worker: Worker, work: Callable[..., Event | None], *given: Any) -> None:
        """Run `work` on the worker's thread; what it returns is the next event."""

        def ended(future: asyncio.Future[Event | None]) -> None:
            if future.cancelled():
                return
            if (defect := future.exception()) is not None:
                self._defect = defect
                self._stirred.set()
            elif (event := future.result()) is not None:
                self._happened(event)

        worker.run(functools.partial(work, *given)).add_done_callback(ended)

    # On the threads: no access to anything that the loop changes.

    def _commit(self, batch: Batch, standing: Mapping[Producer, int]) -> Event:
        try:
            with self._metrics.commit_seconds.time():
                self._store.commit(batch, standing)
        except ServiceError as error:
            _log.error("entries could not be made durable", why=str(error), entries=len(batch.leaves))
            return CommitFailed(error)
        # Commit point: every entry of the batch survives from here on; the acks follow.
        self._metrics.commit_entries.observe(len(batch.leaves))
        for producer, sequence in batch.cursors.items():
            self._metrics.appended.labels(producer.service).inc(sequence - standing.get(producer, 0))
        return Committed()

    def _integrate(self, tree: Tree, leaves: tuple[bytes, ...]) -> Event:
        try:
            with self._metrics.integration_seconds.time():
                growth = grow(tree, leaves)
                head = TreeHead(growth.tree.size, growth.tree.root())
                checkpoint = sign(self._origin, head, self._signer)
                self._store.integrate(growth, checkpoint)
        except ServiceError as error:
            self._metrics.integration_failures.inc()
            _log.error("no checkpoint could be made; trying again", why=str(error), entries=len(leaves))
            return IntegrationFailed(error)
        # Commit point: the checkpoint is durable over durable tiles; now it may be shown.
        return Integrated(growth.tree, checkpoint)

    def _release(self, size: int) -> None:
        try:
            self._store.release(size)
        except ServiceError as error:
            # The next checkpoint releases them too.
            self._metrics.release_failures.inc()
            _log.warning("old journal segments could not be removed", why=str(error))

    def _show_metrics(self) -> None:
        self._metrics.tree_size.set(self._published.size)
        self._metrics.pending.set(self._machine.pending_bytes)
