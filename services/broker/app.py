"""The composition root: from the settings to a running broker."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import grpc

from services.broker.config import BrokerConfig
from services.broker.core.events import AgentsSeen
from services.broker.driver import Driver, DriverSettings
from services.broker.mailbox_stream import StreamHost, StreamTerms
from services.broker.members import Memberships, MembershipSource
from services.broker.metrics import BrokerMetrics
from services.broker.peers import AgentDirectory, RegistryAgents, SchedulerMembers
from services.broker.recorder import AuditRecorder
from services.broker.relay import Relay, RelayingServicer
from services.broker.replica import Replica, Seat
from services.broker.servicer import ACCESS, ACCESS_OF_REPLICAS, SERVICE_NAME, BrokerServicer, add_to_server
from services.broker.sole import Broker, Sole
from services.broker.store import MailboxStore
from services.broker.stores.redis import RedisStore
from services.broker.stores.sqlite import SqliteStore
from services.common import logs
from services.common.clock import Clock, SystemClock
from services.common.core.errors import Reason, ServiceError
from services.common.election import Election, Leadership
from services.common.etcd.channel import EtcdTls
from services.common.etcd.client import EtcdClient
from services.common.etcd.directory import ServiceDirectory
from services.common.etcd.election import EtcdElection
from services.common.etcd.registration import announce
from services.common.lifecycle import TaskSupervisor
from services.common.metrics import Exposition, Metrics, start_exposition
from services.common.outbox import Outbox, SpooledOutbox, open_outbox
from services.common.rpc.channel import make_channel
from services.common.rpc.server import GrpcServer
from services.common.tls import TlsIdentity

SERVICE = "broker"
# Where the replicas on one Redis campaign, below the plane's key prefix; the Redis prefix comes behind it.
ELECTION = "election/broker/"
# How long a drain waits for the last commit and the last audit entries, in seconds.
SETTLE_S_MAX = 5.0
# New objects between two looks for cycles; Python's own default is 700.
GC_THRESHOLD = 50_000

# Opens the store for the leadership with this epoch.
OpenStore = Callable[[int], MailboxStore]

_log = logs.get("broker.app")


class BrokerApp:
    """The broker of one process.

    Without `etcd` it is alone: nobody finds it, `agents` tells who exists, `collaborations` who belongs
    together. With a `store` the mailboxes are its own; with a function that opens one for an epoch, and an
    `election`, it is one of several replicas.
    """

    def __init__(
        self,
        config: BrokerConfig,
        store: MailboxStore | OpenStore,
        outbox: Outbox,
        *,
        election: Election | None = None,
        clock: Clock | None = None,
        metrics: Metrics | None = None,
        etcd: EtcdClient | None = None,
        agents: AgentDirectory | None = None,
        collaborations: MembershipSource | None = None,
    ) -> None:
        self.supervisor = TaskSupervisor()
        self._config, self._store, self._outbox = config, store, outbox
        self._clock, self._etcd = clock or SystemClock(), etcd
        self._metrics = metrics or Metrics(SERVICE)
        self._tls = TlsIdentity(config.ca, config.certificate, config.key, config.trust_domain)
        self._directory = None if etcd is None else ServiceDirectory(etcd, config.key_prefix)
        if agents is None and self._directory is not None:
            agents = RegistryAgents(self._directory, self._tls)
        self._agents = agents
        self._scheduler = None if self._directory is None else SchedulerMembers(self._directory, self._tls)
        self._collaborations = collaborations or self._scheduler
        self._own_metrics = BrokerMetrics(self._metrics)
        self._recorder = AuditRecorder(
            outbox,
            self._clock,
            self._own_metrics,
            messages=config.audit_messages,
            backlog_max=config.audit_backlog_max,
            group_max=config.audit_group_max,
        )
        self._relay = Relay(self._tls)
        self._broker: Broker
        if callable(store):
            if election is None:
                raise ValueError("replicas of a broker need an election")
            self.replica = self._replica(store, election)
            self._broker, access = self.replica, ACCESS_OF_REPLICAS
            self._own_metrics.leads.set_function(lambda: self.replica.leads)
            servicer: Any = RelayingServicer(self.replica, self._relay)
        else:
            self.driver = self._driver(store)
            self._broker, access = Sole(self.driver), ACCESS
            self._own_metrics.leads.set(1)
            servicer = self._servicer(self.driver)
        self._server = GrpcServer(
            self._tls, config.listen, access, self._metrics, logs.get("broker.rpc"), outbox=outbox
        )
        self._server.add(add_to_server, servicer, SERVICE_NAME)
        self._exposition: Exposition | None = None
        # Set by `start`: host:port of the listeners.
        self.address = ""
        self.metrics_address = ""

    async def start(self) -> None:
        """See `lifecycle.Service`."""
        spawn = self.supervisor.spawn
        await self._broker.open()
        spawn("broker-recorder", self._recorder.run())
        if self._directory is not None:
            spawn("broker-directory", self._directory.run())
        if self._agents is not None:
            spawn("broker-agents", self._follow(self._agents))
        if isinstance(self._outbox, SpooledOutbox):
            spawn("broker-shipper", self._outbox.ship(self._reach_audit))
        if self._config.metrics_listen:
            self._exposition, self.metrics_address = await start_exposition(
                self._metrics, self._config.metrics_listen, self._tls
            )
        self.address = await self._server.start()
        self._broker.address = self._config.advertise or self.address
        spawn("broker-mailboxes", self._broker.run())
        _log.info("serving", address=self.address, metrics=self.metrics_address)
        if self._etcd is not None:
            spawn(
                "broker-registration",
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
        """See `lifecycle.Service`: take no new envelopes, answer those that came, end the streams, close."""
        await _within(SETTLE_S_MAX, self._broker.settle())
        await self._server.drain(self._config.drain_ms)
        await _within(SETTLE_S_MAX, self._recorder.wait_idle())
        await self.supervisor.stop()
        await self._broker.close()
        await self._relay.close()
        if isinstance(self._outbox, SpooledOutbox):
            await self._outbox.close()
        if self._scheduler is not None:
            await self._scheduler.close()
        if self._exposition is not None:
            await self._exposition.stop()
        if self._etcd is not None:
            await self._etcd.close()

    def _driver(self, store: MailboxStore, held: Callable[[], bool] = lambda: True) -> Driver:
        config = self._config
        settings = DriverSettings(
            config.limits, config.retention, config.uncommitted_bytes_max, config.compaction_interval_ms
        )
        return Driver(store, self._clock, self._own_metrics, self._recorder, settings, held=held)

    def _servicer(self, driver: Driver) -> BrokerServicer:
        config = self._config
        terms = StreamTerms(config.ack_deadline_ms, config.payload_bytes_max, config.hello_timeout_ms)
        memberships = Memberships(
            self._collaborations, self._clock, driver.submit, config.membership_timeout_ms
        )
        return BrokerServicer(StreamHost(driver, self._recorder, self._own_metrics, terms, memberships))

    def _replica(self, open_store: OpenStore, election: Election) -> Replica:
        def make_seat(leadership: Leadership) -> Seat:
            driver = self._driver(open_store(leadership.epoch), lambda: leadership.held)
            return Seat(driver, self._servicer(driver))

        config = self._config
        replica = Replica(
            election,
            make_seat,
            self._outbox,
            self._clock,
            replica_id=config.replica_id,
            leader_wait_ms=config.leader_wait_ms,
        )
        replica.on_leader = self._relay.follow
        return replica

    async def _follow(self, agents: AgentDirectory) -> None:
        async with contextlib.aclosing(agents.watch()) as views:
            async for view in views:
                self._broker.see_agents(AgentsSeen(view.names, view.complete, view.profiles))

    async def _reach_audit(self) -> grpc.aio.Channel:
        addresses = () if self._directory is None else self._directory.addresses("audit")
        if not addresses:
            raise ServiceError(Reason.AUDIT_UNAVAILABLE, "no audit replica is known yet")
        return make_channel(addresses, self._tls, "audit")


async def build(config: BrokerConfig) -> BrokerApp:
    """Return the service that the settings describe, not started."""
    # What the broker makes by the ten thousand a second has no cycles: looking for some among all waiting
    # envelopes would cost a tenth of its time. Measured: `python -m benchmarks messages`.
    gc.set_threshold(GC_THRESHOLD)
    # Before anything is served there is nothing that could be blocked.
    directory = config.data_directory
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    clock, metrics = SystemClock(), Metrics(SERVICE)
    outbox = await open_outbox(
        directory / "outbox", service=SERVICE, replica_id=config.replica_id, clock=clock, metrics=metrics
    )
    etcd = EtcdClient(
        config.etcd_endpoints,
        EtcdTls(config.etcd_ca, config.etcd_certificate, config.etcd_key, config.etcd_server_name),
    )
    if config.store == "sqlite":
        store = SqliteStore.open(directory / "mailboxes.sqlite")
        return BrokerApp(config, store, outbox, clock=clock, metrics=metrics, etcd=etcd)
    settings = config.redis
    election = EtcdElection(
        etcd, clock, f"{config.key_prefix}/{ELECTION}{settings.prefix}/", ttl_s=config.election_ttl_s
    )
    return BrokerApp(
        config,
        lambda epoch: RedisStore(settings, epoch),
        outbox,
        clock=clock,
        metrics=metrics,
        etcd=etcd,
        election=election,
    )


async def _within(seconds: float, wait: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wait
