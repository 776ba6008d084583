"""The muster command as a process, and what may be left of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from agent_client.cli.__main__ import main

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "agent_client.cli"]
# A call may take this long on a busy machine, in seconds.
CALL_S_MAX = 45.0


def environment(home: Path | None = None, **more: str) -> dict[str, str]:
    """Return the environment of a user's shell, with our sources and `home` as the plane's folder."""
    dropped = ("MUSTER_HOME", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    kept["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "proto" / "gen")])
    if home is not None:
        kept["MUSTER_HOME"] = str(home)
    return {**kept, **more}


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def muster(*arguments: str, home: Path, given: str = "") -> Done:
    """Run a command to its end in this process, as if its output went to pipes.

    What a person would see as a traceback is an exception here.
    """
    output, complaints = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, environment(home), clear=True),
        mock.patch.object(sys, "stdin", io.StringIO(given)),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(complaints),
    ):
        try:
            code = main(list(arguments))
        except SystemExit as end:
            # argparse says so itself.
            code = int(str(end.code))
    return Done(code, output.getvalue(), complaints.getvalue())


def muster_process(
    *arguments: str, home: Path | None = None, given: str = "", environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a process of its own; no command may show a traceback."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        input=given,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=dict(environ or environment(home)),
        timeout=CALL_S_MAX,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "Traceback" not in done.stdout, done.stdout
    return done


def succeed(*arguments: str, home: Path, given: str = "") -> str:
    """Run a command that must succeed; return what it printed."""
    done = muster(*arguments, home=home, given=given)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout, "a pipe gets no colours and no movements of the cursor"
    return done.stdout


def items(*arguments: str, home: Path, given: str = "") -> list[Any]:
    """Run a command with --json that must succeed; return its values."""
    return [json.loads(line) for line in succeed(*arguments, "--json", home=home, given=given).splitlines()]


def left_running(mark: Path) -> list[str]:
    """Return the processes that have `mark` in their command line or their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
            if process.pid != os.getpid() and any(str(mark) in word for word in words):
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def wait_nothing_runs(mark: Path, seconds: float) -> None:
    """Return when no process has `mark` any more."""
    deadline = time.monotonic() + seconds
    while left := left_running(mark):
        assert time.monotonic() < deadline, f"still running after {seconds} s: {left}"
        time.sleep(0.05)  # sleeps: processes of nobody can only be looked for
