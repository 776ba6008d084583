"""How a service tells audit what it did: recorded on its own disk first, shipped when audit can take it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import grpc
from muster.audit.v1 import entry_pb2

from services.common import logs, shipper
from services.common.clock import Clock
from services.common.core.entries import DraftGroup, EntryDraft, Outcome
from services.common.core.errors import Reason, ServiceError
from services.common.metrics import Metrics
from services.common.spool import Spool
from services.common.worker import Worker

# The proto's limits; what is longer is cut, since one entry that audit refuses would stop all behind it.
ATTRIBUTES_MAX = 32
TEXT_BYTES_MAX = 1_024
# With this even an entry whose every text is full stays below the bytes that a leaf may have.
KEY_BYTES_MAX = 128
# What audit takes of one entry. A group that is larger becomes two entries.
ENTRY_BYTES_MAX = 65_535
# What it may get on top of what is written here: its service.
_SERVICE_BYTES = 35
# Stands where a draft says nothing; audit takes no entry without an actor or an operation.
UNKNOWN = "unknown"

_log = logs.get("outbox")


class Outbox(Protocol):
    """A service's way to the audit log.

    Durability: when `record` returns, the entries survive power loss of this machine; they reach audit in
                the order of the calls, each exactly once in the log.
    Bound:      beyond its bound an outbox drops what is not privileged and counts it; one entry
                "spool.overflow" then says how many operations are missing (guarantee A3).
    """

    def record(self, entries: Sequence[EntryDraft], *, privileged: bool = False) -> Awaitable[None]:
        """Keep `entries`; call it before replying, alongside the store's commit, and await what it returns.

        An outbox on a disk begins with the call, and not when it is awaited.
        With `privileged` raises AUDIT_UNAVAILABLE when they can not be kept: the operation must then not
        happen. Without it never raises for lack of room.
        """
        ...


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """Bounds of a spool on disk."""

    # About half a million entries of 500 bytes: an hour without audit at 140 entries a second.
    bytes_max: int = 256 * 1024 * 1024
    # The part of it that only privileged entries may fill, so that noise does not stop an operator.
    privileged_bytes: int = 16 * 1024 * 1024
    # After an overflow nothing but privileged entries is kept until this much more is free: one gap that is
    # recorded once, instead of an overflow entry beside every second entry.
    resume_bytes: int = 16 * 1024 * 1024


@dataclass(eq=False, slots=True)
class _Pending:
    """One call of `record` that waits for the disk."""

    drafts: Sequence[EntryDraft]
    privileged: bool
    kept: asyncio.Future[None]


@dataclass(eq=False, slots=True)
class _Flush:
    """What is on its way to the disk, and who waits for it."""

    # The loop's time at which it was begun.
    started: float
    payloads: list[bytes]
    kept: list[_Pending]
    refused: list[_Pending]
    # Dropped operations of which one of the payloads tells.
    reported: int


class SpooledOutbox:
    """An `Outbox` on a `Spool`. Owned by the event loop; the disk is touched on two threads only.

    Group commit: what comes while a flush is on its way to the disk shares the next one. A flush is a chain
    of callbacks and no task: each turn of the loop on this way is a part of what a single commit costs.
    """

    def __init__(
        self,
        spool: Spool,
        *,
        service: str,
        replica_id: str,
        clock: Clock,
        metrics: Metrics,
        limits: SpoolLimits | None = None,
    ) -> None:
        self._spool, self._clock, self._limits = spool, clock, limits or SpoolLimits()
        self._replica_id = replica_id
        self._actor = f"service/{service}"
        self._id_prefix = f"{service}/{replica_id}/{spool.spool_id}."
        self._writer = Worker("spool-write")
        self._shipper = shipper.Shipper(spool, self._writer, self._made_room)
        self._pending: list[_Pending] = []
        # Done when nothing is pending any more; None while nothing is.
        self._flushing: asyncio.Future[None] | None = None
        # Operations whose entries were dropped since there was room last; 0 while all is well.
        self._dropped = 0
        self._dropped_metric = metrics.counter(
            "outbox_dropped_operations", "Not recorded: the spool was full."
        )
        self._recorded_metric = metrics.counter("outbox_recorded_entries", "Entries that are on disk.")
        self._flush_metric = metrics.histogram("outbox_flush_seconds", "From a flush's start to the disk.")
        depth = metrics.gauge("outbox_depth_entries", "Entries that audit has not confirmed.")
        depth.set_function(lambda: spool.next_sequence - 1 - self._shipper.acked)
        size = metrics.gauge("outbox_bytes", "Bytes of the spool on disk.")
        size.set_function(lambda: spool.size_bytes)

    def record(self, entries: Sequence[EntryDraft], *, privileged: bool = False) -> asyncio.Future[None]:
        """See `Outbox.record`. A cancelled caller's entries are kept all the same."""
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if entries:
            self._pending.append(_Pending(entries, privileged, kept))
            self._start_flush()
        else:
            kept.set_result(None)
        return kept

    async def ship(self, connect: Callable[[], Awaitable[grpc.aio.Channel]]) -> None:
        """Bring what is recorded to audit, for ever; run it supervised.

        `connect` finds an audit replica and returns a new channel to it, which is closed here; it may raise
        ServiceError, OSError or AioRpcError when none is known.
        """
        await self._shipper.run(connect)

    async def wait_shipped(self) -> None:
        """Return when audit has confirmed everything that is recorded now."""
        await self._shipper.wait_acked(self._spool.next_sequence - 1)

    async def close(self) -> None:
        """Flush what is pending and close the files; stop `ship` first."""
        if self._flushing is not None:
            await self._flushing
        if self._dropped:
            await self._start_flush(closing=True)
        await self._writer.run(self._spool.close)
        await asyncio.get_running_loop().run_in_executor(None, self._writer.close)

    def _made_room(self) -> None:
        """Audit has confirmed something: what was dropped meanwhile can be reported."""
        if self._dropped:
            self._start_flush()

    def _start_flush(self, *, closing: bool = False) -> asyncio.Future[None]:
        """Flush what is pending from the next turn of the loop on; return what is done when nothing is."""
        if self._flushing is None:
            loop = asyncio.get_running_loop()
            self._flushing = loop.create_future()
            loop.call_soon(self._flush, closing)
        return self._flushing

    def _flush(self, closing: bool = False) -> None:
        """Hand what is pending to the disk. Every pending call gets its answer, whatever happens here."""
        batch, self._pending = self._pending, []
        try:
            flush = self._choose(batch, closing=closing)
            if flush.payloads:
                keep = partial(_append, self._spool, flush.payloads)
                self._writer.run_then(keep, partial(self._flushed, flush))
                return
        except Exception as error:  # noqa: BLE001  # a defect: nobody shall wait for an answer for ever
            self._give_up(batch, error)
            return
        self._flushed(flush, None)

    def _flushed(self, flush: _Flush, error: Exception | None) -> None:
        """Answer those whose entries are on disk, or are not; go on with what has come meanwhile."""
        if error is not None and not isinstance(error, OSError):
            self._give_up([*flush.kept, *flush.refused], error)
            return
        why = "the spool is full: bring audit back"
        kept, refused, reported = flush.kept, flush.refused, flush.reported
        if error is not None:
            # Nothing of it is there (see Spool.append), so that all are in the same position.
            why = f"the spool's disk failed: {error.strerror}"
            reported, kept, refused = 0, [], [*kept, *refused]
        # Commit point. From here a crash loses nothing: the shipper starts from the disk.
        for call in kept:
            _settle(call, None)
        self._dropped -= reported
        self._refuse(refused, why)
        if flush.payloads and error is None:
            self._recorded_metric.inc(len(flush.payloads))
            self._shipper.stir()
        self._flush_metric.observe(asyncio.get_running_loop().time() - flush.started)
        if self._pending:
            self._flush()
        else:
            self._rest()

    def _rest(self) -> None:
        flushing, self._flushing = self._flushing, None
        if flushing is not None and not flushing.done():
            flushing.set_result(None)

    def _give_up(self, batch: Sequence[_Pending], error: Exception) -> None:
        _log.error("recording failed", error=error)
        for call in [*batch, *self._pending]:
            _settle(call, ServiceError(Reason.AUDIT_UNAVAILABLE, f"recording failed: {error!r}"))
        self._pending = []
        self._rest()

    def _choose(self, batch: Sequence[_Pending], *, closing: bool) -> _Flush:
        """Return what of a batch there is room for, encoded."""
        limits = self._limits
        room = limits.bytes_max - self._spool.size_bytes
        flush = _Flush(asyncio.get_running_loop().time(), [], [], [], 0)
        payloads = flush.payloads
        least_ordinary = limits.privileged_bytes
        if self._dropped and (closing or room > limits.privileged_bytes + limits.resume_bytes):
            room -= self._add(payloads, [self._overflow()])
            flush.reported = self._dropped
        elif self._dropped:
            least_ordinary = limits.bytes_max
        for call in batch:
            least = 0 if call.privileged else least_ordinary
            before = len(payloads)
            size = self._add(payloads, call.drafts) if room > least else 0
            if room <= least or size > room - least:
                del payloads[before:]
                flush.refused.append(call)
            else:
                room -= size
                flush.kept.append(call)
        return flush

    def _refuse(self, refused: Sequence[_Pending], why: str) -> None:
        for call in refused:
            if call.privileged:
                message = f"this operation can not be recorded, so it was not done: {why}"
                _settle(call, ServiceError(Reason.AUDIT_UNAVAILABLE, message, retry_after_ms=1_000))
                continue
            if self._dropped == 0:
                _log.error("dropping audit entries", why=why)
            count = sum(draft.operation_count for draft in call.drafts)
            self._dropped += count
            self._dropped_metric.inc(count)
            _settle(call, None)

    def _add(self, payloads: list[bytes], drafts: Sequence[EntryDraft]) -> int:
        """Append the drafts' records under their numbers; return their size on disk in bytes."""
        return add_entries(payloads, drafts, self._id_prefix, self._spool.next_sequence, self._replica_id)

    def _overflow(self) -> EntryDraft:
        return EntryDraft(
            self._clock.now(),
            actor=self._actor,
            operation="spool.overflow",
            subject=f"spool/{self._spool.spool_id}",
            outcome=Outcome.FAILED,
            reason=Reason.AUDIT_UNAVAILABLE,
            attributes={"dropped": str(self._dropped)},
        )


