"""A service's process: signals, crashes, drains and exit codes, seen from outside."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.common.lifecycle import TaskSupervisor
from tests.conftest import Eventually

# A service whose behaviour is said in its arguments: what happens in start, in its loop and in drain.
PROGRAM = """
import asyncio, sys
from services.common import lifecycle, logs

start, loop, drain = sys.argv[1:4]
logs.configure("toy", "t-1", "INFO")

async def act(what):
    if what == "crash":
        raise KeyError("broken inside")
    if what == "wait":
        await asyncio.Event().wait()

class Toy:
    def __init__(self):
        self.supervisor = lifecycle.TaskSupervisor()

    async def start(self):
        await act(start)
        self.supervisor.spawn("toy-loop", act(loop))
        print("started", flush=True)

    async def drain(self):
        print("draining", flush=True)
        await act(drain)
        print("drained", flush=True)

async def build():
    await act(sys.argv[4] if len(sys.argv) > 4 else "go")
    return Toy()

lifecycle.DRAIN_MS_MAX = 300
sys.exit(lifecycle.run_service(build))
"""


class Toy:
    """The program as a child process."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_line(self, expected: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == expected

    def end(self) -> tuple[int, str, list[dict[str, Any]]]:
        """Return exit code, what was left on stdout, and the log's lines."""
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, [json.loads(line) for line in err.splitlines()]


@pytest.fixture
def toy() -> Iterator[Callable[..., Toy]]:
    toys: list[Toy] = []

    def start(*arguments: str) -> Toy:
        toys.append(Toy(*arguments))
        return toys[-1]

    yield start
    for one in toys:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_leaves_with_0(toy: Callable[..., Toy], number: signal.Signals) -> None:
    one = toy("go", "wait", "go")
    one.wait_line("started")
    one.process.send_signal(number)
    code, out, lines = one.end()
    assert (code, out) == (0, "draining\ndrained\n")
    assert [line["msg"] for line in lines] == ["draining", "stopped"]
    assert lines[0]["fields"] == {"signal": number.name}


def test_a_second_signal_leaves_at_once_with_130(toy: Callable[..., Toy]) -> None:
    one = toy("go", "wait", "wait")
    one.wait_line("started")
    one.process.send_signal(signal.SIGTERM)
    one.wait_line("draining")
    one.process.send_signal(signal.SIGTERM)
    code, out, _ = one.end()
    assert (code, out) == (130, "")


def test_a_crashed_loop_stops_the_service_with_its_story(toy: Callable[..., Toy]) -> None:
    code, out, lines = toy("go", "crash", "go").end()
    assert (code, out) == (1, "started\ndraining\ndrained\n")
    assert lines[0]["msg"] == "a supervised loop crashed"
    assert lines[0]["fields"] == {"loop": "toy-loop"}
    assert "broken inside" in lines[0]["story"]


def test_a_loop_that_ends_is_no_crash(toy: Callable[..., Toy]) -> None:
    one = toy("go", "go", "go")
    one.wait_line("started")
    one.process.send_signal(signal.SIGTERM)
    assert one.end()[0] == 0


def test_a_failed_start_drains_and_leaves_with_1(toy: Callable[..., Toy]) -> None:
    code, out, lines = toy("crash", "go", "go").end()
    assert (code, out) == (1, "draining\ndrained\n")
    assert "broken inside" in lines[0]["story"]


def test_a_failed_build_leaves_with_1(toy: Callable[..., Toy]) -> None:
    code, out, lines = toy("go", "go", "go", "crash").end()
    assert (code, out) == (1, "")
    assert "broken inside" in lines[0]["story"]


def test_a_signal_while_starting_is_obeyed(toy: Callable[..., Toy], eventually: Eventually) -> None:
    """A service that waits for its stores for ever must still be stoppable."""
    one = toy("wait", "go", "go")
    _wait_for_handlers(one.process.pid)
    one.process.send_signal(signal.SIGTERM)
    code, out, _ = one.end()
    assert (code, out) == (0, "draining\ndrained\n")


@pytest.mark.parametrize("drain", ["wait", "crash"])
def test_a_drain_that_does_not_end_is_cut(toy: Callable[..., Toy], drain: str) -> None:
    one = toy("go", "wait", drain)
    one.wait_line("started")
    one.process.send_signal(signal.SIGTERM)
    code, _, lines = one.end()
    assert code == 1
    assert "the drain did not finish" in [line["msg"] for line in lines]


async def test_the_supervisor_keeps_the_first_error() -> None:
    async def crash(text: str) -> None:
        raise ValueError(text)

    supervisor = TaskSupervisor()
    supervisor.spawn("a", crash("first"))
    await supervisor.failed.wait()
    supervisor.spawn("b", crash("second"))
    waiting = supervisor.spawn("c", asyncio.sleep(3600))  # sleeps: it is cancelled by stop
    await supervisor.stop()
    assert waiting.cancelled()
    assert repr(supervisor.error) == "ValueError('first')"


def _wait_for_handlers(pid: int) -> None:
    """Wait until the process catches SIGTERM, by the mask that Linux shows."""
    while True:
        text = Path(f"/proc/{pid}/status").read_text("ascii")
        mask = next(line for line in text.splitlines() if line.startswith("SigCgt:"))
        if int(mask.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
