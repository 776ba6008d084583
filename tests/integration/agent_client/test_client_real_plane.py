"""Agents and requesters in a real plane: etcd and every service as processes of their own, mutual TLS."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from muster.registry.v1 import agent_pb2

from agent_client import (
    Agent,
    Client,
    CollaborationFailedError,
    Delivery,
    FencedError,
    InvalidRequestError,
    NotFoundError,
    PermanentFailure,
    PreconditionError,
    RequestReusedError,
    ResourceHeldError,
    Task,
    TaskInfo,
    TransientFailure,
)
from tests.conftest import Eventually
from tests.harness.launched import ROOT, Launched, launched_plane

PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    with launched_plane(tmp_path_factory.mktemp("plane")) as launched:
        yield launched


MakeAgent = Callable[..., Agent]


@pytest.fixture
def make(plane: Launched) -> MakeAgent:
    """Return a function that makes an agent with a certificate of its own."""

    def made(**how: Any) -> Agent:
        name = f"a-{uuid.uuid4().hex[:8]}"
        plane.tls(f"agent/{name}")
        return Agent(name, home=plane.home, **how)

    return made


def own(agent: Agent, *tasks: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a collaboration whose tasks only `agent` may run."""
    return {"tasks": [{"required_agents": agent.name, **task} for task in tasks], **fields}


async def test_a_dag_is_run_watched_and_collected(plane: Launched, make: MakeAgent) -> None:
    agent = make(slots=2)
    tries: list[int] = []

    @agent.handler("add")
    async def add(task: Task) -> Any:
        await task.progress(0.5, "adding")
        return task.payload + sum(task.inputs.values()) + task.shared_context["offset"]

    @agent.handler("flaky")
    def flaky(task: Task) -> str:
        tries.append(task.token.number)
        if len(tries) < 2:
            raise TransientFailure("not yet")
        return f"{task.inputs['c']} at try {task.token.number}"

    spec = own(
        agent,
        {"task_id": "a", "required_skills": ["add"], "payload": 1},
        {"task_id": "b", "required_skills": ["add"], "payload": 2},
        {"task_id": "c", "required_skills": ["add"], "payload": 0, "dependencies": ["a", "b"]},
        {
            "task_id": "d",
            "required_skills": ["flaky"],
            "dependencies": ["c"],
            "retry_policy": {"backoff": 0.01},
        },
        name="sum",
        shared_context={"offset": 10},
    )
    async with agent, Client(home=plane.home) as client:
        handle = await client.submit(spec)
        states = [event.change async for event in handle.watch()]
        result = await handle.result(PATIENCE_S)
        info = await handle.info()
        afterwards = [event.change async for event in handle.watch()]
        assert handle.id in [found.id for found in await client.collaborations(states=["COMPLETED"])]
    assert result.outputs == {"d": "33 at try 2"}
    assert [row.agent_id for row in result.contributions] == [agent.name] * 4
    assert (info.coordinator, info.members, info.task_succeeded_count) == (agent.name, (agent.name,), 4)
    assert states
    assert {change.id for change in afterwards if isinstance(change, TaskInfo)} == set("abcd")
    assert tries == [1, 2]


async def test_failures_and_cancellation_reach_the_requester(
    plane: Launched, make: MakeAgent, eventually: Eventually
) -> None:
    agent, stopped = make(), list[str]()
    running = threading.Event()

    @agent.handler("hopeless")
    async def hopeless(_: Task) -> None:
        raise PermanentFailure("no road leads there", reason="NO_ROAD")

    @agent.handler("endless")
    async def endless(task: Task) -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(task.id)

    async with agent, Client(home=plane.home) as client:
        handle = await client.submit(own(agent, {"task_id": "t", "required_skills": ["hopeless"]}))
        with pytest.raises(CollaborationFailedError, match=r"NO_ROAD.*no road leads there"):
            await handle.result(PATIENCE_S)
        handle = await client.submit(own(agent, {"task_id": "t", "required_skills": ["endless"]}))
        await eventually(running.is_set)
        assert (await handle.cancel("changed our minds")).state == "CANCELLED"
        await eventually(lambda: stopped == ["t"])
        with pytest.raises(CollaborationFailedError, match="changed our minds"):
            await handle.result(PATIENCE_S)
        running.clear()
        handle = await client.submit(
            own(
                agent,
                {
                    "task_id": "u",
                    "required_skills": ["endless"],
                    "attempt_timeout": 0.2,
                    "retry_policy": {"attempt_max": 1},
                },
            )
        )
        with pytest.raises(CollaborationFailedError):
            await handle.result(PATIENCE_S)
        await eventually(lambda: stopped == ["t", "u"])


