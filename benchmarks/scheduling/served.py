"""A crowd behind the real servicer, driver and store: emergencies that come over the wire, for S6.

etcd and the audit spool are real and synced, gRPC has mTLS. The fleet is played inside the process: its
frames go into the driver as the Work streams put them, and what is said to an agent is noted where the stream
would write it. So the way out to the agent is not in the figures; everything else is. Requester, service and
fleet share one process and one loop, which makes them slower than they are apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from muster.common.v1.priority_pb2 import PRIORITY_EMERGENCY
from muster.scheduler.v1.collaboration_pb2 import CollaborationSpec
from muster.scheduler.v1.scheduler_service_pb2 import SubmitCollaborationRequest, SubmitRequest
from muster.scheduler.v1.scheduler_service_pb2_grpc import (
    SchedulerServiceStub,
    add_SchedulerServiceServicer_to_server,
)
from muster.scheduler.v1.task_pb2 import TaskSpec

from benchmarks.plane import certificates, operator_tls
from benchmarks.scheduling.crowd import Crowd
from benchmarks.turns import say
from services.common import logs
from services.common.clock import SystemClock
from services.common.core.errors import ServiceError
from services.common.core.instants import Instant
from services.common.etcd.client import EtcdClient
from services.common.etcd.election import EtcdElection
from services.common.metrics import Metrics
from services.common.outbox import open_outbox
from services.common.rpc.channel import make_channel
from services.common.rpc.server import GrpcServer
from services.common.tls import TlsIdentity
from services.local.certs import PlaneCertificates
from services.local.etcd_server import EtcdMember, EtcdServer, find_etcd
from services.local.ports import free_ports
from services.scheduler.core.book import Settings
from services.scheduler.core.effects import Assign, Effect, SuspendAttempt
from services.scheduler.core.events import (
    AgentsChanged,
    Event,
    ResultReport,
    Submitted,
    Suspended,
    WorkFrame,
)
from services.scheduler.core.model import Payload, Priority
from services.scheduler.driver import Driver, DriverParts
from services.scheduler.metrics import SchedulerMetrics
from services.scheduler.planner import Planner
from services.scheduler.servicer import ACCESS, SERVICE_NAME, SchedulerServicer, StreamLimits
from services.scheduler.stores.etcd import EtcdStore

_PREFIX = "/muster"
_WAIT_S_MAX = 300.0


def stopped(asked: SuspendAttempt) -> ResultReport:
    """Return what an agent says that stopped an attempt without a savepoint."""
    return ResultReport(asked.attempt, Suspended(None))


class _Leader:
    """What the servicer wants of a replica: here it always leads."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def driver(self) -> Driver:
        """Return the driver."""
        return self._driver


