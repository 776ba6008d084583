"""The local plane's own program, asked as a process: the client does not import the services."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from agent_client.context import find_home
from agent_client.errors import ContextError, MusterError


def local_command(*arguments: str) -> list[str]:
    """Return the command line of the local plane's own program. Raises MusterError where it is missing."""
    if importlib.util.find_spec("services") is None:
        raise MusterError(
            "the services are not installed here: use a checkout (`make up`) or `pip install muster[local]`",
            reason="NO_SERVICES",
        )
    return [sys.executable, "-m", "services.local", *arguments]


def ask_local(verb: str, *arguments: str) -> Iterator[dict[str, Any]]:
    """Run a verb on the plane's folder and yield its events. Raises ContextError when it fails."""
    command_line = local_command(verb, "--directory", str(find_home()), "--json-events", *arguments)
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stdout is not None  # noqa: S101  # we asked for a pipe
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "failed":
                raise ContextError(_for_this_command(event["message"]), reason="NO_PLANE")
            yield event


def _for_this_command(message: str) -> str:
    """Name the command that the reader has at hand instead of the local plane's own program."""
    return message.replace("python -m services.local up --directory ", "muster up --home ")
