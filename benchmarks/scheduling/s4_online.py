"""Online through the real core, arrivals unknown and durations misjudged by 15 %, against clairvoyant.

Real workflows arrive at random on a fleet of agents of unlike speed, so that they overlap. The core knows
what is declared, a task's true size off by a log-normal factor of deviation 15 %, and what it has learned of
each agent's speed from a hundred tasks each before. The clairvoyant is the planner of S1, which knows all
arrivals and all true durations beforehand. The figure is the online makespan over the clairvoyant's, median
over seeds; since the clairvoyant is not proven optimal, params hold the ratio to a lower bound, too. Data
travels in no time on both sides: the online scheduler knows nothing of data.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.figures import Figure
from benchmarks.scheduling.arrivals import AGENTS, ERROR, Drawn
from benchmarks.scheduling.budget import cpu_seconds
from benchmarks.scheduling.options import Options
from benchmarks.scheduling.workflows import load_all
from benchmarks.turns import say
from services.scheduler.core.model import SchedulingPolicy
from services.scheduler.core.planning.search import plan
from services.scheduler.core.planning.validate import check

JOBS, JOBS_QUICK, SEEDS, TASKS_MAX = 8, 4, 5, 300
SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Played:
    """One seed."""

    online_ms: int
    clairvoyant_ms: int
    bound_ms: int


def run(options: Options) -> Iterator[Figure]:
    """Play every seed under the default policy and under those that predict."""
    known = [one for one in load_all(options.data / "wfinstances") if len(one.runtime_ms) <= TASKS_MAX]
    jobs = JOBS_QUICK if options.quick else JOBS
    seeds = options.draws or (1 if options.quick else SEEDS)
    seconds = options.seconds or SECONDS
    policies = (SchedulingPolicy.PRIORITY, SchedulingPolicy.MULTI_OBJECTIVE, SchedulingPolicy.PREDICTIVE)
    played: dict[SchedulingPolicy, list[Played]] = {policy: [] for policy in policies}
    for seed in range(seeds):
        drawn = Drawn(seed, known, jobs)
        problem = drawn.problem()
        found = plan(problem, cpu_seconds(seconds * len(problem.tasks) / 100))
        check(problem, found.schedule)
        for policy in policies:
            one = Played(max(drawn.online_ms(policy)), found.schedule.makespan_ms, found.bound_ms)
            played[policy].append(one)
            say(
                f"seed {seed}, {policy.name}: {one.online_ms / one.clairvoyant_ms:.3f} of clairvoyant, "
                f"{one.online_ms / one.bound_ms:.3f} of the bound, {len(problem.tasks)} tasks"
            )
    for policy in policies:
        rows = played[policy]
        yield Figure(
            id="S4",
            name=f"makespan online, policy {policy.name}, as a share of the clairvoyant plan's",
            value=statistics.median(one.online_ms / one.clairvoyant_ms for one in rows),
            unit="of clairvoyant",
            peer="clairvoyant plan",
            peer_value=1.0,
            more_is_better=False,
            params={
                "of_lower_bound": round(statistics.median(one.online_ms / one.bound_ms for one in rows), 4),
                "worst": round(max(one.online_ms / one.clairvoyant_ms for one in rows), 4),
                "jobs": jobs,
                "agents": AGENTS,
                "error": ERROR,
                "seeds": seeds,
                "cpu_seconds_per_100_tasks": seconds,
            },
        )
