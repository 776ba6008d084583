"""Plans in a process of its own, so that streams never stall behind a search."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import wait
from typing import ParamSpec, TypeVar

from services.common import logs
from services.common.clock import SystemClock
from services.common.core.errors import Reason, ServiceError
from services.scheduler.core.planning.arrangement import Arrangement
from services.scheduler.core.planning.pareto import Found, Search, Worth
from services.scheduler.core.planning.problem import Problem
from services.scheduler.core.planning.rolling import Improved, Places, better
from services.scheduler.core.planning.search import plan

_log = logs.get("scheduler.planner")
P = ParamSpec("P")
T = TypeVar("T")
#: Requests that are searched for or wait for it; more are refused with QUOTA_EXCEEDED.
WAITING_MAX = 8
_RETRY_AFTER_MS = 1_000


class Planner:
    """Searches for plans, one request after the other, in a process that is started when first needed."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._waiting = 0
        self._closed = False

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
            return await self._run(search, problem, worth, most, budget_ms)
        except BrokenProcessPool:
            # Somebody killed it. A plan changes nothing, so that it may be searched for again.
            _log.warning("the process that searches for plans died and is started again")
            return await self._run(search, problem, worth, most, budget_ms)
        finally:
            self._waiting -= 1

    async def improve(self, problem: Problem, places: Places | None, budget_ms: int) -> Improved | None:
        """Return a standing plan and what was made of it; None when there is no process to search in.

        One at a time: the core never asks for a second one before this one is back.
        """
        try:
            return await self._run(improve, problem, places, budget_ms)
        except (BrokenProcessPool, ServiceError) as error:
            _log.warning("a search for a better standing plan was given up", why=str(error))
            return None

    async def close(self) -> None:
        """End the process, also in the middle of a search, for good."""
        self._closed = True
        pool, self._pool = self._pool, None
        if pool is not None:
            await _end(pool)

    async def _run(self, job: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        if self._closed:
            raise ServiceError(Reason.SHUTTING_DOWN, "this replica stops: ask the coordinator again")
        if self._pool is None:
            # Spawned: a fork would take gRPC's threads' locks with it.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_settle_in)
        pool = self._pool
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(pool, partial(job, *given, **named))
        except BrokenProcessPool:
            # Of several that wait for the same process the first one lets go of it.
            if self._pool is pool:
                self._pool = None
                await _end(pool)
            raise


async def _end(pool: ProcessPoolExecutor) -> None:
    for process in [*(getattr(pool, "_processes", None) or {}).values()]:
        process.terminate()
    await asyncio.to_thread(pool.shutdown, wait=True, cancel_futures=True)


def search(problem: Problem, worth: Worth, most: int, budget_ms: int) -> Found:
    """Return up to `most` plans; looks at some whatever the budget is."""
    clock = SystemClock()
    begun_ms = clock.monotonic_ms()

    def spent(share: float) -> float:
        return (clock.monotonic_ms() - begun_ms) / (budget_ms * share)

    # One plan: all of the time for its end. Several: half of it, and the rest for what they differ in.
    fastest = plan(problem, lambda _: spent(1.0 if most == 1 else 0.5))
    archive = Search(problem, worth)
    archive.offer(fastest.schedule)
    while spent(1.0) < 1.0 and archive.step():
        pass
    choices = archive.front(most)
    critical = [tuple(Arrangement(problem, choice.schedule).critical()) for choice in choices]
    return Found(choices, critical, fastest.bound_ms, fastest.steps + archive.tried)


def improve(problem: Problem, places: Places | None, budget_ms: int) -> Improved:
    """Return the plan that `places` says, and the best one found from there."""
    clock = SystemClock()
    begun_ms = clock.monotonic_ms()
    return better(problem, places, lambda _: (clock.monotonic_ms() - begun_ms) / budget_ms)


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
