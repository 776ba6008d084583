"""A child process: waited for, stopped, killed, tethered to its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from services.local import child as child_module
from services.local.child import Child

Eventually = Callable[..., Awaitable[None]]
STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
)
PATIENT = "import signal; print('ready', flush=True); signal.pause()"


async def start(tmp_path: Path, program: str, eventually: Eventually) -> Child:
    log = tmp_path / "logs" / "child.log"
    before = log.read_text() if log.exists() else ""
    child = Child("child", [sys.executable, "-c", program], log_path=log)
    await eventually(lambda: log.read_text() == before + "ready\n")
    return child


@pytest.fixture(params=["told", "polled"])
def _waiting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "polled":
        monkeypatch.delattr(os, "pidfd_open")


@pytest.mark.usefixtures("_waiting")
async def test_the_end_is_waited_for(tmp_path: Path, eventually: Eventually) -> None:
    child = await start(tmp_path, PATIENT, eventually)
    waiting = asyncio.create_task(child.wait())
    await asyncio.sleep(0)
    assert child.exit_code is None
    child.signal(signal.SIGKILL)
    assert await asyncio.wait_for(waiting, 20) == -signal.SIGKILL
    assert await child.wait() == -signal.SIGKILL
    # After its end nothing is sent to whoever may have its process id now.
    child.signal(signal.SIGTERM)
    assert "SIGKILL" in child.story()
    assert "ready" in child.story()


async def test_stop_asks_and_then_kills(tmp_path: Path, eventually: Eventually) -> None:
    assert await (await start(tmp_path, PATIENT, eventually)).stop(20) == -signal.SIGTERM
    stubborn = await start(tmp_path / "stubborn", STUBBORN, eventually)
    assert await stubborn.stop(0.05) == -signal.SIGKILL


async def test_a_stopped_child_hears_the_request(tmp_path: Path, eventually: Eventually) -> None:
    child = await start(tmp_path, PATIENT, eventually)
    child.signal(signal.SIGSTOP)
    await eventually(lambda: psutil.Process(child.pid).status() == psutil.STATUS_STOPPED)
    assert await child.stop(20) == -signal.SIGTERM


async def test_logs_are_private_and_kept(tmp_path: Path, eventually: Eventually) -> None:
    for _ in range(2):
        child = await start(tmp_path, PATIENT, eventually)
        child.kill()
    assert child.log_path.read_text() == "ready\nready\n"
    assert child.log_path.stat().st_mode & 0o777 == 0o600
    assert child.log_path.parent.stat().st_mode & 0o777 == 0o700


def test_a_long_log_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "LOG_BYTES_MAX", 10)
    log = tmp_path / "child.log"
    for content in (b"0123456789", b"-", b"next"):
        descriptor = child_module.open_log(log)
        os.write(descriptor, content)
        os.close(descriptor)
    assert log.read_bytes() == b"next"
    assert (tmp_path / "child.log.1").read_bytes() == b"0123456789-"


def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    child = Child("child", [str(tmp_path / "nothing")], log_path=tmp_path / "log")
    assert child._process.wait(20) == 127
    assert "No such file" in child.story()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl(2) is Linux's")
async def test_a_child_dies_with_its_parent(tmp_path: Path, eventually: Eventually) -> None:
    program = (
        "import sys, signal; from pathlib import Path; from services.local.child import Child;"
        f"child = Child('c', [sys.executable, '-c', {PATIENT!r}], log_path=Path({str(tmp_path / 'log')!r}));"
        "print(child.pid, flush=True); signal.pause()"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        await eventually(lambda: "ready" in (tmp_path / "log").read_text())
    finally:
        parent.kill()
        parent.communicate()
    await eventually(lambda: not psutil.pid_exists(pid))