class _Fleet:
    """The sending side of every agent's stream: stops when it is asked to, and ends emergencies at once."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.assigned_count = 0
        #: When the newest emergency was handed to an agent, by the monotonic clock; None before.
        self.handed: float | None = None
        self.changed = asyncio.Event()

    def send(self, item: Any) -> None:
        """See `WorkPort.send`."""
        if isinstance(item, Assign):
            self.assigned_count += 1
            if item.task.priority is Priority.EMERGENCY:
                self.handed = time.monotonic()
                done = ResultReport(item.task.ref(item.attempt), Payload())
                self._driver.put(WorkFrame("end", item.stream, 0.5, credits=1, results=(done,)))
        elif isinstance(item, SuspendAttempt):
            self._driver.put(WorkFrame("stop", item.stream, 0.5, results=(stopped(item),)))
        self.changed.set()

    def end(self, error: ServiceError) -> None:
        """See `WorkPort.end`: nothing ends them before all is over."""
        say(f"a stream ended: {error}")

    async def wait(self, what: Any) -> None:
        """Return when `what()` is true."""
        async with asyncio.timeout(_WAIT_S_MAX):
            while not what():
                self.changed.clear()
                await self.changed.wait()


async def served(directory: Path, agents: int, queued: int, emergencies: int) -> dict[str, list[float]]:
    """Return milliseconds from the write of a submission to its answer, and to the assignment of its task."""
    made = certificates(directory / "plane", [])
    client_port, peer_port = free_ports(2)
    member = EtcdMember("etcd", directory / "etcd", directory / "etcd.log", client_port, peer_port)
    etcd = EtcdServer(find_etcd(), member, made.etcd_server(), made.etcd_client())
    etcd.start()
    try:
        await etcd.wait_ready()
        async with EtcdClient([member.endpoint], made.etcd_client("scheduler")) as client:
            return await _with_driver(directory, made, client, (agents, queued, emergencies))
    finally:
        if etcd.child is not None:
            await etcd.child.stop(grace_s=5.0)


async def _with_driver(
    directory: Path, made: PlaneCertificates, client: EtcdClient, size: tuple[int, int, int]
) -> dict[str, list[float]]:
    clock, metrics = SystemClock(), Metrics("scheduler")
    outbox = await open_outbox(
        directory / "spool", service="scheduler", replica_id="bench", clock=clock, metrics=metrics
    )
    # The fleet is played: it answers no probes.
    settings = Settings(probe_interval_ms=3_600_000, silence_ms_max=7_200_000)
    election = EtcdElection(client, clock, f"{_PREFIX}/election/coordinator/", ttl_s=30)
    parts = DriverParts(
        EtcdStore(client, _PREFIX, lock_ttl_s=30),
        outbox,
        clock,
        SchedulerMetrics(metrics),
        settings,
        "bench",
    )
    driver = Driver(await election.campaign(b"bench"), parts)
    nobody = AgentsChanged("nobody", 0.5, (), snapshot=True)
    running = asyncio.create_task(driver.run(lambda: nobody), name="driver")
    planner = Planner()
    servicer = SchedulerServicer(_Leader(driver), planner, outbox, clock, StreamLimits())  # type: ignore[arg-type]
    tls = TlsIdentity(made.ca, *made.service_pair("scheduler"))
    server = GrpcServer(tls, "127.0.0.1:0", ACCESS, metrics, logs.get("bench.rpc"), outbox=outbox)
    server.add(add_SchedulerServiceServicer_to_server, servicer, SERVICE_NAME)
    address = await server.start()
    try:
        await driver.serving.wait()
        fleet = _Fleet(driver)
        crowd = await _filled(driver, fleet, clock.now(), size)
        async with _submits(made.directory, address) as call:
            return await _measure(fleet, crowd, call, size[2])
    finally:
        driver.stop()
        await running
        await election.resign()
        await server.drain(0)
        await planner.close()
        await outbox.close()


async def _filled(driver: Driver, fleet: _Fleet, now: Instant, size: tuple[int, int, int]) -> Crowd:
    """Return a crowd whose every slot is taken, with the queue behind it."""
    agents, queued, _ = size

    def handle(event: Event, _: Instant) -> list[Effect]:
        if isinstance(event, Submitted):
            driver.request(lambda reply: event._replace(reply=reply), lambda _: None)
        else:
            driver.put(event)
        return []

    crowd = Crowd(
        agents, 3, suspendable=True, now=now, handle=handle, stream_of=lambda _: driver.open_port(fleet)
    )
    crowd.offer(1)
    for _ in range(0, queued + agents, 2_000):
        crowd.submit(2_000)
        await driver.wait_room()
        await driver.query(lambda book: book.open_task_count)
    await fleet.wait(lambda: fleet.assigned_count >= agents * 0.99)
    waiting = await driver.query(lambda book: book.index.waiting_count)
    say(f"{fleet.assigned_count} agents are busy, {waiting} tasks wait")
    return crowd


@contextlib.asynccontextmanager
async def _submits(home: Path, address: str) -> AsyncIterator[Any]:
    async with make_channel(address, operator_tls(home), "scheduler") as channel:
        stub: Any = SchedulerServiceStub(channel)
        call = stub.Submit()
        yield call
        call.cancel()


async def _measure(fleet: _Fleet, crowd: Crowd, call: Any, count: int) -> dict[str, list[float]]:
    answered: list[float] = []
    handed: list[float] = []
    gc.collect()
    gc.freeze()
    for number in range(count):
        skills = crowd.random.choice(crowd.skills)[: crowd.random.choice((1, 1, 2))]
        task = TaskSpec(task_id="t", required_skills=skills, priority=PRIORITY_EMERGENCY)
        request = SubmitCollaborationRequest(
            request_id=f"now{number}", collaboration=CollaborationSpec(tasks=[task])
        )
        fleet.handed = None
        begun = time.monotonic()
        await call.write(SubmitRequest(submissions=[request]))
        frame = await call.read()
        answered.append((time.monotonic() - begun) * 1_000)
        if frame.outcomes[0].HasField("error"):
            raise RuntimeError(f"refused: {frame.outcomes[0].error}")
        await fleet.wait(lambda: fleet.handed is not None)
        handed.append(((fleet.handed or begun) - begun) * 1_000)
    gc.unfreeze()
    return {"emergency accepted": answered, "emergency handed to an agent": handed}
