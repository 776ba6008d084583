"""A real server on a real socket: the audit protos, with handlers that a test writes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest_asyncio
from muster.audit.v1 import audit_service_pb2_grpc as audit_grpc

from services.common import logs
from services.common.metrics import Metrics
from services.common.rpc.channel import make_channel
from services.common.rpc.server import GrpcServer, ServerLimits
from services.common.testing.outbox import MemoryOutbox
from tests.conftest import Certificates

SERVICE = "muster.audit.v1.AuditService"
METHODS = ("Append", "Query", "Tail", "GetCheckpoint", "GetInclusionProof", "GetConsistencyProof", "GetTile")


@dataclass
class Plane:
    """One server and what it was given; `stub` connects as somebody."""

    certificates: Certificates
    servicer: Any
    metrics: Metrics = field(default_factory=lambda: Metrics("audit"))
    outbox: MemoryOutbox = field(default_factory=MemoryOutbox)
    access: dict[str, frozenset[str]] = field(
        default_factory=lambda: {f"{SERVICE}/{method}": frozenset({"agent"}) for method in METHODS}
    )
    limits: ServerLimits = field(default_factory=ServerLimits)
    address: str = ""
    _channels: list[grpc.aio.Channel] = field(default_factory=list)

    async def start(self) -> None:
        self.tls = self.certificates.tls("service/audit")
        self.server = GrpcServer(
            self.tls,
            "127.0.0.1:0",
            self.access,
            self.metrics,
            logs.get("test"),
            outbox=self.outbox,
            limits=self.limits,
        )
        self.server.add(audit_grpc.add_AuditServiceServicer_to_server, self.servicer, SERVICE)
        self.address = await self.server.start()

    def channel(self, principal: str = "agent/x", service: str = "audit") -> grpc.aio.Channel:
        channel = make_channel(self.address, self.certificates.tls(principal), service)
        self._channels.append(channel)
        return channel

    def stub(self, principal: str = "agent/x") -> Any:
        return audit_grpc.AuditServiceStub(self.channel(principal))

    async def stop(self) -> None:
        for channel in self._channels:
            await channel.close(None)
        if self.address:
            await self.server.drain(2_000)

    def calls(self, method: str, code: str) -> float:
        return self.metrics.value("rpc_calls_total", method=f"{SERVICE}/{method}", code=code)

    def in_flight(self, method: str) -> float:
        return self.metrics.value("rpc_in_flight", method=f"{SERVICE}/{method}")


Serve = Callable[..., Awaitable[Plane]]


@pytest_asyncio.fixture
async def serve(certificates: Certificates) -> AsyncIterator[Serve]:
    """Return `await serve(Query=handler, …)`: a running server with these handlers."""
    planes: list[Plane] = []

    async def start(
        *,
        limits: ServerLimits | None = None,
        certificates: Certificates = certificates,
        **handlers: Any,
    ) -> Plane:
        servicer = type("Servicer", (audit_grpc.AuditServiceServicer,), {})()
        for name, handler in handlers.items():
            setattr(servicer, name, handler)
        plane = Plane(certificates, servicer, limits=limits or ServerLimits())
        planes.append(plane)
        await plane.start()
        return plane

    yield start
    for plane in planes:
        await plane.stop()
