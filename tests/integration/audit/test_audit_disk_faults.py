"""A disk that is full or failing, seen from the outside: typed refusals, and recovery without help."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from muster.audit.v1 import audit_service_pb2 as pb

from services.audit.stores.disk import Disk
from services.common.core.errors import Reason
from services.common.rpc.status import from_rpc_error, from_status
from tests.conftest import Eventually
from tests.integration.audit.conftest import Audit, StartAudit, frame


class FailingDisk(Disk):
    """Fails writes and syncs with an errno while it is told to."""

    def __init__(self) -> None:
        self.writes: int | None = None
        self.syncs: int | None = None
        self.renames: int | None = None

    def write(self, file: int, data: bytes) -> None:
        if self.writes is not None:
            # As a full disk does it: part of it fits.
            super().write(file, data[: len(data) // 2])
            raise OSError(self.writes, "injected")
        super().write(file, data)

    def sync(self, file: int) -> None:
        if self.syncs is not None:
            raise OSError(self.syncs, "injected")
        super().sync(file)

    def rename(self, source: Path, target: Path) -> None:
        if self.renames is not None:
            raise OSError(self.renames, "injected")
        super().rename(source, target)


@pytest.fixture
async def failing(start_audit: StartAudit) -> tuple[Audit, FailingDisk]:
    audit = await start_audit()
    await audit.stop()
    disk = audit.disk = FailingDisk()
    await audit.start()
    return audit, disk


async def test_a_full_disk_is_said_and_nothing_is_kept(failing: tuple[Audit, FailingDisk]) -> None:
    audit, disk = failing
    await audit.append(frame(1, 5))
    await audit.entries()
    disk.writes = errno.ENOSPC
    for _ in range(3):
        (response,) = await audit.append(frame(6, 5))
        error = from_status(response.error)
        assert error.reason is Reason.DISK_FULL
        assert error.metadata["definite"] == "true"
        assert error.retry_after_ms is not None
    disk.writes = None
    (response,) = await audit.append(frame(6, 5))
    assert response.durable_sequence_number == 10
    assert len(await audit.entries(service="broker")) == 10
    await audit.verify()
    await audit.stop()
    await audit.start()
    assert len(await audit.entries(service="broker")) == 10
    await audit.verify()


async def test_a_failing_disk_is_said_and_what_was_sent_again_is_logged_once(
    failing: tuple[Audit, FailingDisk],
) -> None:
    audit, disk = failing
    disk.syncs = errno.EIO
    (response,) = await audit.append(frame(1, 5))
    error = from_status(response.error)
    assert error.reason is Reason.STORE_UNAVAILABLE
    assert error.metadata["definite"] == "false"
    disk.syncs = None
    (response,) = await audit.append(frame(1, 5))
    assert response.durable_sequence_number == 5
    assert len(await audit.entries(service="broker")) == 5


async def test_reading_that_can_not_be_recorded_does_not_happen(failing: tuple[Audit, FailingDisk]) -> None:
    audit, disk = failing
    await audit.append(frame(1, 5))
    await audit.entries()
    disk.writes = errno.ENOSPC
    stub = audit.stub()
    calls: list[Callable[[], Any]] = [
        lambda: stub.Query(pb.QueryRequest()),
        lambda: stub.GetInclusionProof(pb.GetInclusionProofRequest(leaf_index=0)),
        lambda: stub.GetTile(pb.GetTileRequest(path="tile/entries/000.p/1")),
    ]
    for call in [*calls, *calls]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call()
        assert from_rpc_error(caught.value).reason is Reason.AUDIT_UNAVAILABLE
    disk.writes = None
    await stub.Query(pb.QueryRequest())
    # That something is missing is itself in the log: the refusals could not be recorded.
    (overflow,) = await audit.entries(operation="spool.overflow")
    assert int(overflow.attributes["dropped"]) >= 2


async def test_no_checkpoint_is_made_while_the_tiles_fail_but_appends_go_on(
    failing: tuple[Audit, FailingDisk], eventually: Eventually
) -> None:
    audit, disk = failing
    await audit.append(frame(1, 5))
    await audit.entries()
    assert audit.app is not None
    driver = audit.app.driver
    disk.renames = errno.EIO
    before = driver.published.size
    (response,) = await audit.append(frame(6, 300))
    assert response.durable_sequence_number == 305
    metrics = audit.app.metrics
    await eventually(lambda: metrics.value("integration_failures_total") >= 2)
    assert driver.published.size == before
    disk.renames = None
    await eventually(lambda: driver.published.size == driver.durable_size)
    assert len(await audit.entries(service="broker")) == 305
    await audit.verify()


async def test_a_drain_that_can_not_publish_loses_nothing(
    start_audit: StartAudit, eventually: Eventually
) -> None:
    audit = await start_audit(drain_ms=200)
    await audit.stop()
    disk = audit.disk = FailingDisk()
    await audit.start()
    await audit.append(frame(1, 5))
    await audit.entries()
    disk.renames = errno.EIO
    await audit.append(frame(6, 5))
    await audit.stop()
    disk.renames = None
    await audit.start()
    assert len(await audit.entries(service="broker")) == 10
    await audit.verify()
