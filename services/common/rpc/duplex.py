"""The shape of every bidirectional stream of ours: one side reads frames while the other flushes a buffer.

Vocabulary: an *item* is what the service wants to say (a delivery, an ack, an assignment); a *frame* is one
message of the stream, packed from all items that wait when the writer is free. Nothing is flushed by a
timer: one item alone goes out at once, and under load frames grow by themselves.

Policy for slow readers. The buffer is bounded by `items_max` and `bytes_max`; an item beyond either ends
the stream with PEER_SILENT, and so does a frame that the peer's flow control has not let through for
`stall_ms`. The peer reconnects and resumes from its cursor; the service's memory stays bounded, and nobody
else waits. A service whose protocol has credits never reaches the bound with an honest peer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from services.common.core.errors import Reason, ServiceError
from services.common.rpc.interceptors import current_call

Item = TypeVar("Item")
Frame = TypeVar("Frame")


@dataclass(frozen=True, slots=True)
class DuplexLimits:
    """Bounds of one stream's outgoing side."""

    # Items and bytes that wait while the writer is busy.
    items_max: int = 4_096
    bytes_max: int = 8 * 1024 * 1024
    # Items and bytes packed into one frame; a frame must stay below gRPC's 4 MiB message limit.
    frame_items_max: int = 1_024
    frame_bytes_max: int = 1024 * 1024
    # How long one frame may wait for the peer's flow control.
    stall_ms: int = 15_000


DEFAULT_LIMITS = DuplexLimits()