async def test_bad_submissions_are_refused_by_field(plane: Launched, make: MakeAgent) -> None:
    agent = make()
    agent.handler("s")(lambda task: "done")
    async with agent, Client(home=plane.home) as client:
        await agent.wait_ready()
        request_id = uuid.uuid4().hex
        spec = own(agent, {"task_id": "a", "required_skills": ["s"]})
        first = await client.submit(spec, request_id=request_id)
        again = await client.submit(spec, request_id=request_id)
        assert (again.id, again.already_accepted) == (first.id, True)
        with pytest.raises(RequestReusedError):
            await client.submit(spec | {"name": "another"}, request_id=request_id)
        loop = {
            "tasks": {
                "a": {"required_skills": "s", "dependencies": "b"},
                "b": {"required_skills": "s", "dependencies": "a"},
            }
        }
        with pytest.raises(InvalidRequestError) as cycle:
            await client.submit(loop)
        assert cycle.value.reason == "CYCLIC_DEPENDENCY"
        assert set(cycle.value.metadata["cycle"].split(" -> ")) == {"a", "b"}
        with pytest.raises(InvalidRequestError) as bad:
            await client.submit({"tasks": [{"task_id": "no spaces", "required_skills": ["s"]}]})
        assert bad.value.violations[0].field == "collaboration.tasks[0].task_id"
        with pytest.raises(PreconditionError) as unknown:
            await client.submit(
                {"unknown_skill_policy": "FAIL", "tasks": {"a": {"required_skills": "telepathy"}}}
            )
        assert unknown.value.reason == "UNKNOWN_SKILL"
        with pytest.raises(NotFoundError):
            await client.get("c-unknown")
        await first.result(PATIENCE_S)


async def test_locks_exclude_between_agents(plane: Launched, make: MakeAgent, eventually: Eventually) -> None:
    one, other = make(skills=["x"]), make(skills=["x"])
    bridge = f"bridge-{uuid.uuid4().hex[:8]}"
    async with one, other, Client(home=plane.home) as client:
        # Who may not wait and is not connected yet is told so, which is not what is asked here.
        await one.wait_ready()
        await other.wait_ready()
        async with one.lock(bridge) as held:
            assert not held.lost
            with pytest.raises(ResourceHeldError) as refused:
                async with other.lock(bridge, wait=0):
                    pytest.fail("entered a held lock")
            assert one.name in refused.value.holder
            with pytest.raises(ResourceHeldError):
                async with other.lock(bridge, shared=True, wait=0.1):
                    pytest.fail("entered a held lock")
            waiting = asyncio.create_task(other.lock(bridge).__aenter__())
            await eventually(lambda: _count(client, bridge, 2))
        later = await waiting
        assert later.token > held.token
        assert [(lock.agent_id, lock.held) for lock in await client.locks(bridge)] == [(other.name, True)]
    # The other one left without a release: its session's end gives the lock back.
    async with Client(home=plane.home) as client:
        await eventually(lambda: _count(client, bridge, 0))


async def _count(client: Client, resource: str, count: int) -> bool:
    return len(await client.locks(resource)) == count


