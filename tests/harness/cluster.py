"""What a scenario needs from a plane, whatever it is made of."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from services.common.etcd.client import EtcdClient
from services.common.tls import TlsIdentity


class Cluster(Protocol):
    """A running plane whose parts can be hurt; `async with` starts and stops it.

    Parts are named as in `services.local.layout`: "etcd", "registry-1", "broker-1", "audit-1", "scheduler-1",
    "scheduler-2".
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def home(self) -> Path:
        """The folder with context.json, for `MUSTER_HOME`."""
        ...

    @property
    def addresses(self) -> Mapping[str, str]:
        """Name of a part -> host:port of its gRPC listener; they stay the same over restarts."""
        ...

    def issue_agent(self, name: str) -> tuple[Path, Path]:
        """Issue an agent's certificate into the plane's folder; return (certificate, key) files."""
        ...

    def tls(self, principal: str) -> TlsIdentity:
        """Return the identity of "operator/admin", "service/NAME" or "agent/NAME" (issued when missing)."""
        ...

    def etcd(self) -> AbstractAsyncContextManager[EtcdClient]:
        """Return a client of the plane's etcd, to look at what is stored."""
        ...

    async def coordinator(self, *, newer_than: int = 0) -> tuple[str, int]:
        """Wait for a coordinator whose epoch is larger than `newer_than`; return (its name, its epoch)."""
        ...

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a part a signal. A part that ends is started again by the plane."""
        ...

    async def kill(self, name: str) -> None:
        """Kill a part (SIGKILL) and return when the plane has started it again and it serves."""
        ...

    async def take_down(self, name: str) -> None:
        """Kill a part and keep it down until `bring_up`."""
        ...

    async def bring_up(self, name: str) -> None:
        """Start a part that is down and return when it serves."""
        ...
