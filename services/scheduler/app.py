"""The composition root: from the settings to a running scheduler replica."""

from __future__ import annotations

import gc
import sys

from muster.scheduler.v1.scheduler_service_pb2_grpc import add_SchedulerServiceServicer_to_server

from services.common import logs
from services.common.clock import Clock, SystemClock
from services.common.etcd.channel import EtcdTls
from services.common.etcd.client import EtcdClient
from services.common.etcd.directory import (
    COORDINATOR_ELECTION,
    ServiceDirectory,
    coordinator_address,
    coordinator_value,
)
from services.common.etcd.election import EtcdElection
from services.common.etcd.registration import announce
from services.common.lifecycle import TaskSupervisor
from services.common.metrics import Exposition, Metrics, start_exposition
from services.common.outbox import SpooledOutbox, open_outbox
from services.common.rpc.channel import connector
from services.common.rpc.server import GrpcServer
from services.common.rpc.vigil import Vigil
from services.common.tls import TlsIdentity
from services.scheduler.config import SchedulerConfig
from services.scheduler.driver import DriverLimits, DriverParts
from services.scheduler.metrics import SchedulerMetrics
from services.scheduler.peers import RegistryFeed
from services.scheduler.planner import Planner
from services.scheduler.replica import Replica
from services.scheduler.servicer import ACCESS, SERVICE, SERVICE_NAME, SchedulerServicer, StreamLimits
from services.scheduler.stores.etcd import EtcdStore

_log = logs.get("scheduler.app")
#: New containers before a young collection, young ones before a middle one, middle ones before a full one.
_GC_THRESHOLDS = (50_000, 10, 20)
#: How long the loop may keep another thread from running, in seconds. The thread that syncs the audit spool
#: needs its turn before and after each system call: with Python's 5 ms, a sync of half a millisecond took as
#: long as the decision about the next batch, and a commit waits for it.
_SWITCH_S = 0.000_5


class SchedulerApp:
    """One scheduler replica."""

    def __init__(
        self, config: SchedulerConfig, etcd: EtcdClient, outbox: SpooledOutbox, metrics: Metrics, clock: Clock
    ) -> None:
        self.supervisor = TaskSupervisor()
        self._config, self._etcd, self._outbox, self._metrics, self._clock = (
            config,
            etcd,
            outbox,
            metrics,
            clock,
        )
        self._tls = TlsIdentity(config.ca, config.certificate, config.key, config.trust_domain)
        self._directory = ServiceDirectory(etcd, config.key_prefix)
        self._planner = Planner()
        parts = DriverParts(
            EtcdStore(etcd, config.key_prefix, lock_ttl_s=config.lock_ttl_s),
            outbox,
            clock,
            SchedulerMetrics(metrics),
            config.settings,
            config.replica_id,
            DriverLimits(config.batch_events_max, config.queue_max, config.audit_group_max),
            self._planner,
        )
        election = EtcdElection(
            etcd, clock, f"{config.key_prefix}/{COORDINATOR_ELECTION}", ttl_s=config.election_ttl_s
        )
        self._vigil = Vigil(
            election,
            self._tls,
            SERVICE,
            address_of=coordinator_address,
            own=lambda: self.replica.address,
        )
        feed = RegistryFeed(connector(lambda: self._directory.addresses("registry"), self._tls, "registry"))
        self.replica = Replica(election, feed, parts, self._coordinator)
        servicer = SchedulerServicer(
            self.replica,
            self._planner,
            outbox,
            clock,
            StreamLimits(config.submissions_max, config.watcher_events_max, config.watchers_max),
        )
        self._server = GrpcServer(
            self._tls, config.listen, ACCESS, metrics, logs.get("scheduler.rpc"), outbox=outbox
        )
        self._server.add(add_SchedulerServiceServicer_to_server, servicer, SERVICE_NAME)
        self._exposition: Exposition | None = None
        # Set by `start`: host:port of the listeners.
        self.address = ""
        self.metrics_address = ""

    async def start(self) -> None:
        """See `Service.start`."""
        config = self._config
        # The state holds a million objects and next to no cycles: Python's defaults would walk all of them
        # again and again, in pauses of tenths of a second.
        gc.set_threshold(*_GC_THRESHOLDS)
        sys.setswitchinterval(_SWITCH_S)
        if config.metrics_listen:
            self._exposition, self.metrics_address = await start_exposition(
                self._metrics, config.metrics_listen, self._tls
            )
        self.address = await self._server.start()
        _log.info("serving", address=self.address, metrics=self.metrics_address)
        address = self.replica.address = config.advertise or self.address
        audit = connector(lambda: self._directory.addresses("audit"), self._tls, "audit")
        self.supervisor.spawn("scheduler-directory", self._directory.run())
        self.supervisor.spawn("scheduler-outbox", self._outbox.ship(audit))
        self.supervisor.spawn("scheduler-registry-feed", self.replica.hear())
        value = coordinator_value(config.replica_id, address)
        self.supervisor.spawn("scheduler-vigil", self._vigil.run())
        self.supervisor.spawn("scheduler-lead", self.replica.lead(value, config.registry_wait_ms))
        self.supervisor.spawn(
            "scheduler-registration",
            announce(
                self._etcd,
                self._clock,
                config,
                SERVICE,
                address=self.address,
                metrics_address=self.metrics_address,
            ),
        )

    async def drain(self) -> None:
        """See `Service.drain`: the lead is given up first, so that the standby need not wait for a lease."""
        await self.replica.resign()
        await self._server.drain(self._config.drain_ms)
        await self._planner.close()
        await self.supervisor.stop()
        await self._outbox.close()
        if self._exposition is not None:
            await self._exposition.stop()
        await self._etcd.close()

    def _coordinator(self) -> str:
        coordinator = self._directory.coordinator
        return "" if coordinator is None else coordinator.address


async def build(config: SchedulerConfig) -> SchedulerApp:
    """Return the service that the settings describe, not started."""
    # Before anything is served there is nothing that could be blocked.
    config.data_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    clock, metrics = SystemClock(), Metrics(SERVICE)
    outbox = await open_outbox(
        config.data_directory / "outbox",
        service=SERVICE,
        replica_id=config.replica_id,
        clock=clock,
        metrics=metrics,
    )
    tls = EtcdTls(config.etcd_ca, config.etcd_certificate, config.etcd_key, config.etcd_server_name)
    return SchedulerApp(config, EtcdClient(config.etcd_endpoints, tls), outbox, metrics, clock)
