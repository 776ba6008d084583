"""OR-tools' CP-SAT beside ours: it runs with the peers' Python, because its protobuf is another one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from benchmarks.peer_servers import peer_script
from services.scheduler.core.planning.problem import Problem

WORKERS = 2


class Solved(NamedTuple):
    """What CP-SAT says of one problem."""

    makespan_ms: int | None
    #: No schedule is shorter.
    bound_ms: int
    is_optimal: bool
    seconds: float


def solve(problems: Iterable[tuple[Problem, int]], seconds: float) -> Iterator[Solved]:
    """Yield the answer to each problem, given with a makespan that can be reached.

    Of a problem only durations, dependencies and delays are told; it may have one slot for each agent and
    nothing else. Raises `MissingPeerError`.
    """
    command = peer_script("cpsat_schedule")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for problem, reached_ms in problems:
            process.stdin.write(json.dumps(_document(problem, reached_ms, seconds)) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            yield Solved(
                answer["makespan_ms"], answer["bound_ms"], answer["state"] == "OPTIMAL", answer["seconds"]
            )
        process.stdin.close()


def _document(problem: Problem, reached_ms: int, seconds: float) -> dict[str, object]:
    network = problem.network
    return {
        "duration_ms": problem.duration_ms,
        "dependencies": [
            (
                edge.before,
                edge.after,
                [
                    [network.delay_ms(edge.size_bytes, a, b) if network else 0 for b in problem.agents]
                    for a in problem.agents
                ],
            )
            for edge in problem.dependencies
        ],
        "horizon_ms": reached_ms,
        "bound_ms": 0,
        "seconds": seconds,
        "workers": WORKERS,
    }
