"""The outbox end to end: disk, stream to an audit that behaves, fails, forgets to answer, comes back."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from muster.audit.v1 import audit_service_pb2 as pb
from muster.audit.v1 import entry_pb2

from services.common import shipper
from services.common.core.entries import DraftGroup, EntryDraft, Outcome
from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import Instant
from services.common.metrics import Metrics
from services.common.outbox import SpooledOutbox, SpoolLimits, encode_entry, open_outbox
from services.common.rpc.channel import connector
from services.common.rpc.status import status_proto
from services.common.spool import Spool
from services.common.testing.clock import FakeClock
from tests.conftest import Certificates, Eventually
from tests.integration.common.conftest import SERVICE, Plane, Serve

SMALL = SpoolLimits(bytes_max=20_000, privileged_bytes=5_000, resume_bytes=5_000)


class AuditTwin:
    """Keeps entries the way audit_service.proto says, and fails when told to."""

    def __init__(self) -> None:
        self.logs: dict[str, list[entry_pb2.Entry]] = {}
        self.streams = 0
        # Ends the stream after so many frames, before or after keeping the frame.
        self.fail_before_keeping = 0
        self.fail_after_keeping = 0
        self.refuse: ServiceError | None = None

    @property
    def operations(self) -> list[str]:
        return [entry.operation for log in self.logs.values() for entry in log]

    async def __call__(self, requests: AsyncIterator[pb.AppendRequest], context: Any) -> None:
        self.streams += 1
        async for request in requests:
            assert request.ByteSize() <= 1024 * 1024
            assert 1 <= len(request.entries) <= 1_024
            if self.refuse is not None:
                await context.write(pb.AppendResponse(error=status_proto(self.refuse)))
                return
            if self.fail_before_keeping:
                self.fail_before_keeping -= 1
                raise ServiceError(Reason.STORE_UNAVAILABLE, "not persisted")
            log = self.logs.setdefault(request.spool_id, [])
            assert request.first_sequence_number <= len(log) + 1, "a gap"
            log += list(request.entries)[len(log) + 1 - request.first_sequence_number :]
            if self.fail_after_keeping:
                self.fail_after_keeping -= 1
                raise ServiceError(Reason.STORE_UNAVAILABLE, "persisted all the same")
            await context.write(pb.AppendResponse(durable_sequence_number=len(log)))


def draft(name: str, size: int = 0) -> EntryDraft:
    attributes = {f"pad{n}": "x" * 1_000 for n in range(size // 1_000)}
    return EntryDraft(Instant(1_700_000_000_123), "agent/x", name, "task/t", attributes=attributes)


class Rig:
    """An outbox in one folder that can be closed and opened again, and the plane it ships to."""

    def __init__(self, folder: Path, limits: SpoolLimits | None) -> None:
        self.folder, self.limits = folder, limits
        self.shipping: asyncio.Task[None] | None = None

    async def open(self) -> SpooledOutbox:
        self.metrics = Metrics("broker")
        self.outbox = await open_outbox(
            self.folder,
            service="broker",
            replica_id="b-1",
            clock=FakeClock(),
            metrics=self.metrics,
            limits=self.limits,
        )
        return self.outbox

    def ship_to(self, plane: Plane) -> None:
        plane.access[f"{SERVICE}/Append"] = frozenset({"service/broker"})

        async def connect() -> grpc.aio.Channel:
            return plane.channel("service/broker")

        self.shipping = asyncio.create_task(self.outbox.ship(connect))

    async def stop_shipping(self) -> None:
        if self.shipping is not None:
            self.shipping.cancel()
            await asyncio.gather(self.shipping, return_exceptions=True)
            self.shipping = None

    async def close(self) -> None:
        await self.stop_shipping()
        await self.outbox.close()


Open = Callable[..., Awaitable[Rig]]


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Open]:
    """Return `await rig(limits)`: an open outbox with nothing to ship to yet."""
    rigs: list[Rig] = []

    async def make(limits: SpoolLimits | None = None) -> Rig:
        made = Rig(tmp_path / f"spool{len(rigs)}", limits)
        rigs.append(made)
        await made.open()
        return made

    yield make
    for one in rigs:
        await one.close()


@pytest.fixture(autouse=True)
def _quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipper, "BACKOFF_MS_MIN", 1)
    monkeypatch.setattr(shipper, "BACKOFF_MS_MAX", 5)


async def test_entries_arrive_in_order_with_their_fields(serve: Serve, rig: Open) -> None:
    audit = AuditTwin()
    here = await rig()
    here.ship_to(await serve(Append=audit))
    await here.outbox.record(
        [
            EntryDraft(
                Instant(1_700_000_000_123),
                actor="agent/field-1",
                operation="task.assign",
                subject="task/c-1/forecast",
                outcome=Outcome.REFUSED,
                reason=Reason.ACCESS_DENIED,
                cause_id="tick-7",
                collaboration_id="c-1",
                attributes={"attempt": "3"},
                traceparent="00-" + "0" * 52,
            )
        ]
    )
    for number in range(50):
        await here.outbox.record([draft(f"op.{number}"), draft(f"op.{number}b")])
    await here.outbox.wait_shipped()
    ((spool_id, log),) = audit.logs.items()
    first = entry_pb2.Entry(
        entry_id=f"broker/b-1/{spool_id}.1",
        replica_id="b-1",
        actor="agent/field-1",
        operation="task.assign",
        subject="task/c-1/forecast",
        outcome=entry_pb2.OUTCOME_REFUSED,
        reason="ACCESS_DENIED",
        cause_id="tick-7",
        collaboration_id="c-1",
        attributes={"attempt": "3"},
        traceparent="00-" + "0" * 52,
    )
    first.event_time.FromMilliseconds(1_700_000_000_123)
    assert log[0] == first
    assert [entry.operation for entry in log[1:]] == [
        name for number in range(50) for name in (f"op.{number}", f"op.{number}b")
    ]


async def test_concurrent_records_share_flushes_and_keep_their_order(serve: Serve, rig: Open) -> None:
    audit = AuditTwin()
    here = await rig()
    here.ship_to(await serve(Append=audit))
    await asyncio.gather(*(here.outbox.record([draft(f"op.{number}")]) for number in range(2_000)))
    await here.outbox.wait_shipped()
    assert audit.operations == [f"op.{number}" for number in range(2_000)]
    assert here.metrics.value("outbox_recorded_entries_total") == 2_000
    assert here.metrics.value("outbox_flush_seconds_count") < 20
    assert here.metrics.value("outbox_depth_entries") == 0


async def test_an_audit_that_fails_either_way_gets_each_entry_once(serve: Serve, rig: Open) -> None:
    """Fail before keeping and fail after keeping, in turn, while the service goes on recording."""
    audit = AuditTwin()
    here = await rig()
    here.ship_to(await serve(Append=audit))
    for number in range(60):
        audit.fail_before_keeping += number % 3 == 0
        audit.fail_after_keeping += number % 3 == 1
        await here.outbox.record([draft(f"op.{number}")])
        if number % 5 == 0:
            await here.outbox.wait_shipped()
    await here.outbox.wait_shipped()
    assert audit.operations == [f"op.{number}" for number in range(60)]
    assert audit.streams > 5


async def test_an_audit_that_comes_late_gets_everything(
    serve: Serve, rig: Open, eventually: Eventually, certificates: Certificates
) -> None:
    here = await rig()
    known: list[str] = []
    asked = 0

    def addresses() -> list[str]:
        nonlocal asked
        asked += 1
        return known

    tls = certificates.tls("service/broker")
    here.shipping = asyncio.create_task(here.outbox.ship(connector(addresses, tls, "audit")))
    for number in range(10):
        await here.outbox.record([draft(f"op.{number}")])
    await eventually(lambda: asked > 3)
    audit = AuditTwin()
    plane = await serve(Append=audit)
    plane.access[f"{SERVICE}/Append"] = frozenset({"service/broker"})
    known.append(plane.address)
    await here.outbox.wait_shipped()
    assert audit.operations == [f"op.{number}" for number in range(10)]


async def test_a_restart_goes_on_where_the_numbers_stopped(serve: Serve, rig: Open) -> None:
    audit = AuditTwin()
    plane = await serve(Append=audit)
    here = await rig()
    here.ship_to(plane)
    await here.outbox.record([draft("before.1")])
    await here.outbox.wait_shipped()
    await here.stop_shipping()
    await here.outbox.record([draft("before.2")])
    await here.close()
    await here.open()
    await here.outbox.record([draft("after.1")])
    here.ship_to(plane)
    await here.outbox.wait_shipped()
    assert audit.operations == ["before.1", "before.2", "after.1"]
    assert len(audit.logs) == 1


async def test_a_group_that_is_too_large_becomes_several_entries(serve: Serve, rig: Open) -> None:
    audit = AuditTwin()
    here = await rig()
    here.ship_to(await serve(Append=audit))
    names = [f"{number:04}" + "x" * 900 for number in range(200)]
    await here.outbox.record([draft("op")._replace(group=DraftGroup(names)), draft("op.last")])
    await here.outbox.wait_shipped()
    (log,) = audit.logs.values()
    *together, last = log
    assert [name for entry in together for name in entry.group.names] == names
    assert max(entry.ByteSize() for entry in together) < 65_536
    assert [entry.entry_id.rpartition(".")[2] for entry in log] == [str(1 + n) for n in range(len(log))]
    assert last.operation == "op.last"


async def test_what_a_full_spool_drops_is_counted_by_operations(rig: Open) -> None:
    here = await rig(SMALL)
    group = DraftGroup([str(number) + "x" * 400 for number in range(50)])
    await here.outbox.record([draft("op")._replace(group=group)])
    assert here.metrics.value("outbox_dropped_operations_total") == 50


async def test_large_entries_are_split_into_frames_and_acked_segments_go(
    serve: Serve, rig: Open, eventually: Eventually
) -> None:
    audit = AuditTwin()
    here = await rig()
    for number in range(400):
        await here.outbox.record([draft(f"op.{number}", 30_000)])
    assert here.metrics.value("outbox_bytes") > 12_000_000
    here.ship_to(await serve(Append=audit))
    await here.outbox.wait_shipped()
    assert audit.operations == [f"op.{number}" for number in range(400)]
    await eventually(lambda: here.metrics.value("outbox_bytes") < 5_000_000)


async def test_a_refused_frame_is_tried_again(serve: Serve, rig: Open, eventually: Eventually) -> None:
    audit = AuditTwin()
    audit.refuse = ServiceError(Reason.DISK_FULL, "no room")
    here = await rig()
    here.ship_to(await serve(Append=audit))
    await here.outbox.record([draft("op")])
    await eventually(lambda: audit.streams > 2)
    audit.refuse = None
    await here.outbox.wait_shipped()
    assert audit.operations == ["op"]


async def test_a_full_spool_drops_and_counts_or_fails_closed(serve: Serve, rig: Open) -> None:
    """A3: privileged operations fail closed, others are counted, and the log says how many are missing."""
    here = await rig(SMALL)
    for number in range(40):
        await here.outbox.record([draft(f"op.{number}", 1_000)])
    dropped = here.metrics.value("outbox_dropped_operations_total")
    assert 20 < dropped < 30
    # The last part is kept for what may not happen unrecorded.
    outcomes = await asyncio.gather(
        *(here.outbox.record([draft(f"p.{n}", 1_000)], privileged=True) for n in range(20)),
        return_exceptions=True,
    )
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert 14 <= len(refused) <= 18
    for error in refused:
        assert isinstance(error, ServiceError)
        assert error.reason is Reason.AUDIT_UNAVAILABLE
        assert error.row.definite
    assert here.metrics.value("outbox_bytes") <= 20_000


async def test_an_overflow_is_recorded_as_soon_as_there_is_room(
    serve: Serve, rig: Open, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr("services.common.spool.SEGMENT_BYTES_MAX", 4_000)
    here = await rig(SMALL)
    for number in range(40):
        await here.outbox.record([draft(f"op.{number}", 1_000)])
    dropped = int(here.metrics.value("outbox_dropped_operations_total"))
    audit = AuditTwin()
    here.ship_to(await serve(Append=audit))
    await eventually(lambda: "spool.overflow" in audit.operations)
    (log,) = audit.logs.values()
    assert dict(log[-1].attributes) == {"dropped": str(dropped)}
    assert (log[-1].actor, log[-1].outcome) == ("service/broker", entry_pb2.OUTCOME_FAILED)
    await here.outbox.record([draft("op.last")])
    await here.outbox.wait_shipped()
    assert audit.operations[-2:] == ["spool.overflow", "op.last"]


async def test_an_overflow_is_recorded_at_the_latest_when_closing(rig: Open, serve: Serve) -> None:
    here = await rig(SMALL)
    for number in range(40):
        await here.outbox.record([draft(f"op.{number}", 1_000)])
    await here.close()
    await here.open()
    audit = AuditTwin()
    here.ship_to(await serve(Append=audit))
    await here.outbox.wait_shipped()
    assert audit.operations[-1] == "spool.overflow"


async def test_a_full_disk_is_an_overflow(rig: Open, monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    here = await rig()
    await here.outbox.record([draft("before")])

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", full)
        await here.outbox.record([draft("lost.1"), draft("lost.2")])
        with pytest.raises(ServiceError, match="No space left"):
            await here.outbox.record([draft("privileged")], privileged=True)
    await here.outbox.record([draft("after")])
    audit = AuditTwin()
    here.ship_to(await serve(Append=audit))
    await here.outbox.wait_shipped()
    assert audit.operations == ["before", "spool.overflow", "after"]


async def test_an_audit_with_more_than_was_ever_sent_stops_the_shipping(
    serve: Serve, rig: Open, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    """The spool was restored from an old copy: going on would lose entries as duplicates."""

    async def append(requests: AsyncIterator[pb.AppendRequest], context: Any) -> None:
        async for _ in requests:
            await context.write(pb.AppendResponse(durable_sequence_number=99))

    here = await rig()
    here.ship_to(await serve(Append=append))
    await here.outbox.record([draft("op")])
    await eventually(lambda: caplog.records)
    _, fields, _ = caplog.records[0].muster  # type: ignore[attr-defined]
    assert "restored from an old copy" in str(fields["why"])
    assert here.metrics.value("outbox_depth_entries") == 1


@pytest.mark.parametrize("where", ["services.common.outbox.encode_entry", "services.common.spool._frame"])
async def test_a_defect_answers_everybody_who_waits(
    rig: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """On the loop, where entries are encoded, and on the thread that writes them."""
    here = await rig()

    def defect(*_: Any) -> None:
        raise KeyError("defect")

    with monkeypatch.context() as broken:
        broken.setattr(where, defect)
        flushing = asyncio.ensure_future(here.outbox.record([draft("a")]))
        others = asyncio.ensure_future(here.outbox.record([draft("b")], privileged=True))
        for waiting in (flushing, others):
            with pytest.raises(ServiceError, match="defect"):
                await waiting
    assert "recording failed" in caplog.text
    await here.outbox.record([draft("c")])


async def test_a_backlog_and_the_first_entry_are_shipped_without_a_pause(
    serve: Serve, rig: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper, "PACE_S", 600.0)
    audit = AuditTwin()
    here = await rig()
    await here.outbox.record([draft(f"op.{n}") for n in range(3_000)])
    here.ship_to(await serve(Append=audit))
    await here.outbox.wait_shipped()
    assert len(audit.operations) == 3_000


@given(
    st.text(max_size=3_000), st.dictionaries(st.text(max_size=1_500), st.text(max_size=1_500), max_size=40)
)
def test_every_draft_becomes_an_entry_that_audit_takes(text: str, attributes: dict[str, str]) -> None:
    raw = encode_entry(EntryDraft(Instant(1), text, text, text, attributes=attributes), "id", "r")
    entry = entry_pb2.Entry.FromString(raw)
    assert raw == entry.SerializeToString(deterministic=True)
    assert len(raw) < 100_000
    assert entry.event_time.ToMilliseconds() == 1
    assert len(entry.attributes) <= 32
    for value in [entry.actor, entry.subject, *entry.attributes.keys(), *entry.attributes.values()]:
        assert len(value.encode()) <= 1_024
    if len(text.encode("utf-8", "replace")) <= 1_024:
        assert entry.subject == text.encode("utf-8", "replace").decode()


def test_a_frame_of_stored_bytes_is_the_message() -> None:
    records = [encode_entry(draft(f"op.{n}", 1_000 * (n % 20)), f"id{n}", "r") for n in range(40)]
    raw = shipper._frame("spool", 300, records)
    entries = [entry_pb2.Entry.FromString(record) for record in records]
    assert pb.AppendRequest.FromString(raw) == pb.AppendRequest(
        first_sequence_number=300, spool_id="spool", entries=entries
    )


_VICTIM = """
import asyncio, sys
from pathlib import Path
from services.common.core.entries import EntryDraft
from services.common.clock import SystemClock
from services.common.metrics import Metrics
from services.common.outbox import open_outbox

