"""Workflows that arrive at random on agents of unlike speed, with durations that are misjudged."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from benchmarks.scheduling.fleet_sim import FleetSim
from benchmarks.scheduling.workflows import Workflow
from services.common.core.ids import AgentId, Skill, TaskId
from services.scheduler.core.book import Settings
from services.scheduler.core.model import CollaborationSpec, PolicyWeights, SchedulingPolicy, TaskSpec
from services.scheduler.core.planning.problem import Dependency, Problem, whole_agents

AGENTS = 16
#: Of the predictions, and how much of the fleet's time for all work the arrivals spread over.
ERROR, SPREAD = 0.15, 0.5
LEARNED_TASKS, LEARNED_MS = 100, 1_000
_SKILL = Skill("work")
_EARLIEST = PolicyWeights(finish_time=1.0)
#: What a task truly takes on an agent of speed 1 stands in its description: the core does not read it.
_LONG_MS = 30 * 24 * 3_600_000


class Drawn:
    """One seed's fleet, jobs, arrivals and misjudgements.

    With `fleet_ms` all work together takes the fleet so long, and each job is an equal part of it.
    """

    def __init__(self, seed: int, known: list[Workflow], jobs: int, fleet_ms: float | None = None) -> None:
        dice = random.Random(seed)
        speeds = np.clip(np.random.default_rng(seed).normal(1, 1 / 3, AGENTS), 0.25, 2.0)
        self._speed = {AgentId(f"a{number}"): float(speed) for number, speed in enumerate(speeds)}
        self._jobs = [dice.choice(known) for _ in range(jobs)]
        if fleet_ms is not None:
            share_ms = fleet_ms * float(speeds.sum()) / jobs
            self._jobs = [_scaled(job, share_ms / sum(job.runtime_ms)) for job in self._jobs]
        work_ms = sum(sum(job.runtime_ms) for job in self._jobs) / float(speeds.sum())
        arrivals = sorted(dice.uniform(0, SPREAD * work_ms) for _ in self._jobs)
        self._arrival_ms = [round(arrival - arrivals[0]) for arrival in arrivals]
        self._misjudged = [[dice.lognormvariate(0, ERROR) for _ in job.runtime_ms] for job in self._jobs]

    @property
    def speeds(self) -> dict[AgentId, float]:
        """How fast each agent is."""
        return self._speed

    @property
    def arrival_ms(self) -> list[int]:
        """When each job arrives, in order, from the first one on."""
        return self._arrival_ms

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

    def online_ms(self, policy: SchedulingPolicy) -> list[int]:
        """Return when each job ends, from the first one's arrival on, in virtual time."""
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
            (begin_ms + arrival, self.spec(number, policy)) for number, arrival in enumerate(self._arrival_ms)
        ]
        # Links do not break here and are not probed; nobody straggles, so that no second attempt is made.
        settings = Settings(speculation_share=0.0, probe_interval_ms=10**9, silence_ms_max=2 * 10**9)
        course = FleetSim(AGENTS, settings, self._draw).run(jobs)
        return [arrival + took for arrival, took in zip(self._arrival_ms, course.job_ms[1:], strict=True)]

    def _draw(self, spec: TaskSpec, number: int, agent: AgentId) -> float:
        del number
        return self.lasts_ms(float(spec.description), agent)

    def spec(self, number: int, policy: SchedulingPolicy) -> CollaborationSpec:
        """Return what a job's requester asks for; the true size of a task is its description."""
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


def _scaled(job: Workflow, factor: float) -> Workflow:
    return replace(job, runtime_ms=tuple(max(1.0, each * factor) for each in job.runtime_ms))
