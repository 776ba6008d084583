"""A real audit service on a real socket and a real disk, in this process; it can be started again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from muster.audit.v1 import audit_service_pb2 as pb
from muster.audit.v1 import audit_service_pb2_grpc as pb_grpc
from muster.audit.v1 import entry_pb2

from agent_client.verify import LogReport, LogVerification, VerifierKey, verify_checkpoint
from services.audit.app import AuditApp
from services.audit.config import AuditConfig
from services.audit.stores.disk import Disk
from services.audit.stores.files import FilesLog
from services.audit.stores.sqlite import SqliteIndex
from services.common.rpc.channel import make_channel
from tests.conftest import Certificates


def entry(
    sequence: int, *, service: str = "broker", replica: str = "broker-1", **fields: Any
) -> entry_pb2.Entry:
    made = entry_pb2.Entry(
        entry_id=f"{service}/{replica}/spool.{sequence}",
        replica_id=replica,
        actor="agent/field-1",
        operation="envelope.accept",
        subject=f"message/{sequence}",
        outcome=entry_pb2.OUTCOME_OK,
    )
    made.event_time.FromMilliseconds(1_700_000_000_000 + sequence)
    for name, value in fields.items():
        if isinstance(value, dict):
            made.attributes.update(value)
        else:
            setattr(made, name, value)
    return made


def frame(first: int, count: int = 1, *, spool_id: str = "spool", **fields: Any) -> pb.AppendRequest:
    entries = [entry(first + n, **fields) for n in range(count)]
    return pb.AppendRequest(first_sequence_number=first, entries=entries, spool_id=spool_id)


class Audit:
    """One audit service in a folder."""

    def __init__(self, certificates: Certificates, folder: Path) -> None:
        self.certificates, self.folder = certificates, folder
        certificate, key = certificates.issue("service/audit")
        self.config = AuditConfig(
            replica_id="audit-1",
            listen="127.0.0.1:0",
            ca=certificates.ca_path,
            certificate=certificate,
            key=key,
            etcd_endpoints=("127.0.0.1:1",),
            etcd_ca=certificates.ca_path,
            etcd_certificate=certificate,
            etcd_key=key,
            data_directory=folder,
            checkpoint_interval_ms=5,
        )
        self.disk = Disk()
        self.app: AuditApp | None = None
        self.channels: list[grpc.aio.Channel] = []

    async def start(self, **settings: Any) -> None:
        self.config = replace(self.config, **settings)
        store = FilesLog(self.folder, self.config.log_origin, disk=self.disk)
        self.app = AuditApp(self.config, store, SqliteIndex(self.folder / "index.sqlite"))
        await self.app.start()

    async def stop(self) -> None:
        for channel in self.channels:
            await channel.close(None)
        self.channels.clear()
        if self.app is not None:
            app, self.app = self.app, None
            await app.drain()
            assert app.supervisor.error is None

    def channel(self, principal: str) -> grpc.aio.Channel:
        assert self.app is not None
        made = make_channel(self.app.address, self.certificates.tls(principal), "audit")
        self.channels.append(made)
        return made

    def stub(self, principal: str = "operator/admin") -> Any:
        return pb_grpc.AuditServiceStub(self.channel(principal))

    async def append(
        self, *frames: pb.AppendRequest, principal: str = "service/broker"
    ) -> list[pb.AppendResponse]:
        """Send the frames on one stream; return all answers up to the last ack or the refusal."""
        stream = self.stub(principal).Append()
        for one in frames:
            await stream.write(one)
        wanted = max(one.first_sequence_number + len(one.entries) - 1 for one in frames)
        responses: list[pb.AppendResponse] = []
        while not responses or not (
            responses[-1].HasField("error") or responses[-1].durable_sequence_number >= wanted
        ):
            responses.append(await stream.read())
        stream.cancel()
        return responses

    async def refused_stream(self, principal: str) -> grpc.aio.AioRpcError:
        """Open a stream that must be refused; return the status.

        Nothing is written: a write that meets the end of its call makes grpc.aio forget the status.
        """
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.stub(principal).Append().read()
        return caught.value

    async def entries(self, **wanted: Any) -> list[entry_pb2.Entry]:
        """Return all entries that a query finds, page by page."""
        stub, found, token = self.stub(), list[entry_pb2.Entry](), ""
        while True:
            request = pb.QueryRequest(**wanted)
            request.page.page_token = token
            response = await stub.Query(request)
            found += [logged.entry for logged in response.entries]
            token = response.page.next_page_token
            if not token:
                return found

    async def verify(self) -> LogReport:
        """Verify the whole log through the API, with a verifier that shares no code with the service."""
        stub = self.stub()
        response = await stub.GetCheckpoint(pb.GetCheckpointRequest())
        whole = LogVerification(
            verify_checkpoint(response.checkpoint, VerifierKey.parse(response.verifier_key))
        )
        for path in whole.wanted():
            whole.feed(path, (await stub.GetTile(pb.GetTileRequest(path=path))).data)
        return whole.finish()


StartAudit = Callable[..., Awaitable[Audit]]


@pytest_asyncio.fixture
async def start_audit(certificates: Certificates, tmp_path: Path) -> AsyncIterator[StartAudit]:
    """Return `await start_audit(setting=…)`: a running audit service with a log of its own."""
    running: list[Audit] = []

    async def start(**settings: Any) -> Audit:
        made = Audit(certificates, tmp_path / f"audit{len(running)}")
        made.folder.mkdir()
        running.append(made)
        await made.start(**settings)
        return made

    yield start
    for one in running:
        await one.stop()


@pytest_asyncio.fixture
async def audit(start_audit: StartAudit) -> Audit:
    """A running audit service."""
    return await start_audit()
