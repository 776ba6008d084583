"""Real processes: kill -9 while entries stream in, the outbox across it, drain, a second copy."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest_asyncio
from muster.audit.v1 import entry_pb2

from agent_client.verify import LogVerification, VerifierKey, verify_checkpoint, verify_consistency
from services.audit.core.checkpoint import verifier_key
from services.audit.core.proofs import consistency_runs, hash_runs
from services.audit.core.tiles import parse_path
from services.audit.stores.files import FilesLog
from services.common.clock import SystemClock
from services.common.core.entries import EntryDraft
from services.common.metrics import Metrics
from services.common.outbox import SpooledOutbox, open_outbox
from tests.conftest import Certificates, Eventually
from tests.integration.audit.audit_process import AuditProcess, stub_on
from tests.integration.audit.conftest import frame

ORIGIN = "muster.internal/audit"
Start = Callable[..., Any]


@pytest_asyncio.fixture
async def process(
    certificates: Certificates, tmp_path: Path, free_port: Callable[[], int]
) -> AsyncIterator[AuditProcess]:
    made = AuditProcess(certificates, tmp_path / "audit", free_port(), checkpoint_interval_ms=5)
    made.start()
    await made.wait_ready()
    yield made
    if made.process is not None:
        made.kill()


class Producer:
    """Sends numbered entries, whatever happens to the other end; knows what was acked."""

    def __init__(self, process: AuditProcess, spool_id: str) -> None:
        self.process, self.spool_id = process, spool_id
        self.acked = 0
        self.stopping = False

    async def run(self) -> None:
        while not self.stopping:
            channel = self.process.channel("service/broker")
            try:
                await self._stream(stub_on(channel).Append())
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.01)  # sleeps: before the next try to reach another process
            finally:
                await channel.close(None)

    async def _stream(self, stream: Any) -> None:
        sent = self.acked
        while not self.stopping:
            while sent < self.acked + 40:
                count = random.randint(1, 10)
                await stream.write(frame(sent + 1, count, spool_id=self.spool_id))
                sent += count
            response = await stream.read()
            if response is grpc.aio.EOF:  # type: ignore[attr-defined]
                return
            assert not response.HasField("error"), response.error.message
            self.acked = max(self.acked, response.durable_sequence_number)


def whole_log(folder: Path) -> tuple[list[entry_pb2.Entry], Any, int]:
    """Open the log as it is on disk and verify it; return its entries, its key and its published size."""
    store = FilesLog(folder / "data", ORIGIN)
    opened = store.open(first_start=False)
    try:
        key = VerifierKey.parse(verifier_key(ORIGIN, opened.signer.public_key))
        head = verify_checkpoint(opened.recovered.checkpoint, key)
        whole, leaves = LogVerification(head), list[bytes]()
        for path in whole.wanted():
            leaves += whole.feed(path, store.read(parse_path(path)))
        whole.finish()
        leaves += opened.recovered.pending
        return [entry_pb2.Entry.FromString(leaf) for leaf in leaves], key, head.size
    finally:
        store.close()


def of_spool(entries: list[entry_pb2.Entry]) -> list[int]:
    return [int(one.subject.partition("/")[2]) for one in entries if one.subject.startswith("message/")]


async def test_kill_9_while_entries_stream_in_loses_and_doubles_nothing(
    process: AuditProcess, eventually: Eventually
) -> None:
    producer = Producer(process, "spool")
    sending = asyncio.create_task(producer.run(), name="producer")
    notes = []
    for _ in range(5):
        reached = producer.acked + random.randint(50, 500)
        await eventually(lambda reached=reached: producer.acked >= reached)
        notes.append((process.folder / "data/log/checkpoint").read_bytes())
        process.kill()
        acked = producer.acked
        numbers = of_spool(whole_log(process.folder)[0])
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) >= acked
        process.start()
        await process.wait_ready()
    producer.stopping = True
    await sending
    assert process.terminate() == 0
    entries, key, published = whole_log(process.folder)
    numbers = of_spool(entries)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= producer.acked
    # A drain publishes everything; and every checkpoint that could be seen is of this one log.
    assert published == len(entries)
    store = FilesLog(process.folder / "data", ORIGIN)
    newest = verify_checkpoint(store.open(first_start=False).recovered.checkpoint, key)
    for note in notes:
        old = verify_checkpoint(note, key)
        runs = consistency_runs(old.size, newest.size)
        verify_consistency(old, newest, hash_runs(runs, newest.size, store.read))
    store.close()


async def test_an_outbox_brings_everything_across_kills_of_audit(
    process: AuditProcess, certificates: Certificates, tmp_path: Path, eventually: Eventually
) -> None:
    boxes: list[SpooledOutbox] = []
    shipping = []
    for service in ("broker", "registry", "scheduler"):
        box = await open_outbox(
            tmp_path / f"outbox-{service}",
            service=service,
            replica_id=f"{service}-1",
            clock=SystemClock(),
            metrics=Metrics(service),
        )
        boxes.append(box)

        async def connect(service: str = service) -> grpc.aio.Channel:
            return process.channel(f"service/{service}")

        shipping.append(asyncio.create_task(box.ship(connect), name=f"ship-{service}"))
    recorded = [0, 0, 0]

    async def record_some(rounds: int) -> None:
        for _ in range(rounds):
            for which, box in enumerate(boxes):
                count = random.randint(1, 20)
                first = recorded[which] + 1
                recorded[which] += count
                await box.record(
                    [
                        EntryDraft(
                            SystemClock().now(), "agent/field-1", "task.assign", f"message/{first + n}"
                        )
                        for n in range(count)
                    ],
                    privileged=True,
                )

    for _ in range(3):
        await record_some(10)
        process.kill()
        # Audit is away: the services go on.
        await record_some(10)
        process.start()
        await process.wait_ready()
        await record_some(10)
    async with asyncio.timeout(40):
        for box in boxes:
            await box.wait_shipped()
    for one in shipping:
        one.cancel()
    await asyncio.gather(*shipping, return_exceptions=True)
    for box in boxes:
        await box.close()
    assert process.terminate() == 0
    entries, _, _ = whole_log(process.folder)
    for which, service in enumerate(("broker", "registry", "scheduler")):
        mine = [one for one in entries if one.service == service]
        assert of_spool(mine) == list(range(1, recorded[which] + 1))
        assert {one.replica_id for one in mine} == {f"{service}-1"}
        assert len({one.entry_id for one in mine}) == len(mine)


async def test_a_second_copy_is_refused(
    process: AuditProcess, certificates: Certificates, free_port: Callable[[], int]
) -> None:
    second = AuditProcess(
        certificates, process.folder / "second", free_port(), data_directory=str(process.folder / "data")
    )
    second.start()
    assert second.wait_exit() == 1
    assert "another process has the log" in second.log_path.read_text()
    # The first is not disturbed.
    await process.wait_ready()
    assert process.terminate() == 0


async def test_a_damaged_log_is_not_served(process: AuditProcess) -> None:
    channel = process.channel("service/broker")
    stream = stub_on(channel).Append()
    await stream.write(frame(1, 300))
    await stream.read()
    await channel.close(None)
    assert process.terminate() == 0
    (tile,) = (process.folder / "data/log/tile/0").glob("001.p/*")
    content = bytearray(tile.read_bytes())
    content[0] ^= 1
    tile.write_bytes(content)
    process.start()
    assert process.wait_exit() == 1
    assert "must not be continued" in process.log_path.read_text()


async def test_unusable_settings_are_said(certificates: Certificates, tmp_path: Path) -> None:
    process = AuditProcess(certificates, tmp_path / "audit", 0, chekpoint_interval_ms=5)
    process.start()
    assert process.wait_exit() == 2
    assert "did you mean 'checkpoint_interval_ms'" in process.log_path.read_text()
