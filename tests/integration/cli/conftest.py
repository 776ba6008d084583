"""A real plane with an agent in processes, one for each module of the command's tests."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent_client.loop import link_thread
from tests.harness.launched import launched_plane
from tests.integration.cli.cli_process import ROOT, environment, items, muster

AGENT = "helper"
READY_S_MAX = 40.0
STOP_S_MAX = 20.0


@dataclass(frozen=True, slots=True)
class PlaneWithAgent:
    """`home` is the plane's folder; the agent's task "hold" ends when the file `gate` exists."""

    home: Path
    gate: Path
    agent: str = AGENT


@pytest.fixture(scope="session", autouse=True)
def _link() -> None:
    # It lives as long as the process, so it must be there before a test counts the threads.
    link_thread()


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaneWithAgent]:
    folder = tmp_path_factory.mktemp("cli")
    home, gate = folder / "plane", folder / "gate"
    with launched_plane(home):
        enrolled = muster("agents", "enroll", AGENT, "--json", home=home)
        assert json.loads(enrolled.stdout)["name"] == f"agent/{AGENT}"
        with (folder / "agent.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.cli.cli_agent", AGENT, str(gate)],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=environment(home),
            )
        try:
            _wait_ready(home)
            yield PlaneWithAgent(home, gate)
        finally:
            gate.touch()
            process.terminate()
            process.wait(STOP_S_MAX)


def _wait_ready(home: Path) -> None:
    deadline = time.monotonic() + READY_S_MAX
    while not any(agent["state"] == "READY" for agent in items("agents", "list", home=home)):
        assert time.monotonic() < deadline, "the agent does not get ready"
