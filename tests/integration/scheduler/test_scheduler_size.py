"""The size that one process must bear: 10,000 agents and 100,000 queued tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

#: What the whole process may keep resident at its worst moment: core, driver, servicer, store, outbox, fleet.
MEMORY_MB_MAX = 2_048
_PROGRAM = """
import asyncio, json, resource, sys
from pathlib import Path
from benchmarks.scheduling.served import served
times = asyncio.run(served(Path(sys.argv[1]), 10_000, 100_000, 100))
most_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024
print(json.dumps({"most_mb": most_mb, "counts": [len(each) for each in times.values()]}))
"""


@pytest.mark.nightly
def test_ten_thousand_agents_and_a_hundred_thousand_queued_tasks_fit_into_two_gigabytes(
    tmp_path: Path,
) -> None:
    """A process of its own, so that nothing else counts; over real gRPC, etcd and a synced spool."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=1_800,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    # It is alive at that size: every emergency was accepted and handed to an agent.
    assert found["counts"] == [100, 100]
    assert found["most_mb"] < MEMORY_MB_MAX, found
