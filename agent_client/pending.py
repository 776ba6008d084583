"""An answer that comes later: `await` it in async code, call `result()` in sync code."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from functools import partial
from typing import Any, Generic, TypeVar

from agent_client.errors import CallTimeoutError
from agent_client.loop import inlet_of

T = TypeVar("T")

# Guards the state of every pending answer; held for a few instructions at a time.
_lock = threading.Lock()


class Pending(Generic[T]):
    """The answer to something that was already started; not looking at it does not undo it.

    As `concurrent.futures.Future`, but a loop that waits for many answers is woken once for those that come
    together.
    """

    def __init__(self) -> None:
        self._done = False
        self._value: T
        self._error: BaseException | None = None
        # Who waits: loops by their futures, threads by an event.
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._event: threading.Event | None = None

    def __await__(self) -> Generator[Any, None, T]:
        return self._arrival().__await__()

    def __repr__(self) -> str:
        return f"Pending({'done' if self._done else 'open'})"

    def result(self, timeout: float | None = None) -> T:
        """Block this thread for the answer, at most `timeout` seconds; for sync handlers.

        Raises what went wrong, or CallTimeoutError (indefinite: it may still happen).
        """
        with _lock:
            if not self._done and self._event is None:
                self._event = threading.Event()
            event = self._event
        if event is not None and not event.wait(timeout):
            raise CallTimeoutError(f"no answer within {timeout} s; it may still come")
        return self._answer()

    def done(self) -> bool:
        """Return whether the answer is there."""
        return self._done

    async def _arrival(self) -> T:
        if self._done:
            # Without the lock, which the link may hold: this is set when everything else is.
            return self._answer()
        loop = asyncio.get_running_loop()
        with _lock:
            waiter = None if self._done else loop.create_future()
            if waiter is not None:
                self._waiters.append((loop, waiter))
        if waiter is not None:
            await waiter
        return self._answer()

    # The link's side; thread-safe.

    def resolve(self, value: T) -> None:
        """Give the answer. Only the first answer counts."""
        with _lock:
            if self._done:
                return
            self._value, self._done = value, True
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Give an error as the answer. Only the first answer counts."""
        with _lock:
            if self._done:
                return
            self._error, self._done = error, True
        self._wake()

    def _wake(self) -> None:
        # Nobody joins any more: whoever comes from now on sees that it is done.
        for loop, waiter in self._waiters:
            inlet_of(loop).post(partial(_end_wait, waiter))
        self._waiters.clear()
        if self._event is not None:
            self._event.set()

    def _answer(self) -> T:
        if self._error is not None:
            raise self._error
        return self._value


def _end_wait(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
