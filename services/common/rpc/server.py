"""The gRPC server of every service: mutual TLS, limits, health, reflection, drain."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health  # type: ignore[attr-defined]  # not in the stubs
from grpc_reflection.v1alpha import reflection

from services.common.core.errors import ServiceError
from services.common.logs import Log
from services.common.metrics import Metrics
from services.common.outbox import Outbox
from services.common.rpc.interceptors import ANYONE, CallInterceptor, LiveCall, shutting_down
from services.common.tls import TlsIdentity, TlsMaterialError

HEALTH = "grpc.health.v1.Health"
REFLECTION = reflection.SERVICE_NAME
REFLECTION_ACCESS = frozenset({"operator"})
# How often the certificate files are looked at; three stat calls each time.
TLS_REFRESH_MS = 1_000
# How long a drained server waits for peers to take the last bytes of calls that have ended.
FLUSH_MS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of one server, each per connection unless it says otherwise."""

    message_bytes_max: int = 4 * 1024 * 1024
    streams_max: int = 1_024
    # A peer that died without a FIN is found after at most the sum of these two.
    keepalive_ms: int = 10_000
    keepalive_timeout_ms: int = 5_000
    # A client may ping this often without being thrown out.
    client_ping_interval_ms_min: int = 5_000
    # Over all connections: calls that have come and that this process has not begun. gRPC's own default cuts
    # calls at random from 1,000 on, so that a fleet which comes back at once would be turned away in part.
    pending_calls_max: int = 32_768
    # Over all connections; beyond it a call gets RESOURCE_EXHAUSTED.
    calls_max: int | None = None


class GrpcServer:
    """Serves what was added, default deny.

    `access` maps "package.Service/Method" to the kinds ("agent") and identities ("service/scheduler") that
    may call it. A mapping whose values change at run time is fine: it is asked for every call.
    """

    def __init__(
        self,
        tls: TlsIdentity,
        listen: str,
        access: Mapping[str, frozenset[str]],
        metrics: Metrics,
        log: Log,
        *,
        outbox: Outbox | None = None,
        limits: ServerLimits | None = None,
    ) -> None:
        limits = limits or ServerLimits()
        self._tls, self._listen, self._log, self._access = tls, listen, log, access
        self._calls = CallInterceptor(
            _Access(access), metrics, log, trust_domain=tls.trust_domain, outbox=outbox
        )
        self._server = grpc.aio.server(
            interceptors=[self._calls],
            maximum_concurrent_rpcs=limits.calls_max,
            options=[
                ("grpc.max_receive_message_length", limits.message_bytes_max),
                ("grpc.max_send_message_length", limits.message_bytes_max),
                ("grpc.max_concurrent_streams", limits.streams_max),
                ("grpc.server.max_pending_requests", limits.pending_calls_max),
                ("grpc.server.max_pending_requests_hard_limit", limits.pending_calls_max),
                ("grpc.keepalive_time_ms", limits.keepalive_ms),
                ("grpc.keepalive_timeout_ms", limits.keepalive_timeout_ms),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_pings_without_data", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", limits.client_ping_interval_ms_min),
                # Two processes on one port would share its connections silently.
                ("grpc.so_reuseport", 0),
            ],
        )
        self._health = health.HealthServicer()
        expiry = metrics.gauge("tls_expiry_seconds", "When the certificate in use ends, in Unix time.")
        expiry.set_function(lambda: tls.expiry_seconds)
        self._services: list[str] = []
        self._refresher: asyncio.Task[None] | None = None

    def add(self, add_fn: Callable[[Any, Any], None], servicer: object, service_full_name: str) -> None:
        """Add a servicer by its generated `add_XServicer_to_server`; raises ValueError for a method without
        a row in `access`, so that a new RPC can not be forgotten there.
        """
        descriptor = descriptor_pool.Default().FindServiceByName(service_full_name)
        missing = [
            f"{service_full_name}/{method.name}"
            for method in descriptor.methods
            if f"{service_full_name}/{method.name}" not in self._access
        ]
        if missing:
            raise ValueError(f"no access row for {', '.join(missing)}: say who may call it")
        add_fn(servicer, self._server)
        self._services.append(service_full_name)

    async def start(self) -> str:
        """Listen and serve; return the bound "host:port". Raises OSError when the port is taken."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection([*self._services, HEALTH, REFLECTION], self._server)
        try:
            port = self._server.add_secure_port(self._listen, self._tls.server_credentials())
        except RuntimeError as error:
            raise OSError(f"{self._listen} can not be listened on: {error}") from error
        await self._server.start()
        self._refresher = asyncio.create_task(self._refresh_tls(), name="tls-refresh")
        await self.set_serving(serving=True)
        return f"{self._listen.rpartition(':')[0]}:{port}"

    async def set_serving(self, *, serving: bool) -> None:
        """Say by health check whether this replica is to be used; "" stands for the whole server."""
        state = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ["", *self._services]:
            await self._health.set(name, state)

    def end_calls(self, matches: Callable[[LiveCall], bool], error: ServiceError) -> int:
        """End the running calls that match, for example those of a revoked identity; return how many."""
        ended = [call for call in self._calls.live if matches(call)]
        for call in ended:
            call.end(error)
        return len(ended)

    async def drain(self, grace_ms: int) -> None:
        """Refuse new calls, end streams with SHUTTING_DOWN, wait for unary calls, then close.

        What still runs after `grace_ms` is cut; a peer that does not read its last bytes is cut after
        `FLUSH_MS_MAX` more.
        """
        self._calls.draining = True
        await self._health.enter_graceful_shutdown()
        for call in list(self._calls.live):
            if call.streaming:
                call.end(shutting_down())
        if self._refresher is not None:
            self._refresher.cancel()
            await asyncio.gather(self._refresher, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_ms / 1000):
                await self._calls.wait_idle()
        await self._server.stop(FLUSH_MS_MAX / 1000 if grace_ms else 0)

    async def _refresh_tls(self) -> None:
        said = ""
        while True:
            await asyncio.sleep(TLS_REFRESH_MS / 1000)
            try:
                if self._tls.refresh():
                    self._log.info("took new TLS material", version=self._tls.version)
                    said = ""
            except TlsMaterialError as error:
                # Half a rotation looks like this for a moment; it is said once, not each second.
                if str(error) != said:
                    said = str(error)
                    self._log.warning("keeping the old TLS material", why=said)


class _Access(Mapping[str, frozenset[str]]):
    """The service's rows and those of the services that every server has."""

    def __init__(self, rows: Mapping[str, frozenset[str]]) -> None:
        self._rows = rows

    def __getitem__(self, method: str) -> frozenset[str]:
        if method.startswith(HEALTH + "/"):
            return ANYONE
        if method.startswith(REFLECTION + "/"):
            return REFLECTION_ACCESS
        return self._rows[method]

    def __iter__(self) -> Any:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
