"""Plans to choose from: none of them is worse than another in finish, quality, cost and evenness at once.

Method: an archive of schedules that nothing dominates (Knowles and Corne, "Approximating the nondominated
front using the Pareto Archived Evolution Strategy", Evolutionary Computation 8:2, 2000). It is seeded with
the classic heuristics and with list schedules that weigh the objectives; then a member's assignment is
changed at a few tasks, decoded again, and offered. What is shown of it is spread by the crowding distance of
NSGA-II (Deb, Pratap, Agarwal and Meyarivan, IEEE Transactions on Evolutionary Computation 6:2, 2002).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from services.scheduler.core.planning import ranks
from services.scheduler.core.planning.portfolio import CLASSICS
from services.scheduler.core.planning.problem import Problem
from services.scheduler.core.planning.schedule import Schedule
from services.scheduler.core.planning.timeline import Draft

#: Schedules in the archive; the most crowded go.
ARCHIVE_MAX = 128
#: Steps from 0 to 1 in the weights of the list schedules that seed the archive.
_WEIGHT_STEPS = 3
#: How many tasks one step moves: mostly one.
_MOVES = (1, 1, 2, 4)
_HOUR_MS = 3_600_000.0


@dataclass(frozen=True, slots=True)
class Worth:
    """What counts besides time."""

    #: [task][agent], 0 to 1: how well the agent is made for the task.
    quality: tuple[tuple[float, ...], ...]
    #: What one slot of each agent costs for an hour.
    cost_per_hour: tuple[float, ...]


class Objectives(NamedTuple):
    """What a schedule is worth."""

    makespan_ms: int
    #: Averaged over the work, 0 to 1; more is better.
    quality: float
    cost: float
    #: Jain's index of the agents' work over their slots, 0 to 1; more is better.
    fairness: float

    def losses(self) -> tuple[float, float, float, float]:
        """Return the same so that less is better."""
        return self.makespan_ms, -self.quality, self.cost, -self.fairness

    def dominates(self, other: Objectives) -> bool:
        """Return whether this is nowhere worse and somewhere better."""
        mine, theirs = self.losses(), other.losses()
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))


class Weights(NamedTuple):
    """How much each objective counts in a list schedule."""

    finish: float
    quality: float
    cost: float
    fairness: float


class Choice(NamedTuple):
    """One plan with what it is worth."""

    objectives: Objectives
    schedule: Schedule


class Found(NamedTuple):
    """What a search brought."""

    choices: list[Choice]
    #: For each choice, see `Arrangement.critical`.
    critical: list[tuple[int, ...]]
    bound_ms: int
    tried: int


def judge(problem: Problem, worth: Worth, schedule: Schedule) -> Objectives:
    """Return what a schedule is worth."""
    work_ms = [0] * len(problem.slots_from_ms)
    quality = cost = 0.0
    for task, slot in enumerate(schedule.slots):
        lasts_ms = slot.finish_ms - slot.start_ms
        work_ms[slot.agent] += lasts_ms
        quality += worth.quality[task][slot.agent] * lasts_ms
        cost += worth.cost_per_hour[slot.agent] * lasts_ms / _HOUR_MS
    shares = [work / len(slots) for work, slots in zip(work_ms, problem.slots_from_ms, strict=True) if slots]
    # Rounded: sums in another order must not make two plans differ.
    return Objectives(
        schedule.makespan_ms,
        round(quality / max(1, sum(work_ms)), 9),
        round(cost, 9),
        round(jain(shares), 9),
    )


def jain(shares: Sequence[float]) -> float:
    """Return Jain's index, 1 when all shares are equal and 1/n when one has all.

    Jain, Chiu and Hawe, "A quantitative measure of fairness and discrimination" (DEC TR-301, 1984).
    """
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


class Search:
    """An archive that grows better with every `step`. Deterministic: the same seed, the same archive."""

    def __init__(self, problem: Problem, worth: Worth, *, seed: int = 0) -> None:
        self._problem, self._worth = problem, worth
        self._draws = np.random.default_rng(seed)
        rank = ranks.upward_ms(problem, ranks.mean_durations_ms(problem), ranks.mean_delays_ms(problem))
        self._order = ranks.by_falling(rank, problem.order)
        self._choices = [
            [agent for agent, ms in enumerate(row) if ms is not None and problem.slots_from_ms[agent]]
            for row in problem.duration_ms
        ]
        self._movable = [task for task in problem.tasks if len(self._choices[task]) > 1]
        self._seeds = iter([*CLASSICS.values(), *(self._weighing(weights) for weights in _lattice())])
        self._archive: list[Choice] = []
        #: Schedules that were looked at.
        self.tried = 0

    def offer(self, schedule: Schedule) -> None:
        """Keep a schedule unless one in the archive is as good everywhere."""
        self.tried += 1
        new = judge(self._problem, self._worth, schedule)
        if any(kept.objectives == new or kept.objectives.dominates(new) for kept in self._archive):
            return
        self._archive = [kept for kept in self._archive if not new.dominates(kept.objectives)]
        self._archive.append(Choice(new, schedule))
        if len(self._archive) > ARCHIVE_MAX:
            self._archive = spread(self._archive, ARCHIVE_MAX)

    def step(self) -> bool:
        """Look at one more schedule; return False when there is no other one to look at."""
        planner = next(self._seeds, None)
        if planner is not None:
            self.offer(planner(self._problem))
            return True
        if not self._movable:
            return False
        draws = self._draws
        parent = self._archive[draws.integers(len(self._archive))].schedule
        agents = [slot.agent for slot in parent.slots]
        moves = min(len(self._movable), _MOVES[draws.integers(len(_MOVES))])
        for at in draws.choice(len(self._movable), moves, replace=False):
            choices = self._choices[self._movable[at]]
            agents[self._movable[at]] = choices[draws.integers(len(choices))]
        self.offer(self._decode(agents))
        return True

    def front(self, most: int) -> list[Choice]:
        """Return at most `most` plans of the archive, the earliest end first and always among them."""
        kept = spread(self._archive, most)
        return sorted(kept, key=lambda choice: choice.objectives.losses())

    def _decode(self, agents: Sequence[int]) -> Schedule:
        """Place each task where it ends first on its agent."""
        draft, lanes = Draft(self._problem), self._problem.lanes.agent
        mine: dict[int, list[int]] = {}
        for lane, agent in enumerate(lanes):
            mine.setdefault(agent, []).append(lane)
        for task in self._order:
            draft.place(task, min(draft.options(task, mine[agents[task]])))
        return draft.schedule()

    def _weighing(self, weights: Weights) -> Callable[[Problem], Schedule]:
        """Return a list scheduler that gives each task to the agent of the least weighted loss."""

        def plan(problem: Problem) -> Schedule:
            draft, lanes = Draft(problem), problem.lanes.agent
            work = [0.0] * len(problem.slots_from_ms)
            for task in self._order:
                options = draft.options(task)
                losses = self._losses(task, options, work, weights)
                _, chosen = min(zip(losses, options, strict=True))
                draft.place(task, chosen)
                agent = lanes[chosen[1]]
                work[agent] += (chosen[0] - chosen[2]) / len(problem.slots_from_ms[agent])
            return draft.schedule()

        return plan

    def _losses(
        self, task: int, options: Sequence[tuple[int, int, int]], work: Sequence[float], weights: Weights
    ) -> list[float]:
        """Return what each (finish, lane, start) loses; each objective's part is 0 to 1."""
        worth, lanes = self._worth, self._problem.lanes.agent
        last = max(finish for finish, _, _ in options)
        dearest = max(worth.cost_per_hour) or 1.0
        busiest = max(work) or 1.0
        return [
            weights.finish * finish / last
            + weights.quality * (1 - worth.quality[task][lanes[lane]])
            + weights.cost * worth.cost_per_hour[lanes[lane]] / dearest * (finish - start) / last
            + weights.fairness * work[lanes[lane]] / busiest
            for finish, lane, start in options
        ]