async def test_a_declared_lock_comes_with_its_token(plane: Launched, make: MakeAgent) -> None:
    agent = make()
    bridge = f"bridge-{uuid.uuid4().hex[:8]}"

    @agent.handler("use")
    async def use(task: Task) -> list[int]:
        return [task.locks[bridge].epoch, task.locks[bridge].number]

    async with agent, Client(home=plane.home) as client:
        tasks = [
            {"task_id": str(number), "required_skills": ["use"], "resources": [bridge]} for number in range(3)
        ]
        result = await (await client.submit(own(agent, *tasks))).result(PATIENCE_S)
    tokens = [tuple(result[row.task_id]) for row in result.contributions]
    assert tokens == sorted(set(tokens))


async def test_messages_come_once_in_order_although_some_fail(
    plane: Launched, make: MakeAgent, eventually: Eventually
) -> None:
    """M2, M3 and M4 through the real broker."""
    receiver, sender = make(skills=["r"]), make(skills=["s"])
    handled: list[tuple[int, int]] = []

    @receiver.on_message()
    async def note(delivery: Delivery) -> None:
        if delivery.payload % 10 == 3 and delivery.delivery_number == 1:
            raise ValueError("the first time")
        handled.append((delivery.payload, delivery.sequence_number))

    async with receiver, sender:
        await asyncio.gather(receiver.wait_ready(), sender.wait_ready())
        numbers = await asyncio.gather(*(sender.send(receiver.name, number) for number in range(40)))
        assert [one.sequence_number for one in numbers] == list(range(1, 41))
        await eventually(lambda: len(handled) >= 40)
    assert handled == [(number, number + 1) for number in range(40)]


async def test_messages_wait_for_their_receiver(
    plane: Launched, make: MakeAgent, eventually: Eventually
) -> None:
    receiver, sender = make(skills=["r"]), make(skills=["s"])
    async with sender, Client(home=plane.home) as client:
        with pytest.raises(NotFoundError) as unknown:
            await sender.send("nobody", "x")
        assert unknown.value.reason == "AGENT_NOT_FOUND"
        async with receiver:
            await receiver.wait_ready()
        await sender.send(receiver.name, "while you were away")
        await sender.send(receiver.name, "fire", type="emergency", priority="EMERGENCY")
        lanes = {lane.priority: lane.waiting_count for lane in (await client.mailbox(receiver.name)).lanes}
        assert sum(lanes.values()) == 2
        async with receiver:
            messages = receiver.messages()
            first, second = await anext(messages), await anext(messages)
            assert (first.payload, second.payload) == ("fire", "while you were away")
            assert first.sender == sender.name
            first.ack()
            second.reject("too late")
            await eventually(lambda: _dead(client, receiver.name))
            (letter,) = await client.dead_letters(receiver.name)
            assert letter.message == "too late"


async def _dead(client: Client, agent: str) -> bool:
    return bool(await client.dead_letters(agent))


async def test_requests_are_answered(plane: Launched, make: MakeAgent) -> None:
    chief, scout = make(skills=["x"]), make(skills=["x"])

    @chief.on_message("resource_request")
    def answer(delivery: Delivery) -> dict[str, Any]:
        return {"granted": delivery.payload}

    async with chief, scout:
        answered = await scout.request(chief.name, "boat-1", type="resource_request", timeout=PATIENCE_S)
    assert answered == {"granted": "boat-1"}


async def test_a_blocked_loop_stays_ready(plane: Launched, make: MakeAgent) -> None:
    """P1 and P2 against the real registry."""
    agent = make(slots=2)
    agent.handler("x")(lambda task: None)
    async with agent, Client(home=plane.home) as client:
        await agent.wait_ready()
        (instance,) = (await client.agent(agent.name)).instances
        lease_ms = instance.lease_expire_time.ToMilliseconds() - time.time() * 1000
        time.sleep(1.2 * lease_ms / 1000)  # sleeps: blocking the loop is the test
        (instance,) = (await client.agent(agent.name)).instances
    assert instance.state == agent_pb2.AGENT_STATE_READY
    assert (instance.reconnects, instance.incarnation) == (0, 1)


