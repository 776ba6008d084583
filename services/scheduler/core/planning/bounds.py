"""What no schedule can beat: lower bounds of the makespan.

Three, of which the largest counts. The *chain*: a task starts no earlier than the data of each of its
predecessors can be there, each taken by itself and run where that suits this task best. The *load*: all work
has to fit into all slots. The *load between*: what must lie after a head and before a tail has to fit between
them. Resources and the order on a lane are left out, so all are bounds of the whole problem as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.scheduler.core.planning.problem import Problem

#: [task, agent], and [agent].
Matrix = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float64]

# Steps of improvement of a load bound: of the whole, and of each part.
_STEPS, _STEPS_PART = 200, 40


@dataclass(frozen=True, slots=True)
class Bounds:
    """Lower bounds of the makespan, in milliseconds."""

    chain_ms: int
    load_ms: int
    between_ms: int

    @property
    def best_ms(self) -> int:
        """The largest."""
        return max(self.chain_ms, self.load_ms, self.between_ms)


def lower_bounds(problem: Problem) -> Bounds:
    """Return the bounds; takes time linear in dependencies times agents squared."""
    if not problem.tasks:
        return Bounds(0, 0, 0)
    duration = _durations(problem)
    heads, tails = _heads(problem, duration), _tails(problem, duration)
    through = (heads + duration + tails).min(axis=1)
    chain = int(through.max())
    load = _load(duration, *_room(problem, 0, chain), _STEPS)
    head, tail = heads.min(axis=1), tails.min(axis=1)
    between = 0
    # The tasks with large heads, with large tails, and both: thresholds at a few quantiles are enough.
    cuts = (0.0, 0.1, 0.25, 0.5, 0.75)
    for low in sorted({int(np.quantile(head, cut)) for cut in cuts}):
        for high in sorted({int(np.quantile(tail, cut)) for cut in cuts}):
            inside = (head >= low) & (tail >= high)
            if inside.any() and (low or high):
                room = _room(problem, low, chain - high)
                between = max(between, high + _load(duration[inside], *room, _STEPS_PART))
    return Bounds(chain, load, between)


def _durations(problem: Problem) -> Matrix:
    return np.array(
        [
            [
                float("inf") if ms is None or not problem.slots_from_ms[agent] else ms
                for agent, ms in enumerate(row)
            ]
            for row in problem.duration_ms
        ]
    )


def _heads(problem: Problem, duration: Matrix) -> Matrix:
    """Return [task, agent]: no start there is earlier."""
    free = np.array([min(slots, default=0) for slots in problem.slots_from_ms], float)
    heads = np.tile(free, (len(duration), 1))
    for task, release in problem.release_ms.items():
        heads[task] = np.maximum(heads[task], release)
    for task in problem.order:
        for other, edge in problem.before[task]:
            there = (heads[other] + duration[other])[:, None] + _delays(problem, edge)
            heads[task] = np.maximum(heads[task], there.min(axis=0))
    return heads


def _tails(problem: Problem, duration: Matrix) -> Matrix:
    """Return [task, agent]: no less time passes from its end there to the end of everything."""
    tails = np.zeros_like(duration)
    for task in reversed(problem.order):
        for other, edge in problem.after[task]:
            there = (tails[other] + duration[other])[None, :] + _delays(problem, edge)
            tails[task] = np.maximum(tails[task], there.min(axis=1))
    return tails


def _delays(problem: Problem, edge: int) -> Matrix:
    agents, network = len(problem.slots_from_ms), problem.network
    if network is None:
        return np.zeros((agents, agents))
    size = problem.dependencies[edge].size_bytes
    delays = np.ceil(np.array(network.latency_ms) + size * np.array(network.ms_per_byte) - 1e-9)
    np.fill_diagonal(delays, 0.0)
    return np.asarray(delays, float)


def _room(problem: Problem, start_ms: int, known_ms: int) -> tuple[Vector, Vector]:
    """Return for each agent its slots, and the sum of when they are free, none before `start_ms`.

    A slot counts as free at the latest from the known bound on: it would have negative room otherwise.
    """
    free = problem.slots_from_ms
    begin = [sum(max(start_ms, min(instant, known_ms)) for instant in slots) for slots in free]
    return np.array([len(slots) for slots in free], float), np.array(begin, float)


def _load(duration: Matrix, slots: Vector, begin: Vector, steps: int) -> int:
    """Return when all work is done at the earliest if it can be split at will.

    The dual of the linear programme of R | split | Cmax: for any weights of agents that sum to one over all
    slots, the work at its cheapest is a bound. The weights are improved by subgradient steps.
    """
    usable = slots > 0
    rows, slots, begin = duration[:, usable], slots[usable], begin[usable]
    each, finite = np.arange(len(rows)), np.where(np.isfinite(rows), rows, 1e300)
    # To begin with, agents are weighted by their mean speed.
    weights = np.maximum((1 / rows).mean(axis=0), 1e-12)
    best = 0.0
    for step in range(steps):
        weights /= weights @ slots
        cost = finite * weights
        where = cost.argmin(axis=1)
        value = float(cost[each, where].sum() + weights @ begin)
        best = max(best, value)
        # Agents with more than their share of the work get dearer.
        share = (np.bincount(where, finite[each, where], len(weights)) + begin) / slots / max(value, 1.0)
        weights = weights * np.exp(np.clip((share - 1) * 0.3 / (1 + step) ** 0.7, -1, 1))
    return int(np.ceil(best - 1e-6 * max(1.0, best)))