async def open_outbox(
    directory: Path,
    *,
    service: str,
    replica_id: str,
    clock: Clock,
    metrics: Metrics,
    limits: SpoolLimits | None = None,
) -> SpooledOutbox:
    """Open the spool in `directory`, taking up what an earlier run recorded; may raise SpoolError."""
    spool = await asyncio.get_running_loop().run_in_executor(None, Spool.open, directory)
    return SpooledOutbox(
        spool, service=service, replica_id=replica_id, clock=clock, metrics=metrics, limits=limits
    )


def add_entries(
    payloads: list[bytes], drafts: Sequence[EntryDraft], id_prefix: str, first_sequence: int, replica_id: str
) -> int:
    """Append the drafts' records, numbered from `first_sequence` on; return their size in a spool in bytes.

    A group that is too large for one entry becomes two.
    """
    size = 0
    for draft in drafts:
        payload = encode_entry(draft, f"{id_prefix}{first_sequence + len(payloads)}", replica_id)
        count = draft.operation_count
        if len(payload) > ENTRY_BYTES_MAX - _SERVICE_BYTES and count > 1:
            halves = draft.part(0, count // 2), draft.part(count // 2, count)
            size += add_entries(payloads, halves, id_prefix, first_sequence, replica_id)
            continue
        payloads.append(payload)
        size += len(payload) + 8
    return size


def encode_entry(draft: EntryDraft, entry_id: str, replica_id: str, service: str = "") -> bytes:
    """Return the draft as the `muster.audit.v1.Entry` that audit takes, deterministically encoded.

    Texts beyond the proto's limits are cut. `service` is set by audit alone.
    """
    entry = entry_pb2.Entry(
        entry_id=entry_id,
        service=service,
        replica_id=replica_id,
        actor=_cut(draft.actor) or UNKNOWN,
        operation=_cut(draft.operation) or UNKNOWN,
        subject=_cut(draft.subject),
        outcome=_OUTCOMES[draft.outcome],
        reason=_cut(draft.reason),
        cause_id=_cut(draft.cause_id),
        collaboration_id=_cut(draft.collaboration_id),
        traceparent=_cut(draft.traceparent),
    )
    seconds, milliseconds = divmod(draft.event_time, 1000)
    entry.event_time.seconds, entry.event_time.nanos = seconds, milliseconds * 1_000_000
    for key, value in list(draft.attributes.items())[:ATTRIBUTES_MAX]:
        entry.attributes[_cut(key, KEY_BYTES_MAX)] = _cut(value)
    if draft.group is not None:
        _write_group(entry, draft.group)
    return entry.SerializeToString(deterministic=True)


def _write_group(entry: entry_pb2.Entry, group: DraftGroup) -> None:
    written = entry.group
    # A subject has the limit of every text, and a name is the end of one.
    written.names.extend(_cut_all(group.names, TEXT_BYTES_MAX - len(entry.subject.encode())))
    written.cause_ids.extend(_cut_all(group.cause_ids))
    written.collaboration_ids.extend(_cut_all(group.collaboration_ids))
    written.traceparents.extend(_cut_all(group.traceparents))
    room = ATTRIBUTES_MAX - len(entry.attributes)
    for key, values in list(group.attributes.items())[:room]:
        written.attributes[_cut(key, KEY_BYTES_MAX)].values.extend(_cut_all(values))


_OUTCOMES = {outcome: entry_pb2.Outcome.Value(f"OUTCOME_{outcome.name}") for outcome in Outcome}


def _cut(text: str, limit_bytes: int = TEXT_BYTES_MAX) -> str:
    # The first test spares the encoding of what is short in any encoding.
    if len(text) * 4 <= limit_bytes and text.isascii():
        return text
    return text.encode("utf-8", "replace")[:limit_bytes].decode("utf-8", "ignore")


def _cut_all(texts: Sequence[str], limit_bytes: int = TEXT_BYTES_MAX) -> Sequence[str]:
    # Asked of all at once: a group has a hundred of them, and none is ever long.
    if texts and (len(max(texts, key=len)) > limit_bytes or not "".join(texts).isascii()):
        return [_cut(text, limit_bytes) for text in texts]
    return texts


def _append(spool: Spool, payloads: Sequence[bytes]) -> Exception | None:
    """Append on the writer's thread; return what the disk said against it, or a defect."""
    try:
        spool.append(payloads)
    except Exception as error:  # noqa: BLE001  # whatever it is, those who wait are to hear of it
        return error
    return None


def _settle(call: _Pending, error: Exception | None) -> None:
    if call.kept.done():
        return
    if error is None:
        call.kept.set_result(None)
    else:
        call.kept.set_exception(error)
