"""No-op tasks on Dask, scheduler and workers as processes: keeps the protocol of benchmarks/tasks.py.

Nothing of it is durable.
"""

from __future__ import annotations

import argparse
import json
import time

import dask
from distributed import Client, LocalCluster


def nothing(number: int) -> None:
    """Do nothing."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, required=True, help="tasks submitted at once")
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--single", type=int, required=True, help="tasks run one after the other")
    parser.add_argument("--folder", required=True)
    options = parser.parse_args()
    dask.config.set({"temporary-directory": options.folder})
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.gather(client.map(nothing, range(options.warmup), pure=False))
        begin = time.monotonic()
        client.gather(client.map(nothing, range(options.count), pure=False))
        rate = options.count / (time.monotonic() - begin)
        took_us = []
        for number in range(options.single):
            begin = time.monotonic()
            client.submit(nothing, number, pure=False).result()
            took_us.append((time.monotonic() - begin) * 1e6)
        print(json.dumps({"event": "done", "rate": rate, "took_us": took_us}), flush=True)


if __name__ == "__main__":
    main()
