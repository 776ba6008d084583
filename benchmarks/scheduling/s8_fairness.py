"""Fairness: Jain's index of load over capacity through the real core, and what DRF promises in random cases.

Load: agents with 1 to 8 slots; single tasks come at random and fill a share of all slots; load over capacity
of an agent is its slot time in use over its slots. Jain's index of it, (sum x)^2 / (n sum x^2), is 1 when all
are alike. Shares: random divisions of a fleet between requesters by the scheduler's own order
(`benchmarks.scheduling.drf` says what must hold of them); the value is how many cases break something.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator

from benchmarks.figures import Figure
from benchmarks.scheduling import drf
from benchmarks.scheduling.fleet_sim import FleetSim
from benchmarks.scheduling.options import Options
from benchmarks.turns import say
from services.common.core.ids import AgentId, Skill, TaskId
from services.scheduler.core.book import Settings
from services.scheduler.core.model import CollaborationSpec, SchedulingPolicy, TaskSpec

AGENTS, SLOTS_MAX, TASKS, TASKS_QUICK, SEEDS = 50, 8, 4_000, 800, 5
LOAD, MEAN_MS = 0.7, 10_000
CASES, CASES_QUICK = 100_000, 500
POLICIES = (SchedulingPolicy.PRIORITY, SchedulingPolicy.LEAST_LOADED, SchedulingPolicy.ROUND_ROBIN)


def run(options: Options) -> Iterator[Figure]:
    """Measure every policy's evenness, then the cases; `--draws` is how many of these."""
    seeds = 1 if options.quick else SEEDS
    tasks = TASKS_QUICK if options.quick else TASKS
    played = {policy: [evenness(seed, tasks, policy) for seed in range(seeds)] for policy in POLICIES}
    quickest = min(statistics.median(end_ms for _, end_ms in rows) for rows in played.values())
    for policy, rows in played.items():
        index = statistics.median(each for each, _ in rows)
        end_ms = statistics.median(end for _, end in rows)
        say(f"{policy.name}: Jain's index {index:.4f}, makespan {end_ms / quickest - 1:+.2%}")
        yield Figure(
            id="S8",
            name=f"Jain's index of load over capacity, policy {policy.name}",
            value=index,
            unit="1 is even",
            params={
                "worst": round(min(each for each, _ in rows), 4),
                "makespan_over_best": round(end_ms / quickest, 4),
                "agents": AGENTS,
                "slots_max": SLOTS_MAX,
                "tasks": tasks,
                "load": LOAD,
                "seeds": seeds,
            },
        )
    cases = options.draws or (CASES_QUICK if options.quick else CASES)
    broken = 0
    for seed in range(cases):
        dice = random.Random(seed)
        found = drf.violations(drf.draw(dice), dice)
        broken += bool(found)
        for text in found:
            say(f"case {seed}: {text}")
    yield Figure(
        id="S8",
        name="random divisions in which a property of dominant resource fairness is broken",
        value=float(broken),
        unit="cases",
        more_is_better=False,
        params={"cases": cases, "properties": "sharing incentive, envy, Pareto, strategy"},
    )


def jain(values: list[float]) -> float:
    """Return Jain's index (Jain, Chiu and Hawe, 1984) of what each one has."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def evenness(seed: int, tasks: int, policy: SchedulingPolicy) -> tuple[float, int]:
    """Return Jain's index of the agents' load over their capacity, and when the last task ended."""
    dice = random.Random(seed)
    slots = [dice.randint(1, SLOTS_MAX) for _ in range(AGENTS)]
    busy_ms = [0.0] * AGENTS
    rate = LOAD * sum(slots) / MEAN_MS
    jobs = []
    at_ms = 0.0
    for _ in range(tasks):
        at_ms += dice.expovariate(rate)
        duration = max(1, round(dice.uniform(0.5, 1.5) * MEAN_MS))
        task = TaskSpec(TaskId("t"), (Skill("work"),), estimated_duration_ms=duration)
        jobs.append((round(at_ms), CollaborationSpec((task,), policy=policy)))

    def lasts(spec: TaskSpec, number: int, agent: AgentId) -> float:
        del number
        busy_ms[int(agent[1:])] += spec.estimated_duration_ms
        return spec.estimated_duration_ms

    settings = Settings(speculation_share=0.0, probe_interval_ms=10**9, silence_ms_max=2 * 10**9)
    course = FleetSim(AGENTS, settings, lasts, slots=slots).run(jobs)
    end_ms = max(at + took for (at, _), took in zip(jobs, course.job_ms, strict=True))
    return jain([each / count for each, count in zip(busy_ms, slots, strict=True)]), end_ms
