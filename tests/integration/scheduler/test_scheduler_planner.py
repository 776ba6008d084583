"""The process that searches for plans: started when needed, started again, gone with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from multiprocessing import resource_tracker

import psutil
import pytest
import pytest_asyncio

from services.common.core.errors import Reason, ServiceError
from services.scheduler.core.planning.pareto import Worth
from services.scheduler.core.planning.problem import Problem, whole_agents
from services.scheduler.core.planning.validate import check
from services.scheduler.planner import WAITING_MAX, Planner
from tests.conftest import Eventually

PROBLEM = Problem(tuple((10 + n, 30 - n) for n in range(8)), slots_from_ms=whole_agents(2))
WORTH = Worth(quality=((1.0, 0.5),) * 8, cost_per_hour=(2.0, 1.0))
ORPHAN = """
import asyncio, sys
from tests.integration.scheduler.test_scheduler_planner import PROBLEM, WORTH
from services.scheduler.planner import Planner

async def main():
    planner = Planner()
    await planner.find(PROBLEM, WORTH, most=1, budget_ms=1)
    print("found", flush=True)
    await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.fixture(scope="module", autouse=True)
def _tracker() -> None:
    # Python's own helper of spawned processes; it ends with this process.
    resource_tracker.ensure_running()


@pytest_asyncio.fixture
async def planner() -> AsyncIterator[Planner]:
    made = Planner()
    yield made
    await made.close()


def children(pid: int) -> list[psutil.Process]:
    """Return the processes that search for the process `pid`."""
    found = []
    for process in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(process.cmdline()):
                found.append(process)
    return found


async def test_plans_come_back_valid_and_the_loop_goes_on_meanwhile(planner: Planner) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.005)  # sleeps: counts turns of the loop
            turns += 1

    counting = asyncio.create_task(count())
    # More than the schedules that it begins with; how far a budget reaches is up to the machine.
    budgets_ms = iter((300, 1_000, 3_000, 10_000))
    while (found := await planner.find(PROBLEM, WORTH, most=4, budget_ms=next(budgets_ms))).tried <= 10:
        continue
    counting.cancel()
    assert turns > 10
    assert 1 <= len(found.choices) <= 4
    for choice, critical in zip(found.choices, found.critical, strict=True):
        check(PROBLEM, choice.schedule)
        assert found.bound_ms <= choice.objectives.makespan_ms
        assert choice.schedule.slots[critical[-1]].finish_ms == choice.objectives.makespan_ms


async def test_a_killed_search_is_begun_anew(planner: Planner, eventually: Eventually) -> None:
    searching = asyncio.create_task(planner.find(PROBLEM, WORTH, most=1, budget_ms=1_500))
    await eventually(lambda: children(os.getpid()))
    for process in children(os.getpid()):
        process.kill()
    assert (await searching).choices


async def test_too_many_requests_are_told_when_to_come_back(planner: Planner) -> None:
    first = [
        asyncio.create_task(planner.find(PROBLEM, WORTH, most=1, budget_ms=20)) for _ in range(WAITING_MAX)
    ]
    await asyncio.sleep(0)
    with pytest.raises(ServiceError) as caught:
        await planner.find(PROBLEM, WORTH, most=1, budget_ms=20)
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    assert caught.value.retry_after_ms
    assert all(found.choices for found in await asyncio.gather(*first))


async def test_closing_ends_a_search_that_runs(planner: Planner, eventually: Eventually) -> None:
    searching = asyncio.create_task(planner.find(PROBLEM, WORTH, most=1, budget_ms=30_000))
    await eventually(lambda: children(os.getpid()))
    await planner.close()
    assert not children(os.getpid())
    searching.cancel()
    await asyncio.gather(searching, return_exceptions=True)


async def test_it_does_not_outlive_a_parent_that_is_killed(eventually: Eventually) -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert await asyncio.to_thread(parent.stdout.readline) == "found\n"
        left = children(parent.pid)
        assert left
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    await eventually(lambda: not any(process.is_running() for process in left))


async def test_a_standing_plan_is_improved_in_that_process_and_given_up_with_it(planner: Planner) -> None:
    # Everything on the agent that is slower for it.
    slower = [(number, 1 if 10 + number < 30 - number else 0) for number in PROBLEM.tasks]
    found = await planner.improve(PROBLEM, slower, 100)
    assert found is not None
    check(PROBLEM, found.before)
    check(PROBLEM, found.after)
    assert found.after.makespan_ms < found.before.makespan_ms
    await planner.close()
    assert await planner.improve(PROBLEM, None, 100) is None
