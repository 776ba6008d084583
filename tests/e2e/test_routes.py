"""Members of a collaboration talk, a skill finds its agent, a topic outlives the broker: with processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent_client import AccessError, Agent, Client, Delivery, NotFoundError, Task
from tests.harness.processes import ProcessCluster

pytestmark = pytest.mark.timeout(120)

PATIENCE_S = 45.0
MESSAGES = 60


async def test_a_topic_outlives_the_broker_that_was_killed(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path / "plane") as cluster:
        for name in ("publisher", "listener"):
            cluster.issue_agent(name)
        publisher = Agent("publisher", ["write"], home=cluster.home)
        listener = Agent("listener", home=cluster.home)
        heard: list[tuple[str, int]] = []
        complete = asyncio.Event()

        @listener.on_topic("roads.*")
        async def note(delivery: Delivery) -> None:
            heard.append((delivery.topic, delivery.payload))
            if len(heard) == MESSAGES:
                complete.set()

        async with listener:
            await asyncio.wait_for(listener.wait_ready(), PATIENCE_S)
        async with publisher:
            await asyncio.wait_for(publisher.wait_ready(), PATIENCE_S)
            for number in range(MESSAGES // 2):
                assert (await publisher.publish("roads.closed", number)).receiver_count == 1
            # Half is acknowledged when the broker dies, the other half is on its way.
            on_the_way = [publisher.publish("roads.open", n) for n in range(MESSAGES // 2, MESSAGES)]
            await cluster.kill("broker-1")
            async with asyncio.timeout(PATIENCE_S):
                assert [(await one).receiver_count for one in on_the_way] == [1] * (MESSAGES // 2)
                assert (await publisher.publish("bridges", 0)).receiver_count == 0
            # Now all of it is only in the broker, and so is the subscription.
            await cluster.kill("broker-1")
            async with listener:
                await asyncio.wait_for(complete.wait(), PATIENCE_S)
                assert await listener.subscriptions() == ["roads.*"]
        assert [number for _, number in heard] == list(range(MESSAGES))
        assert {topic for topic, _ in heard} == {"roads.closed", "roads.open"}


async def test_members_talk_over_their_collaboration_and_a_skill_finds_its_agent(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path / "plane") as cluster, Client(home=cluster.home) as client:
        names = ("first", "second", "stranger")
        for name in names:
            cluster.issue_agent(name)
        first, second = (Agent(name, [f"{name}-skill"], home=cluster.home) for name in ("first", "second"))
        stranger = Agent("stranger", ["other"], home=cluster.home)
        heard: dict[str, list[str]] = {"first": [], "second": []}
        done = asyncio.Event()
        begun = asyncio.Barrier(2)

        def listen(agent: Agent) -> None:
            @agent.on_message("status_update")
            async def note(delivery: Delivery) -> None:
                assert delivery.address == f"collaboration/{delivery.collaboration_id}"
                heard[agent.name].append(delivery.sender)
                if all(heard.values()):
                    done.set()

            @agent.on_message("collaboration_request")
            async def answer(delivery: Delivery) -> str:
                return f"{agent.name} has it"

            @agent.handler()
            async def work(task: Task) -> int:
                # Both are members now.
                await begun.wait()
                receipt = await task.send(task.team, "hello")
                await done.wait()
                return receipt.receiver_count

        listen(first)
        listen(second)
        async with first, second, stranger:
            for agent in (first, second, stranger):
                await asyncio.wait_for(agent.wait_ready(), PATIENCE_S)
            tasks = {name: {"required_skills": f"{name}-skill"} for name in ("first", "second")}
            collaboration = await client.submit({"tasks": tasks})
            result = await collaboration.result(PATIENCE_S)
            assert result.outputs == {"first": 1, "second": 1}
            assert heard == {"first": ["second"], "second": ["first"]}
            with pytest.raises(AccessError):
                await stranger.send(f"collaboration/{collaboration.id}", "let me in")
            with pytest.raises(NotFoundError):
                await first.send("collaboration/no-such", "anybody?")
            answer = await stranger.request("skill/second-skill", "who?", timeout=PATIENCE_S)
            assert answer == "second has it"
            with pytest.raises(NotFoundError):
                await stranger.send("skill/nobody-has-it", 1)
