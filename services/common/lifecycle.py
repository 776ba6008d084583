"""How a service process lives: supervised loops, signals, drain, exit code."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from services.common import logs

T = TypeVar("T")

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_FORCED = 130
# The longest that a drain may take; what is left then is cut off. Kubernetes' own default is 30 s.
DRAIN_MS_MAX = 20_000

_log = logs.get("lifecycle")


class TaskSupervisor:
    """Runs the loops without which a service is useless: when one crashes, the service stops.

    A loop that returns is done and forgotten; one that raises sets `failed`.
    """

    def __init__(self) -> None:
        self.failed = asyncio.Event()
        self.error: BaseException | None = None
        self._running: set[asyncio.Task[None]] = set()

    def spawn(self, name: str, loop: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a loop; it is cancelled by `stop`."""
        started = asyncio.create_task(loop, name=name)
        self._running.add(started)
        started.add_done_callback(self._ended)
        return started

    async def stop(self) -> None:
        """Cancel every loop and wait until all have ended."""
        running = list(self._running)
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _ended(self, ended: asyncio.Task[None]) -> None:
        self._running.discard(ended)
        if ended.cancelled() or (error := ended.exception()) is None:
            return
        _log.error("a supervised loop crashed", loop=ended.get_name(), error=error)
        if self.error is None:
            self.error = error
        self.failed.set()


class Service(Protocol):
    """What `run_service` runs; made by a service's app.py."""

    @property
    def supervisor(self) -> TaskSupervisor:
        """The loops whose crash ends the process."""
        ...

    async def start(self) -> None:
        """Open stores, start loops, then listen."""
        ...

    async def drain(self) -> None:
        """Stop taking, finish what is held, close everything; also after a failed `start`."""
        ...


def run_service(build: Callable[[], Awaitable[Service]]) -> int:
    """Build and run a service until SIGTERM, SIGINT or the crash of a supervised loop; return the exit code.

    0 after a clean drain, 1 after a crash, a failed start or a drain longer than `DRAIN_MS_MAX`. A second
    signal exits at once with 130: what is acknowledged is durable anyway.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_run(build))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415  # not there on Windows
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _run(build: Callable[[], Awaitable[Service]]) -> int:
    told = asyncio.Event()

    def on_signal(name: str) -> None:
        if told.is_set():
            _log.warning("second signal: leaving at once", signal=name)
            os._exit(EXIT_FORCED)
        _log.info("draining", signal=name)
        told.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
    try:
        service = await _unless(build(), told)
    except Exception as error:  # noqa: BLE001  # the last line of defence: say it, leave with 1
        _log.error("the service could not be built", error=error)
        return EXIT_FAILED
    if service is None:
        return EXIT_OK
    code = await _serve(service, told)
    try:
        async with asyncio.timeout(DRAIN_MS_MAX / 1000):
            await service.drain()
    except Exception as error:  # noqa: BLE001  # as above
        _log.error("the drain did not finish", error=error, limit_ms=DRAIN_MS_MAX)
        code = EXIT_FAILED
    finally:
        await service.supervisor.stop()
    _log.info("stopped", code=code)
    return code


async def _serve(service: Service, told: asyncio.Event) -> int:
    """Start the service and wait until it is told to stop or can not go on; return the exit code."""
    failed = service.supervisor.failed
    try:
        # A start may wait for its stores for ever: it gives way to a signal like everything else.
        await _unless(service.start(), told, failed)
        await _unless(asyncio.Event().wait(), told, failed)
    except Exception as error:  # noqa: BLE001  # the last line of defence: say it, drain, leave with 1
        _log.error("the service could not start", error=error)
        return EXIT_FAILED
    return EXIT_FAILED if failed.is_set() else EXIT_OK


async def _unless(work: Awaitable[T], *events: asyncio.Event) -> T | None:
    """Return what `work` returns; when an event is set first, cancel it and return None."""

    async def run() -> T:
        return await work

    working = asyncio.create_task(run(), name="service")
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait([working, *waits], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        return None
    finally:
        for wait in waits:
            wait.cancel()
