"""What requesters of the simulated plane ask for, and what kind of plane it is; all drawn from the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from services.common.core.ids import AgentId, CollaborationId, RequestId, ResourceName, Skill, TaskId
from services.common.core.instants import Instant
from services.scheduler.core.events import PauseRequested, ReplyId, ResumeRequested
from services.scheduler.core.model import (
    CollaborationSpec,
    GangPlace,
    LockMode,
    Priority,
    ResourceClaim,
    RetryPolicy,
    SchedulingPolicy,
    Speculation,
    Submission,
    TaskSpec,
)

SKILLS = ("dig", "fly", "see")
RESOURCES = ("bridge", "road", "boat")
CLASSES = (Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.EMERGENCY)


@dataclass(frozen=True)
class Flavour:
    """What this plane is like: shares are of tasks or attempts, 0 to 1."""

    agents: int
    slots: int
    orders: int
    troubles: int
    tasks: int
    trouble: float
    locks: float
    code_locks: float
    gangs: float
    needs: float
    deadlines: float
    savepoints: float
    #: Agents differ in their skills.
    skills: bool
    #: In the end every agent has every skill.
    heals: bool
    #: Some tasks ask for what nobody has.
    unmeetable: bool
    #: Many small NORMAL tasks, and a few LOW ones.
    flood: bool

    @classmethod
    def draw(cls, rng: Random) -> Flavour:
        flood = rng.random() < 0.12
        share = (0.0, 0.0, 0.15, 0.4)
        return cls(
            agents=1 if flood else rng.randint(1, 5),
            slots=rng.randint(1, 3),
            orders=rng.randint(6, 9) if flood else rng.randint(1, 6),
            troubles=rng.randint(0, 2) if flood else rng.choice((0, 4, 8, 16)),
            tasks=14 if flood else rng.choice((3, 6, 12)),
            trouble=0.0 if flood else rng.choice((0.0, 0.5, 1.0)),
            locks=0.0 if flood else rng.choice(share),
            code_locks=0.0 if flood else rng.choice((0.0, 0.0, 0.0, 0.3)),
            gangs=0.0 if flood else rng.choice(share),
            needs=0.0 if flood else rng.choice(share),
            deadlines=0.0 if flood else rng.choice((0.0, 0.0, 0.1)),
            savepoints=rng.choice((0.0, 0.3)),
            skills=not flood and rng.random() < 0.5,
            heals=rng.random() < 0.9,
            unmeetable=not flood and rng.random() < 0.1,
            flood=flood,
        )


@dataclass(frozen=True)
class Halt:
    """A collaboration is to be paused, or to go on."""

    collaboration_id: CollaborationId
    goes_on: bool
    suspends: bool = False

    def event(self, reply: ReplyId) -> PauseRequested | ResumeRequested:
        """Return it as the scheduler gets it."""
        actor, why = "operator/admin", "for the seed"
        if self.goes_on:
            return ResumeRequested("resume", self.collaboration_id, actor, why, reply)
        return PauseRequested("pause", self.collaboration_id, actor, why, self.suspends, reply)


DrawAlarm = Callable[[Random, Flavour, int], Submission]


def draw_crowd(rng: Random, flavour: Flavour, number: int) -> Submission:
    """Return work that keeps everybody busy for a while."""
    count = flavour.agents * flavour.slots + 2
    tasks = tuple(
        TaskSpec(
            TaskId(f"t{index}"),
            (Skill(rng.choice(SKILLS)),),
            estimated_duration_ms=rng.choice((800, 3_000)),
            attempt_timeout_ms=12_000,
            needs=(("gpu", rng.choice((1, 1, 2))),) if rng.random() < 0.5 and not flavour.unmeetable else (),
            priority=rng.choice((Priority.LOW, Priority.LOW, Priority.NORMAL, Priority.HIGH)),
        )
        for index in range(count)
    )
    return _submission(rng, number, CollaborationSpec(tasks))


def draw_alarm(rng: Random, flavour: Flavour, number: int) -> Submission:
    """Return an urgent gang, now and then with a single task beside it."""
    size = rng.randint(2, min(3, flavour.agents))
    needs = (("gpu", rng.choice((1, 1, 2))),) if rng.random() < 0.4 and not flavour.unmeetable else ()
    skills = [rng.choice(SKILLS) for _ in range(size)] if rng.random() < 0.5 else [rng.choice(SKILLS)] * size
    tasks = [
        TaskSpec(
            TaskId("g" if rank == 0 else f"g.{rank}"),
            (Skill(skill),),
            estimated_duration_ms=rng.choice((20, 400)),
            attempt_timeout_ms=12_000,
            needs=needs,
            gang=GangPlace(TaskId("g"), rank, size),
        )
        for rank, skill in enumerate(skills)
    ]
    if rng.random() < 0.4:
        tasks.append(
            TaskSpec(TaskId("one"), (Skill(rng.choice(SKILLS)),), needs=needs, attempt_timeout_ms=12_000)
        )
    return _submission(rng, number, CollaborationSpec(tuple(tasks), priority=Priority.EMERGENCY))


def draw_order(rng: Random, flavour: Flavour, number: int, now: Instant) -> Submission:
    """Return the next submission."""
    tasks: list[TaskSpec] = []
    for index in range(rng.randint(1, flavour.tasks)):
        earlier = [each.task_id for each in tasks]
        depends = (
            [] if flavour.flood else rng.sample(earlier, min(len(earlier), rng.choice((0, 0, 1, 1, 2, 3))))
        )
        tasks.append(_task(rng, flavour, f"t{index}", depends, now))
    if rng.random() < flavour.gangs:
        size = rng.randint(2, min(3, max(2, flavour.agents)))
        first = _task(rng, flavour, "g", [each.task_id for each in tasks[:1]], now)
        if size <= flavour.agents or flavour.unmeetable:
            for rank in range(size):
                name = TaskId("g" if rank == 0 else f"g.{rank}")
                place = GangPlace(TaskId("g"), rank, size)
                claims = first.resources if rank == 0 else ()
                tasks.append(replace(first, task_id=name, gang=place, resources=claims, required_agents=()))
    spec = CollaborationSpec(
        tuple(tasks),
        priority=rng.choice(CLASSES),
        deadline=Instant(now + rng.randint(15_000, 60_000)) if rng.random() < flavour.deadlines else None,
        policy=rng.choice((None, *SchedulingPolicy)),
    )
    return _submission(rng, number, spec)


def _submission(rng: Random, number: int, spec: CollaborationSpec) -> Submission:
    digest = hashlib.sha256(repr(spec).encode()).digest()
    requester = rng.choice(("operator/admin", "agent/x", "agent/y"))
    return Submission(requester, RequestId(f"r{number}"), spec, digest)


def _task(rng: Random, flavour: Flavour, name: str, depends: list[TaskId], now: Instant) -> TaskSpec:
    more: dict[str, Any] = {}
    if rng.random() < flavour.locks:
        chosen = rng.sample(RESOURCES, rng.randint(1, 2))
        more["resources"] = tuple(
            ResourceClaim(ResourceName(each), rng.choice((LockMode.EXCLUSIVE, LockMode.SHARED)))
            for each in chosen
        )
    if rng.random() < flavour.needs and flavour.heals and flavour.unmeetable:
        more["needs"] = (("gpu", rng.choice((1, 2, 4, 8))),)
    elif rng.random() < flavour.needs and flavour.unmeetable is False:
        more["needs"] = (("gpu", rng.choice((1, 1, 2))),)
    if rng.random() < 0.05:
        more["required_agents"] = (AgentId(f"a{rng.randrange(flavour.agents)}"),)
    if rng.random() < flavour.deadlines:
        more["deadline"] = Instant(now + rng.randint(8_000, 30_000))
    if flavour.flood:
        duration = 120
        more["priority"] = Priority.LOW if rng.random() < 0.15 else Priority.NORMAL
    else:
        duration = rng.choice((20, 100, 400, 1_000))
        more["priority"] = rng.choice((None, None, *CLASSES))
    skills = rng.sample(SKILLS, rng.choice((1, 1, 2)))
    if flavour.unmeetable and rng.random() < 0.1:
        skills = ["magic"]
    return TaskSpec(
        TaskId(name),
        tuple(Skill(each) for each in skills),
        task_type="",
        estimated_duration_ms=duration,
        dependencies=tuple(depends),
        retry=RetryPolicy(rng.randint(2, 4), 100, 1_000),
        attempt_timeout_ms=rng.choice((6_000, 12_000)),
        speculation=rng.choice((Speculation.ALLOWED, Speculation.ALLOWED, Speculation.NEVER)),
        **more,
    )
