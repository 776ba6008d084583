"""One thread for what blocks: a disk, and whatever belongs to one thread only.

A ThreadPoolExecutor does the same by way of a future of its own that is copied to the loop's: a lock, a
semaphore and two more callbacks, on the way of everything that is made durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
Told = TypeVar("Told")

# What the thread is handed: the loop to tell, its future, the work, and what becomes of its result.
_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], Any], Callable[[Any], Any]]


class Worker:
    """Does what it is handed on a thread of its own, one after the other, in the order of the calls.

    A cancelled caller does not stop its work. The thread ends with the process: what it is doing then is as
    it would be after a crash.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self._closed = False

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Have `work` done; called on a loop, whose future gets what it returns or raises."""
        return self.run_then(work, _unchanged)

    def run_then(self, work: Callable[[], T], then: Callable[[T], Told]) -> asyncio.Future[Told]:
        """As `run`, but the future gets what `then` makes of it, which runs on the loop.

        For what has to follow the work whoever waits for it, and before anybody hears of it.
        """
        if self._closed:
            raise RuntimeError(f"{self._thread.name} is closed")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Told] = loop.create_future()
        self._jobs.put((loop, done, work, then))
        return done

    def close(self) -> None:
        """Finish what was handed over, then end; blocks meanwhile. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, done, work, then = job
            result: object = None
            error: BaseException | None = None
            try:
                result = work()
            except BaseException as raised:  # noqa: BLE001  # whatever it was, it is the caller's
                error = raised
            # A loop that is closed has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_tell, done, then, result, error)
            # The next wait keeps nothing of this job alive.
            del job, done, work, then, result, error


def _unchanged(result: T) -> T:
    return result


def _tell(
    done: asyncio.Future[Any], then: Callable[[Any], Any], result: object, error: BaseException | None
) -> None:
    if error is None:
        try:
            result = then(result)
        except Exception as raised:  # noqa: BLE001  # it is the caller's, as what the work raises
            error = raised
    if done.done():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
