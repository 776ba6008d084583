"""No-op tasks on Celery with Redis as broker and result store: keeps the protocol of benchmarks/tasks.py.

Redis runs as it does by default for Celery's users: nothing is synced per task.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from celery import Celery
from celery.result import ResultSet

URL = os.environ.get("BENCH_REDIS_URL", "")
app = Celery("celery_tasks", broker=URL, backend=URL)
app.conf.worker_prefetch_multiplier = 64


def do_nothing() -> None:
    """Do nothing."""


nothing = app.task(do_nothing, name="nothing")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, required=True, help="tasks submitted at once")
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--single", type=int, required=True, help="tasks run one after the other")
    parser.add_argument("--folder", required=True)
    options = parser.parse_args()
    command = [sys.executable, "-m", "celery", "-A", "celery_tasks", "worker", "--concurrency", "2"]
    quiet = ["--loglevel", "error", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    with (Path(options.folder) / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            command + quiet, cwd=Path(__file__).parent, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            measure(options)
        finally:
            worker.terminate()
            worker.wait(timeout=30)


def measure(options: argparse.Namespace) -> None:
    # The results of the warm-up are there when the worker is.
    run_at_once(options.warmup)
    begin = time.monotonic()
    run_at_once(options.count)
    rate = options.count / (time.monotonic() - begin)
    took_us = []
    for _ in range(options.single):
        begin = time.monotonic()
        nothing.delay().get(timeout=60)
        took_us.append((time.monotonic() - begin) * 1e6)
    print(json.dumps({"event": "done", "rate": rate, "took_us": took_us}), flush=True)


def run_at_once(count: int) -> None:
    ResultSet([nothing.delay() for _ in range(count)]).join_native(timeout=120)


if __name__ == "__main__":
    main()
