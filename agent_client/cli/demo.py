"""`muster demo`: a whole plane, four agents, one flood decision, its record verified, nothing left."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

from muster.registry.v1 import agent_pb2

from agent_client.audit import AuditLog, Verified
from agent_client.cli.audit import verify
from agent_client.cli.children import Children, DemoError, running_plane, running_team, unless_one_ends
from agent_client.cli.collaborations import follow
from agent_client.cli.local import local_command
from agent_client.cli.output import FAILED, OK, USAGE, Output, clock, complain
from agent_client.cli.words import Commands, command
from agent_client.client import Client
from agent_client.context import HOME_VARIABLE
from agent_client.errors import MusterError
from agent_client.verify import VerificationError
from agent_client.views import CollaborationInfo

SCENARIO = Path(__file__).parents[2] / "examples" / "flood_response"
TEAM = ("strategist", "awareness", "field", "executor")
# Seconds until the agents are ready, and until the end is in the log.
READY_S_MAX = 30.0
LOGGED_S_MAX = 20.0
# How often what is left of the folder is removed while processes that were killed still end.
REMOVALS_MAX = 50
REMOVAL_PAUSE_S = 0.1


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
        "--scenario",
        type=Path,
        default=SCENARIO,
        metavar="DIR",
        help="a Python package with scenario.json, agents.py and collaboration.py (default: the flood)",
    )
    demo.add_argument("--keep", action="store_true", help="keep the folder with logs, data and certificates")


async def _demo(options: argparse.Namespace, output: Output) -> int:
    scenario: Path = options.scenario.resolve()
    missing = [
        name
        for name in ("scenario.json", "__init__.py", "agents.py", "collaboration.py")
        if not (scenario / name).is_file()
    ]
    if missing:
        complain(f"{scenario} has no {missing[0]}; run `make demo` in a checkout of Muster")
        return USAGE
    local_command()
    children = Children()
    folder = Path(tempfile.mkdtemp(prefix="muster-demo-"))
    kept = options.keep
    with _interruptible(children) as interrupts:
        try:
            await _run(scenario, folder, children, output)
        except (DemoError, MusterError, VerificationError, OSError) as error:
            if interrupts:
                return 128 + interrupts[0]
            kept = True
            complain(str(error))
            return FAILED
        except asyncio.CancelledError:
            if not interrupts:
                raise
            return 128 + interrupts[0]
        else:
            return OK
        finally:
            if kept:
                complain(f"logs, data and certificates are in {folder}")
            else:
                _remove(folder)


@contextlib.contextmanager
def _interruptible(children: Children) -> Iterator[list[signal.Signals]]:
    """Make the first signal cancel the demo and a second one kill its children; yield those that came."""
    demo, loop = asyncio.current_task(), asyncio.get_running_loop()
    came: list[signal.Signals] = []

    def interrupt(number: signal.Signals) -> None:
        came.append(number)
        if len(came) > 1:
            children.kill()
        elif demo is not None:
            complain("stopping everything; Ctrl-C again ends it at once")
            demo.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # nohup has the end of the terminal ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, interrupt, number)
    yield came
    if came:
        # Only the end of the process is left; one more Ctrl-C would but show a traceback.
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _remove(folder: Path) -> None:
    for _ in range(REMOVALS_MAX):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(REMOVAL_PAUSE_S)
    complain(f"{folder} could not be removed")


async def _run(scenario: Path, folder: Path, children: Children, output: Output) -> None:
    began = time.monotonic()
    os.environ[HOME_VARIABLE] = str(folder)
    root, package = _package(scenario)
    async with contextlib.AsyncExitStack() as stack:
        plane = await stack.enter_async_context(running_plane(children, folder, output))
        module = f"{package}.agents"
        team = await stack.enter_async_context(running_team(children, TEAM, module, root=root, folder=folder))
        command_line = [sys.executable, "-m", f"{package}.collaboration", str(scenario / "scenario.json")]
        story = _decide(partial(children.read, command_line, cwd=root), folder, output)
        info, verified = await unless_one_ends(story, team, plane, folder)
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


def _package(folder: Path) -> tuple[Path, str]:
    """Return where Python finds the package in `folder`, and its dotted name."""
    root = folder
    while (root / "__init__.py").is_file():
        root = root.parent
    return root, ".".join(folder.relative_to(root).parts)


async def _decide(
    read_submission: Callable[[], Awaitable[bytes]], folder: Path, output: Output
) -> tuple[CollaborationInfo, Verified]:
    """Wait for the team, give it the flood, show what it does and decides, and verify the record."""
    async with Client() as client:
        spec = json.loads(await read_submission())
        await _wait_ready(client, folder)
        output.line(f"{len(TEAM)} agents are ready: {', '.join(TEAM)}\n")
        info = await follow(await client.submit(spec), output)
    _tell(info, output)
    return info, await _verify(info, output)


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
