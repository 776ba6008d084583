"""`muster demo`: a whole plane, four agents, one flood decision, its record verified, nothing left."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from muster.registry.v1 import agent_pb2

from agent_client.audit import AuditLog, Verified
from agent_client.cli.audit import verify
from agent_client.cli.collaborations import follow
from agent_client.cli.output import FAILED, OK, USAGE, Output, clock, complain
from agent_client.cli.plane import local_command, services_missing
from agent_client.cli.words import Commands, command
from agent_client.client import Client
from agent_client.context import HOME_VARIABLE
from agent_client.views import CollaborationInfo

CHECKOUT = Path(__file__).parents[2]
SCENARIO = CHECKOUT / "examples" / "flood_response"
TEAM = ("strategist", "awareness", "field", "executor")
# Seconds: until the plane is up, the agents are ready, the end is in the log, and children have ended.
PLANE_S_MAX = 60.0
READY_S_MAX = 30.0
LOGGED_S_MAX = 20.0
STOP_S_MAX = 30.0


class DemoError(Exception):
    """The demo can not go on; the message says why and where to look."""


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Declare the subcommand."""
    demo = command(
        commands,
        common,
        "demo",
        _demo,
        "let four agents decide on a flood in a plane of its own",
        "Everything runs on free ports of the loopback address in a temporary folder and is stopped at the\n"
        "end, also after Ctrl-C. A second Ctrl-C ends it at once.",
    )
    demo.add_argument(
        "--scenario", type=Path, default=SCENARIO, metavar="DIR", help="a folder of examples/ with its agents"
    )
    demo.add_argument("--keep", action="store_true", help="keep the folder with logs, data and certificates")


