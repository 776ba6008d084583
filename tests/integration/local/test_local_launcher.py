"""The launcher as a process: starts, refuses, mends, and leaves nothing behind however it ends.

With fake services, so that it is the launcher that is tested; etcd and every process are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from services.common.core.errors import ServiceError
from services.common.etcd.channel import EtcdTls
from services.common.etcd.client import EtcdClient
from services.common.identity import Principal
from services.local.certs import PlaneCertificates
from services.local.lock import holder
from services.local.ports import free_ports, is_free

SCRIPT = Path(__file__).parents[2] / "harness" / "fake_plane.py"
PATIENCE_S = 40.0
NAMES = {"etcd", "audit-1", "registry-1", "broker-1", "scheduler-1", "scheduler-2"}

Eventually = Callable[..., Awaitable[None]]
Event = dict[str, object]


class Launcher:
    """`python -m services.local COMMAND` in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[Event] = []

    async def hear(self, kind: str, **facts: object) -> Event:
        """Return the next event of a kind, with these facts; fails when the process ends first."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                event = await self._next()
                assert event is not None, f"no {kind!r} in {self.events}"
                if event["event"] == kind and facts.items() <= event.items():
                    return event

    async def wait(self) -> int:
        """Read every event until the process ends; return its exit code."""
        async with asyncio.timeout(PATIENCE_S):
            while await self._next() is not None:
                pass
            return await self.process.wait()

    def pids(self) -> dict[str, int]:
        """Return the newest process id of each part that served."""
        return {
            str(event["name"]): int(str(event["pid"]))
            for event in self.events
            if event["event"] in ("serving", "restarted")
        }

    def coordinator(self) -> Event:
        """Return the newest coordinator."""
        return [event for event in self.events if event["event"] == "coordinator"][-1]

    async def _next(self) -> Event | None:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            return None
        self.events.append(json.loads(line))
        return self.events[-1]


@contextlib.asynccontextmanager
async def launch(*arguments: str, **environ: str) -> AsyncIterator[Launcher]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(SCRIPT), *arguments, "--json-events"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "FAKE_GRACE_S": "2", **environ},
    )
    try:
        yield Launcher(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def up(directory: Path, *arguments: str, **environ: str) -> AsyncIterator[Launcher]:
    async with launch("up", "--directory", str(directory), "--port-base", "0", *arguments, **environ) as one:
        yield one


async def run(*arguments: str) -> tuple[int, list[Event]]:
    async with launch(*arguments) as one:
        return await one.wait(), one.events


def nothing_left(directory: Path) -> bool:
    """Whether no process of the plane in `directory` runs."""
    return not [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(directory) in word for word in process.info["cmdline"] or [])
        and process.status() != psutil.STATUS_ZOMBIE
    ]


async def test_up_status_down_and_up_again(tmp_path: Path, eventually: Eventually) -> None:
    directory = tmp_path / "plane"
    where = ("--directory", str(directory))
    async with up(directory) as plane:
        ready = await plane.hear("ready")
        assert set(plane.pids()) == NAMES
        assert plane.events[0]["event"] == "starting"
        coordinator = plane.coordinator()
        assert str(coordinator["replica_id"]).startswith("scheduler-")

        context = json.loads((directory / "context.json").read_text())
        assert context["registry"] == [ready["registry"]]
        for path in (context["ca"], *context["operator"].values()):
            assert (directory / path).is_file()
        folders = [directory, *(path for path in directory.iterdir() if path.is_dir())]
        assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}

        code, said = await run("status", *where)
        assert code == 0
        assert {(event["name"], event["state"]) for event in said} == {(name, "serving") for name in NAMES}
        assert {str(event["name"]): event["pid"] for event in said} == plane.pids()

        code, said = await run("issue-certificate", *where, "--agent", "s-agent")
        assert (code, said[0]["certificate"]) == (0, str(directory / "agents" / "s-agent.crt"))

        code, said = await run("down", *where)
        assert (code, said[-1]["event"]) == (0, "stopped")
        assert await plane.wait() == 0
        assert plane.events[-1]["event"] == "stopped"
        assert "killed" not in {event["event"] for event in plane.events}
    await eventually(lambda: nothing_left(directory))
    assert not (directory / "plane.json").exists()
    ports = [int(str(ready["etcd"]).rpartition(":")[2]), int(str(ready["registry"]).rpartition(":")[2])]
    assert all(is_free(port) for port in ports)

    code, said = await run("status", *where)
    assert code == 1
    assert "up" in str(said[0]["message"])
    assert (await run("down", *where))[0] == 0

    # The same folder again, on other ports, over the data of the first run.
    async with up(directory) as plane:
        again = await plane.hear("coordinator")
        assert int(str(again["epoch"])) > int(str(coordinator["epoch"]))
        await plane.hear("ready")
        plane.process.send_signal(signal.SIGINT)
        assert await plane.wait() == 0
    await eventually(lambda: nothing_left(directory))


async def test_a_second_plane_in_the_folder_is_refused(tmp_path: Path, eventually: Eventually) -> None:
    async with up(tmp_path) as plane:
        await plane.hear("starting")
        code, said = await run("up", "--directory", str(tmp_path), "--port-base", "0")
        assert code == 1
        assert [event["event"] for event in said] == ["failed"]
        assert f"pid {plane.process.pid}" in str(said[0]["message"])
        assert "--directory" in str(said[0]["message"])
        # The first one is not disturbed.
        await plane.hear("ready")
        plane.process.send_signal(signal.SIGTERM)
        assert await plane.wait() == 0
    await eventually(lambda: nothing_left(tmp_path))


async def test_a_taken_port_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.socket() as listener:
        base = free_ports(1)[0]
        listener.bind(("127.0.0.1", base + 3))
        listener.listen()
        code, said = await run("up", "--directory", str(tmp_path), "--port-base", str(base))
    assert code == 1
    assert [event["event"] for event in said] == ["starting", "failed"]
    assert f"port {base + 3} for broker-1" in str(said[-1]["message"])
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("moment", [("starting", {}), ("serving", {"name": "etcd"})])
async def test_ctrl_c_in_the_middle_of_the_start(
    tmp_path: Path, eventually: Eventually, moment: tuple[str, Event]
) -> None:
    async with up(tmp_path) as plane:
        kind, facts = moment
        await plane.hear(kind, **facts)
        plane.process.send_signal(signal.SIGINT)
        assert await plane.wait() == 0
        assert "ready" not in {event["event"] for event in plane.events}
    await eventually(lambda: nothing_left(tmp_path))
    assert holder(tmp_path / "lock") is None


async def test_a_service_that_ignores_the_request_is_killed(tmp_path: Path, eventually: Eventually) -> None:
    async with up(tmp_path, FAKE_EXTRA='{"broker": {"fail": "term"}}') as plane:
        await plane.hear("ready")
        plane.process.send_signal(signal.SIGTERM)
        assert await plane.wait() == 0
        assert [event["name"] for event in plane.events if event["event"] == "killed"] == ["broker-1"]
    await eventually(lambda: nothing_left(tmp_path))


async def test_ctrl_c_twice_ends_at_once(tmp_path: Path, eventually: Eventually) -> None:
    extra = '{"scheduler": {"fail": "term"}}'
    async with up(tmp_path, FAKE_EXTRA=extra, FAKE_GRACE_S="3600") as plane:
        await plane.hear("ready")
        plane.process.send_signal(signal.SIGINT)
        await plane.hear("stopping")
        plane.process.send_signal(signal.SIGINT)
        assert await plane.wait() == 130
        # The launcher killed its processes before it left.
        assert not any(psutil.pid_exists(pid) for pid in plane.pids().values())
    await eventually(lambda: nothing_left(tmp_path))


async def test_kill_9_of_the_launcher_leaves_nothing(tmp_path: Path, eventually: Eventually) -> None:
    async with up(tmp_path) as plane:
        ready = await plane.hear("ready")
        plane.process.kill()
        await plane.wait()
    await eventually(lambda: nothing_left(tmp_path))
    # A process that ends loses its name before its sockets.
    await eventually(lambda: is_free(int(str(ready["etcd"]).rpartition(":")[2])))
    assert holder(tmp_path / "lock") is None
    # What is left in the folder does not hinder the next start.
    async with up(tmp_path) as plane:
        await plane.hear("ready")
        plane.process.send_signal(signal.SIGTERM)
        assert await plane.wait() == 0
    await eventually(lambda: nothing_left(tmp_path))


async def test_the_plane_ends_with_the_program_that_started_it(
    tmp_path: Path, eventually: Eventually
) -> None:
    async with up(tmp_path, "--until-stdin-ends") as plane:
        await plane.hear("ready")
        assert plane.process.stdin is not None
        plane.process.stdin.close()
        assert await plane.wait() == 0
    await eventually(lambda: nothing_left(tmp_path))


async def test_what_crashes_is_started_again(tmp_path: Path, eventually: Eventually) -> None:
    async with up(tmp_path) as plane:
        await plane.hear("ready")
        leader = plane.coordinator()
        for name in ("broker-1", "etcd", str(leader["replica_id"])):
            before = plane.pids()[name]
            os.kill(before, signal.SIGKILL)
            assert "SIGKILL" in str((await plane.hear("crashed", name=name))["story"])
            assert (await plane.hear("restarted", name=name))["pid"] != before
        if not any(
            event["event"] == "coordinator" for event in plane.events[plane.events.index(leader) + 1 :]
        ):
            await plane.hear("coordinator")
        code, said = await run("status", "--directory", str(tmp_path))
        assert code == 0, said
        assert {str(event["name"]): event["pid"] for event in said} == plane.pids()
        plane.process.send_signal(signal.SIGTERM)
        assert await plane.wait() == 0
    await eventually(lambda: nothing_left(tmp_path))


async def test_a_service_that_can_not_start_ends_the_start_with_its_story(
    tmp_path: Path, eventually: Eventually
) -> None:
    async with up(tmp_path, FAKE_EXTRA='{"audit": {"fail": "start"}}') as plane:
        assert await plane.wait() == 1
        failed = plane.events[-1]
        assert failed["event"] == "failed"
        assert "audit-1 ended with exit code 1" in str(failed["message"])
        assert "this service was told to fail" in str(failed["message"])
    await eventually(lambda: nothing_left(tmp_path))


async def test_no_certificate_of_the_plane_opens_etcd(tmp_path: Path) -> None:
    async with up(tmp_path) as plane:
        ready = await plane.hear("ready")
        certificates = PlaneCertificates(tmp_path)
        agent = certificates.issue(Principal("agent", "intruder"))
        etcd_ca = certificates.etcd_server().ca
        for pair in (agent, certificates.service_pair("registry"), certificates.operator_pair()):
            tls = EtcdTls(etcd_ca, *pair)
            async with EtcdClient([str(ready["etcd"])], tls, request_timeout_s=1.0) as client:
                with pytest.raises(ServiceError):
                    await client.get("/")
        async with EtcdClient([str(ready["etcd"])], certificates.etcd_client()) as client:
            assert (await client.get_prefix("/muster/services/")).kvs
        plane.process.send_signal(signal.SIGTERM)
        assert await plane.wait() == 0
