"""The DAGs of S4 through a real plane, PREDICTIVE beside the default PRIORITY: times, and the leader's CPU.

Etcd, the services and sixteen agents of unlike speed are processes with mTLS; handlers take as long as drawn.
Each turn has a plane of its own, which first learns the agents' speeds from some tasks for each. Workflows of
up to a hundred tasks arrive at random within half of the time that all work takes the fleet; each is scaled
to an equal part of that. The figures are ratios of both policies' makespan, and of their mean flow time
(submission to end), and the CPU time per task of the leading scheduler and of its planner's process. In
params `virtual` is the same ratio with the same draw in virtual time, where the plane itself takes no time.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from muster.registry.v1.registry_service_pb2 import GetCoordinatorRequest
from muster.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

from agent_client import Client
from benchmarks.budget import cpu_seconds
from benchmarks.figures import Figure
from benchmarks.plane import RunningPlane, operator_tls, running_plane
from benchmarks.programs import module, running
from benchmarks.scheduling.arrivals import AGENTS, ERROR, SPREAD, Drawn
from benchmarks.scheduling.options import Options
from benchmarks.scheduling.workflows import load_all
from benchmarks.turns import say
from services.common.rpc.channel import make_channel
from services.scheduler.core.model import SchedulingPolicy

JOBS, TASKS_MAX, FLEET_MS, FLEET_MS_QUICK = 6, 100, 12_000, 4_000
#: For each agent before the clock starts, and what they take an agent of speed 1.
LEARNED_TASKS, LEARNED_MS = 15, 60
_DONE_S_MAX = 240.0
_OURS, _PEER = SchedulingPolicy.PREDICTIVE, SchedulingPolicy.PRIORITY


@dataclass(frozen=True, slots=True)
class Played:
    """One turn of one policy."""

    makespan_ms: float
    flow_ms: float
    task_count: int
    leader_us: float
    planner_us: float


def run(options: Options) -> Iterator[Figure]:
    """Play each seed under both policies, in turn."""
    known = [one for one in load_all(options.data / "wfinstances") if len(one.runtime_ms) <= TASKS_MAX]
    fleet_ms = FLEET_MS_QUICK if options.quick else FLEET_MS
    seeds = options.draws or 1
    played: dict[SchedulingPolicy, list[Played]] = {_OURS: [], _PEER: []}
    virtual: dict[SchedulingPolicy, list[tuple[float, float]]] = {_OURS: [], _PEER: []}
    for seed in range(seeds):
        drawn = Drawn(seed, known, JOBS, fleet_ms)
        # Who begins changes with the seed.
        for policy in (_OURS, _PEER) if seed % 2 == 0 else (_PEER, _OURS):
            folder = options.directory / f"{policy.name.lower()}-{seed}"
            folder.mkdir()
            one = asyncio.run(_play(drawn, policy, folder))
            played[policy].append(one)
            ends = drawn.online_ms(policy)
            virtual[policy].append((max(ends), _flow(drawn, [float(each) for each in ends])))
            say(
                f"seed {seed}, {policy.name}: makespan {one.makespan_ms:.0f} ms ({max(ends)} in virtual "
                f"time), flow {one.flow_ms:.0f} ms, leader {one.leader_us:.0f} us a task, planner "
                f"{one.planner_us:.0f}"
            )
    pairs = [*zip(played[_OURS], played[_PEER], strict=True)]
    beside = [*zip(virtual[_OURS], virtual[_PEER], strict=True)]
    params: dict[str, Any] = {
        "seeds": seeds,
        "tasks": sum(each.task_count for each in played[_OURS]),
        "jobs": JOBS,
        "agents": AGENTS,
        "error": ERROR,
        "spread": SPREAD,
        "fleet_ms": fleet_ms,
    }
    for name, ratios, at in (
        ("makespan", [mine.makespan_ms / other.makespan_ms for mine, other in pairs], 0),
        ("mean flow time", [mine.flow_ms / other.flow_ms for mine, other in pairs], 1),
    ):
        in_virtual = statistics.median(mine[at] / other[at] for mine, other in beside)
        yield Figure(
            id="S11",
            name=f"{name} through a real plane, PREDICTIVE as a share of PRIORITY's",
            value=statistics.median(ratios),
            unit="of PRIORITY",
            peer="PRIORITY",
            peer_value=1.0,
            more_is_better=False,
            params={**params, "worst": round(max(ratios), 4), "virtual": round(in_virtual, 4)},
        )
    for name, ours, peers in (
        ("leader", [each.leader_us for each in played[_OURS]], [each.leader_us for each in played[_PEER]]),
        ("planner", [each.planner_us for each in played[_OURS]], [each.planner_us for each in played[_PEER]]),
    ):
        yield Figure(
            id="S11",
            name=f"CPU time per task of the {name}, PREDICTIVE beside PRIORITY",
            value=statistics.median(ours),
            unit="us",
            peer="PRIORITY",
            peer_value=statistics.median(peers),
            more_is_better=False,
            params=params,
        )


async def _play(drawn: Drawn, policy: SchedulingPolicy, folder: Path) -> Played:
    """Start a plane, let it learn, let the jobs arrive; return what it took."""
    names = [str(agent) for agent in drawn.speeds]
    async with running_plane(folder, names) as plane:
        environ = {"MUSTER_HOME": str(plane.home)}
        paced = module(
            "benchmarks.paced_agents", *(f"{name}={speed}" for name, speed in drawn.speeds.items())
        )
        async with running("agents", paced, folder, environ) as agents:
            await agents.expect("ready")
            async with Client(home=plane.home) as client, asyncio.timeout(_DONE_S_MAX):
                await (await client.submit(_learning(names))).result()
                leader = await _leader(plane)
                before = _cpu(leader)
                begin = time.monotonic()
                ends_ms = await asyncio.gather(
                    *(_job(client, drawn, number, policy, begin) for number in range(JOBS))
                )
                after = _cpu(leader)
    tasks = sum(len(drawn.spec(number, policy).tasks) for number in range(JOBS))
    spent = [(late - early) / tasks * 1e6 for early, late in zip(before, after, strict=True)]
    return Played(max(ends_ms), _flow(drawn, ends_ms), tasks, *spent)


async def _job(client: Client, drawn: Drawn, number: int, policy: SchedulingPolicy, begin: float) -> float:
    """Submit a job when it arrives; return when it ended, in milliseconds from the beginning."""
    spec = drawn.spec(number, policy)
    tasks = {
        task.task_id: {
            "required_skills": "work",
            "dependencies": list(task.dependencies),
            "estimated_duration": task.estimated_duration_ms / 1_000,
            "payload": {"ms": float(task.description)},
        }
        for task in spec.tasks
    }
    # Its arrival.
    await asyncio.sleep(begin + drawn.arrival_ms[number] / 1_000 - time.monotonic())
    submitted = await client.submit({"scheduling_policy": policy.name, "tasks": tasks})
    await submitted.result()
    return (time.monotonic() - begin) * 1_000


def _flow(drawn: Drawn, ends_ms: list[float]) -> float:
    """Return the mean time from a job's arrival to its end."""
    return statistics.fmean(end - at for end, at in zip(ends_ms, drawn.arrival_ms, strict=True))


def _learning(names: list[str]) -> dict[str, Any]:
    """Return tasks that tell how fast each agent is."""
    task = {
        "required_skills": "work",
        "estimated_duration": LEARNED_MS / 1_000,
        "payload": {"ms": LEARNED_MS},
    }
    return {
        "tasks": {
            f"{name}-{number}": {**task, "required_agents": name}
            for name in names
            for number in range(LEARNED_TASKS)
        }
    }


async def _leader(plane: RunningPlane) -> psutil.Process:
    async with make_channel(plane.addresses["registry-1"], operator_tls(plane.home), "registry") as channel:
        registry: Any = RegistryServiceStub(channel)
        address = (await registry.GetCoordinator(GetCoordinatorRequest())).coordinator.address
    processes = json.loads((plane.home / "plane.json").read_text("utf-8"))["processes"]
    return psutil.Process(next(each["pid"] for each in processes if each["address"] == address))


def _cpu(leader: psutil.Process) -> tuple[float, float]:
    """Return the CPU seconds of the leading scheduler, and of the processes that it started to plan."""
    planners = leader.children(recursive=True)
    return cpu_seconds(leader.pid), sum(cpu_seconds(each.pid) for each in planners)
