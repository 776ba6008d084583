"""How the user's functions are called: coroutines on the loop, plain functions in a pool of threads."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import queue
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any

# Seconds that handlers get to notice that the agent leaves.
LEAVE_GRACE_S = 1.0

# A handler is a coroutine function or a plain function of one argument.
Function = Callable[[Any], Any]


class Threads:
    """A pool of daemon threads that grows to `size_max`.

    Unlike `concurrent.futures`, it never keeps the process alive: a handler that does not heed its
    cancellation must not keep a drained agent from leaving.
    """

    def __init__(self, size_max: int, name: str) -> None:
        self._size_max, self._name = size_max, name
        # None tells one thread to end.
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        # Guards the two counters.
        self._lock = threading.Lock()
        self._size = self._idle = 0

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """Run `function` in a thread."""
        future: Future[Any] = Future()
        with self._lock:
            grow = self._idle == 0 and self._size < self._size_max
            if grow:
                self._size += 1
                name = f"{self._name}-{self._size}"
                threading.Thread(target=self._serve, name=name, daemon=True).start()
            elif self._idle:
                # Reserved: the next submit must not count on the same idle thread.
                self._idle -= 1
        self._work.put((future, function))
        return future

    def close(self) -> None:
        """Let every thread end as soon as it has nothing to do."""
        with self._lock:
            size, self._size, self._idle = self._size, 0, 0
        for _ in range(size):
            self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            future, function = work
            try:
                future.set_result(function())
            except StopIteration as error:
                # As in a coroutine: futures can not carry it.
                future.set_exception(RuntimeError(f"the handler raised {error!r}"))
            except BaseException as error:  # noqa: BLE001  # whatever it was, it belongs to the caller
                future.set_exception(error)
            # Without this the thread would keep the last task's payload until the next one.
            del work, future, function
            with self._lock:
                self._idle += 1


class Handler:
    """A function of the agent's code, and how to call it."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self._is_async = _is_async(function)

    def __repr__(self) -> str:
        return f"Handler({self._function!r})"

    async def call(self, argument: Any, threads: Threads) -> Any:
        """Call the function and return what it returns.

        Cancelling this cancels a coroutine. A thread can not be cancelled: the first cancellation leaves the
        wait going until the function has returned, because it was told through its argument and its slot is
        taken until then; the second one gives the function up.
        """
        if self._is_async:
            return await self._function(argument)
        context = contextvars.copy_context()
        running = asyncio.wrap_future(threads.submit(lambda: context.run(self._function, argument)))
        try:
            result = await asyncio.shield(running)
        except asyncio.CancelledError:
            if running.done():
                raise
            result = await running
        # A plain function that wraps a coroutine function returns a coroutine.
        return await result if isinstance(result, Awaitable) else result


def _is_async(function: Function) -> bool:
    """Return whether calling `function` gives a coroutine; also for callable objects and partials."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  # the method is wanted, not whether there is one
    )


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel the tasks of handlers and wait for them, each time at most `LEAVE_GRACE_S`.

    The second cancellation gives functions up that still run in their threads; see `Handler.call`.
    """
    waiting = set(tasks)
    for _ in range(2):
        for task in waiting:
            task.cancel()
        if waiting:
            _, waiting = await asyncio.wait(waiting, timeout=LEAVE_GRACE_S)
