"""An answer that comes later: `await` it in async code, call `result()` in sync code."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Generic, TypeVar

from agent_client.errors import CallTimeoutError

T = TypeVar("T")


class Pending(Generic[T]):
    """The answer to something that was already started; not looking at it does not undo it."""

    def __init__(self) -> None:
        self._future: Future[T] = Future()
        # Once running it can not be cancelled: somebody who stops waiting must not disturb the link.
        self._future.set_running_or_notify_cancel()

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self._future).__await__()

    def __repr__(self) -> str:
        return f"Pending({'done' if self._future.done() else 'open'})"

    def result(self, timeout: float | None = None) -> T:
        """Block this thread for the answer, at most `timeout` seconds; for sync handlers.

        Raises what went wrong, or CallTimeoutError (indefinite: it may still happen).
        """
        try:
            return self._future.result(timeout)
        except FutureTimeoutError:
            if self._future.done():
                raise
            raise CallTimeoutError(f"no answer within {timeout} s; it may still come") from None

    def done(self) -> bool:
        """Return whether the answer is there."""
        return self._future.done()

    # The link's side; thread-safe.

    def resolve(self, value: T) -> None:
        """Give the answer. Only the first answer counts."""
        if not self._future.done():
            self._future.set_result(value)

    def fail(self, error: BaseException) -> None:
        """Give an error as the answer. Only the first answer counts."""
        if not self._future.done():
            self._future.set_exception(error)