def spread(choices: Sequence[Choice], most: int) -> list[Choice]:
    """Return at most `most` choices: the best in each objective as far as they fit, then the loneliest."""
    if len(choices) <= most:
        return list(choices)
    losses = [choice.objectives.losses() for choice in choices]
    lonely = [0.0] * len(choices)
    for number in range(len(losses[0])):
        in_order = sorted(range(len(choices)), key=lambda index: (losses[index][number], losses[index]))
        width = losses[in_order[-1]][number] - losses[in_order[0]][number]
        # The best of an earlier objective come first, so that a single plan is the one that ends first.
        lonely[in_order[0]] = max(lonely[in_order[0]], 1e9 - number)
        if width > 0:
            for before, index, behind in zip(in_order, in_order[1:], in_order[2:], strict=False):
                lonely[index] += (losses[behind][number] - losses[before][number]) / width
    kept = sorted(range(len(choices)), key=lambda index: (-lonely[index], losses[index]))[:most]
    return [choices[index] for index in kept]


def _lattice() -> list[Weights]:
    """Return weights that sum to 1, evenly spread."""
    steps = _WEIGHT_STEPS
    return [
        Weights(a / steps, b / steps, c / steps, (steps - a - b - c) / steps)
        for a in range(steps + 1)
        for b in range(steps + 1 - a)
        for c in range(steps + 1 - a - b)
    ]
