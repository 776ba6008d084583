"""`python -m benchmarks NAME`: measure, and print one JSON line per figure on stdout; see README.md."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from benchmarks import agents, audit, ceiling, failover, fanout, idle, locks, messages, scheduling, tasks
from benchmarks.figures import Figure
from benchmarks.machine import commit, keeps_nothing, machine
from benchmarks.programs import ProgramFailedError
from benchmarks.turns import say

RUNS_DEFAULT = 5

Benchmark = Callable[[int, Path], Coroutine[Any, Any, list[Figure]]]

BENCHMARKS: dict[str, tuple[str, Benchmark]] = {
    "agents": ("P5: many agents connected to one broker and one registry; no peers", agents.run),
    "audit": ("P6: audit entries per second; no peers", audit.run),
    "ceiling": ("what gRPC with TLS, etcd and fdatasync allow; no peers", ceiling.run),
    "fanout": ("one publication to 100 subscribers, deliveries per second; no peers", fanout.run),
    "idle": ("P10: CPU of a plane with 100 agents and nothing to do; no peers", idle.run),
    "locks": ("P9: locks; bare transactions of the same etcd", locks.run),
    "messages": ("P1, P2: durable messages; NATS JetStream, Redis Streams, a bare forwarder", messages.run),
    "message-cost": ("P1, P2 and what a message costs, beside the bare parts; no peers", messages.run_alone),
    "message-latency": ("P2 alone, beside the bare parts; no peers", messages.run_latency),
    "recovery": ("P8: an agent is killed, its task runs elsewhere; no peers", failover.run_recovery),
    "takeover": (
        "P7: the leading scheduler is killed, the next one assigns; no peers",
        failover.run_takeover,
    ),
    "tasks": ("P3, P4: durable no-op tasks; Ray, Dask, Celery", tasks.run),
    "task-cost": ("P3, P4 and where their time goes; no peers", tasks.run_alone),
}


def main() -> int:
    """Run one benchmark; return the exit code."""
    if sys.argv[1:2] == ["scheduling"]:
        return scheduling.main(sys.argv[2:])
    names = "\n".join(f"  {name:<10} {text}" for name, (text, _) in BENCHMARKS.items())
    names += "\n  scheduling S1, S2, …: plans and decisions; has options of its own, see scheduling --help"
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__}\n\nnames:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=list(BENCHMARKS), metavar="NAME")
    parser.add_argument(
        "--runs", type=int, default=RUNS_DEFAULT, help="runs of each contender (default %(default)s)"
    )
    parser.add_argument(
        "--directory", type=Path, help="where data goes while it runs; must be a real disk (default: $TMPDIR)"
    )
    options = parser.parse_args()
    _, benchmark = BENCHMARKS[options.name]
    with tempfile.TemporaryDirectory(prefix="muster-bench-", dir=options.directory) as folder:
        directory = Path(folder)
        if keeps_nothing(directory):
            say(f"{directory} is in memory: fsync is free there. Choose a disk with --directory.")
            return 2
        where, what = machine(directory), commit()
        try:
            figures = asyncio.run(benchmark(options.runs, directory))
        except ProgramFailedError as error:
            say(f"benchmark {options.name}: {error}")
            return 1
    for figure in figures:
        print(figure.line(where, what))
    return 0


if __name__ == "__main__":
    sys.exit(main())
