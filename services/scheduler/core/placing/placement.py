"""Which ready task goes to which free agent: a function of a snapshot.

Tasks come in serving order (`placing.lanes`) and each goes to the slot with the largest score under its
policy (`core.policies`). The slots of an instance are told apart: the j-th free one is scored as if the ones
before it were taken. Since a score never rises with j, walking each demand's slots in falling order of score
and passing over those that others took gives what choosing anew for every task would give, at the price of
one sort for each demand. A wave does the same by arrays (`placing.wave`), unless something is owed to age,
kept for a gang, matched together or predicted for each agent: then it goes one by one, too.

The plan is a proposal: `placing.apply` verifies each placement against the state as it then is, and may
accept a part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from services.common.core.ids import AgentId, Skill
from services.scheduler.core.model import (
    ALIKE,
    CollaborationSpec,
    InstanceKey,
    PolicyWeights,
    SchedulingPolicy,
    TaskSpec,
)
from services.scheduler.core.placing.matching import best_match
from services.scheduler.core.policies.registry import POLICIES

if TYPE_CHECKING:
    from services.scheduler.core.placing.ranking import Pool
    from services.scheduler.core.placing.wave import WavePool

#: Tasks that are matched together at most: the price of a matching grows with their cube.
MATCHED_MAX = 256


class Style(NamedTuple):
    """How an agent is chosen. Tasks of different styles never share a queue."""

    policy: SchedulingPolicy = SchedulingPolicy.PRIORITY
    weights: PolicyWeights = ALIKE
    #: What the policy predicts for; empty and 0 when it predicts nothing.
    task_type: str = ""
    duration_ms: int = 0
    skill: str = ""


_PLAIN = Style()


class Demand(NamedTuple):
    """What a task needs of an agent, and how one is chosen; tasks with the same demand share a queue."""

    skills: frozenset[Skill]
    #: If not empty, only these.
    agents: frozenset[AgentId]
    #: Amounts of an instance's capacities, by name in order of name.
    needs: tuple[tuple[str, int], ...] = ()
    style: Style = _PLAIN


def demand_of(
    spec: TaskSpec,
    collaboration: CollaborationSpec | None = None,
    default: SchedulingPolicy = SchedulingPolicy.PRIORITY,
) -> Demand:
    """Return what a task needs of an agent; `default` is the policy of a collaboration that names none."""
    policy = (None if collaboration is None else collaboration.policy) or default
    style = _PLAIN
    if policy is not SchedulingPolicy.PRIORITY:
        style = Style(policy)
        if POLICIES[policy].predicts and collaboration is not None:
            task_type = spec.task_type or spec.required_skills[0]
            declared_ms, skill = spec.estimated_duration_ms, spec.required_skills[0]
            style = Style(policy, collaboration.weights, task_type, declared_ms, skill)
    return _demand(spec.required_skills, spec.required_agents, spec.needs, style)


@lru_cache(maxsize=4_096)
def _demand(
    skills: tuple[Skill, ...], agents: tuple[AgentId, ...], needs: tuple[tuple[str, int], ...], style: Style
) -> Demand:
    """Return a demand, as a rule the one that others with the same wishes have: that compares fastest."""
    return Demand(frozenset(skills), frozenset(agents), needs, style)


class Snapshot(NamedTuple):
    """What a planner may look at. Bounded: no more tasks than could be served."""

    #: In serving order: (task, pool, whether it is served for its age). The task is opaque here.
    turns: Sequence[tuple[Any, Pool, bool]]
    #: Instance by row.
    key_of: Callable[[int], InstanceKey]
    #: Plans a wave, whose turns are arrays, all at once; None to go through the turns.
    wave: Callable[[], Collection[Placement]] | None = None


class Placement(NamedTuple):
    """One proposed assignment."""

    #: As it was in the snapshot.
    task: Any
    row: int
    #: Served for its age.
    aged: bool
    #: Where the reasons are: rendered by `explain` when somebody wants them.
    pool: Pool | WavePool
    at: int


def plan(snapshot: Snapshot) -> Collection[Placement]:
    """Return a placement for every task of the snapshot that an agent is free for, in serving order."""
    if snapshot.wave is not None:
        return snapshot.wave()
    turns = snapshot.turns
    taken: dict[int, int] = {}
    spent: dict[int, dict[str, int]] = {}
    placements: list[Placement] = []
    wave = len(turns)
    number = 0
    while number < wave:
        task, pool, aged = turns[number]
        if pool.matched and not aged:
            group = _matched_together(turns, number)
            if len(group) > 1:
                placements += _match(group, taken)
                number += len(group)
                continue
        at = pool.take_owed(taken, spent) if aged else pool.take(taken, spent, task.wish)
        if at >= 0:
            placements.append(Placement(task, pool.row(at), aged, pool, at))
        number += 1
    return placements


def _matched_together(
    turns: Sequence[tuple[Any, Pool, bool]], first: int
) -> Sequence[tuple[Any, Pool, bool]]:
    """Return the turns from `first` on that one matching decides: of one class, one after the other."""
    priority = turns[first][0].priority
    end = first
    while end < len(turns) and end - first < MATCHED_MAX:
        task, pool, aged = turns[end]
        style = pool.demand.style
        if aged or pool.demand.needs or task.priority != priority or style.policy is not _BEST_MATCH:
            break
        end += 1
    return turns[first:end]


_BEST_MATCH = SchedulingPolicy.BEST_MATCH


def _match(group: Sequence[tuple[Any, Pool, bool]], taken: dict[int, int]) -> list[Placement]:
    """Place the tasks of a group together; see `placing.matching` for what is best."""
    choices: dict[Demand, list[tuple[int, int, int, float]]] = {}
    for _, pool, _ in group:
        pool.rank(2 * len(group) + pool.wanted)
        if pool.demand not in choices:
            choices[pool.demand] = pool.left_over(taken)[: len(group)]
    found = best_match(
        [[((row, j), score) for _, row, j, score in choices[pool.demand]] for _, pool, _ in group]
    )
    placements: list[Placement] = []
    for (task, pool, _), position in zip(group, found, strict=True):
        if position is not None:
            at, row, *_ = choices[pool.demand][position]
            taken[row] = taken.get(row, 0) + 1
            placements.append(Placement(task, row, False, pool, at))
    return placements
