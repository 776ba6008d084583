"""`muster up`, `status` and `down`: what a person meets who has a plane already, or a port taken."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from pathlib import Path

import pytest

from services.local.ports import free_ports
from tests.integration.cli.cli_process import (
    COMMAND,
    environment,
    muster,
    muster_process,
    succeed,
    wait_nothing_runs,
)

pytestmark = pytest.mark.timeout(90)


def test_a_taken_port_is_said_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", free_ports(1)[0])) as taken:
        port = taken.getsockname()[1]
        done = muster_process("up", "--port-base", str(port), home=tmp_path / "plane")
    assert done.returncode == 1
    assert re.search(rf"port {port} for \w+ is taken by another program", done.stderr)
    assert "--port-base N" in done.stderr
    wait_nothing_runs(tmp_path, 10)


def test_one_plane_in_a_folder_which_can_be_asked_and_stopped(tmp_path: Path) -> None:
    home = tmp_path / "plane"
    with subprocess.Popen(
        [*COMMAND, "--json", "up", "--port-base", "0", "--home", str(home)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as first:
        assert first.stdout is not None
        assert any(json.loads(line)["event"] == "ready" for line in first.stdout)
        second = muster_process("up", "--port-base", "0", home=home)
        assert second.returncode == 1
        assert re.search(rf"a plane already runs in \S+ \(pid {first.pid}\)", second.stderr)
        status = succeed("status", home=home).splitlines()
        assert len(status) == 7
        assert all(line.endswith("serving") for line in status[1:])
        assert f"No plane runs in {home} now." in succeed("down", home=home)
        first.communicate(timeout=30)
    assert first.returncode == 0
    stopped = muster("status", home=home)
    assert stopped.returncode == 3
    assert f"start one: muster up --home {home}" in stopped.stderr
    wait_nothing_runs(tmp_path, 10)
    # What was written remains, and says nothing false: the plane is known and does not answer.
    silent = muster("services", home=home)
    assert silent.returncode == 3
    assert "UNAVAILABLE" in silent.stderr
    assert "`muster status` shows what runs here, `muster up` starts it" in silent.stderr
