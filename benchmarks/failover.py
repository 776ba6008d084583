"""P7 and P8: how long nothing is assigned after the leader's process is killed, and how long a killed agent's
task waits for another agent. Kills are SIGKILL; the clock is the machine's monotonic one, for all processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from agent_client import Client
from benchmarks.figures import Figure, percentile
from benchmarks.plane import RunningPlane, running_plane
from benchmarks.programs import Program, ProgramFailedError, module, running
from benchmarks.turns import Contender, Measured, Outcome, say, take_turns

#: Kills of one plane, one after the other.
KILLS = 4
_WORKERS = ("one", "two")
#: A task of the takeover's backlog; short, so that somebody is always free for the new leader.
_TASK_S = 0.05
_BACKLOG = 1_500
#: What is killed works for longer than anybody waits.
_LONG_S = 600.0
#: After everybody is back, and as much again at random: a kill must not keep step with leases and probes.
_SETTLE_S = 1.0
_PATIENCE_S = 60.0
_PLANE = "Muster"


def _spec(tasks: int) -> Mapping[str, object]:
    # A second attempt beside a slow one would be there before the kill.
    one = {"required_skills": ["work"], "speculation": "NEVER"}
    return {"tasks": [{"task_id": f"t{number}", **one} for number in range(tasks)]}


class _News:
    """What the plane's launcher says, newest last."""

    def __init__(self, plane: RunningPlane) -> None:
        self._program = plane.program
        self._told = asyncio.Condition()
        self.events: list[Mapping[str, object]] = [*plane.events]

    async def follow(self) -> None:
        """Take in events until cancelled."""
        while True:
            event = await self._program.next_event(timeout_s=3_600)
            async with self._told:
                self.events.append(event)
                self._told.notify_all()

    async def wait(self, wanted: Callable[[Mapping[str, object]], bool], since: int) -> Mapping[str, object]:
        """Return the first event that is wanted, from the one with number `since` on."""
        async with self._told, asyncio.timeout(_PATIENCE_S):
            while True:
                for event in self.events[since:]:
                    if wanted(event):
                        return event
                await self._told.wait()


@asynccontextmanager
async def _worker(plane: RunningPlane, folder: Path, name: str, seconds: float) -> AsyncIterator[Program]:
    environ = {"MUSTER_HOME": str(plane.home)}
    async with running(name, module("benchmarks.failover_agent", name, seconds), folder, environ) as program:
        await program.expect("ready")
        yield program


async def takeovers(folder: Path) -> Measured:
    """Kill the leading scheduler again and again; return what happened after each kill, in milliseconds."""
    took: dict[str, float] = {}
    async with running_plane(folder, _WORKERS) as plane, AsyncExitStack() as stack:
        news = _News(plane)
        following = asyncio.create_task(news.follow())
        stack.push_async_callback(_cancelled, following)
        workers = [
            await stack.enter_async_context(_worker(plane, folder, name, _TASK_S)) for name in _WORKERS
        ]
        client = await stack.enter_async_context(Client(home=plane.home))
        for number in range(KILLS):
            backlog = await client.submit(_spec(_BACKLOG))
            epoch = int(str((await workers[0].expect("started"))["epoch"]))
            leader = await news.wait(lambda event: _leads(event, epoch), 0)  # noqa: B023  # asked at once
            name = str(leader["replica_id"])
            await asyncio.sleep(_SETTLE_S + random.random() * _SETTLE_S)
            seen = len(news.events)
            killed_ns = time.monotonic_ns()
            os.kill(_process(plane, name), signal.SIGKILL)
            first = min(await asyncio.gather(*(_first_after(worker, epoch) for worker in workers)))
            took[f"assigned_ms_{number}"] = (first - killed_ns) / 1e6
            say(f"  leader {name} killed, first assignment after {took[f'assigned_ms_{number}']:.0f} ms")
            await backlog.cancel()
            await news.wait(lambda event: event["event"] == "restarted", seen)
            await _drained(workers)
    return took


def _leads(event: Mapping[str, object], epoch: int) -> bool:
    return event["event"] == "coordinator" and int(str(event["epoch"])) == epoch


def _process(plane: RunningPlane, name: str) -> int:
    """Return the process id of a part as it is now."""
    described = json.loads((plane.home / "plane.json").read_text("utf-8"))
    return next(int(part["pid"]) for part in described["processes"] if part["name"] == name)


async def _first_after(worker: Program, epoch: int) -> int:
    """Return when a worker first started what a later leader than that of `epoch` assigned."""
    async with asyncio.timeout(_PATIENCE_S):
        while True:
            event = await worker.expect("started")
            if int(str(event["epoch"])) > epoch:
                return int(str(event["at_ns"]))


async def _drained(workers: list[Program]) -> None:
    """Read what the workers said until nothing more comes for a while."""
    for worker in workers:
        with contextlib.suppress(ProgramFailedError):
            while True:
                await worker.next_event(timeout_s=0.5)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def recoveries(folder: Path) -> Measured:
    """Kill the agent that runs a task; return how long until another one runs it, in milliseconds."""
    took: dict[str, float] = {}
    names = [f"w{number}" for number in range(KILLS + 1)]
    async with running_plane(folder, names) as plane, AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(home=plane.home))
        workers = [await stack.enter_async_context(_worker(plane, folder, names[0], _LONG_S))]
        task = await client.submit(_spec(1))
        await workers[0].expect("started")
        for number in range(KILLS):
            workers.append(
                await stack.enter_async_context(_worker(plane, folder, names[number + 1], _LONG_S))
            )
            await asyncio.sleep(_SETTLE_S + random.random() * _SETTLE_S)
            killed_ns = time.monotonic_ns()
            os.kill(workers[number].pid, signal.SIGKILL)
            started = await workers[number + 1].expect("started")
            took[f"started_ms_{number}"] = (int(str(started["at_ns"])) - killed_ns) / 1e6
            say(f"  agent killed, its task runs elsewhere after {took[f'started_ms_{number}']:.0f} ms")
        await task.cancel()
    return took


def _samples(outcome: Outcome) -> list[float]:
    return [value for runs in outcome.runs[_PLANE].values() for value in runs.values]


async def _measure(
    what: Callable[[Path], Awaitable[Measured]], runs: int, directory: Path, identity: str, name: str
) -> list[Figure]:
    outcome = await take_turns([Contender(_PLANE, what)], runs, directory)
    samples = _samples(outcome)
    return [
        Figure(
            identity,
            f"{name}, {label}",
            percentile(samples, share),
            "ms",
            more_is_better=False,
            params={
                "kills": len(samples),
                "min": round(min(samples)),
                "max": round(max(samples)),
                "load_average_1m": outcome.load_average_1m,
            },
        )
        for label, share in (("p50", 0.50), ("p99", 0.99))
    ]


async def run_takeover(runs: int, directory: Path) -> list[Figure]:
    """Measure P7."""
    name = "leading scheduler killed -9 until an agent runs what the next leader assigned"
    return await _measure(takeovers, runs, directory, "P7", name)


async def run_recovery(runs: int, directory: Path) -> list[Figure]:
    """Measure P8."""
    name = "agent killed -9 until another one runs its task"
    return await _measure(recoveries, runs, directory, "P8", name)
