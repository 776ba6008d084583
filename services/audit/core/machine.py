"""When is an entry durable, and when is it in the tree?

A leaf is *pending* once a commit made it durable with its index, *integrated* once the tiles hold it, and
*published* once a durable checkpoint covers it. Frames are acked at the first step; readers see the last.

Pure: one mutating method, `LogMachine.step`. At most one commit and one integration are under way; what
arrives meanwhile is gathered into the next, which is all the batching there is.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

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
from services.audit.core.model import Batch, Frame, LogLimits, Producer, Recovered
from services.common.core.backoff import backoff_ms
from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import Instant, after


class LogMachine:
    """The state of the log; `step` alone changes it."""

    def __init__(self, recovered: Recovered, limits: LogLimits) -> None:
        self._limits = limits
        # Frames in the order in which they came, none of them looked at yet.
        self._waiting: deque[Frame] = deque()
        # The batch that is being committed, and who waits for it: ticket -> number to acknowledge.
        self._staged: Batch | None = None
        self._staged_tickets: list[tuple[int, int]] = []
        # Last durable number by producer, least recently used first.
        self._cursors = dict(recovered.cursors)
        # The published tree, and the durable leaves that follow it.
        self._tree = recovered.tree
        self._pending: deque[bytes] = deque(recovered.pending)
        self._pending_bytes = sum(map(len, recovered.pending))
        # How many of the pending leaves are being integrated; 0 when no integration is under way.
        self._integrating = 0
        self._integration_failures = 0
        # No integration starts before this instant.
        self._integrate_at = Instant(0)
        self._draining = False

    def __repr__(self) -> str:
        staged = 0 if self._staged is None else len(self._staged.leaves)
        return (
            f"LogMachine(waiting={len(self._waiting)} staged={staged} pending={len(self._pending)} "
            f"integrating={self._integrating} published={self._tree.size} producers={len(self._cursors)})"
        )

    @property
    def durable_size(self) -> int:
        """Number of leaves that are durable; the next batch starts here."""
        return self._tree.size + len(self._pending)

    @property
    def pending_bytes(self) -> int:
        """Bytes of the leaves that are durable and not yet published."""
        return self._pending_bytes

    @property
    def integration_failures(self) -> int:
        """How often the integration has failed in a row."""
        return self._integration_failures

    @property
    def idle(self) -> bool:
        """Whether nothing waits, nothing is under way, and every durable leaf is published."""
        return not (self._waiting or self._staged or self._pending)

    def durable_sequence(self, producer: Producer) -> int:
        """Return the last durable number of `producer`, 0 when none is known."""
        return self._cursors.get(producer, 0)

    def wake_at(self) -> Instant | None:
        """Return when `TurnEnded` is worth stepping although nothing happened; None for never."""
        return self._integrate_at if self._pending and not self._integrating else None

    def step(self, event: Event, now: Instant) -> list[Effect]:
        """Take in one event and return what is to be done, in that order."""
        effects: list[Effect] = []
        match event:
            case FrameArrived(frame):
                self._waiting.append(frame)
            case TurnEnded():
                effects = self._stage() + self._begin_integration(now)
            case Committed():
                effects = self._take_over_batch()
            case CommitFailed(error):
                effects = self._drop_batch(error)
            case Integrated():
                effects = self._publish(event)
            case IntegrationFailed():
                self._retry_integration(now)
            case DrainBegan():
                self._draining = True
                self._integrate_at = now
        return effects

    def validate(self) -> None:
        """Assert what must hold between any two steps; for tests."""
        assert self._pending_bytes == sum(map(len, self._pending))  # noqa: S101
        assert 0 <= self._integrating <= len(self._pending)  # noqa: S101
        assert len(self._cursors) <= self._limits.producers_max  # noqa: S101
        assert self._staged is not None or not self._staged_tickets  # noqa: S101
        assert self._staged is None or self._staged.first_index == self.durable_size  # noqa: S101

    # Pending: from waiting frames to durable leaves.

    def _stage(self) -> list[Effect]:
        if self._staged is not None:
            return []
        answers: list[Effect] = []
        leaves: list[bytes] = []
        cursors: dict[Producer, int] = {}
        size_bytes = 0
        # Too much pending means that the integration does not keep up: then frames wait, their streams
        # stop reading, and the producers' spools hold what comes.
        while (
            self._waiting
            and self._pending_bytes < self._limits.pending_bytes_max
            and size_bytes < self._limits.batch_bytes_max
            and len(leaves) < self._limits.batch_leaves_max
        ):
            frame = self._waiting.popleft()
            logged = cursors.get(frame.producer, self.durable_sequence(frame.producer))
            if frame.first_sequence > logged + 1 and frame.contiguous:
                answers.append(Refuse(frame.ticket, _gap(frame, logged + 1)))
                continue
            # What was logged before is acked and not logged again.
            fresh = frame.leaves[max(0, logged + 1 - frame.first_sequence) :]
            if fresh:
                leaves.extend(fresh)
                size_bytes += sum(map(len, fresh))
                logged = cursors[frame.producer] = frame.last_sequence
            if frame.producer in cursors:
                self._staged_tickets.append((frame.ticket, logged))
            else:
                answers.append(Acknowledge(frame.ticket, logged))
        if self._waiting and self._pending_bytes >= self._limits.pending_bytes_max:
            answers.append(LimitReached("pending_bytes_max"))
        if leaves:
            self._staged = Batch(self.durable_size, tuple(leaves), cursors)
            answers.append(Commit(self._staged, self._cursors))
        return answers

    def _take_over_batch(self) -> list[Effect]:
        batch, tickets = self._end_commit()
        self._pending.extend(batch.leaves)
        self._pending_bytes += sum(map(len, batch.leaves))
        for producer, sequence in batch.cursors.items():
            self._cursors.pop(producer, None)
            self._cursors[producer] = sequence
        effects: list[Effect] = [Acknowledge(ticket, sequence) for ticket, sequence in tickets]
        # A forgotten producer that comes back is refused for a gap: never logged twice.
        while len(self._cursors) > self._limits.producers_max:
            del self._cursors[next(iter(self._cursors))]
            effects.append(LimitReached("producers_max"))
        return effects

    def _drop_batch(self, error: ServiceError) -> list[Effect]:
        _, tickets = self._end_commit()
        return [Refuse(ticket, error) for ticket, _ in tickets]

    def _end_commit(self) -> tuple[Batch, list[tuple[int, int]]]:
        batch, tickets = self._staged, self._staged_tickets
        if batch is None:
            raise RuntimeError(f"a commit ended that was not under way: {self!r}")
        self._staged, self._staged_tickets = None, []
        return batch, tickets

    # Integrated and published: from durable leaves to a checkpoint.

    def _begin_integration(self, now: Instant) -> list[Effect]:
        if self._integrating or not self._pending or now < self._integrate_at:
            return []
        leaves = tuple(islice(self._pending, self._limits.growth_leaves_max))
        self._integrating = len(leaves)
        interval_ms = 0 if self._draining else self._limits.checkpoint_interval_ms
        self._integrate_at = after(now, interval_ms)
        return [Integrate(self._tree, leaves)]

    def _publish(self, event: Integrated) -> list[Effect]:
        if event.tree.size != self._tree.size + self._integrating:
            raise RuntimeError(f"{event.tree!r} does not follow from {self!r}")
        for _ in range(self._integrating):
            self._pending_bytes -= len(self._pending.popleft())
        self._tree, self._integrating, self._integration_failures = event.tree, 0, 0
        return [Publish(event.tree, event.checkpoint)]

    def _retry_integration(self, now: Instant) -> None:
        # What was written is written again with the same content: leaves and their order are settled.
        self._integrating = 0
        self._integration_failures += 1
        delay_ms = backoff_ms(
            self._integration_failures,
            base_ms=self._limits.integration_retry_ms,
            max_ms=self._limits.integration_retry_ms_max,
        )
        self._integrate_at = after(now, delay_ms)


def _gap(frame: Frame, expected: int) -> ServiceError:
    return ServiceError(
        Reason.MALFORMED_FRAME,
        f"entries of {frame.producer.service}/{frame.producer.replica_id} must go on with number {expected}, "
        f"but the frame starts at {frame.first_sequence}; send the missing entries first",
        metadata={
            "expected_sequence_number": str(expected),
            "first_sequence_number": str(frame.first_sequence),
        },
    )
