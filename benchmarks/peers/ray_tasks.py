"""No-op tasks on Ray: keeps the protocol of benchmarks/tasks.py. Nothing of it is durable."""

from __future__ import annotations

import argparse
import json
import time

import ray


def do_nothing() -> None:
    """Do nothing."""


nothing = ray.remote(do_nothing)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, required=True, help="tasks submitted at once")
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--single", type=int, required=True, help="tasks run one after the other")
    parser.add_argument("--folder", required=True)
    options = parser.parse_args()
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=options.folder,
        logging_level="error",
    )
    ray.get([nothing.remote() for _ in range(options.warmup)])
    begin = time.monotonic()
    ray.get([nothing.remote() for _ in range(options.count)])
    rate = options.count / (time.monotonic() - begin)
    took_us = []
    for _ in range(options.single):
        begin = time.monotonic()
        ray.get(nothing.remote())
        took_us.append((time.monotonic() - begin) * 1e6)
    print(json.dumps({"event": "done", "rate": rate, "took_us": took_us}), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
