"""Why a task has the place, the agent or the wait that it has. Nothing here changes the state."""

from __future__ import annotations

from typing import NamedTuple

from services.common.core.instants import NEVER, Instant, rfc3339
from services.scheduler.core.analysis import analysing
from services.scheduler.core.book import Book
from services.scheduler.core.course import Place, Task
from services.scheduler.core.instances import Instance
from services.scheduler.core.intake import graph
from services.scheduler.core.model import InstanceKey, Priority, SchedulingPolicy
from services.scheduler.core.placing.fairness import dominant_share
from services.scheduler.core.placing.index import gang_key
from services.scheduler.core.placing.pools import level_for
from services.scheduler.core.queries import waiting_for
from services.scheduler.core.running import lateness

#: Agents that one explanation shows; the others are counted.
CANDIDATES_MAX = 16


class Fact(NamedTuple):
    """A named quantity, as text with its unit, and what it means here."""

    name: str
    value: str
    meaning: str = ""


class CandidateView(NamedTuple):
    """An instance with the skills: its score as it is now, or what keeps it from the task."""

    instance: InstanceKey
    score: float
    #: (name, value, weight).
    parts: tuple[tuple[str, float, float], ...]
    obstacle: str


class Explanation(NamedTuple):
    """All that is known about why."""

    task: Task
    priority: tuple[Fact, ...]
    analysis: tuple[Fact, ...]
    policy: SchedulingPolicy
    chosen_because: str
    waiting_for: str
    candidates: tuple[CandidateView, ...]
    candidate_count: int
    free_count: int
    predicted_end: Instant | None


def explain(book: Book, task: Task, now: Instant) -> Explanation:
    """Return why `task` is where it is, at this moment."""
    book.index.settle()
    newest = task.newest
    rows = book.index.fleet.eligible(task.demand.skills, task.demand.agents).rows.tolist()
    candidates = [] if task.ended else _candidates(book, task, rows)
    free_count = sum(not each.obstacle for each in candidates)
    return Explanation(
        task,
        tuple(_priority(book, task, now)),
        tuple(_analysis(book, task)),
        task.demand.style.policy,
        "" if newest is None else newest.explanation,
        _wait(book, task, free_count),
        tuple(candidates[:CANDIDATES_MAX]),
        len(rows),
        free_count,
        None if task.ended else lateness.predicted_end(book, task, now),
    )


def _wait(book: Book, task: Task, free_count: int) -> str:
    text = waiting_for(book, task)
    if task.place is Place.QUEUE and not free_count and text:
        return f"{text}; {book.index.waiting_count} ready tasks wait in all"
    return text


def _priority(book: Book, task: Task, now: Instant) -> list[Fact]:
    account, totals = task.account, book.index.fleet.totals
    share = dominant_share(account.held, account.needs, account.weight, totals)
    first = "a more urgent class always comes first"
    if task.priority <= book.settings.preempting_priority:
        first += ", and takes slots of less urgent work when none is free"
    facts = [Fact("class", task.priority.name, first)]
    if task.ready_time is not None and task.place is not Place.NOWHERE:
        waited, ageing = now - task.ready_time, book.settings.ageing_ms
        aged = task.priority is not Priority.EMERGENCY and waited >= ageing
        meaning = (
            f"aged: each agent that can do it owes one start in {book.settings.ageing_share} to such tasks"
            if aged
            else f"counts from {ageing} ms on, and never for or against EMERGENCY"
        )
        facts.append(Fact("age", f"{waited} ms", meaning))
    facts.append(
        Fact(
            "fair share",
            f"{share:.4f}",
            f"{account.name} holds {account.held} of {totals.slots} slots, weight {account.weight:g}; "
            "in a class the requester with the smallest share comes first",
        )
    )
    due = "none" if task.due == NEVER else rfc3339(task.due)
    facts.append(Fact("due", due, "until then it must have ended for all that depends on it to be in time"))
    facts.append(Fact("critical path", f"{task.rank_ms} ms", "the longest chain from its start to the end"))
    facts.append(Fact("arrival", str(task.arrival), "its place in the order of submission"))
    return facts