class Duplex(Generic[Item, Frame]):
    """One stream, from its first frame to its status. Owned by the event loop: `send` and `end` are called
    on it, by whoever has something to say.
    """

    def __init__(
        self,
        context: Any,
        pack: Callable[[Sequence[Item]], Frame],
        limits: DuplexLimits = DEFAULT_LIMITS,
    ) -> None:
        self._context, self._pack, self._limits = context, pack, limits
        self._items: list[Item] = []
        self._sizes: list[int] = []
        self._bytes = 0
        # Set while the writer has nothing to do.
        self._idle: asyncio.Future[None] | None = None
        self._ending = False
        self._error: BaseException | None = None
        self._writer: asyncio.Task[Any] | None = None
        # The loop's time at which the frame in flight was handed to gRPC; None between frames.
        self._writing_since: float | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._cut = False

    def __repr__(self) -> str:
        state = "ending" if self._ending else "open"
        return f"<Duplex {state}, {len(self._items)} items and {self._bytes} bytes wait>"

    @property
    def ended(self) -> bool:
        """Whether nothing more can be said."""
        return self._ending

    def send(self, item: Item, size_bytes: int = 0) -> bool:
        """Say `item` as soon as the writer is free; return False when the stream has ended instead.

        `size_bytes` is what it adds to a frame; leave 0 for what is always small.
        """
        if self._ending:
            return False
        limits = self._limits
        if len(self._items) >= limits.items_max or self._bytes + size_bytes > limits.bytes_max:
            self._cut_off(
                f"{len(self._items)} items and {self._bytes} bytes wait for a peer that does not read: "
                "reconnect and resume"
            )
            return False
        self._items.append(item)
        self._sizes.append(size_bytes)
        self._bytes += size_bytes
        self._wake()
        return True

    def end(self, error: BaseException | None = None) -> None:
        """End the stream when what was said before is flushed; the first error wins.

        Without an error the status is OK. A `ServiceError` becomes the status; anything else is a defect.
        """
        if self._ending:
            return
        self._ending, self._error = True, error
        self._wake()

    async def run(
        self,
        on_frame: Callable[[Any], Awaitable[None]],
        at_half_close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Read frames into `on_frame`, one at a time and in order, and flush until the stream ends.

        While `on_frame` waits nothing is read, which is how a service pushes back. When the peer has sent
        its last frame, `at_half_close` may wait for answers that are still to come; then what waits is
        flushed and the status is OK. Raises the error that the stream ended with.
        """
        self._writer = asyncio.current_task()
        call = current_call.get(None)
        if call is not None and call.handler is self._writer:
            # A drain or a revocation then ends this stream like `end` does.
            call.ender = self.end
        reader = asyncio.create_task(self._read(on_frame, at_half_close), name="duplex-reader")
        try:
            await self._write()
        except asyncio.CancelledError:
            if not self._cut:
                raise
            # Our own cancellation, which only frees this task from a write that does not end.
            assert self._writer is not None  # noqa: S101  # gRPC runs handlers in tasks
            self._writer.uncancel()
        finally:
            self._ending = True
            self._items.clear()
            self._sizes.clear()
            if self._watchdog is not None:
                self._watchdog.cancel()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        if self._error is not None:
            raise self._error

    async def _read(
        self,
        on_frame: Callable[[Any], Awaitable[None]],
        at_half_close: Callable[[], Awaitable[None]] | None,
    ) -> None:
        read = self._context.read
        try:
            while (frame := await read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
                await on_frame(frame)
            if at_half_close is not None and not self._context.cancelled():
                await at_half_close()
            self.end()
        except asyncio.CancelledError:
            # `run` is leaving and has ended the stream; or what `on_frame` waited for was cancelled.
            self.end(ServiceError(Reason.CALL_CANCELLED, "the service gave up waiting: ask for the state"))
            raise
        except Exception as error:  # noqa: BLE001  # carried to `run`, which raises it in the handler
            self.end(error)

    async def _write(self) -> None:
        write, loop = self._context.write, asyncio.get_running_loop()
        while True:
            if not self._items:
                if self._ending:
                    return
                self._idle = loop.create_future()
                await self._idle
                self._idle = None
                continue
            frame = self._pack(self._take())
            self._writing_since = loop.time()
            if self._watchdog is None:
                self._watchdog = loop.call_later(self._limits.stall_ms / 1000, self._watch)
            await write(frame)
            self._writing_since = None

    def _take(self) -> list[Item]:
        """Remove and return the items of the next frame: all that wait, within the frame's bounds."""
        limits = self._limits
        if len(self._items) <= limits.frame_items_max and self._bytes <= limits.frame_bytes_max:
            taken, self._items, self._sizes, self._bytes = self._items, [], [], 0
            return taken
        count, size = 0, 0
        for item_size in self._sizes[: limits.frame_items_max]:
            # An item larger than the bound travels alone.
            if count and size + item_size > limits.frame_bytes_max:
                break
            count, size = count + 1, size + item_size
        taken = self._items[:count]
        del self._items[:count], self._sizes[:count]
        self._bytes -= size
        return taken

    def _wake(self) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _watch(self) -> None:
        """One timer per busy stream and `stall_ms`, not one per frame."""
        self._watchdog = None
        if self._writing_since is None:
            return
        loop = asyncio.get_running_loop()
        left = self._writing_since + self._limits.stall_ms / 1000 - loop.time()
        if left > 0:
            self._watchdog = loop.call_later(left, self._watch)
        else:
            self._cut_off(f"a frame waited {self._limits.stall_ms} ms to be read: reconnect and resume")

    def _cut_off(self, message: str) -> None:
        """End without flushing: the peer does not read anyway."""
        if self._ending and self._cut:
            return
        self._ending, self._cut = True, True
        self._error = self._error or ServiceError(Reason.PEER_SILENT, message)
        if self._writer is not None:
            self._writer.cancel()


async def read_first(context: Any, timeout_ms: int) -> Any:
    """Return the stream's first frame; MALFORMED_FRAME when it ends or waits `timeout_ms` without one."""
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            frame = await context.read()
    except TimeoutError as error:
        raise ServiceError(
            Reason.MALFORMED_FRAME, f"no first frame came within {timeout_ms} ms: say hello first"
        ) from error
    if frame is grpc.aio.EOF:  # type: ignore[attr-defined]
        raise ServiceError(Reason.MALFORMED_FRAME, "the stream ended without a first frame: say hello first")
    return frame
