"""Online through the real core, arrivals unknown and durations misjudged by 15 %, against clairvoyant.

Real workflows arrive at random on a fleet of agents of unlike speed, so that they overlap. The core knows
what is declared, a task's true size off by a log-normal factor of deviation 15 %, and what it has learned of
each agent's speed from a hundred tasks each before. The clairvoyant is the planner of S1, which knows all
arrivals and all true durations beforehand. The figure is the online makespan over the clairvoyant's, median
over seeds; since the clairvoyant is not proven optimal, params hold the ratio to a lower bound, too. Data
travels in no time on both sides: the online scheduler knows nothing of data.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.figures import Figure
from benchmarks.scheduling.budget import cpu_seconds
from benchmarks.scheduling.fleet_sim import FleetSim
from benchmarks.scheduling.options import Options
from benchmarks.scheduling.workflows import Workflow, load_all
from benchmarks.turns import say
from services.common.core.ids import AgentId, Skill, TaskId
from services.scheduler.core.book import Settings
from services.scheduler.core.model import CollaborationSpec, PolicyWeights, SchedulingPolicy, TaskSpec
from services.scheduler.core.planning.problem import Dependency, Problem, whole_agents
from services.scheduler.core.planning.search import plan
from services.scheduler.core.planning.validate import check

AGENTS, JOBS, JOBS_QUICK, SEEDS, TASKS_MAX = 16, 8, 4, 5, 300
#: Of the predictions, and how much of the clairvoyant's time the arrivals spread over.
ERROR, SPREAD = 0.15, 0.5
LEARNED_TASKS, LEARNED_MS = 100, 1_000
SECONDS = 2.0
_SKILL = Skill("work")
_EARLIEST = PolicyWeights(finish_time=1.0)
#: What a task truly takes on an agent of speed 1 stands in its description: the core does not read it.
_LONG_MS = 30 * 24 * 3_600_000


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
        drawn = _Drawn(seed, known, jobs)
        problem = drawn.problem()
        found = plan(problem, cpu_seconds(seconds * len(problem.tasks) / 100))
        check(problem, found.schedule)
        for policy in policies:
            one = Played(drawn.online_ms(policy), found.schedule.makespan_ms, found.bound_ms)
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


class _Drawn:
    """One seed's fleet, jobs, arrivals and misjudgements."""

    def __init__(self, seed: int, known: list[Workflow], jobs: int) -> None:
        dice = random.Random(seed)
        speeds = np.clip(np.random.default_rng(seed).normal(1, 1 / 3, AGENTS), 0.25, 2.0)
        self._speed = {AgentId(f"a{number}"): float(speed) for number, speed in enumerate(speeds)}
        self._jobs = [dice.choice(known) for _ in range(jobs)]
        work_ms = sum(sum(job.runtime_ms) for job in self._jobs) / float(speeds.sum())
        arrivals = sorted(dice.uniform(0, SPREAD * work_ms) for _ in self._jobs)
        self._arrival_ms = [round(arrival - arrivals[0]) for arrival in arrivals]
        self._misjudged = [[dice.lognormvariate(0, ERROR) for _ in job.runtime_ms] for job in self._jobs]

    def lasts_ms(self, true_ms: float, agent: AgentId) -> int:
        """Return how long a task of this size takes on an agent."""
        return max(1, round(true_ms / self._speed[agent]))

    def problem(self) -> Problem:
        """Return all jobs as one problem with everything known."""
        durations: list[tuple[int, ...]] = []
        dependencies: list[Dependency] = []
        release: dict[int, tuple[int, ...]] = {}
        for job, arrival in zip(self._jobs, self._arrival_ms, strict=True):
            first = len(durations)
            for number, true_ms in enumerate(job.runtime_ms):
                durations.append(tuple(self.lasts_ms(true_ms, agent) for agent in self._speed))
                release[first + number] = (arrival,) * AGENTS
            dependencies += [Dependency(first + d.before, first + d.after) for d in job.dependencies]
        return Problem(tuple(durations), tuple(dependencies), whole_agents(AGENTS), None, {}, release)

    def online_ms(self, policy: SchedulingPolicy) -> int:
        """Return when the last job ends, from the first one's arrival on."""
        learned = CollaborationSpec(
            tuple(
                TaskSpec(
                    TaskId(f"{agent}-{number}"),
                    (_SKILL,),
                    required_agents=(agent,),
                    description=str(LEARNED_MS),
                    estimated_duration_ms=LEARNED_MS,
                    attempt_timeout_ms=_LONG_MS,
                )
                for agent in self._speed
                for number in range(LEARNED_TASKS)
            )
        )
        begin_ms = LEARNED_TASKS * LEARNED_MS * 10
        jobs = [(0, learned)]
        jobs += [
            (begin_ms + arrival, self._spec(number, policy))
            for number, arrival in enumerate(self._arrival_ms)
        ]
        # Links do not break here and are not probed; nobody straggles, so that no second attempt is made.
        settings = Settings(speculation_share=0.0, probe_interval_ms=10**9, silence_ms_max=2 * 10**9)
        course = FleetSim(AGENTS, settings, self._draw).run(jobs)
        return max(arrival + took for arrival, took in zip(self._arrival_ms, course.job_ms[1:], strict=True))

    def _draw(self, spec: TaskSpec, number: int, agent: AgentId) -> float:
        del number
        return self.lasts_ms(float(spec.description), agent)

    def _spec(self, number: int, policy: SchedulingPolicy) -> CollaborationSpec:
        job, misjudged = self._jobs[number], self._misjudged[number]
        needs: list[list[TaskId]] = [[] for _ in job.runtime_ms]
        for dependency in job.dependencies:
            needs[dependency.after].append(TaskId(f"t{dependency.before}"))
        tasks = tuple(
            TaskSpec(
                TaskId(f"t{task}"),
                (_SKILL,),
                dependencies=tuple(needs[task]),
                description=repr(true_ms),
                estimated_duration_ms=max(1, round(true_ms * misjudged[task])),
                attempt_timeout_ms=_LONG_MS,
            )
            for task, true_ms in enumerate(job.runtime_ms)
        )
        return CollaborationSpec(tasks, policy=policy, weights=_EARLIEST)
