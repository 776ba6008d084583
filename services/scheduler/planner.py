"""Plans in a process of its own, so that streams never stall behind a search."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import NamedTuple

from services.common import logs
from services.common.core.errors import Reason, ServiceError
from services.scheduler.core.planning.bounds import lower_bounds
from services.scheduler.core.planning.critical import critical_chain
from services.scheduler.core.planning.pareto import Choice, Search, Worth
from services.scheduler.core.planning.problem import Problem

_log = logs.get("scheduler.planner")
#: Requests that are searched for or wait for it; more are refused with QUOTA_EXCEEDED.
WAITING_MAX = 8
_RETRY_AFTER_MS = 1_000


class Found(NamedTuple):
    """What a search brought."""

    choices: list[Choice]
    #: For each choice, see `critical_chain`.
    critical: list[tuple[int, ...]]
    bound_ms: int
    tried: int


class Planner:
    """Searches for plans, one request after the other, in a process that is started when first needed."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._waiting = 0

    async def find(self, problem: Problem, worth: Worth, *, most: int, budget_ms: int) -> Found:
        """Return up to `most` plans after about `budget_ms`. Raises QUOTA_EXCEEDED when too many wait."""
        if self._waiting >= WAITING_MAX:
            raise ServiceError(
                Reason.QUOTA_EXCEEDED,
                f"{WAITING_MAX} requests for plans wait already: ask again",
                metadata={"limit": str(WAITING_MAX)},
                retry_after_ms=_RETRY_AFTER_MS,
            )
        self._waiting += 1
        try:
            return await self._run(problem, worth, most, budget_ms)
        except BrokenProcessPool:
            # Somebody killed it. A plan changes nothing, so that it may be searched for again.
            _log.warning("the process that searches for plans died and is started again")
            await self.close()
            return await self._run(problem, worth, most, budget_ms)
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """End the process, also in the middle of a search."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        for process in [*getattr(pool, "_processes", {}).values()]:
            process.terminate()
        await asyncio.to_thread(pool.shutdown, wait=True, cancel_futures=True)

    async def _run(self, problem: Problem, worth: Worth, most: int, budget_ms: int) -> Found:
        if self._pool is None:
            # Spawned: a fork would take gRPC's threads' locks with it.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_settle_in)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, search, problem, worth, most, budget_ms)


def search(problem: Problem, worth: Worth, most: int, budget_ms: int) -> Found:
    """Return up to `most` plans; looks at one at least."""
    ends = time.monotonic() + budget_ms / 1_000
    found = Search(problem, worth)
    while found.step() and time.monotonic() < ends:
        pass
    choices = found.front(most)
    critical = [critical_chain(problem, choice.schedule) for choice in choices]
    return Found(choices, critical, lower_bounds(problem).best_ms, found.tried)


def _settle_in() -> None:
    """Leave Ctrl-C to the parent, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(5)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