def _analysis(book: Book, task: Task) -> list[Fact]:
    tasks = task.collaboration.tasks
    deps = {name: each.spec.dependencies for name, each in tasks.items()}
    durations = {name: each.spec.estimated_duration_ms for name, each in tasks.items()}
    rows = graph.levels(deps)
    level = next(number for number, row in enumerate(rows) if task.key.task_id in row)
    slack_ms = graph.slack(deps, durations)[task.key.task_id]
    meaning = "on the critical path" if slack_ms == 0 else "it may be so much later and delay nothing"
    return [
        *_learned(book, task),
        Fact(
            "level",
            f"{level + 1} of {len(rows)}",
            f"{len(rows[level])} tasks can run beside each other there",
        ),
        Fact("slack", f"{slack_ms} ms", meaning),
        Fact("depends on", str(len(task.spec.dependencies)), f"{task.unmet} of them have not succeeded"),
        Fact("dependents", str(len(task.dependents)), ", ".join(task.dependents[:5])),
        Fact("declared duration", f"{task.spec.estimated_duration_ms} ms"),
    ]


def _learned(book: Book, task: Task) -> list[Fact]:
    """Return what its text and history say about a task."""
    found = analysing.analyse(book, task)
    sources = {
        "declared": "as its requester wrote",
        "text": f"read from its text with confidence {found.confidence:.2f}; next likely: {found.runner_up}",
        "skill": "its first required skill: no type was written, and its text says too little",
    }
    spec, complexity = task.spec, found.complexity
    expected = book.predictor.typical(found.task_type, spec.estimated_duration_ms, spec.required_skills[0])
    kind = book.predictor.types.get(found.task_type)
    runs = 0 if kind is None else kind.count
    return [
        Fact("type", found.task_type, sources[found.source]),
        Fact(
            "expected duration",
            f"{expected.mean_ms:.0f} ms",
            f"80 % between {expected.low_ms:.0f} and {expected.high_ms:.0f} ms, from {runs} runs of its type",
        ),
        Fact("complexity", f"{complexity.score:.0f}", "of 100; the sum of the parts that follow"),
        *(
            Fact(
                f"complexity: {factor.name}",
                f"{factor.points:.1f}",
                f"of {factor.points_max:.0f}: {factor.reason}",
            )
            for factor in complexity.factors
        ),
    ]


def _candidates(book: Book, task: Task, rows: list[int]) -> list[CandidateView]:
    """Return the instances with the skills: the free ones by score, then the others by name."""
    fleet, pool = book.index.fleet, book.index.pool(task.demand)
    views: list[CandidateView] = []
    scored: set[int] = set()
    if pool is not None:
        pool.rank(CANDIDATES_MAX)
        for row, score, parts in pool.ranking():
            if row not in scored:
                scored.add(row)
                views.append(CandidateView(book.index.key_of(row), score, parts, ""))
    # All that are free count, also those beyond what was ranked.
    free = set() if pool is None else set(pool.rows.tolist())
    others = [fleet.instances[row] for row in rows if row not in free]
    held_back = sorted((each for each in others if each is not None), key=lambda each: each.key)
    views += [
        CandidateView(book.index.key_of(row), 0.0, (), "") for row in free - scored if len(views) < len(free)
    ]
    views += [CandidateView(each.key, 0.0, (), _obstacle(task, each)) for each in held_back[:CANDIDATES_MAX]]
    return views


def _obstacle(task: Task, instance: Instance) -> str:
    if instance.stream is None:
        return "its link is down"
    if instance.draining:
        return "it drains"
    if level_for(instance.levels, task.demand) is None:
        return "it lacks a skill"
    for name, amount in task.demand.needs:
        left = instance.capacities.get(name, 0) - instance.used.get(name, 0)
        if left < amount:
            return f"{name}: {amount} needed, {max(0, left)} left"
    if instance.credits and instance.kept:
        names = ", ".join(str(gang_key(each)) for each in instance.kept.values())
        return f"its free slots are kept for {names}"
    mine = " (this task among them)" if task.key in instance.held else ""
    return f"no free slot: it holds {len(instance.held)}{mine}"
