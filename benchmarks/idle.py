"""P10: what a plane costs while nothing happens: CPU of every process with 100 agents that are ready."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.budget import cpu_seconds
from benchmarks.figures import Figure
from benchmarks.plane import running_plane
from benchmarks.programs import module, running
from benchmarks.turns import Contender, Measured, take_turns

AGENTS = 100
# From the last agent's readiness until it is measured, and how long: several heartbeats and probes.
_SETTLE_S = 5.0
_MEASURE_S = 15.0
_PLANE = "Muster"


async def idle(folder: Path) -> Measured:
    """Measure a whole plane with agents in one process of their own."""
    names = [f"idle-{number}" for number in range(AGENTS)]
    async with running_plane(folder, names) as plane:
        environ = {"MUSTER_HOME": str(plane.home)}
        async with running("agents", module("benchmarks.idle_agents", *names), folder, environ) as agents:
            await agents.expect("ready")
            await asyncio.sleep(_SETTLE_S)
            pids = _processes(plane.home)
            begin, before = time.monotonic(), {name: cpu_seconds(pid) for name, pid in pids.items()}
            await asyncio.sleep(_MEASURE_S)
            elapsed = time.monotonic() - begin
            used = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
    shares = {name: seconds / elapsed * 100 for name, seconds in used.items()}
    return {**shares, "all": sum(shares.values())}


def _processes(home: Path) -> Mapping[str, int]:
    """Return the process ids of etcd and every service."""
    plane = json.loads((home / "plane.json").read_text("utf-8"))
    return {process["name"]: process["pid"] for process in plane["processes"]}


async def run(runs: int, directory: Path) -> list[Figure]:
    """Measure."""
    outcome = await take_turns([Contender(_PLANE, idle)], runs, directory)
    return [
        Figure(
            "P10",
            f"CPU while nothing happens: {name}",
            outcome.of(_PLANE, name).median,
            "% of a core",
            more_is_better=False,
            params=outcome.params(_PLANE, name, agents=AGENTS, seconds=_MEASURE_S),
        )
        for name in outcome.runs[_PLANE]
    ]