async def _demo(options: argparse.Namespace, output: Output) -> int:
    scenario: Path = options.scenario.resolve()
    if services_missing():
        return USAGE
    if not (scenario / "scenario.json").is_file() or not scenario.is_relative_to(CHECKOUT):
        complain(f"{scenario} has no scenario.json inside a checkout of Muster; run `make demo` there")
        return USAGE
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  # asyncio.run made one
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    folder = Path(tempfile.mkdtemp(prefix="muster-demo-"))
    kept = options.keep
    try:
        await _run(scenario, folder, output)
    except DemoError as error:
        kept = True
        complain(str(error))
        return FAILED
    else:
        return OK
    finally:
        if kept:
            complain(f"logs, data and certificates are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


async def _run(scenario: Path, folder: Path, output: Output) -> None:
    began = time.monotonic()
    os.environ[HOME_VARIABLE] = str(folder)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(_plane(folder, output))
        await stack.enter_async_context(_team(scenario, folder))
        client = await stack.enter_async_context(Client())
        await _wait_ready(client, folder)
        output.line(f"{len(TEAM)} agents are ready: {', '.join(TEAM)}\n")
        collaboration = await client.submit(await _submission(scenario))
        info = await follow(collaboration, output)
        _tell(info, output)
        verified = await _verify(info, output)
    seconds = time.monotonic() - began
    output.item(
        {
            "collaboration_id": info.id,
            "state": info.state,
            "outputs": dict(info.result().outputs),
            "log_entries": verified.tree_size,
            "seconds": round(seconds, 1),
        },
        f"Everything is stopped; it took {seconds:.1f} s.",
    )


# -- the plane ------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _plane(folder: Path, output: Output) -> AsyncIterator[None]:
    """Start a plane and wait until it is up; it ends with this process, whatever happens to it."""
    arguments = ["up", "--directory", str(folder), "--port-base", "0", "--json-events", "--until-stdin-ends"]
    process = await asyncio.create_subprocess_exec(
        *local_command(*arguments), stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True
    )
    assert process.stdout is not None  # noqa: S101  # we asked for a pipe
    try:
        async with asyncio.timeout(PLANE_S_MAX):
            while await _next_event(process.stdout, folder, output) != "ready":
                pass
        # The pipe is read to the end, so that the launcher never waits for us.
        reading = asyncio.create_task(_drain_events(process.stdout, output))
        try:
            yield
        finally:
            await _stop(process)
            await reading
    except TimeoutError as error:
        raise DemoError(f"the plane was not up within {PLANE_S_MAX:.0f} s; see {folder / 'logs'}") from error
    finally:
        await _stop(process)


async def _next_event(events: asyncio.StreamReader, folder: Path, output: Output) -> str:
    line = await events.readline()
    if not line:
        raise DemoError(f"the plane ended while it started; see {folder / 'logs'}")
    event = json.loads(line)
    match event["event"]:
        case "starting":
            output.line("Starting etcd, registry, two schedulers, broker and audit, with mTLS between them")
        case "serving":
            output.line(f"  {event['name']:<12} {event['address']:<16} pid {event['pid']}")
        case "coordinator":
            output.line(f"  {event['replica_id']} was elected coordinator, epoch {event['epoch']}")
        case "failed":
            raise DemoError(event["message"])
    return str(event["event"])


async def _drain_events(events: asyncio.StreamReader, output: Output) -> None:
    while line := await events.readline():
        event = json.loads(line)
        if event["event"] in ("crashed", "restarted"):
            output.line(f"  {event['name']} {event['event']}")


# -- the agents -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _team(scenario: Path, folder: Path) -> AsyncIterator[None]:
    """Enrol and start the scenario's agents, each as a process of its own."""
    module = ".".join([*scenario.relative_to(CHECKOUT).parts, "agents"])
    tether = importlib.util.find_spec("services.local.tether")
    assert tether is not None and tether.origin is not None  # noqa: S101, PT018  # it is in the same checkout
    (folder / "team").mkdir(mode=0o700)
    processes: list[Process] = []
    try:
        for name in TEAM:
            enrol = local_command("issue-certificate", "--agent", name, "--directory", str(folder))
            await _read(enrol)
            with (folder / "team" / f"{name}.log").open("wb") as log:
                processes.append(
                    await asyncio.create_subprocess_exec(
                        # Tethered, so that agents do not outlive a demo that is killed.
                        *(sys.executable, "-I", "-S", tether.origin, str(os.getpid())),
                        *(sys.executable, "-m", module, name),
                        stdin=DEVNULL,
                        stdout=log,
                        stderr=log,
                        cwd=CHECKOUT,
                        start_new_session=True,
                    )
                )
        yield
    finally:
        await asyncio.gather(*(_stop(process) for process in processes))


async def _wait_ready(client: Client, folder: Path) -> None:
    ready: set[str] = set()
    try:
        async with asyncio.timeout(READY_S_MAX):
            async for frame in client.watch_agents():
                ready |= {a.agent_id for a in frame.agents if a.state == agent_pb2.AGENT_STATE_READY}
                if ready >= set(TEAM):
                    return
    except TimeoutError as error:
        missing = ", ".join(sorted(set(TEAM) - ready))
        raise DemoError(f"{missing} did not get ready; see {folder / 'team'}") from error


async def _submission(scenario: Path) -> Any:
    module = ".".join([*scenario.relative_to(CHECKOUT).parts, "collaboration"])
    return json.loads(await _read([sys.executable, "-m", module, str(scenario / "scenario.json")]))


# -- the end --------------------------------------------------------------------------------------


def _tell(info: CollaborationInfo, output: Output) -> None:
    if info.state != "COMPLETED":
        raise DemoError(f"the collaboration is {info.state}: {info.failure}")
    if output.as_json:
        return
    result = info.result()
    for decision in result.outputs.values():
        output.line(f"\nDECISION  {decision['headline']}", style="bold")
        for line in decision["summary"]:
            output.line(f"  {line}")
        if decision["notices"]:
            output.line("\nWhat the agents told the coordinator on the way")
            for notice in decision["notices"]:
                output.line(f"  {notice}")
    output.line("\nWho contributed what")
    for row in result.contributions:
        output.line(
            f"  {row.agent_id:<11} {row.task_id:<22} {clock(row.start_time)} to {clock(row.end_time)}"
        )
    output.line("")


async def _verify(info: CollaborationInfo, output: Output) -> Verified:
    """Wait until the end of the collaboration is in the log, then check the whole log."""
    async with AuditLog() as log:
        try:
            async with asyncio.timeout(LOGGED_S_MAX):
                # Entries come through an outbox, a moment later than what they tell of.
                async for logged in log.tail(from_index=0, collaboration_id=info.id):
                    if logged.entry.operation == "collaboration.complete":
                        break
        except TimeoutError as error:
            raise DemoError(f"the end of {info.id} is not in the audit log") from error
        entries = await log.query(collaboration_id=info.id, limit=1_000)
        output.line(f"{len(entries)} entries of the audit log tell the course of {info.id}.")
        return await verify(log, output)


async def _read(command_line: list[str]) -> bytes:
    """Run a program of the checkout and return what it printed."""
    process = await asyncio.create_subprocess_exec(*command_line, stdout=PIPE, stderr=PIPE, cwd=CHECKOUT)
    printed, complaint = await process.communicate()
    if process.returncode:
        raise DemoError(f"{' '.join(command_line)} failed: {(complaint or printed).decode().strip()}")
    return printed


async def _stop(process: Process) -> None:
    """Ask a process to end; kill it when it does not."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_S_MAX):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
