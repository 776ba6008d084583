"""The composition root: from the settings to a running audit service."""

from __future__ import annotations

import asyncio

from muster.audit.v1.audit_service_pb2_grpc import add_AuditServiceServicer_to_server

from services.audit import wire
from services.audit.config import AuditConfig
from services.audit.driver import Driver
from services.audit.metrics import AuditMetrics
from services.audit.reader import LogReader
from services.audit.recorder import SERVICE, Recorder
from services.audit.servicer import ACCESS, SERVICE_NAME, AuditServicer
from services.audit.store import EntryIndex, LogStore
from services.audit.stores.files import FilesLog
from services.audit.stores.sqlite import SqliteIndex
from services.common import logs
from services.common.clock import Clock, SystemClock
from services.common.etcd.channel import EtcdTls
from services.common.etcd.client import EtcdClient
from services.common.etcd.registration import announce
from services.common.lifecycle import TaskSupervisor
from services.common.metrics import Exposition, Metrics, start_exposition
from services.common.rpc.server import GrpcServer
from services.common.tls import TlsIdentity

_log = logs.get("audit.app")


class AuditApp:
    """The audit service of one process."""

    def __init__(
        self,
        config: AuditConfig,
        store: LogStore,
        index: EntryIndex,
        clock: Clock | None = None,
        etcd: EtcdClient | None = None,
    ) -> None:
        self.supervisor = TaskSupervisor()
        self._config = config
        self._clock = clock or SystemClock()
        self._etcd = etcd
        metrics = Metrics(SERVICE)
        own = AuditMetrics(metrics)
        self._tls = TlsIdentity(config.ca, config.certificate, config.key, config.trust_domain)
        self.driver = Driver(store, config.log_origin, config.limits, self._clock, own)
        self._reader = LogReader(store, index, self.driver, wire.index_row, own)
        self._recorder = Recorder(
            self.driver,
            config.replica_id,
            wire.encode_own,
            self._clock,
            own,
            read_window_ms=config.read_window_ms,
        )
        servicer = AuditServicer(
            self.driver,
            self._reader,
            self._recorder,
            own,
            stream_frames_max=config.stream_frames_max,
            tails_max=config.tails_max,
            index_wait_ms=config.index_wait_ms,
        )
        # What the server refuses by itself is recorded like everything else.
        self._server = GrpcServer(
            self._tls, config.listen, ACCESS, metrics, logs.get("audit.rpc"), outbox=self._recorder
        )
        self._server.add(add_AuditServiceServicer_to_server, servicer, SERVICE_NAME)
        self.metrics = metrics
        self._exposition: Exposition | None = None
        self._driving: asyncio.Task[None] | None = None
        # Set by `start`: host:port of the listeners.
        self.address = ""
        self.metrics_address = ""

    async def start(self) -> None:
        """See `Service.start`."""
        config = self._config
        await self.driver.open(first_start=config.first_start)
        self._driving = self.supervisor.spawn("audit-driver", self.driver.run())
        self.supervisor.spawn("audit-index", self._reader.follow())
        self.supervisor.spawn("audit-reads", self._recorder.summarize())
        if config.metrics_listen:
            self._exposition, self.metrics_address = await start_exposition(
                self.metrics, config.metrics_listen, self._tls
            )
        self.address = await self._server.start()
        _log.info("serving", address=self.address, metrics=self.metrics_address)
        if self._etcd is not None:
            self.supervisor.spawn(
                "audit-registration",
                announce(
                    self._etcd,
                    self._clock,
                    self._config,
                    SERVICE,
                    address=self.address,
                    metrics_address=self.metrics_address,
                ),
            )

    async def drain(self) -> None:
        """See `Service.drain`; the last checkpoint covers everything that was acked, if the disk lets it."""
        await self._server.drain(self._config.drain_ms)
        if self._driving is not None and not self._driving.done():
            await self._recorder.flush()
            self.driver.begin_drain()
            _, late = await asyncio.wait([self._driving], timeout=self._config.drain_ms / 1000)
            if late:
                # What was acked is in the journal; the next start makes the checkpoint.
                _log.warning(
                    "leaving without a checkpoint over everything", tree_size=self.driver.published.size
                )
        await self.supervisor.stop()
        await self._reader.close()
        await self.driver.close()
        if self._exposition is not None:
            await self._exposition.stop()
        if self._etcd is not None:
            await self._etcd.close()


async def build(config: AuditConfig) -> AuditApp:
    """Return the service that the settings describe, not started."""
    # Before anything is served there is nothing that could be blocked.
    directory = config.data_directory
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    etcd = EtcdClient(
        config.etcd_endpoints,
        EtcdTls(config.etcd_ca, config.etcd_certificate, config.etcd_key, config.etcd_server_name),
    )
    return AuditApp(
        config,
        FilesLog(directory, config.log_origin, key_path=config.log_key),
        SqliteIndex(directory / "index.sqlite"),
        etcd=etcd,
    )