async def main():
    outbox = await open_outbox(
        Path(sys.argv[1]), service="broker", replica_id="b", clock=SystemClock(), metrics=Metrics("broker")
    )
    async def work(lane):
        for number in range(10**9):
            await outbox.record([EntryDraft(SystemClock().now(), "agent/x", f"{lane}.{number}", "s")])
            print(f"{lane}.{number}", flush=True)
    await asyncio.gather(*(work(lane) for lane in range(4)))

asyncio.run(main())
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    for _ in range(3):
        victim = subprocess.Popen(
            [sys.executable, "-c", _VICTIM, str(tmp_path / "spool")], stdout=subprocess.PIPE, text=True
        )
        assert victim.stdout is not None
        mine = [victim.stdout.readline().strip() for _ in range(200)]
        victim.send_signal(signal.SIGKILL)
        mine += [
            line.strip() for line in victim.stdout.read().splitlines(keepends=True) if line.endswith("\n")
        ]
        victim.stdout.close()
        victim.wait()
        acknowledged += mine
    spool = Spool.open(tmp_path / "spool")
    kept: list[str] = []
    while batch := spool.read(1 + len(kept), 1_000, 1 << 20):
        kept += [entry_pb2.Entry.FromString(record).operation for record in batch]
    spool.close()
    for name in set(acknowledged):
        assert kept.count(name) >= acknowledged.count(name)
