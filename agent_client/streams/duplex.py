"""One bidirectional stream: frames out when there is something to say, frames in as they come."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import grpc
from grpc.aio import EOF  # type: ignore[attr-defined]  # not in the stubs

from agent_client.core.retry import GiveUp, Reconnect
from agent_client.errors import (
    InternalError,
    MusterError,
    UnavailableError,
    from_rpc_error,
    to_fault,
)

log = logging.getLogger("agent_client")

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
Said_co = TypeVar("Said_co", covariant=True)
Heard_contra = TypeVar("Heard_contra", contravariant=True)

# Seconds that the other side has to answer a hello.
HANDSHAKE_TIMEOUT_S = 10.0
LOG_EVERY = 30


def monotonic_ms() -> int:
    """Return the time that the cores are given."""
    return time.monotonic_ns() // 1_000_000


class Conversation(Protocol[Said_co, Heard_contra]):
    """What one stream says and hears after its welcome. All instants are monotonic milliseconds."""

    def take(self, now: int) -> Said_co | None:
        """Return the next frame to write, or None. May raise MusterError to end the stream."""
        ...

    def receive(self, frame: Heard_contra) -> None:
        """Take a frame that arrived. May raise MusterError to end the stream."""
        ...

    def due_at(self) -> int | None:
        """Return when `take` will have something to say by itself; None for never."""
        ...

    def silent_at(self) -> int | None:
        """Return when the other side, saying nothing, is to be taken for gone; None for never at all."""
        ...


@dataclass(eq=False)
class Duplex(Generic[RequestT, ResponseT]):
    """An open call. `wake` tells the writer that there may be something to say."""

    call: Any
    wake: asyncio.Event

    @classmethod
    def begin(cls, method: Any, wake: asyncio.Event) -> Self:
        """Start a call of a stub's streaming method."""
        return cls(method(), wake)

    async def greet(self, hello: RequestT) -> ResponseT:
        """Write the first frame and return the first answer. Raises MusterError."""
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                await self.call.write(hello)
                return await self._read()
        except TimeoutError:
            raise UnavailableError(
                f"no answer to the hello within {HANDSHAKE_TIMEOUT_S:g} s", definite=True
            ) from None
        except asyncio.InvalidStateError:
            # The call ended while we wrote; reading tells why.
            return await self._read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def converse(self, conversation: Conversation[RequestT, ResponseT]) -> None:
        """Speak and listen until the stream ends, which is always an error: MusterError says why."""
        writer = asyncio.create_task(self._write_all(conversation))
        reader = asyncio.create_task(self._read_all(conversation))
        watchdog = asyncio.create_task(_watch(conversation))
        running: set[asyncio.Task[None]] = {writer, reader, watchdog}
        try:
            while True:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    # Raises, except for a writer that met the end of the call before the reader did, and for
                    # a watchdog that has nothing to watch.
                    task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _write_all(self, conversation: Conversation[RequestT, ResponseT]) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                # Cleared before asking, so that what comes up while a frame is written is not overlooked.
                self.wake.clear()
                frame = conversation.take(monotonic_ms())
                if frame is not None:
                    await self.call.write(frame)
                    continue
                due_at = conversation.due_at()
                if due_at is None:
                    await self.wake.wait()
                    continue
                timer = loop.call_later(max(0, due_at - monotonic_ms()) / 1000, self.wake.set)
                await self.wake.wait()
                timer.cancel()
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            # The call ended. The reader gets its status, which says why; there is nothing left to write.
            return

    async def _read_all(self, conversation: Conversation[RequestT, ResponseT]) -> None:
        while True:
            frame = await self._read()
            try:
                conversation.receive(frame)
            except MusterError:
                raise
            except Exception as error:
                # A frame that nobody can have meant must cost a link, not the agent.
                log.exception("a frame could not be understood")
                raise InternalError("a frame could not be understood") from error
            self.wake.set()

    async def _read(self) -> ResponseT:
        try:
            frame = await self.call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        if frame is EOF:
            raise UnavailableError("the service ended the stream", definite=True)
        answer: ResponseT = frame
        return answer


async def keep_open(what: str, live: Callable[[str], Awaitable[None]], reconnect: Reconnect) -> None:
    """Call `live` again and again, with the address to go to when a standby named one, else with "".

    `live` opens a stream and speaks on it until it ends with MusterError. Returns never; raises the error
    when `reconnect` sees no use in going on.
    """
    hint = ""
    while True:
        try:
            await live(hint)
        except MusterError as error:
            decision = reconnect.ended(to_fault(error), monotonic_ms(), random.random())
            if isinstance(decision, GiveUp):
                raise
            hint = decision.address
            # Said at once, and then now and then: at the longest delay about twice a minute.
            if not hint and reconnect.failures % LOG_EVERY == 1:
                log.warning("no %s: %s; trying again", what, error.message)
            await asyncio.sleep(decision.delay_ms / 1000)


async def _watch(conversation: Conversation[Any, Any]) -> None:
    while True:
        silent_at = conversation.silent_at()
        if silent_at is None:
            return
        left_ms = silent_at - monotonic_ms()
        if left_ms <= 0:
            raise UnavailableError("the service stopped answering", reason="PEER_SILENT", definite=True)
        # At least a millisecond: rounding must not turn the wait into a loop.
        await asyncio.sleep(max(1, left_ms) / 1000)