async def test_a_second_process_takes_the_place_of_the_first(
    plane: Launched, make: MakeAgent, eventually: Eventually
) -> None:
    """P3."""
    first = make(skills=["x"])
    second = Agent(first.name, ["x"], home=plane.home)
    beside = Agent(first.name, ["x"], home=plane.home, instance="1")
    async with Client(home=plane.home) as client, beside:
        await beside.wait_ready()
        life = asyncio.create_task(first.serve())
        await eventually(lambda: _states(client, first.name, ready=2))
        async with second:
            await second.wait_ready()
            with pytest.raises(FencedError, match="instance_id of its own"):
                await asyncio.wait_for(life, PATIENCE_S)
            await eventually(lambda: _states(client, first.name, ready=2))


async def _states(client: Client, agent: str, *, ready: int) -> bool:
    states = [instance.state for instance in (await client.agent(agent)).instances]
    return states.count(agent_pb2.AGENT_STATE_READY) == ready


AGENT = """
import sys, time
from agent_client import Agent
agent = Agent(sys.argv[1], slots=2)

@agent.handler("sync")
def wait(task):
    open(sys.argv[2], "w").close()
    while not task.cancelled:
        time.sleep(0.01)
        if time.monotonic() > end: return "in time"

@agent.handler("block")
async def block(task):
    open(sys.argv[2], "w").close()
    time.sleep(60)

end = time.monotonic() + float(sys.argv[3])
sys.exit(agent.run())
"""


class Program:
    """An agent as people write it: a script that calls `agent.run()`."""

    def __init__(self, plane: Launched, folder: Path, seconds: float) -> None:
        self.name = f"a-{uuid.uuid4().hex[:8]}"
        plane.tls(f"agent/{self.name}")
        self.started, self._log = folder / "started", folder / "log"
        environ = {**os.environ, "MUSTER_HOME": str(plane.home)}
        environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "proto" / "gen")])
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", AGENT, self.name, str(self.started), str(seconds)],
                env=environ,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()


@pytest.fixture
def program(plane: Launched, tmp_path: Path) -> Iterator[Callable[[float], Program]]:
    made: list[Program] = []

    def start(seconds: float) -> Program:
        made.append(Program(plane, tmp_path, seconds))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        one.process.wait()


async def test_sigterm_finishes_what_is_held(
    plane: Launched, program: Callable[[float], Program], eventually: Eventually
) -> None:
    one = program(3.0)
    async with Client(home=plane.home) as client:
        task = {"task_id": "t", "required_skills": ["sync"], "required_agents": [one.name]}
        handle = await client.submit({"tasks": [task]})
        await eventually(one.started.exists, timeout=PATIENCE_S)
        one.process.send_signal(signal.SIGTERM)
        assert (await handle.result(PATIENCE_S))["t"] == "in time"
        await eventually(lambda: one.process.poll() is not None)
        assert one.process.returncode == 0, one.log
        assert "once more to leave at once" in one.log
        state = (await client.agent(one.name)).instances[0].state
        assert state == agent_pb2.AGENT_STATE_OFFLINE


@pytest.mark.parametrize("skill", ["sync", "block"])
async def test_a_second_interrupt_leaves_at_once(
    plane: Launched, program: Callable[[float], Program], eventually: Eventually, skill: str
) -> None:
    one = program(600.0)
    async with Client(home=plane.home) as client:
        task = {"task_id": "t", "required_skills": [skill], "required_agents": [one.name]}
        handle = await client.submit({"tasks": [task]})
        await eventually(one.started.exists, timeout=PATIENCE_S)
        one.process.send_signal(signal.SIGINT)
        # Also while the handler blocks the loop, the registry hears of the drain.
        await eventually(lambda: _draining(client, one.name))
        assert one.process.poll() is None
        one.process.send_signal(signal.SIGINT)
        await eventually(lambda: one.process.poll() is not None, timeout=5.0)
        assert one.process.returncode == 128 + signal.SIGINT
        await handle.cancel()


async def _draining(client: Client, agent: str) -> bool:
    return (await client.agent(agent)).instances[0].state == agent_pb2.AGENT_STATE_DRAINING
