"""The link thread: one event loop for everything that this process says to the plane.

All gRPC streams of a process live on this one loop, in a thread of their own. So heartbeats, probes and
acks go on while a handler blocks the loop it runs in, and grpc.aio, whose poller serves the whole process,
never meets a loop that was closed under it.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

log = logging.getLogger("agent_client")

T = TypeVar("T")

# Items handled in one turn of a loop, so that a flood of them does not keep the loop from its other work.
TURN_ITEMS_MAX = 1_024
# Seconds that the end of the process waits for the link thread.
EXIT_WAIT_S = 5.0


class LinkThread:
    """A daemon thread that runs an event loop until the process ends."""

    def __init__(self) -> None:
        self.loop = _new_loop()
        self._thread = threading.Thread(target=self._run, name="muster-link", daemon=True)
        self._thread.start()
        atexit.register(self._stop)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def _stop(self) -> None:
        # The loop is stopped, not closed: gRPC's poller may still hand it an event while the process ends.
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(EXIT_WAIT_S)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the link loop; thread-safe."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the link loop and wait for it here; cancelling the wait cancels it there."""
        return await asyncio.wrap_future(self.start(coroutine))

    async def relay(self, source: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """Yield here what an async generator of the link loop yields there; it is closed with this one."""
        # A wait that is cancelled here ends on the link loop a moment later; closing has to come after it.
        turn = asyncio.Lock()

        async def following() -> T | None:
            async with turn:
                return await anext(source, None)

        async def end() -> None:
            async with turn:
                await source.aclose()

        try:
            while (item := await self.run(following())) is not None:
                yield item
        finally:
            await self.run(end())


def _new_loop() -> asyncio.AbstractEventLoop:
    """Return the fastest loop that there is: each message passes it two to four times."""
    try:
        import uvloop  # noqa: PLC0415  # not there on Windows
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


_lock = threading.Lock()
_thread: LinkThread | None = None


def link_thread() -> LinkThread:
    """Return the process's link thread, started at the first call."""
    global _thread  # noqa: PLW0603  # grpc.aio has one poller per process, so there is one link loop too
    with _lock:
        if _thread is None:
            _thread = LinkThread()
        return _thread


class Inlet(Generic[T]):
    """Hands items from any thread to a loop, in order, and wakes it once for many of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, handle: Callable[[T], None]) -> None:
        # Weakly, so that the table of inlets does not keep its own keys alive.
        self._loop, self._handle = weakref.ref(loop), handle
        self._items: deque[T] = deque()
        # Written by both sides without a lock: it is cleared before the items are taken, so an item is
        # either seen by the turn that is due or schedules the next one.
        self._due = False

    def post(self, item: T) -> None:
        """Queue an item; thread-safe, never blocks. Items for a loop that is closed are dropped."""
        self._items.append(item)
        if not self._due:
            self._due = True
            loop = self._loop()
            try:
                if loop is not None:
                    loop.call_soon_threadsafe(self._turn)
            except RuntimeError:
                # The loop is closed: nobody is left to whom the item could matter.
                self._items.clear()

    def _turn(self) -> None:
        self._due = False
        for _ in range(TURN_ITEMS_MAX):
            if not self._items:
                return
            self._handle(self._items.popleft())
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._turn)


Step = Callable[[], None]

# One inlet per loop, whatever comes to it: what comes together wakes it once.
_inlets: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Inlet[Step]] = weakref.WeakKeyDictionary()


def inlet_of(loop: asyncio.AbstractEventLoop) -> Inlet[Step]:
    """Return the loop's inlet for steps to run there; thread-safe."""
    inlet = _inlets.get(loop)
    if inlet is None:
        with _lock:
            inlet = _inlets.setdefault(loop, Inlet(loop, _take_step))
    return inlet


def _take_step(step: Step) -> None:
    try:
        step()
    except Exception:  # one step's defect must not hold up those behind it
        log.exception("a step failed: %r", step)
