"""`muster up|down|status|services`: the local plane, and what runs in any plane."""

from __future__ import annotations

import argparse
import os
import sys

from agent_client.cli.local import ask_local, local_command
from agent_client.cli.output import FAILED, OK, PATIENCE_S, Output
from agent_client.cli.words import Commands, command, port
from agent_client.client import Client
from agent_client.context import find_home
from agent_client.plain import to_plain

PORT_BASE = 7_400
UP_HELP = """\
The plane lives in the folder $MUSTER_HOME (default ./.muster): certificates, data, logs, and context.json
by which agents and this command find it. It listens on the loopback address only.
"""


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    up = command(commands, common, "up", _up, "start a plane on this machine; Ctrl-C stops it", UP_HELP)
    up.add_argument(
        "--port-base",
        type=port,
        default=PORT_BASE,
        metavar="N",
        help=f"first port; 0 takes free ones (default {PORT_BASE})",
    )
    command(commands, common, "down", _down, "stop the plane of this folder")
    command(
        commands,
        common,
        "status",
        _status,
        "say which processes of the local plane serve",
        "The exit code is 1 when one of them does not serve, 3 when no plane runs in the folder.",
    )
    command(commands, common, "services", _services, "list the live services and who leads")


def _up(options: argparse.Namespace, output: Output) -> int:
    arguments = ["up", "--directory", str(find_home()), "--port-base", str(options.port_base)]
    command_line = local_command(*arguments, *(["--json-events"] if output.as_json else []))
    # The launcher takes over this process: its signals and exit code are then the launcher's own.
    os.execv(sys.executable, command_line)  # noqa: S606  # no shell is meant


def _down(_: argparse.Namespace, output: Output) -> int:
    texts = {"asked": "Asking the plane to stop", "stopped": "No plane runs in {home} now."}
    for event in ask_local("down"):
        output.item(event, texts.get(event["event"], "").format(home=find_home()))
    return OK


def _status(_: argparse.Namespace, output: Output) -> int:
    parts = [event for event in ask_local("status") if event["event"] == "part"]
    rows = [(part["name"], part["address"], part["pid"], part["state"]) for part in parts]
    output.table(("PART", "ADDRESS", "PID", "STATE"), rows, parts, "no part of the plane runs")
    return OK if parts and all(part["state"] == "serving" for part in parts) else FAILED


async def _services(_: argparse.Namespace, output: Output) -> int:
    async with Client(patience=PATIENCE_S) as client:
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
    return OK
