"""`muster demo` as a person runs it: it decides, and whatever happens to it, nothing is left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.local.ports import is_free
from tests.integration.cli.cli_process import COMMAND, environment, left_running, wait_nothing_runs

pytestmark = pytest.mark.timeout(90)

# Seconds that the demo may take to end when it is asked to, and its tethered processes when it is killed.
END_S_MAX = 30.0
# A line of the output, and so a moment of the demo: etcd serves and the services start; agents work.
STARTING = re.compile(r"^  etcd ")
DECIDING = re.compile(r" RUNNING | ASSIGNED ")


class Demo:
    """A demo whose temporary folder is below `folder`, in a process group of its own, as in a terminal."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*COMMAND, "demo", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment(TMPDIR=str(folder)),
            start_new_session=True,
        )

    def read_until(self, moment: re.Pattern[str]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if moment.search(line):
                return
        raise AssertionError(f"it ended before {moment.pattern!r}: {self.process.communicate()}")

    def end(self) -> tuple[int, str, str]:
        """Return its exit code, its whole output and its complaints."""
        output, complaints = self.process.communicate(timeout=60)
        assert "Traceback" not in complaints, complaints
        return self.process.returncode, "".join(self.lines) + output, complaints

    def assert_nothing_is_left(self, *, folder_too: bool = True) -> None:
        assert left_running(self.folder) == []
        ports = {int(port) for line in self.lines for port in re.findall(r"127\.0\.0\.1:(\d+)", line)}
        # A process that ends loses its name before its sockets.
        deadline = time.monotonic() + END_S_MAX
        while taken := [port for port in ports if not is_free(port)]:
            assert time.monotonic() < deadline, f"{taken} are still taken"
            time.sleep(0.01)  # sleeps: between two looks at what the system does by itself
        if folder_too:
            assert list(self.folder.glob("muster-demo-*")) == []


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    running: list[Demo] = []

    def begin(*arguments: str) -> Demo:
        running.append(Demo(tmp_path, *arguments))
        return running[-1]

    yield begin
    for demo in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(demo.process.pid, signal.SIGKILL)
        demo.process.communicate()
    wait_nothing_runs(tmp_path, END_S_MAX)


def test_it_decides_verifies_and_leaves_nothing(start: Callable[..., Demo]) -> None:
    demo = start()
    demo.read_until(re.compile("agents are ready"))
    assert len(left_running(demo.folder)) > 10
    code, output, complaints = demo.end()
    assert (code, complaints) == (0, "")
    assert "DECISION  Evacuate" in output
    assert "Who contributed what" in output
    assert "is whole" in output
    assert output.rstrip().splitlines()[-1].startswith("Everything is stopped; it took")
    assert "\x1b" not in output
    demo.assert_nothing_is_left()


def test_its_json_ends_with_the_decision(start: Callable[..., Demo]) -> None:
    demo = start("--json")
    code, output, complaints = demo.end()
    assert (code, complaints) == (0, "")
    *course, verified, last = [json.loads(line) for line in output.splitlines()]
    assert {"collaboration", "task"} <= {key for event in course for key in event}
    assert verified["verified"] is True
    assert last["state"] == "COMPLETED"
    assert last["outputs"]["decision"]["feasible"] is True
    assert last["log_entries"] == verified["tree_size"] > 0
    demo.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("moment", "kill"),
    [(STARTING, os.killpg), (STARTING, os.kill), (DECIDING, os.killpg)],
    ids=["starting, in a terminal", "starting, the process only", "deciding, in a terminal"],
)
def test_ctrl_c_stops_everything(
    start: Callable[..., Demo], moment: re.Pattern[str], kill: Callable[[int, int], None]
) -> None:
    demo = start()
    demo.read_until(moment)
    kill(demo.process.pid, signal.SIGINT)
    code, output, complaints = demo.end()
    assert code == 130
    assert complaints == "muster: stopping everything; Ctrl-C again ends it at once\n"
    assert "DECISION" not in output
    demo.assert_nothing_is_left()


def test_ctrl_c_twice_ends_it_at_once(start: Callable[..., Demo]) -> None:
    demo = start()
    demo.read_until(DECIDING)
    os.killpg(demo.process.pid, signal.SIGINT)
    os.killpg(demo.process.pid, signal.SIGINT)
    assert demo.process.stderr is not None
    assert "stopping everything" in demo.process.stderr.readline()
    os.killpg(demo.process.pid, signal.SIGINT)
    assert demo.end()[0] == 130
    wait_nothing_runs(demo.folder, END_S_MAX)
    demo.assert_nothing_is_left()


def test_a_request_to_terminate_stops_everything_too(start: Callable[..., Demo]) -> None:
    demo = start()
    demo.read_until(STARTING)
    demo.process.terminate()
    assert demo.end()[0] == 128 + signal.SIGTERM
    demo.assert_nothing_is_left()


def test_a_demo_that_is_killed_takes_its_processes_along(start: Callable[..., Demo]) -> None:
    demo = start()
    demo.read_until(DECIDING)
    demo.process.kill()
    demo.process.wait()
    wait_nothing_runs(demo.folder, END_S_MAX)
    demo.assert_nothing_is_left(folder_too=False)


def test_agents_that_do_not_start_are_told_with_their_log(start: Callable[..., Demo], tmp_path: Path) -> None:
    team = tmp_path / "floods" / "broken"
    team.mkdir(parents=True)
    for name in ("scenario.json", "__init__.py", "../__init__.py"):
        (team / name).write_text("")
    (team / "collaboration.py").write_text("print('{}')\n")
    (team / "agents.py").write_text("raise SystemExit('the dike model is missing')\n")
    demo = start("--scenario", str(team))
    code, _, complaints = demo.end()
    assert code == 1
    assert re.search(r"the agent \w+ ended with exit code 1; the end of \S+\.log:\n", complaints)
    assert "  the dike model is missing\n" in complaints
    (kept,) = tmp_path.glob("muster-demo-*")
    assert f"logs, data and certificates are in {kept}" in complaints
    demo.assert_nothing_is_left(folder_too=False)


def test_a_folder_without_a_scenario_is_refused(start: Callable[..., Demo], tmp_path: Path) -> None:
    demo = start("--scenario", str(tmp_path))
    code, output, complaints = demo.end()
    assert (code, output) == (2, "")
    assert "has no scenario.json" in complaints
    demo.assert_nothing_is_left()
