"""The audit service's own entries: what was read from it, and what was refused. An `Outbox` without a spool.

They take the same way into the log as everybody's, so that they are durable when `record` returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from services.audit.core.model import Producer
from services.audit.core.reads import Read, ReadWindows, Summary
from services.audit.driver import Driver
from services.audit.metrics import AuditMetrics
from services.common import logs
from services.common.clock import Clock, to_datetime
from services.common.core.entries import EntryDraft, Outcome
from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import Instant

SERVICE = "audit"
# Its entries are numbered like a spool's, under a name that no spool has.
_OWN_SPOOL = "own"

_log = logs.get("audit.recorder")


class Recorder:
    """Owned by the event loop; use it after the driver is open, and run `summarize` supervised."""

    def __init__(
        self,
        driver: Driver,
        replica_id: str,
        encode: Callable[[EntryDraft, str, str], bytes],
        clock: Clock,
        metrics: AuditMetrics,
        *,
        read_window_ms: int,
    ) -> None:
        self._driver, self._encode, self._clock, self._metrics = driver, encode, clock, metrics
        self._replica_id = replica_id
        self._producer = Producer(SERVICE, replica_id, _OWN_SPOOL)
        # The last number that was given to an entry, whether it was logged or not; None before the first.
        self._sequence: int | None = None
        self._windows = ReadWindows(read_window_ms)
        self._window_opened = asyncio.Event()
        # Entries that could not be logged since the last one that could.
        self._dropped = 0

    def __repr__(self) -> str:
        return f"Recorder({self._producer}, {len(self._windows)} windows, {self._dropped} dropped)"

    async def record(self, entries: Sequence[EntryDraft], *, privileged: bool = False) -> None:
        """See `Outbox.record`. Refusals that repeat each other are counted, and recorded as one."""
        fresh = [draft for draft in entries if not self._repeats(draft)]
        if fresh:
            await self._log(fresh, privileged=privileged)

    async def record_read(
        self, actor: str, operation: str, subject: str, cause_id: str, attributes: Mapping[str, str]
    ) -> None:
        """Record one read before it is answered; AUDIT_UNAVAILABLE when that fails."""
        draft = EntryDraft(
            self._clock.now(), actor, operation, subject, cause_id=cause_id, attributes=attributes
        )
        await self.record([draft], privileged=True)

    async def record_repeated_read(self, actor: str, operation: str, subject: str, cause_id: str) -> None:
        """Record the first of many like reads before it is answered, the others in one summary."""
        read = Read(actor, operation)
        if not self._is_first(read, subject, self._clock.now()):
            return
        try:
            await self.record_read(actor, operation, subject, cause_id, {})
        except ServiceError:
            # Else the next one would count as a repetition of something that is not in the log.
            self._windows.forget(read)
            raise

    async def record_refused(
        self, actor: str, operation: str, subject: str, cause_id: str, error: ServiceError
    ) -> None:
        """Record a read that was refused."""
        outcome = Outcome.REFUSED if error.row.definite else Outcome.FAILED
        await self.record(
            [EntryDraft(self._clock.now(), actor, operation, subject, outcome, error.reason, cause_id)]
        )

    async def summarize(self) -> None:
        """Record the summary of each window when it is over, or when there are too many, for ever."""
        while True:
            end = self._windows.next_end()
            delay = None if end is None else max(0, end - self._clock.now()) / 1000
            try:
                async with asyncio.timeout(delay):
                    await self._window_opened.wait()
            except TimeoutError:
                # A window is over.
                pass
            self._window_opened.clear()
            await self._record_summaries(self._windows.due(self._clock.now()))

    async def flush(self) -> None:
        """Record the summaries of all windows now; for the drain."""
        await self._record_summaries(self._windows.flush(self._clock.now()))

    def _repeats(self, draft: EntryDraft) -> bool:
        read = Read(draft.actor, draft.operation, draft.reason)
        return draft.outcome is Outcome.REFUSED and not self._is_first(read, draft.subject, draft.event_time)

    def _is_first(self, read: Read, subject: str, now: Instant) -> bool:
        first = self._windows.seen(read, subject, now)
        if first:
            self._window_opened.set()
        return first

    async def _record_summaries(self, summaries: Sequence[Summary]) -> None:
        if summaries:
            await self._log([_draft(summary) for summary in summaries], privileged=False)

    async def _log(self, entries: Sequence[EntryDraft], *, privileged: bool) -> None:
        # Taken before the wait, so that two of these at once do not both report it.
        reported, self._dropped = self._dropped, 0
        try:
            await self._submit([self._overflow(reported), *entries] if reported else entries)
        except ServiceError as error:
            self._dropped += reported
            if privileged:
                raise ServiceError(
                    Reason.AUDIT_UNAVAILABLE,
                    f"this can not be recorded, so it was not done: {error.message}",
                    retry_after_ms=error.retry_after_ms,
                ) from error
            if not self._dropped:
                _log.error("own entries are lost", why=str(error))
            self._dropped += len(entries)
            self._metrics.unrecorded.inc(len(entries))

    async def _submit(self, drafts: Sequence[EntryDraft]) -> None:
        if self._sequence is None:
            self._sequence = self._driver.durable_sequence(self._producer)
        first = self._sequence + 1
        self._sequence += len(drafts)
        leaves = tuple(
            self._encode(draft, f"{SERVICE}/{self._replica_id}/{sequence}", self._replica_id)
            for sequence, draft in enumerate(drafts, first)
        )
        await self._driver.submit(self._producer, first, leaves, contiguous=False)

    def _overflow(self, dropped: int) -> EntryDraft:
        return EntryDraft(
            self._clock.now(),
            actor=f"service/{SERVICE}",
            operation="spool.overflow",
            subject=f"spool/{_OWN_SPOOL}",
            outcome=Outcome.FAILED,
            reason=Reason.AUDIT_UNAVAILABLE,
            attributes={"dropped": str(dropped)},
        )


def _draft(summary: Summary) -> EntryDraft:
    return EntryDraft(
        summary.end,
        summary.read.actor,
        summary.read.operation,
        summary.first_subject,
        outcome=Outcome.REFUSED if summary.read.reason else Outcome.OK,
        reason=summary.read.reason,
        attributes={
            "repeated": str(summary.count),
            "last_subject": summary.last_subject,
            "since": to_datetime(summary.begin).isoformat(timespec="milliseconds"),
        },
    )
