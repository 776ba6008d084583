"""The plane as users run it: real processes, real etcd, mTLS; the launcher runs in the test's process."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

from services.common.clock import SystemClock
from services.common.etcd.client import EtcdClient
from services.common.identity import Principal
from services.common.tls import TlsIdentity
from services.local.config_files import Setting
from services.local.events import PlaneEvent
from services.local.launcher import Plane, PlaneSettings
from services.local.layout import ETCD
from services.local.part import Part, Supervised

# How long a part may take to come back, or a coordinator to be elected, on a busy machine.
PATIENCE_S = 60.0


class ProcessCluster:
    """See `tests.harness.cluster.Cluster`; `settings` adds to the services' own, by service."""

    def __init__(self, home: Path, settings: Mapping[str, Mapping[str, Setting]] | None = None) -> None:
        self.events: list[PlaneEvent] = []
        self._happened = asyncio.Event()
        self.plane = Plane(PlaneSettings(home, extra=settings or {}), self._take)

    async def __aenter__(self) -> Self:
        await self.plane.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.plane.__aexit__(kind, error, trace)

    @property
    def home(self) -> Path:
        return self.plane.places.directory

    @property
    def addresses(self) -> Mapping[str, str]:
        return {part.name: part.address for part in self.plane.parts}

    def issue_agent(self, name: str) -> tuple[Path, Path]:
        return self.plane.certificates.issue(Principal("agent", name))

    def tls(self, principal: str) -> TlsIdentity:
        kind, _, name = principal.partition("/")
        folder = self.home / f"{kind}s"
        if kind == "agent" and not (folder / f"{name}.crt").exists():
            self.issue_agent(name)
        return TlsIdentity(self.plane.certificates.ca, folder / f"{name}.crt", folder / f"{name}.key")

    def etcd(self) -> AbstractAsyncContextManager[EtcdClient]:
        return EtcdClient([self.addresses[ETCD]], self.plane.certificates.etcd_client())

    async def coordinator(self, *, newer_than: int = 0) -> tuple[str, int]:
        def newest() -> tuple[str, int] | None:
            for event in reversed(self.events):
                if event.kind == "coordinator":
                    epoch = int(str(event.facts["epoch"]))
                    return (str(event.facts["replica_id"]), epoch) if epoch > newer_than else None
            return None

        async with asyncio.timeout(PATIENCE_S):
            while (found := newest()) is None:
                await self._happened.wait()
        return found

    def signal(self, name: str, number: signal.Signals) -> None:
        child = self._part(name).child
        assert child is not None
        child.signal(number)

    async def kill(self, name: str) -> None:
        seen = len(self.events)
        self.signal(name, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_S):
            while not any(
                event.kind == "restarted" and event.facts["name"] == name for event in self.events[seen:]
            ):
                await self._happened.wait()

    async def take_down(self, name: str) -> None:
        keeper = self.plane.keepers[name]
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        child = self._part(name).child
        assert child is not None
        child.kill()

    async def bring_up(self, name: str) -> None:
        supervised = Supervised(self._part(name), self._take, SystemClock())
        await supervised.start()
        self.plane.keep(supervised)

    def _part(self, name: str) -> Part:
        return next(part for part in self.plane.parts if part.name == name)

    def _take(self, event: PlaneEvent) -> None:
        self.events.append(event)
        happened, self._happened = self._happened, asyncio.Event()
        happened.set()
