"""The demo's child processes: a plane and a team of agents, which never outlive the demo."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from agent_client.cli.local import local_command
from agent_client.cli.output import Output

T = TypeVar("T")

# Seconds until the plane is up, and until a child that was asked to end has ended.
PLANE_S_MAX = 60.0
STOP_S_MAX = 30.0
# How many lines of its log are shown of a child that failed.
STORY_LINES = 8


class DemoError(Exception):
    """The demo can not go on; the message says why and where to look."""


class Children:
    """Every child process of the demo; those of `doomed` are killed instead of asked to end."""

    def __init__(self) -> None:
        self._running: set[Process] = set()
        self._doomed = False

    async def start(self, command_line: list[str], **how: Any) -> Process:
        """Start a child in a session of its own, so that Ctrl-C reaches only the demo."""
        process = await asyncio.create_subprocess_exec(*command_line, start_new_session=True, **how)
        self._running.add(process)
        return process

    async def read(self, command_line: list[str], **how: Any) -> bytes:
        """Run a program to its end and return what it printed. Raises DemoError when it fails."""
        process = await self.start(command_line, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, **how)
        try:
            printed, complaint = await process.communicate()
        finally:
            await self.stop(process, patient=False)
        if process.returncode:
            raise DemoError(f"{' '.join(command_line)} failed: {(complaint or printed).decode().strip()}")
        return printed

    async def stop(self, process: Process, *, patient: bool = True) -> None:
        """Ask a child to end, or kill it; return when it has ended."""
        try:
            with contextlib.suppress(ProcessLookupError):
                (process.terminate if patient and not self._doomed else process.kill)()
            async with asyncio.timeout(STOP_S_MAX):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        finally:
            self._running.discard(process)

    def kill(self) -> None:
        """Kill every child now, and at once each that is still to be stopped.

        What they started themselves is tethered to them.
        """
        self._doomed = True
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


# -- the plane ------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def running_plane(children: Children, folder: Path, output: Output) -> AsyncIterator[Process]:
    """Start a plane and wait until it is up; it ends with this process, whatever happens to it."""
    arguments = ["up", "--directory", str(folder), "--port-base", "0", "--json-events", "--until-stdin-ends"]
    complaints = folder / "launcher.stderr"
    with complaints.open("wb") as stderr:
        process = await children.start(local_command(*arguments), stdin=PIPE, stdout=PIPE, stderr=stderr)
    assert process.stdout is not None  # noqa: S101  # we asked for a pipe
    try:
        async with asyncio.timeout(PLANE_S_MAX):
            while (event := await _next_event(process.stdout, output)) != "ready":
                if not event:
                    raise DemoError(
                        f"the plane ended while it started; logs are in {folder / 'logs'}; it said:\n"
                        f"{tail(complaints)}"
                    )
    except TimeoutError as error:
        await children.stop(process)
        raise DemoError(f"the plane was not up within {PLANE_S_MAX:.0f} s; see {folder / 'logs'}") from error
    except BaseException:
        # Also Ctrl-C in the middle of the start.
        await children.stop(process)
        raise
    # The pipe is read to the end, so that the launcher never waits for us.
    reading = asyncio.create_task(_read_on(process.stdout, output))
    try:
        yield process
    finally:
        await children.stop(process)
        await reading


async def _read_on(events: asyncio.StreamReader, output: Output) -> None:
    while await _next_event(events, output):
        pass


async def _next_event(events: asyncio.StreamReader, output: Output) -> str:
    """Read one event of the plane and tell it; return its name, "" at the end."""
    line = await events.readline()
    if not line:
        return ""
    event = json.loads(line)
    match event["event"]:
        case "starting":
            output.line("Starting etcd, registry, two schedulers, broker and audit, with mTLS between them")
        case "serving":
            output.line(f"  {event['name']:<12} {event['address']:<16} pid {event['pid']}")
        case "coordinator":
            output.line(f"  {event['replica_id']} was elected coordinator, epoch {event['epoch']}")
        case "crashed" | "restarted":
            output.line(f"  {event['name']} {event['event']}")
        case "failed":
            raise DemoError(event["message"])
    return str(event["event"])


# -- the agents -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def running_team(
    children: Children, names: tuple[str, ...], module: str, *, root: Path, folder: Path
) -> AsyncIterator[Mapping[str, Process]]:
    """Enrol the agents and start `python -m MODULE NAME` for each; their logs go to team/ in `folder`."""
    (folder / "team").mkdir(mode=0o700)
    team: dict[str, Process] = {}
    try:
        for name in names:
            await children.read(
                local_command("issue-certificate", "--agent", name, "--directory", str(folder))
            )
            with log_of(name, folder).open("wb") as log:
                command_line = [*_tether(), sys.executable, "-m", module, name]
                team[name] = await children.start(
                    command_line, stdin=DEVNULL, stdout=log, stderr=log, cwd=root
                )
        yield team
    except BaseException:
        # Also Ctrl-C. Nobody waits any more for what they hold.
        await asyncio.gather(*(children.stop(process, patient=False) for process in team.values()))
        raise
    await asyncio.gather(*(children.stop(process) for process in team.values()))


def log_of(name: str, folder: Path) -> Path:
    """Return an agent's log."""
    return folder / "team" / f"{name}.log"


async def unless_one_ends(
    story: Coroutine[Any, Any, T], team: Mapping[str, Process], plane: Process, folder: Path
) -> T:
    """Return what `story` returns. Raises DemoError when the plane or an agent ends before it does."""
    telling = asyncio.create_task(story)
    ends = {asyncio.create_task(process.wait()): name for name, process in team.items()}
    ends[asyncio.create_task(plane.wait())] = ""
    try:
        done, _ = await asyncio.wait({telling, *ends}, return_when=asyncio.FIRST_COMPLETED)
        if telling in done:
            return telling.result()
        name = next(name for task, name in ends.items() if task in done)
        if not name:
            raise DemoError(f"the plane {_ending(plane)}; see {folder / 'logs' / 'launcher.log'}")
        log = log_of(name, folder)
        raise DemoError(f"the agent {name} {_ending(team[name])}; the end of {log}:\n{tail(log)}")
    finally:
        for task in (telling, *ends):
            task.cancel()
        await asyncio.gather(telling, *ends, return_exceptions=True)


def tail(path: Path) -> str:
    """Return the last lines of a log, indented."""
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = deque(file, maxlen=STORY_LINES)
    return "".join(f"  {line.rstrip()}\n" for line in lines).rstrip("\n") or "  (nothing)"


def _ending(process: Process) -> str:
    code = process.returncode or 0
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _tether() -> list[str]:
    """Return what begins the command line of a child that must not outlive a demo that is killed."""
    tether = importlib.util.find_spec("services.local.tether")
    if tether is None or tether.origin is None:
        raise DemoError("services.local.tether is missing: this checkout is not whole")
    return [sys.executable, "-I", "-S", tether.origin, str(os.getpid())]
