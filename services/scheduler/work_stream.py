"""One agent instance's Work stream."""

from __future__ import annotations

import functools
import random
from typing import Any

from muster.scheduler.v1 import work_pb2 as work_pb

from services.common.core.errors import ServiceError
from services.common.rpc.duplex import Duplex, DuplexLimits, read_first
from services.common.rpc.interceptors import LiveCall
from services.scheduler.core.effects import WorkItem
from services.scheduler.core.events import Refused, StreamId, WorkClosed, WorkOpened
from services.scheduler.driver import Driver
from services.scheduler.wire import work as wire

#: How long an agent may take to say hello.
HELLO_MS_MAX = 10_000
#: Credits bound what an honest agent can be sent; the duplex's own bounds only end streams of others. Bytes
#: are not bounded there: what waits is references to the state, packed frame by frame.
LIMITS = DuplexLimits(items_max=16_384, bytes_max=2**40)


class WorkStream:
    """Made per call; the driver's `WorkPort` for it."""

    def __init__(self, driver: Driver, call: LiveCall, context: Any) -> None:
        self._driver, self._call, self._context = driver, call, context
        settings = driver.settings
        pack = functools.partial(
            wire.pack,
            epoch=driver.leadership.epoch,
            silence_ms_max=settings.silence_ms_max,
            probe_interval_ms=settings.probe_interval_ms,
        )
        self._duplex: Duplex[WorkItem, work_pb.WorkResponse] = Duplex(context, pack, LIMITS)
        self._stream = StreamId(0)
        self._frames = 0

    async def run(self) -> None:
        """Serve until the agent leaves or the stream is ended."""
        first = await read_first(self._context, HELLO_MS_MAX)
        self._stream = self._driver.open_port(self)
        try:
            self._driver.put(self._hello(first))
            await self._duplex.run(self._on_frame)
        finally:
            self._driver.close_port(self._stream)
            self._driver.put(WorkClosed(self._cause(), self._stream))

    def send(self, item: WorkItem) -> None:
        """See `WorkPort.send`."""
        self._duplex.send(item, wire.size_of(item))

    def end(self, error: ServiceError) -> None:
        """See `WorkPort.end`."""
        self._duplex.end(error)

    def _hello(self, first: work_pb.WorkRequest) -> WorkOpened:
        """Return what the first frame says; one that makes no sense is refused and recorded."""
        principal = self._call.principal
        try:
            return wire.hello(first, principal.name, self._stream, self._cause())
        except ServiceError as error:
            refused = Refused(self._cause(), "work.open", str(principal), str(principal), error)
            self._driver.put(refused)
            raise

    async def _on_frame(self, request: work_pb.WorkRequest) -> None:
        event, refused = wire.frame(
            request, self._stream, self._cause(), random.random(), self._driver.settings.limits
        )
        self._driver.put(event)
        for refusal in refused:
            self.send(refusal)
        # Not reading on is how a full queue slows its agents down.
        await self._driver.wait_room()

    def _cause(self) -> str:
        self._frames += 1
        return f"{self._call.cause_id}.{self._frames}"
