"""The flood's agents as processes, and what they wrote down."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from examples.flood_response.collaboration import collaboration
from services.local.child import Child
from tests.harness.cluster import Cluster

ROOT = Path(__file__).parents[2]
SCENARIO = ROOT / "examples" / "flood_response" / "scenario.json"
NAMES = ("strategist", "awareness", "field", "executor")
PATIENCE_S = 45.0
GRACE_S = 10.0


def submission() -> dict[str, Any]:
    return collaboration(json.loads(SCENARIO.read_text(encoding="utf-8")))


class Team:
    """`async with Team(cluster) as team:`; `held` is a task in which its agents wait for `release`."""

    def __init__(self, cluster: Cluster, held: str = "") -> None:
        self._cluster, self._held = cluster, held
        self._folder = cluster.home / "team"
        self._gate = self._folder / "gate"
        self._record = self._folder / "record"
        self.children: list[Child] = []

    async def __aenter__(self) -> Self:
        self._folder.mkdir(exist_ok=True)
        for name in NAMES:
            self._cluster.issue_agent(name)
            self.add(name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(child.stop(GRACE_S) for child in self.children))

    def add(self, name: str, instance: str = "0") -> Child:
        command = [sys.executable, "-m", "tests.e2e.flood_agent", name, str(self._record)]
        if self._held:
            command += [self._held, str(self._gate)]
        environ = {**os.environ, "MUSTER_HOME": str(self._cluster.home), "MUSTER_INSTANCE": instance}
        environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "proto" / "gen")])
        log = self._folder / f"{name}-{instance}.log"
        self.children.append(Child(f"{name}-{instance}", command, log_path=log, environ=environ))
        return self.children[-1]

    def release(self) -> None:
        self._gate.touch()

    def lines(self, what: str) -> list[tuple[str, int]]:
        """Return (task, process id) of each line `what`, in order."""
        if not self._record.exists():
            return []
        rows = [line.split() for line in self._record.read_text().splitlines()]
        return [(task, int(pid)) for kind, task, pid in rows if kind == what]

    async def wait_started(self, task: str, *, times: int = 1) -> list[int]:
        """Wait until `task` was started `times` times; return the processes that did."""
        async with asyncio.timeout(PATIENCE_S):
            while len(found := [pid for name, pid in self.lines("started") if name == task]) < times:
                await asyncio.sleep(0.02)  # sleeps: a file of another process sets no event
        return found

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def counts(self, what: str) -> Counter[str]:
        return Counter(task for task, _ in self.lines(what))
