"""The parts of a plane: one process each, that starts, gets ready, and is started again when it dies."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.clock import Clock
from services.common.core.backoff import backoff_ms
from services.common.rpc.channel import make_channel
from services.common.tls import TlsIdentity
from services.local.child import Child, PartFailedError
from services.local.events import Emit, PlaneEvent
from services.local.layout import Replica

# How long a service may take until it serves, in seconds; a busy machine needs a while to import it.
SERVING_S_MAX = 60.0
_PROBE_TIMEOUT_S = 1.0
_PROBE_PAUSE_S = 0.05
# Pause before a crashed part is started again, in milliseconds.
RESTART_BASE_MS = 100
RESTART_MAX_MS = 5_000
# A part that ran this long has recovered: its next crash is a first one again. In milliseconds.
HEALTHY_MS = 30_000


class Part(Protocol):
    """One process of the plane."""

    child: Child | None

    @property
    def name(self) -> str:
        """Unique in the plane."""
        ...

    @property
    def address(self) -> str:
        """host:port where it is reached."""
        ...

    def start(self) -> None:
        """Start the process."""
        ...

    async def wait_ready(self) -> None:
        """Return when it can be used; raises `PartFailedError`."""
        ...


class ServicePart:
    """One replica of a service, `python -m services.<service> --config FILE`."""

    def __init__(self, replica: Replica, address: str, config: Path, log: Path, tls: TlsIdentity) -> None:
        self.replica = replica
        self.address = address
        self.child: Child | None = None
        self._config, self._log, self._tls = config, log, tls

    @property
    def name(self) -> str:
        """The replica's id."""
        return self.replica.replica_id

    def start(self) -> None:
        """Start the process."""
        command = service_command(self.replica.service, self._config)
        self.child = Child(self.name, command, log_path=self._log)

    async def wait_ready(self) -> None:
        """Return when its health check says SERVING; raises `PartFailedError`."""
        if self.child is None:
            raise RuntimeError(f"{self.name} was not started")
        channel = make_channel(self.address, self._tls, self.replica.service)
        try:
            async with asyncio.timeout(SERVING_S_MAX):
                while not await serves(channel):
                    if self.child.exit_code is not None:
                        raise PartFailedError(self.child.story())
                    await asyncio.sleep(_PROBE_PAUSE_S)
        except TimeoutError as error:
            raise PartFailedError(f"not serving after {SERVING_S_MAX:.0f} s; {self.child.story()}") from error
        finally:
            await channel.close(grace=None)


def service_command(service: str, config: Path) -> list[str]:
    """Return the command that runs one replica of a service."""
    return [sys.executable, "-m", f"services.{service}", "--config", str(config)]


async def serves(channel: grpc.aio.Channel) -> bool:
    """Return whether the server behind `channel` says that it is to be used."""
    request = health_pb2.HealthCheckRequest()
    try:
        answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=_PROBE_TIMEOUT_S)
    except grpc.aio.AioRpcError:
        return False
    serving: bool = answer.status == health_pb2.HealthCheckResponse.SERVING
    return serving


@dataclass
class Supervised:
    """A part that is kept alive."""

    part: Part
    emit: Emit
    clock: Clock

    async def start(self) -> None:
        """Start the part for the first time and wait until it is ready; raises `PartFailedError`."""
        began_ms = self.clock.monotonic_ms()
        child = await self._bring_up()
        took_ms = self.clock.monotonic_ms() - began_ms
        facts = {"name": self.part.name, "pid": child.pid, "address": self.part.address, "took_ms": took_ms}
        self.emit(PlaneEvent("serving", facts))

    async def keep(self) -> None:
        """Start the part again each time that it ends, for ever."""
        failures = 0
        while True:
            child = _child(self.part)
            began_ms = self.clock.monotonic_ms()
            await child.wait()
            failures = 1 if self.clock.monotonic_ms() - began_ms > HEALTHY_MS else failures + 1
            story = child.story()
            while True:
                pause_ms = backoff_ms(failures, base_ms=RESTART_BASE_MS, max_ms=RESTART_MAX_MS)
                facts: dict[str, object] = {"name": self.part.name, "story": story, "retry_ms": pause_ms}
                self.emit(PlaneEvent("crashed", facts))
                await asyncio.sleep(pause_ms / 1_000)
                try:
                    child = await self._bring_up()
                    break
                except PartFailedError as error:
                    _child(self.part).kill()
                    failures += 1
                    story = str(error)
            self.emit(PlaneEvent("restarted", {"name": self.part.name, "pid": child.pid}))

    async def _bring_up(self) -> Child:
        self.part.start()
        await self.part.wait_ready()
        return _child(self.part)


def _child(part: Part) -> Child:
    if part.child is None:
        raise RuntimeError(f"{part.name} was not started")
    return part.child
