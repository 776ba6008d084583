"""The life of an agent in a plane, and the signals that end it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from concurrent.futures import Future
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from agent_client.driver import AgentLink
from agent_client.link import Link
from agent_client.mailbox import Mailbox
from agent_client.runner import Runner

if TYPE_CHECKING:
    from agent_client.agent import Agent


class Life:
    """One run of an agent: from joining the plane to having left it."""

    def __init__(self, link: Link, mailbox: Mailbox, runner: Runner, loop: asyncio.AbstractEventLoop) -> None:
        self.link, self.mailbox, self.runner = link, mailbox, runner
        # The link again, when it is the real one.
        self.presence: AgentLink | None = None
        self._loop = loop
        # Guards `_drained` against two threads that ask for the drain.
        self._lock = threading.Lock()
        self._drained: Future[None] | None = None
        self._drain_asked = asyncio.Event()

    def drain(self) -> None:
        """Begin to drain; also when the loop is blocked, so that the scheduler knows at once."""
        with self._lock:
            if self.presence is None or self._drained is not None:
                return
            self._drained = self.presence.drain()
        self._loop.call_soon_threadsafe(self._drain_asked.set)

    async def wait_ready(self) -> None:
        """Wait until work and messages reach the agent. Raises MusterError when they never will."""
        if self.presence is not None:
            ready = asyncio.wrap_future(self.presence.ready())
            finished = asyncio.wrap_future(self.presence.finished)
            await asyncio.wait({ready, finished}, return_when=asyncio.FIRST_COMPLETED)
            if finished.done():
                ready.cancel()
                finished.result()
        await self.mailbox.wait_subscribed()

    async def wait_end(self) -> None:
        """Wait until the drain is over. Raises MusterError when the link gave up."""
        assert self.presence is not None  # noqa: S101  # `__aenter__` has set it
        finished = asyncio.wrap_future(self.presence.finished)
        asked = asyncio.create_task(self._drain_asked.wait())
        try:
            waits: set[asyncio.Future[Any]] = {finished, asked}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if self._drained is not None:
                drained = asyncio.wrap_future(self._drained)
                await asyncio.wait({finished, drained}, return_when=asyncio.FIRST_COMPLETED)
            if finished.done():
                finished.result()
        finally:
            asked.cancel()

    async def end_handlers(self) -> None:
        """Cancel every handler that still runs, and let it clean up."""
        await self.mailbox.close()
        await self.runner.abandon()

    async def leave(self) -> None:
        """Leave the plane; handlers that still run are cancelled, and others do their tasks."""
        await self.end_handlers()
        if self.presence is None or self.presence.finished.done():
            return
        await asyncio.wrap_future(self.presence.flush())
        self.presence.leave()
        await asyncio.wrap_future(self.presence.finished)


class Signals:
    """SIGTERM and SIGINT: the first drains, the second leaves at once."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._before: dict[int, Any] = {}
        self._asked = False

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        # Not loop.add_signal_handler: its callback would wait for a handler that blocks the loop.
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._signalled)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        if self._asked:
            # Handlers in threads can not be stopped, so the process ends under them. What they hold is given
            # to others as soon as the plane sees the links break.
            os._exit(128 + number)
        self._asked = True
        sys.stderr.write(f"agent {self._agent.name}: finishing what it holds; once more to leave at once\n")
        self._agent.drain()
