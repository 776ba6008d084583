"""Both ends of tasks that do nothing: the agent that runs them, and the requester that waits for them.

Run: python -m benchmarks.task_load --help. The plane is the one in $MUSTER_HOME. The agent is written with
`agent_client`. The requester speaks to the scheduler by the generated stubs, in frames of many submissions,
and once more by `agent_client`, one collaboration after the other.

Every task is a collaboration of its own, so that it is compared with what a peer calls a task: it is accepted
(durable), assigned (durable), run, its result committed (durable), its end seen by the requester.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import uvloop
from muster.registry.v1.registry_service_pb2 import GetCoordinatorRequest
from muster.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from muster.scheduler.v1.collaboration_pb2 import (
    COLLABORATION_STATE_ACTIVE,
    COLLABORATION_STATE_COMPLETED,
    COLLABORATION_STATE_INITIALIZING,
    CollaborationSpec,
)
from muster.scheduler.v1.scheduler_service_pb2 import (
    SubmitCollaborationRequest,
    SubmitRequest,
    SubmitResponse,
    WatchCollaborationsRequest,
    WatchCollaborationsResponse,
)
from muster.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from muster.scheduler.v1.task_pb2 import TaskSpec

from agent_client import Agent, Client, Task
from benchmarks.budget import Meter, spent
from benchmarks.figures import percentile
from benchmarks.plane import operator_tls
from benchmarks.programs import tell
from services.common.rpc.channel import make_channel

SKILL = "nothing"
# Returns when its handler ran, in ns of the monotonic clock that all processes of a machine share.
STAMP_SKILL = "stamp"
SLOTS = 256
# Collaborations that have not ended yet, and submissions in one frame.
WINDOW = 1_024
FRAME_MAX = 128
# How long a first event may take before another is provoked, in seconds.
PROBE_S = 1.0

Stream = Any  # grpc.aio's calls; their stubs do not know the message types


async def be_agent(_options: argparse.Namespace) -> None:
    """Run tasks until the process is ended."""
    agent = Agent("worker", slots=SLOTS)

    @agent.handler(SKILL)
    async def nothing(_task: Task) -> None:
        """Do nothing."""

    @agent.handler(STAMP_SKILL)
    async def stamp(_task: Task) -> int:
        """Say what time it is."""
        return time.monotonic_ns()

    async with agent:
        await agent.wait_ready()
        tell("ready")
        await asyncio.Event().wait()


async def be_requester(options: argparse.Namespace) -> None:
    """Submit tasks and wait for their ends."""
    tls = operator_tls(options.home)
    async with make_channel(options.registry, tls, "registry") as channel:
        registry: Any = RegistryServiceStub(channel)
        coordinator = (await registry.GetCoordinator(GetCoordinatorRequest())).coordinator
    programs = {"agent": options.agent_pid, "requester": os.getpid()}
    meter = Meter(options.home, coordinator.address, programs)
    async with make_channel(coordinator.address, tls, "scheduler") as channel:
        requester = Requester(SchedulerServiceStub(channel))
        await requester.start()
        await requester.run_many(options.warmup)
        before = await asyncio.to_thread(meter.read)
        begin = time.monotonic()
        await requester.run_many(options.count)
        rate = options.count / (time.monotonic() - begin)
        between = await asyncio.to_thread(meter.read)
        took_us = []
        for _ in range(options.single):
            begin = time.monotonic()
            await requester.run_many(1)
            took_us.append((time.monotonic() - begin) * 1e6)
        after = await asyncio.to_thread(meter.read)
        stages = await requester.run_stages(options.single)
        requester.stop()
    tell(
        "done",
        rate=rate,
        took_us=took_us,
        client_took_us=await _through_client(options.single),
        cost=spent(before, between, options.count),
        single_cost=spent(between, after, options.single),
        stages_us=stages,
    )


async def _through_client(count: int) -> list[float]:
    took_us = []
    async with Client() as client:
        for _ in range(count):
            begin = time.monotonic()
            collaboration = await client.submit({"tasks": [{"task_id": "t", "required_skills": [SKILL]}]})
            await collaboration.result(timeout=60.0)
            took_us.append((time.monotonic() - begin) * 1e6)
    return took_us


class Requester:
    """Submits in frames over one stream; sees ends over another."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._made = 0
        # request_ids of what has not ended yet.
        self._open: set[str] = set()
        self._watch_is_open = False
        # Of the newest acceptance and of the newest end, in ns, and what that end's task returned.
        self._accepted_ns = self._ended_ns = 0
        self._returned = b""
        self._changed = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self._calls: list[Stream] = []

    async def start(self) -> None:
        """Open both streams; return when ends are seen."""
        submits: Stream = self._stub.Submit()
        watch: Stream = self._stub.WatchCollaborations(WatchCollaborationsRequest(collaborations_only=True))
        self._calls = [submits, watch]
        self._loops = [asyncio.create_task(self._answers(submits)), asyncio.create_task(self._ends(watch))]
        for loop in self._loops:
            loop.add_done_callback(lambda _: self._changed.set())
        # A watch says nothing until something happens: make something happen until it does.
        while not self._watch_is_open:
            self._changed.clear()
            await submits.write(SubmitRequest(submissions=[self._submission()]))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROBE_S):
                    await self._wait_change()

    def stop(self) -> None:
        """End both streams."""
        for loop in self._loops:
            loop.cancel()
        for call in self._calls:
            call.cancel()

    async def run_many(self, count: int) -> None:
        """Submit `count` collaborations of one task each; return when all have completed."""
        left = count
        while left or self._open:
            self._changed.clear()
            size = min(FRAME_MAX, WINDOW - len(self._open), left)
            if size:
                left -= size
                submissions = [self._submission() for _ in range(size)]
                self._open.update(submission.request_id for submission in submissions)
                await self._calls[0].write(SubmitRequest(submissions=submissions))
            else:
                await self._wait_change()

    async def run_stages(self, count: int) -> dict[str, float]:
        """Run tasks one by one; return the median time of each stage in microseconds."""
        took_ns: dict[str, list[float]] = {}
        for _ in range(count):
            submission = self._submission(STAMP_SKILL)
            self._open.add(submission.request_id)
            begin = time.monotonic_ns()
            await self._calls[0].write(SubmitRequest(submissions=[submission]))
            while self._open or self._accepted_ns < begin:
                self._changed.clear()
                await self._wait_change()
            ran = json.loads(self._returned)
            for stage, took in (
                ("submit to accepted", self._accepted_ns - begin),
                ("submit to handler", ran - begin),
                ("handler to end seen", self._ended_ns - ran),
            ):
                took_ns.setdefault(stage, []).append(took)
        return {stage: percentile(samples, 0.50) / 1e3 for stage, samples in took_ns.items()}

    def _submission(self, skill: str = SKILL) -> SubmitCollaborationRequest:
        self._made += 1
        spec = CollaborationSpec(tasks=[TaskSpec(task_id="t", required_skills=[skill])])
        return SubmitCollaborationRequest(request_id=f"b{self._made}", collaboration=spec)

    async def _answers(self, submits: Stream) -> None:
        while True:
            frame: SubmitResponse = await submits.read()
            self._accepted_ns = time.monotonic_ns()
            for outcome in frame.outcomes:
                if outcome.HasField("error"):
                    raise RuntimeError(f"{outcome.request_id} was refused: {outcome.error}")
            self._changed.set()

    async def _ends(self, watch: Stream) -> None:
        while True:
            frame: WatchCollaborationsResponse = await watch.read()
            self._ended_ns = time.monotonic_ns()
            self._watch_is_open = True
            for event in frame.events:
                state = event.collaboration.state
                if state == COLLABORATION_STATE_COMPLETED:
                    self._open.discard(event.collaboration.request_id)
                    self._returned = event.collaboration.result.outputs["t"].data
                elif state not in (COLLABORATION_STATE_INITIALIZING, COLLABORATION_STATE_ACTIVE):
                    raise RuntimeError(f"not completed: {event}")
            self._changed.set()

    async def _wait_change(self) -> None:
        """Wait for an event; raise what ended a stream if that comes first."""
        if not any(loop.done() for loop in self._loops):
            await self._changed.wait()
        for loop in self._loops:
            if loop.done():
                loop.result()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.task_load", description=__doc__)
    roles = {"agent": be_agent, "requester": be_requester}
    parser.add_argument("role", choices=list(roles))
    parser.add_argument("--home", type=Path, help="the plane's folder")
    parser.add_argument("--registry", default="", help="host:port of a registry")
    parser.add_argument("--agent-pid", type=int, default=0, help="whose CPU time counts as the agent's")
    parser.add_argument("--count", type=int, default=0, help="tasks submitted as fast as the window allows")
    parser.add_argument("--warmup", type=int, default=0, help="tasks before those that are counted")
    parser.add_argument("--single", type=int, default=0, help="tasks run one after the other")
    options = parser.parse_args()
    uvloop.run(roles[options.role](options))


if __name__ == "__main__":
    main()
