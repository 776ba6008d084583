"""The composition root: from the settings to a running registry."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from muster.registry.v1.registry_service_pb2_grpc import add_RegistryServiceServicer_to_server

from services.common import logs
from services.common.clock import Clock, SystemClock
from services.common.etcd.channel import EtcdTls
from services.common.etcd.client import EtcdClient
from services.common.etcd.directory import ServiceDirectory
from services.common.etcd.registration import announce
from services.common.lifecycle import TaskSupervisor
from services.common.metrics import Metrics, start_exposition
from services.common.outbox import open_outbox
from services.common.rpc.channel import connector
from services.common.rpc.server import GrpcServer
from services.common.tls import TlsIdentity
from services.registry.config import RegistryConfig
from services.registry.core import events
from services.registry.core.registry import Registry
from services.registry.driver import Driver
from services.registry.metrics import RegistryMetrics
from services.registry.servicer import ACCESS, SERVICE, SERVICE_NAME, RegistryServicer
from services.registry.session_stream import SessionTerms
from services.registry.stores.etcd import EtcdStore

# How long a drain waits for what is on its way to etcd, in seconds; what is not written then is written by
# whoever takes the sessions over.
_SETTLE_S_MAX = 2.0

_log = logs.get("registry.app")


class RegistryApp:
    """The registry of one process."""

    def __init__(self, config: RegistryConfig, clock: Clock | None = None) -> None:
        self.supervisor = TaskSupervisor()
        self._config = config
        self._clock = clock or SystemClock()
        self._metrics = Metrics(SERVICE)
        self._tls = TlsIdentity(config.ca, config.certificate, config.key, config.trust_domain)
        # What `start` opened, closed by `drain` from the end.
        self._open = AsyncExitStack()
        # Set by `start`: host:port of the listeners.
        self.address = ""
        self.metrics_address = ""

    async def start(self) -> None:
        """See `Service.start`. Waits for as long as etcd is away."""
        config = self._config
        config.data_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        etcd = EtcdClient(
            config.etcd_endpoints,
            EtcdTls(config.etcd_ca, config.etcd_certificate, config.etcd_key, config.etcd_server_name),
        )
        self._open.push_async_callback(etcd.close)
        outbox = await open_outbox(
            config.data_directory / "spool",
            service=SERVICE,
            replica_id=config.replica_id,
            clock=self._clock,
            metrics=self._metrics,
        )
        self._open.push_async_callback(outbox.close)
        if config.metrics_listen:
            exposition, self.metrics_address = await start_exposition(
                self._metrics, config.metrics_listen, self._tls
            )
            self._open.push_async_callback(exposition.stop)
        store = EtcdStore(etcd, self._clock, config.key_prefix, ttl_s=config.presence_ttl_s)
        driver = Driver(
            Registry(config.replica_id, config.limits),
            store,
            outbox,
            self._clock,
            RegistryMetrics(self._metrics),
            watchers_max=config.watchers_max,
        )
        directory = ServiceDirectory(etcd, config.key_prefix)
        # Loops end before what they use is closed.
        self._open.push_async_callback(self.supervisor.stop)
        self.supervisor.spawn("registry-directory", directory.run())
        self.supervisor.spawn("registry-coordinator", _follow_coordinator(directory, driver))
        driver.start(self.supervisor)
        # Before the first hello is read, what is committed is known.
        await driver.wait_ready()
        await directory.wait_loaded()
        self._open.push_async_callback(self._settle, driver)
        server = GrpcServer(
            self._tls, config.listen, ACCESS, self._metrics, logs.get("registry.rpc"), outbox=outbox
        )
        server.add(add_RegistryServiceServicer_to_server, self._servicer(driver, directory), SERVICE_NAME)
        self.address = await server.start()
        self._open.push_async_callback(server.drain, config.drain_ms)
        to_audit = connector(lambda: directory.addresses("audit"), self._tls, "audit")
        self.supervisor.spawn("registry-outbox", outbox.ship(to_audit))
        registration = self.supervisor.spawn(
            "registry-registration",
            announce(
                etcd, self._clock, config, SERVICE, address=self.address, metrics_address=self.metrics_address
            ),
        )
        self._open.push_async_callback(_cancel, registration)
        _log.info("serving", address=self.address, metrics=self.metrics_address)

    async def drain(self) -> None:
        """See `Service.drain`: sessions are not ended, their agents resume them elsewhere or here."""
        await self._open.aclose()

    def _servicer(self, driver: Driver, directory: ServiceDirectory) -> RegistryServicer:
        config = self._config
        terms = SessionTerms(
            lease_ttl_ms=config.lease_ttl_ms,
            heartbeat_interval_ms=config.heartbeat_interval_ms,
            hello_timeout_ms=config.hello_timeout_ms,
            open_timeout_ms=config.open_timeout_ms,
        )
        return RegistryServicer(driver, directory, terms)

    async def _settle(self, driver: Driver) -> None:
        """Let what was said last (a farewell) reach etcd and the outbox."""
        try:
            async with asyncio.timeout(_SETTLE_S_MAX):
                await driver.wait_settled()
        except TimeoutError:
            _log.warning("left with changes that etcd did not take; they are made again by others")


async def build(config: RegistryConfig) -> RegistryApp:
    """Return the service that the settings describe, not started."""
    return RegistryApp(config)


async def _follow_coordinator(directory: ServiceDirectory, driver: Driver) -> None:
    """Tell the core of every leadership: a work stream to an older leader brings no work."""
    epoch = 0
    while True:
        coordinator = directory.coordinator
        if coordinator is not None and coordinator.epoch != epoch:
            epoch = coordinator.epoch
            driver.post(events.CoordinatorSeen(f"epoch-{epoch}", epoch))
        await directory.wait_changed()


async def _cancel(running: asyncio.Task[None]) -> None:
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
