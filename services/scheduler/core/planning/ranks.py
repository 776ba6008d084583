"""How much work hangs on a task: the averages and ranks that the classic heuristics order tasks by.

A duration is averaged over the agents that may have the task, a delay over all pairs of different agents, as
in Topcuoglu, Hariri and Wu, "Performance-effective and low-complexity task scheduling for heterogeneous
computing" (IEEE TPDS 13:3, 2002). `intake.graph` ranks tasks for the online scheduler, where nothing is known
of the data.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.scheduler.core.planning.problem import Problem


def mean_durations_ms(problem: Problem) -> list[float]:
    """Return each task's duration, averaged over the agents that may have it."""
    means = []
    for row in problem.duration_ms:
        known = [ms for agent, ms in enumerate(row) if ms is not None and problem.slots_from_ms[agent]]
        means.append(sum(known) / len(known))
    return means


def mean_delays_ms(problem: Problem) -> list[float]:
    """Return how long each dependency's data travels, averaged over all pairs of different agents."""
    network, count = problem.network, len(problem.slots_from_ms)
    if network is None or count < 2:
        return [0.0] * len(problem.dependencies)
    pairs = [(a, b) for a in problem.agents for b in problem.agents if a != b]
    latency_ms = sum(network.latency_ms[a][b] for a, b in pairs) / len(pairs)
    ms_per_byte = sum(network.ms_per_byte[a][b] for a, b in pairs) / len(pairs)
    return [latency_ms + dependency.size_bytes * ms_per_byte for dependency in problem.dependencies]


def upward_ms(problem: Problem, duration_ms: Sequence[float], delay_ms: Sequence[float]) -> list[float]:
    """Return the longest chain from each task's start to the end of everything."""
    rank = [0.0] * len(duration_ms)
    for task in reversed(problem.order):
        behind = max((rank[other] + delay_ms[edge] for other, edge in problem.after[task]), default=0.0)
        rank[task] = duration_ms[task] + behind
    return rank


def downward_ms(problem: Problem, duration_ms: Sequence[float], delay_ms: Sequence[float]) -> list[float]:
    """Return the longest chain from the start of everything to each task's start."""
    rank = [0.0] * len(duration_ms)
    for task in problem.order:
        rank[task] = max(
            (rank[other] + duration_ms[other] + delay_ms[edge] for other, edge in problem.before[task]),
            default=0.0,
        )
    return rank


def by_falling(rank: Sequence[float], order: Sequence[int]) -> list[int]:
    """Return tasks by falling rank, equal ones as in `order`, so that a topological order stays one."""
    return sorted(order, key=lambda task: -rank[task])
