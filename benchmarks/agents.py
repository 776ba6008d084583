"""P5: how many agents one broker and one registry hold, what each costs, and what they cost the others.

A crowd of idle agents connects, each with its own certificate and connections, a session with heartbeats and
a mailbox with credit. P2 is measured on the same plane before they come and while they are there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from muster.common.v1.page_pb2 import PageRequest
from muster.registry.v1.agent_pb2 import AGENT_STATE_READY
from muster.registry.v1.registry_service_pb2 import ListAgentsRequest
from muster.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

from benchmarks.crowd import crowd_name, raise_file_limit
from benchmarks.exchange import UNLOADED_COUNT, UNLOADED_RATE, latency
from benchmarks.figures import Figure
from benchmarks.plane import RunningPlane, operator_tls, running_plane, service_process
from benchmarks.programs import ProgramFailedError, module, running
from benchmarks.turns import Contender, Measured, Outcome, say, take_turns
from services.common.rpc.channel import make_channel

OURS = "Muster"
# The goal is 2,000 and the aim 10,000: MUSTER_BENCH_AGENTS=10000 make bench NAME=agents
COUNT = int(os.environ.get("MUSTER_BENCH_AGENTS", "2000"))
# Processes that play the crowd: each needs two open files per agent.
CROWDS = 2
AGENTS = ("sender", "receiver")
_JOINED_S_MAX = 900.0
# Heartbeats come every two seconds: after this everybody has sent several.
_SETTLED_S = 6.0
_PAGE = 1_000


async def crowded(folder: Path) -> Measured:
    """Measure one plane without and with the crowd."""
    raise_file_limit()
    names = [crowd_name(number) for number in range(COUNT)]
    async with running_plane(folder, [*AGENTS, *names]) as plane:
        alone = await latency(_p2(plane), folder)
        services = {name: service_process(name) for name in ("broker", "registry")}
        before = {name: process.memory_info().rss for name, process in services.items()}
        async with AsyncExitStack() as stack:
            crowds = [
                await stack.enter_async_context(running(f"crowd-{number}", command, folder))
                for number, command in enumerate(_crowd_commands(plane))
            ]
            for crowd in crowds:
                await crowd.expect("joined", _JOINED_S_MAX)
            await asyncio.sleep(_SETTLED_S)
            grown = {name: services[name].memory_info().rss - before[name] for name in services}
            ready = await _count_ready(plane)
            together = await latency(_p2(plane), folder)
            still_ready = await _count_ready(plane)
            if any(crowd.has_ended for crowd in crowds):
                raise ProgramFailedError("the crowd broke up while it was measured")
    say(f"{ready} ready before and {still_ready} after, of {COUNT}")
    return {
        "ready": min(ready, still_ready),
        **{f"{name}_kb": grown[name] / COUNT / 1_000 for name in services},
        **{f"alone_{quantity}": value for quantity, value in alone.items()},
        **{f"together_{quantity}": value for quantity, value in together.items()},
    }


def _p2(plane: RunningPlane) -> Any:
    def command(role: str, options: Sequence[str]) -> list[str]:
        return module(
            "benchmarks.mailbox_load", role, "--home", plane.home,
            "--address", plane.addresses["broker-1"], "--registry", plane.addresses["registry-1"],
            *options,
        )  # fmt: skip

    return command


def _crowd_commands(plane: RunningPlane) -> list[list[str]]:
    share = -(-COUNT // CROWDS)
    return [
        module(
            "benchmarks.crowd", "--home", plane.home, "--registry", plane.addresses["registry-1"],
            "--broker", plane.addresses["broker-1"], "--first", first, "--count", min(share, COUNT - first),
        )
        for first in range(0, COUNT, share)
    ]  # fmt: skip


async def _count_ready(plane: RunningPlane) -> int:
    """Return how many agents of the crowd the registry calls READY."""
    async with make_channel(plane.addresses["registry-1"], operator_tls(plane.home), "registry") as channel:
        stub: Any = RegistryServiceStub(channel)
        count, token = 0, ""
        while True:
            page = PageRequest(page_size=_PAGE, page_token=token)
            answer = await stub.ListAgents(ListAgentsRequest(page=page, skill="idle"), timeout=60)
            count += sum(
                any(instance.state == AGENT_STATE_READY for instance in agent.instances)
                for agent in answer.agents
            )
            if not (token := answer.page.next_page_token):
                return count


async def run(runs: int, directory: Path) -> list[Figure]:
    """Measure; there is no peer that does the same."""
    outcome = await take_turns([Contender(OURS, crowded)], runs, directory)
    held = f"{COUNT} agents with a mailbox and a session"
    return [
        Figure(
            "P5",
            "agents connected to one broker and one registry, READY, each with a heartbeat",
            outcome.of(OURS, "ready").median,
            "agents",
            params=outcome.params(OURS, "ready", asked=COUNT, tls=True, work_streams="reported only"),
        ),
        *(
            Figure(
                "P5",
                f"memory of the {service} for one connected agent",
                outcome.of(OURS, f"{service}_kb").median,
                "KB",
                more_is_better=False,
                params=outcome.params(OURS, f"{service}_kb", agents=COUNT, measured="resident"),
            )
            for service in ("broker", "registry")
        ),
        *(_latency(outcome, held, quantile) for quantile in ("p50", "p99")),
    ]


def _latency(outcome: Outcome, held: str, quantile: str) -> Figure:
    quantity = f"together_{quantile}_ms"
    return Figure(
        "P5",
        f"unloaded, send to delivered, {quantile}, beside {held}",
        outcome.of(OURS, quantity).median,
        "ms",
        "the same plane without them",
        outcome.of(OURS, f"alone_{quantile}_ms").median,
        more_is_better=False,
        params=outcome.params(
            OURS, quantity, loop="open", rate=UNLOADED_RATE, samples_per_run=UNLOADED_COUNT, agents=COUNT
        ),
    )
