"""`muster up|down|status|services`: the local plane, and what runs in any plane."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys

from agent_client.cli.output import USAGE, Output, complain
from agent_client.cli.words import Commands, Run, command
from agent_client.client import Client
from agent_client.context import find_home
from agent_client.plain import to_plain


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    up = command(commands, common, "up", _up, "start a plane on this machine; Ctrl-C stops it")
    up.add_argument(
        "--port-base",
        type=int,
        default=7_400,
        metavar="N",
        help="first port; 0 takes free ones (default 7400)",
    )
    command(commands, common, "down", _local("down"), "stop the plane of this folder")
    command(commands, common, "status", _local("status"), "say which processes of the local plane serve")
    command(commands, common, "services", _services, "list the live services and who leads")


def local_command(*arguments: str) -> list[str]:
    """Return the command line of the local plane's own program."""
    return [sys.executable, "-m", "services.local", *arguments]


def services_missing() -> bool:
    """Say so and return True when the services are not installed beside the client."""
    if importlib.util.find_spec("services") is not None:
        return False
    complain("the services are not installed here: use a checkout (`make up`) or `pip install muster[local]`")
    return True


def _up(options: argparse.Namespace, output: Output) -> int:
    arguments = ["up", "--directory", str(find_home()), "--port-base", str(options.port_base)]
    command_line = local_command(*arguments, *(["--json-events"] if output.as_json else []))
    if not services_missing():
        # The launcher takes over this process: its signals and exit code are then the launcher's own.
        os.execv(sys.executable, command_line)  # noqa: S606  # no shell is meant
    return USAGE


def _local(verb: str) -> Run:
    def run(_: argparse.Namespace, output: Output) -> int:
        if services_missing():
            return USAGE
        json_events = ["--json-events"] if output.as_json else []
        command_line = local_command(verb, "--directory", str(find_home()), *json_events)
        return subprocess.run(command_line, check=False).returncode

    return run


async def _services(_: argparse.Namespace, output: Output) -> int:
    async with Client() as client:
        answer = await client.services()
    leader = answer.coordinator.replica_id
    rows = [
        (
            replica.service,
            replica.replica_id,
            replica.address,
            f"leads, epoch {answer.coordinator.epoch}" if replica.replica_id == leader else "",
        )
        for replica in answer.replicas
    ]
    items = [
        {**to_plain(replica), "leads": replica.replica_id == leader and bool(leader)}
        for replica in answer.replicas
    ]
    output.table(("SERVICE", "REPLICA", "ADDRESS", ""), rows, items, "no service is announced")
    return 0
