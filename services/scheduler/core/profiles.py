"""What is known about an agent: declared, learned with its uncertainty, and how it is linked now."""

from __future__ import annotations

import math
from typing import NamedTuple

from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import AgentId
from services.common.core.instants import Instant
from services.scheduler.core.book import Book
from services.scheduler.core.instances import Instance
from services.scheduler.core.prediction.cells import PairCell, Rate
from services.scheduler.core.prediction.distributions import beta_quantile, student_quantile
from services.scheduler.core.prediction.estimate import COVERAGE, Estimate
from services.scheduler.core.prediction.predictor import SUCCESS_PRIOR, SUCCESS_WEIGHT

_TAIL = (1.0 - COVERAGE) / 2.0


class Interval(NamedTuple):
    """An estimate with its 80 % interval."""

    mean: float
    low: float
    high: float


class SkillProfile(NamedTuple):
    """One skill of an agent."""

    skill: str
    #: 0: not declared now.
    declared_level: float
    proficiency: Interval
    outcomes: float
    successes: float


class TypeProfile(NamedTuple):
    """One task type as an agent does it."""

    task_type: str
    #: At the declared duration that its runs usually had.
    predicted: Estimate
    declared_ms: int
    usual_ms: float
    success: Interval
    outcomes: float
    #: None when no result was judged.
    quality: Interval | None
    judgements: float
    run_count: int
    last: Instant
    coverage: float
    coverage_runs: float


class AgentProfile(NamedTuple):
    """All of it."""

    agent_id: AgentId
    skills: tuple[SkillProfile, ...]
    types: tuple[TypeProfile, ...]
    duration_factor: Interval
    links: tuple[Instance, ...]
    learned: Instant | None


def profile(book: Book, agent_id: AgentId) -> AgentProfile:
    """Return the profile of an agent; raises AGENT_NOT_FOUND when nothing was ever heard of it."""
    cell = book.predictor.agents.get(agent_id)
    if cell is None and agent_id not in book.directory:
        raise ServiceError(
            Reason.AGENT_NOT_FOUND,
            f"agent {agent_id[:64]!r} is neither registered nor did it ever run a task",
        )
    links = sorted(
        (instance for key, instance in book.instances.items() if key.agent_id == agent_id),
        key=lambda instance: instance.key,
    )
    log_factor, variance = book.predictor.factor(agent_id)
    reach = student_quantile(1.0 - _TAIL, 60.0) * math.sqrt(variance)
    return AgentProfile(
        agent_id,
        tuple(_skills(book, agent_id)),
        tuple(_type(book, agent_id, name, pair) for name, pair in reversed(cell.pairs.items()))
        if cell
        else (),
        Interval(math.exp(log_factor), math.exp(log_factor - reach), math.exp(log_factor + reach)),
        tuple(links),
        None if cell is None else cell.time,
    )


def _skills(book: Book, agent_id: AgentId) -> list[SkillProfile]:
    declared: dict[str, float] = {}
    for view in book.directory.instances(agent_id):
        for skill, level in view.skills:
            declared[skill] = max(level, declared.get(skill, 0.0))
    cell = book.predictor.agents.get(agent_id)
    learned: dict[str, Rate] = {} if cell is None else cell.skills
    rows = []
    for name in sorted({*declared, *learned}):
        level = declared.get(name, 0.0)
        # What is not declared (any more) begins in the middle.
        a, b = book.predictor.proficiency(agent_id, name, level or 0.5)
        rate = learned.get(name, Rate())
        rows.append(SkillProfile(name, level, _beta(a, b), rate.weight, rate.successes))
    return rows


def _type(book: Book, agent_id: AgentId, name: str, pair: PairCell) -> TypeProfile:
    predictor = book.predictor
    kind = predictor.types.get(name)
    declared_ms = max(1, round(math.exp(pair.line.mean_declared))) if pair.count else 1_000
    rate, prior = pair.outcomes, predictor.success("", name)
    success = _beta(prior * SUCCESS_WEIGHT + rate.successes, (1.0 - prior) * SUCCESS_WEIGHT + rate.failures)
    judged = pair.quality
    quality = None
    if judged.weight > 0.0:
        quality = _beta(
            SUCCESS_PRIOR * SUCCESS_WEIGHT + judged.successes,
            (1.0 - SUCCESS_PRIOR) * SUCCESS_WEIGHT + judged.failures,
        )
    return TypeProfile(
        name,
        predictor.estimate(agent_id, name, declared_ms),
        declared_ms,
        predictor.typical(name, declared_ms).mean_ms,
        success,
        rate.weight,
        quality,
        judged.weight,
        pair.count,
        pair.time,
        kind.inside / kind.judged if kind is not None and kind.judged else 0.0,
        0.0 if kind is None else kind.judged,
    )


def _beta(a: float, b: float) -> Interval:
    return Interval(a / (a + b), beta_quantile(_TAIL, a, b), beta_quantile(1.0 - _TAIL, a, b))
