"""Locks of agents, seen by `etcdctl` and the package `etcd3`, and held against them, in one running plane."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from agent_client import Agent, Client, ResourceHeldError, Task
from services.local.etcd_server import find_etcd
from tests.harness.launched import Launched, launched_plane

Eventually = Callable[..., Awaitable[None]]

pytestmark = pytest.mark.timeout(120)

PATIENCE_S = 20.0
PREFIX = "/muster/locks/"
BRIDGE = f"{PREFIX}bridge-3"
SPEC = {"tasks": [{"task_id": "cross", "required_skills": ["cross"], "estimated_duration": 0.1}]}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    with launched_plane(tmp_path_factory.mktemp("plane")) as launched:
        yield launched


class Crossing:
    """An agent that takes the bridge in its handler's code and keeps it until it is told to go on."""

    def __init__(self, plane: Launched) -> None:
        plane.tls("agent/crosser")
        self.agent = Agent("crosser", home=plane.home)
        self.agent.handler("cross")(self.cross)
        self.on_bridge, self.go_on = asyncio.Event(), asyncio.Event()
        self.token = ""

    async def cross(self, task: Task) -> str:
        async with task.lock("bridge-3") as held:
            self.token = str(held.token)
            self.on_bridge.set()
            await self.go_on.wait()
            held.check()
        return self.token


@contextlib.asynccontextmanager
async def etcdctl(plane: Launched, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run etcdctl with the connection that the launcher prints, for the length of an `async with`."""
    _, *printed = shlex.split(plane.facts["etcdctl_command"])
    connection = printed[: printed.index("get")]
    process = await asyncio.create_subprocess_exec(
        *(str(find_etcd().with_name("etcdctl")), *connection, *words),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "ETCDCTL_API": "3"},
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)).decode().strip()


async def keys(plane: Launched) -> dict[str, str]:
    """Return key -> value below the locks, as `etcdctl get --prefix` prints them."""
    async with etcdctl(plane, "get", "--prefix", PREFIX) as reading:
        printed, _ = await asyncio.wait_for(reading.communicate(), PATIENCE_S)
    lines = printed.decode().splitlines()
    return dict(zip(lines[::2], lines[1::2], strict=True))


ETCD3 = """
import json, sys, etcd3
host, _, port = sys.argv[1].partition(":")
client = etcd3.client(host, int(port), ca_cert=sys.argv[2], cert_cert=sys.argv[3], cert_key=sys.argv[4])
print(json.dumps([
    [meta.key.decode(), value.decode(), meta.create_revision, meta.lease_id]
    for value, meta in client.get_prefix(sys.argv[5])
]))
"""


async def seen_by_etcd3(plane: Launched, folder: Path) -> list[tuple[str, str, int, int]]:
    """Return (key, value, create revision, lease) of the locks, read by the package etcd3."""
    script = folder / "look.py"
    script.write_text(ETCD3)
    files = [str(plane.home / "etcd" / name) for name in ("ca.crt", "admin.crt", "admin.key")]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), plane.facts["etcd"], *files, PREFIX),
        stdout=asyncio.subprocess.PIPE,
        # Its generated code is older than today's protobuf; in pure Python it still loads.
        env={**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"},
    )
    printed, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    return [(key, value, revision, lease) for key, value, revision, lease in json.loads(printed)]


async def test_a_lock_taken_in_code_is_seen_by_others_and_keeps_them_out(
    plane: Launched, tmp_path: Path, eventually: Eventually
) -> None:
    crossing = Crossing(plane)
    async with crossing.agent, Client(home=plane.home) as client:
        collaboration = await client.submit(SPEC)
        await asyncio.wait_for(crossing.on_bridge.wait(), PATIENCE_S)
        ((key, value),) = (await keys(plane)).items()
        assert key.startswith(f"{BRIDGE}/")
        said = json.loads(value)
        assert said["mode"] == "EXCLUSIVE"
        assert "crosser" in value
        assert collaboration.id in value

        ((seen_key, seen_value, revision, lease),) = await seen_by_etcd3(plane, tmp_path)
        assert (seen_key, seen_value) == (key, value)
        # The fencing token's number is the key's create revision: what etcd itself orders by.
        assert crossing.token.rpartition(".")[2] == str(revision)
        assert lease, "the lock would outlive its holder"

        async with etcdctl(plane, "lock", BRIDGE) as theirs:

            async def waits() -> object:
                return len(await keys(plane)) == 2

            await eventually(waits)
            ours, other = await client.locks("bridge-3")
            assert (ours.held, ours.agent_id) == (True, "crosser")
            assert not other.held
            assert theirs.returncode is None
            crossing.go_on.set()
            # It prints its key when it holds the lock.
            granted = await line(theirs)
            assert granted.startswith(f"{BRIDGE}/")
            assert granted != key
            assert list(await keys(plane)) == [granted]
            theirs.send_signal(signal.SIGINT)
            await asyncio.wait_for(theirs.wait(), PATIENCE_S)
        assert (await collaboration.result(PATIENCE_S)).outputs == {"cross": crossing.token}


async def test_a_lock_of_etcdctl_keeps_agents_out(plane: Launched, eventually: Eventually) -> None:
    crossing = Crossing(plane)
    crossing.go_on.set()
    async with etcdctl(plane, "lock", BRIDGE) as theirs, Client(home=plane.home) as client:
        key = await line(theirs)
        assert key.startswith(f"{BRIDGE}/")
        async with crossing.agent as agent:
            await asyncio.wait_for(agent.wait_ready(), PATIENCE_S)

            # One that does not want to wait is told whose key it is.
            with pytest.raises(ResourceHeldError) as refusal:
                async with agent.lock("bridge-3", wait=0):
                    pass
            assert f"{BRIDGE}/{refusal.value.holder}" == key
            assert refusal.value.metadata["resource"] == "bridge-3"
            # Another resource is free.
            async with agent.lock("bridge-4", wait=0):
                assert any(name.startswith(f"{PREFIX}bridge-4/") for name in await keys(plane))

            collaboration = await client.submit(SPEC)

            async def waits() -> object:
                return [lock.held for lock in await client.locks("bridge-3")] == [True, False]

            await eventually(waits)
            assert not crossing.on_bridge.is_set()
            theirs.send_signal(signal.SIGINT)
            await asyncio.wait_for(theirs.wait(), PATIENCE_S)
            assert (await collaboration.result(PATIENCE_S)).outputs == {"cross": crossing.token}

    async def nothing_is_left() -> object:
        return await keys(plane) == {}

    await eventually(nothing_is_left)


async def test_a_task_that_declares_a_lock_waits_for_etcdctl(plane: Launched, eventually: Eventually) -> None:
    plane.tls("agent/walker")
    agent = Agent("walker", home=plane.home)

    @agent.handler("walk")
    def walk(task: Task) -> list[str]:
        return list(task.locks)

    task = {"task_id": "walk", "required_skills": ["walk"], "resources": ["bridge-3"]}
    async with etcdctl(plane, "lock", BRIDGE) as theirs, Client(home=plane.home) as client, agent:
        await line(theirs)
        await asyncio.wait_for(agent.wait_ready(), PATIENCE_S)
        collaboration = await client.submit({"tasks": [task | {"estimated_duration": 0.1}]})

        async def says_why() -> object:
            (waiting,) = (await collaboration.info()).tasks
            return "bridge-3" in waiting.waiting_for

        await eventually(says_why)
        theirs.send_signal(signal.SIGINT)
        assert (await collaboration.result(PATIENCE_S)).outputs == {"walk": ["bridge-3"]}
