"""The flood decision with real processes, while they are killed: it completes, and no task is done twice."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path

import pytest

from agent_client import Client
from agent_client.views import Result
from examples.flood_response.collaboration import TASKS
from tests.e2e.team import Team, submission
from tests.harness.cluster import Cluster
from tests.harness.processes import ProcessCluster

pytestmark = pytest.mark.timeout(180)

ONCE = Counter(dict.fromkeys(TASKS, 1))


async def decide(cluster: Cluster) -> Result:
    """Submit the flood and return its result."""
    async with Client(home=cluster.home) as client:
        collaboration = await client.submit(submission())
        async with asyncio.timeout(120):
            return await collaboration.result()


def check(result: Result) -> None:
    decision = result.outputs["decision"]
    assert decision["feasible"], decision["problems"]
    assert decision["people"] > 10_000
    assert {contribution.task_id for contribution in result.contributions} == set(TASKS)


async def test_the_leader_is_killed_in_the_middle(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path / "plane") as cluster, Team(cluster, "inundation-forecast") as team:
        leader, epoch = await cluster.coordinator()
        deciding = asyncio.create_task(decide(cluster))
        await team.wait_started("inundation-forecast")
        cluster.signal(leader, signal.SIGKILL)
        await cluster.coordinator(newer_than=epoch)
        team.release()
        check(await deciding)
        assert team.counts("started") == ONCE
        assert team.counts("ended") == ONCE


async def test_an_agent_is_killed_in_the_middle(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path / "plane") as cluster, Team(cluster, "inundation-forecast") as team:
        team.add("field", "second")
        deciding = asyncio.create_task(decide(cluster))
        (first,) = await team.wait_started("inundation-forecast")
        team.kill(first)
        _, second = await team.wait_started("inundation-forecast", times=2)
        assert second != first
        team.release()
        result = await deciding
        check(result)
        assert team.counts("ended") == ONCE
        attempts = {c.task_id: c.attempt_number for c in result.contributions}
        assert attempts["inundation-forecast"] == 2


@pytest.mark.parametrize("part", ["broker-1", "audit-1", "registry-1", "etcd"])
async def test_a_part_is_killed_in_the_middle_and_comes_back(tmp_path: Path, part: str) -> None:
    async with ProcessCluster(tmp_path / "plane") as cluster, Team(cluster, "inundation-forecast") as team:
        deciding = asyncio.create_task(decide(cluster))
        await team.wait_started("inundation-forecast")
        await cluster.kill(part)
        team.release()
        check(await deciding)
        assert team.counts("ended") == ONCE
