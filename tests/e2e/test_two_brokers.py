"""Two broker processes on one Redis, with the plane's own registry and etcd: skills, instances, replies.

The agents are processes, and one of them is two. Whoever asks is at each of the brokers in turn; then the one
that leads is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tomllib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from muster.common.v1 import envelope_pb2
from muster.registry.v1 import agent_pb2

from agent_client import Agent, Client
from services.common.core.errors import Reason
from services.common.etcd.ops import Get
from services.local.child import Child
from services.local.config_files import write_toml
from tests.conftest import Eventually
from tests.harness.processes import ProcessCluster
from tests.harness.redis import RedisServer
from tests.integration.broker.broker_client import MailboxClient, envelope, error_of
from tests.integration.broker.broker_load import AWAY

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
GRACE_S = 10.0
SECOND = "broker-2"
# Questions that the two instances of one agent ask at the same time.
QUESTIONS = 24


class Plane:
    """A plane with a second broker, and the agents beside it."""

    def __init__(self, cluster: ProcessCluster, port: int) -> None:
        self.cluster = cluster
        self.brokers = {"broker-1": cluster.addresses["broker-1"], SECOND: f"127.0.0.1:{port}"}
        self._children: dict[str, Child] = {}

    def start_second(self) -> None:
        """The first one's settings, at another address."""
        home = self.cluster.home
        settings = tomllib.loads((home / "config" / "broker-1.toml").read_text())
        settings |= {
            "replica_id": SECOND,
            "listen": self.brokers[SECOND],
            "metrics_listen": "",
            "data_directory": str(home / "data" / SECOND),
        }
        config = home / "config" / f"{SECOND}.toml"
        write_toml(config, settings, "A second broker on the same Redis.")
        self.run(SECOND, "-m", "services.broker", "--config", str(config))

    def start_agent(self, name: str, skill: str, instance: str = "0") -> None:
        """One process of `tests.e2e.talker`."""
        self.cluster.issue_agent(name)
        self.run(f"{name}-{instance}", "-m", "tests.e2e.talker", name, skill, MUSTER_INSTANCE=instance)

    def run(self, name: str, *arguments: str, **environ: str) -> None:
        environ = {**os.environ, **environ, "MUSTER_HOME": str(self.cluster.home)}
        environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "proto" / "gen")])
        log = self.cluster.home / "logs" / f"{name}.log"
        self._children[name] = Child(name, [sys.executable, *arguments], log_path=log, environ=environ)

    async def leader(self) -> str:
        """The name of the broker that leads, or led until its lease ends; "" for none."""
        async with self.cluster.etcd() as etcd:
            rows = await etcd.read(Get("/muster/election/broker/", prefix=True, limit=1, order="oldest"))
        if rows.first is None:
            return ""
        address = json.loads(rows.first.value)["address"]
        return next(name for name, one in self.brokers.items() if one == address)

    async def kill(self, broker: str) -> None:
        """Kill a broker; the first one is started again by the plane, the second one stays away."""
        if broker == SECOND:
            self._children[SECOND].kill()
        else:
            await self.cluster.kill(broker)

    async def open(self, broker: str, **hello: Any) -> MailboxClient:
        """A sender at that broker, once it serves."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(*AWAY):
                    return await MailboxClient.open(
                        self.brokers[broker],
                        self.cluster.tls("operator/admin"),
                        send_only=True,
                        features=["routes", "instances"],
                        **hello,
                    )
                await asyncio.sleep(0.05)  # sleeps: a client's pause between two tries

    async def stop(self) -> None:
        await asyncio.gather(*(child.stop(GRACE_S) for child in self._children.values()))


@pytest.fixture
async def plane(tmp_path: Path, own_redis: RedisServer, free_port: Callable[[], int]) -> AsyncIterator[Plane]:
    """Two brokers, of which one leads, and everything else once."""
    settings = {"broker": {"store": "redis", "redis_address": own_redis.address}}
    async with ProcessCluster(tmp_path / "plane", settings) as cluster:
        made = Plane(cluster, free_port())
        try:
            made.start_second()
            yield made
        finally:
            await made.stop()


async def test_skills_instances_and_replies_over_two_brokers(plane: Plane, eventually: Eventually) -> None:
    for name in ("helper-1", "helper-2"):
        plane.start_agent(name, "roads")
    for instance in ("north", "south"):
        plane.start_agent("asker", "asking", instance)
    plane.cluster.issue_agent("chief")
    chief = Agent("chief", ["lead"], instance="only", home=plane.cluster.home)
    heard: list[str] = []

    @chief.on_message("heartbeat")
    async def hear(delivery: Any) -> None:
        heard.append(delivery.payload["by"])

    async with Client(home=plane.cluster.home) as client, chief:
        await asyncio.wait_for(chief.wait_ready(), PATIENCE_S)

        async def all_there() -> bool:
            found = {one.agent_id: one for one in await client.agents()}
            return (
                {"helper-1", "helper-2", "asker"} <= set(found)
                and len(found["asker"].instances) == 2
                and all(one.state == agent_pb2.AGENT_STATE_READY for one in found.values())
            )

        await eventually(all_there, timeout=PATIENCE_S)
        chosen: dict[str, str] = {}
        await _everybody_is_found(plane, chosen)
        await _each_instance_gets_what_is_for_it(chief, heard, eventually)
        await _each_asker_gets_its_answers(chief)
        leader = await plane.leader()
        other = SECOND if leader == "broker-1" else "broker-1"
        asking = asyncio.create_task(_each_asker_gets_its_answers(chief))
        await plane.kill(leader)

        async def other_leads() -> bool:
            return await plane.leader() == other

        await eventually(other_leads, timeout=PATIENCE_S)
        await asyncio.wait_for(asking, PATIENCE_S)
        if leader == SECOND:
            plane.start_second()
        await _everybody_is_found(plane, chosen)
        await _each_instance_gets_what_is_for_it(chief, heard, eventually)


async def _everybody_is_found(plane: Plane, chosen: dict[str, str]) -> None:
    """At both brokers a skill means one of those who have it, and each choice stays what it was."""
    for broker in plane.brokers:
        sender = await plane.open(broker)
        message_id = f"m-{len(chosen)}"
        found, nobody, unknown, known = await sender.send(
            question(message_id, "skill/roads"),
            question(f"{message_id}-nobody", "skill/no-such-skill"),
            question(f"{message_id}-unknown", "asker#west"),
            question(f"{message_id}-known", "asker#north"),
        )
        assert found.receiver_id in {"helper-1", "helper-2"}
        chosen[message_id] = found.receiver_id
        assert error_of(nobody).reason is Reason.RECEIVER_NOT_FOUND
        assert error_of(unknown).reason is Reason.RECEIVER_NOT_FOUND
        assert not known.HasField("error")
        again = await sender.send(*(question(one, "skill/roads") for one in chosen))
        assert {one.message_id: one.receiver_id for one in again} == chosen
        await sender.close()


def question(message_id: str, address: str) -> envelope_pb2.Envelope:
    heartbeat = envelope_pb2.MESSAGE_TYPE_HEARTBEAT
    return envelope(message_id, address, requires_ack=False, message_type=heartbeat)


async def _each_instance_gets_what_is_for_it(chief: Agent, heard: list[str], eventually: Eventually) -> None:
    wanted = []
    for number in range(10):
        instance = ("north", "south")[number % 2]
        wanted.append(f"asker#{instance}")
        await chief.send("asker", number, instance=instance)
    await eventually(lambda: len(heard) == len(wanted), timeout=PATIENCE_S)
    assert sorted(heard) == sorted(wanted)
    heard.clear()


async def _each_asker_gets_its_answers(chief: Agent) -> None:
    """Both instances of one agent ask at once; a reply that came to the other one would be lost."""

    async def ask(number: int) -> dict[str, Any]:
        instance = ("north", "south")[number % 2]
        wanted = {"ask": "skill/roads", "text": number}
        answer: dict[str, Any] = await chief.request(
            "asker", wanted, type="task_request", instance=instance, timeout=PATIENCE_S
        )
        assert answer["by"] == f"asker#{instance}"
        return answer

    answers = await asyncio.gather(*(ask(number) for number in range(QUESTIONS)))
    assert [one["reply"]["text"] for one in answers] == list(range(QUESTIONS))
    assert {one["reply"]["by"].partition("#")[0] for one in answers} <= {"helper-1", "helper-2"}
