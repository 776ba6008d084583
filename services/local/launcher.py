"""The plane: etcd and every service as processes on the loopback address, started, watched and stopped."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from services.common.clock import Clock, SystemClock
from services.common.core.errors import ServiceError
from services.common.etcd.client import EtcdClient
from services.common.etcd.directory import ServiceDirectory
from services.common.etcd.ops import Get
from services.common.identity import TRUST_DOMAIN
from services.common.tls import TlsIdentity
from services.local import describe
from services.local.certs import PlaneCertificates
from services.local.child import PartFailedError
from services.local.config_files import Setting, write_json, write_toml
from services.local.etcd_server import EtcdMember, EtcdServer, find_etcd
from services.local.events import Emit, PlaneEvent
from services.local.layout import ETCD, PORT_COUNT, REPLICAS, SERVICES, STAGES, Places, Ports, Replica
from services.local.lock import FolderLock
from services.local.part import Part, ServicePart, Supervised
from services.local.ports import PortTakenError, free_ports, is_free

# How long a part may take to end after SIGTERM before it is killed, in seconds.
STOP_GRACE_S = 10.0
# How long the services may take to elect a coordinator once all of them serve, in seconds.
COORDINATOR_S_MAX = 30.0


class PlaneError(Exception):
    """The plane can not run; the message says why, and where to look."""


@dataclass(frozen=True, slots=True)
class PlaneSettings:
    """What may be chosen about a plane.

    `port_base` 0 takes free ports; `extra` adds to services' own settings, for example
    `{"scheduler": {"log_level": "DEBUG"}}`.
    """

    directory: Path
    port_base: int = 0
    trust_domain: str = TRUST_DOMAIN
    extra: Mapping[str, Mapping[str, Setting]] = field(default_factory=dict)


class Plane:
    """One running plane. `async with Plane(...) as plane: await plane.supervise()`.

    Use it from the main thread: its processes end with the thread that started them.
    """

    def __init__(self, settings: PlaneSettings, emit: Emit, clock: Clock | None = None) -> None:
        self.settings = settings
        self.places = Places(settings.directory.absolute())
        self.certificates = PlaneCertificates(self.places.directory, trust_domain=settings.trust_domain)
        self._emit_to = emit
        self._clock = clock or SystemClock()
        self._lock = FolderLock(self.places.lock)
        # Filled by `start` in its order, emptied by `stop` from the end.
        self._stages: list[list[Part]] = []
        self._loops: list[asyncio.Task[None]] = []
        # Name of a part -> the loop that keeps it alive.
        self.keepers: dict[str, asyncio.Task[None]] = {}
        self._etcd: EtcdClient | None = None
        self._ports: Ports | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            # Also Ctrl-C in the middle of a start.
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def ports(self) -> Ports:
        """The ports, once they are chosen."""
        if self._ports is None:
            raise RuntimeError("the plane was not started")
        return self._ports

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every process, etcd first."""
        return tuple(part for stage in self._stages for part in stage)

    async def start(self) -> None:
        """Start everything and return when a coordinator leads.

        Raises `AlreadyRunningError`, `PortTakenError`, `CertificateError`, `EtcdMissingError`, `PlaneError`;
        call `stop` then too.
        """
        self.places.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock.acquire()
        self._emit(PlaneEvent("starting", {"directory": str(self.places.directory)}))
        self._ports = self._choose_ports()
        self.certificates.prepare(SERVICES)
        self._write_files()
        etcd = self._etcd_part()
        try:
            await self._start_stages([[etcd]])
            self._etcd = EtcdClient([etcd.address], self.certificates.etcd_client())
            before = (await self._etcd.read(Get(describe.KEY_PREFIX))).revision
            directory = ServiceDirectory(self._etcd, describe.KEY_PREFIX)
            self._loops.append(asyncio.create_task(directory.run(), name="directory"))
            await self._start_stages([[self._service_part(one) for one in stage] for stage in STAGES])
            await self._wait_coordinator(directory, before)
        except (PartFailedError, ServiceError) as error:
            raise PlaneError(str(error)) from error
        self._emit(PlaneEvent("ready", describe.ready_facts(self.places, self.ports, self.certificates)))

    def keep(self, supervised: Supervised) -> None:
        """From now on start a part again each time that it ends."""
        name = supervised.part.name
        self.keepers[name] = asyncio.create_task(supervised.keep(), name=f"keep-{name}")

    async def supervise(self) -> None:
        """Keep every process alive until cancelled."""
        running = [*self._loops, *self.keepers.values()]
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
        for loop in done:
            # Only a defect ends a loop; it must not pass in silence.
            loop.result()

    async def stop(self) -> None:
        """End every process in the reverse order of its start; what does not end in time is killed."""
        await _cancel([*self._loops, *self.keepers.values()])
        self._loops.clear()
        self.keepers.clear()
        if self._etcd is not None:
            await self._etcd.close()
            self._etcd = None
        if self._stages:
            self._emit(PlaneEvent("stopping"))
            while self._stages:
                await asyncio.gather(*(self._stop_part(part) for part in self._stages[-1]))
                self._stages.pop()
            self._emit(PlaneEvent("stopped"))
        if self._lock.held:
            self.places.state.unlink(missing_ok=True)
            self._lock.release()

    def kill(self) -> None:
        """Kill every process at once."""
        for part in self.parts:
            if part.child is not None:
                part.child.kill()

    def _choose_ports(self) -> Ports:
        if self.settings.port_base == 0:
            return Ports.from_free(free_ports(PORT_COUNT))
        ports = Ports.from_base(self.settings.port_base)
        for port, purpose in ports.purposes().items():
            if not is_free(port):
                raise PortTakenError(port, purpose)
        return ports

    def _write_files(self) -> None:
        trust_domain = self.settings.trust_domain
        self.places.all_data.mkdir(mode=0o700, exist_ok=True)
        for replica in REPLICAS:
            settings = describe.service_settings(
                replica, self.places, self.ports, self.certificates, trust_domain
            )
            settings |= self.settings.extra.get(replica.service, {})
            write_toml(
                self.places.config(replica.replica_id), settings, "Written at each start of the local plane."
            )
            self.places.data(replica.replica_id).mkdir(mode=0o700, exist_ok=True)
        write_json(
            self.places.context, describe.context(self.places, self.ports, self.certificates, trust_domain)
        )

    def _etcd_part(self) -> EtcdServer:
        member = EtcdMember(
            ETCD,
            self.places.data(ETCD),
            self.places.log(ETCD),
            self.ports.etcd_client,
            self.ports.etcd_peer,
        )
        return EtcdServer(
            find_etcd(), member, self.certificates.etcd_server(), self.certificates.etcd_client()
        )

    def _service_part(self, replica: Replica) -> ServicePart:
        name = replica.replica_id
        tls = TlsIdentity(
            self.certificates.ca, *self.certificates.operator_pair(), self.settings.trust_domain
        )
        return ServicePart(
            replica, self.ports.address(name), self.places.config(name), self.places.log(name), tls
        )

    async def _start_stages(self, stages: Sequence[Sequence[Part]]) -> None:
        """Start all parts at once and return when all are ready; they wait for each other by themselves.

        The stages matter when they are stopped. The first part that fails ends the start.
        """
        self._stages += [list(stage) for stage in stages]
        supervised = [Supervised(part, self._emit, self._clock) for stage in stages for part in stage]
        starts = [asyncio.create_task(one.start()) for one in supervised]
        try:
            await asyncio.gather(*starts)
        finally:
            await _cancel(starts)
        for one in supervised:
            self.keep(one)

    async def _wait_coordinator(self, directory: ServiceDirectory, epoch: int) -> None:
        """Return when a coordinator with a larger epoch leads, and from then on tell of each new one.

        A key left by an earlier run may live on for its lease; its epoch is smaller than those of this run.
        """
        elected = asyncio.Event()

        async def tell() -> None:
            told = epoch
            while True:
                leader = directory.coordinator
                if leader is not None and leader.epoch > told:
                    told = leader.epoch
                    facts = {"replica_id": leader.replica_id, "address": leader.address, "epoch": told}
                    self._emit(PlaneEvent("coordinator", facts))
                    elected.set()
                await directory.wait_changed()

        self._loops.append(asyncio.create_task(tell(), name="coordinator"))
        try:
            async with asyncio.timeout(COORDINATOR_S_MAX):
                await elected.wait()
        except TimeoutError as error:
            raise PlaneError(
                f"no scheduler became coordinator within {COORDINATOR_S_MAX:.0f} s; see "
                f"{self.places.log('scheduler-1')}"
            ) from error

    async def _stop_part(self, part: Part) -> None:
        if part.child is None or part.child.exit_code is not None:
            return
        if await part.child.stop(STOP_GRACE_S) == -signal.SIGKILL:
            self._emit(PlaneEvent("killed", {"name": part.name}))

    def _emit(self, event: PlaneEvent) -> None:
        if event.kind in ("serving", "restarted"):
            # plane.json follows the process ids.
            write_json(self.places.state, describe.state(self.parts, self.ports))
        self._emit_to(event)


async def _cancel(running: Sequence[asyncio.Task[Any]]) -> None:
    for one in running:
        one.cancel()
    await asyncio.gather(*running, return_exceptions=True)
