"""Decayed statistics: what one agent did of one type, what a type is like, what came of a skill.

Every cell forgets: with each observation what it knew counts a little less, and with time too. Weights are
therefore *effective* numbers of observations and never exceed 1 / (1 - keep).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from services.common.core.instants import Instant
from services.scheduler.core.policies.bandit import PolicyCell

#: What remains of a cell's weight with each further observation: about the last 50 of an agent's own runs
#: count, and the last 400 of a type.
PAIR_KEEP = 0.98
TYPE_KEEP = 0.9975
#: After so long without news what was learned counts half: two weeks.
HALF_LIFE_MS = 14 * 24 * 3_600_000
#: Before anything happened.
BEGINNING = Instant(0)


def aged(weight: float, since: Instant, now: Instant) -> float:
    """Return what is left of a weight at `now`."""
    return weight if now <= since else weight * 2.0 ** ((since - now) / HALF_LIFE_MS)


@dataclass(slots=True)
class Rate:
    """Successes and failures, decayed; read as a beta distribution."""

    successes: float = 0.0
    failures: float = 0.0

    def add(self, success: float, keep: float = PAIR_KEEP) -> None:
        """Take in one outcome: 1 is a success, 0 a failure, between is quality."""
        self.successes = self.successes * keep + success
        self.failures = self.failures * keep + (1.0 - success)

    @property
    def weight(self) -> float:
        """Outcomes that count."""
        return self.successes + self.failures

    def mean(self, prior: float, strength: float) -> float:
        """Return the expected rate when `prior` counts as much as `strength` outcomes."""
        return (prior * strength + self.successes) / (strength + self.weight)


@dataclass(slots=True)
class Line:
    """A decayed regression of log duration on log declared duration."""

    weight: float = 0.0
    mean_declared: float = 0.0
    mean_actual: float = 0.0
    #: Weighted sums of squares and products about the means.
    declared_squares: float = 0.0
    products: float = 0.0

    def add(self, declared: float, actual: float, keep: float) -> None:
        """Take in one run. Method: West's weighted update (CACM 22:9, 1979), older weights times `keep`."""
        weight = self.weight = self.weight * keep + 1.0
        step = declared - self.mean_declared
        self.mean_declared += step / weight
        self.mean_actual += (actual - self.mean_actual) / weight
        self.declared_squares = self.declared_squares * keep + step * (declared - self.mean_declared)
        self.products = self.products * keep + step * (actual - self.mean_actual)

    def scale(self, factor: float) -> None:
        """Let what was seen so far count `factor` times."""
        self.weight *= factor
        self.declared_squares *= factor
        self.products *= factor


@dataclass(slots=True)
class PairCell:
    """One agent with one task type."""

    line: Line = field(default_factory=Line)
    #: Of runs that ended by themselves.
    outcomes: Rate = field(default_factory=Rate)
    #: Of results that somebody judged, 0 to 1.
    quality: Rate = field(default_factory=Rate)
    #: Weighted squares of what predictions missed.
    misses: float = 0.0
    #: Runs in all, never decayed.
    count: int = 0
    time: Instant = BEGINNING
    #: Grows when the estimates of this pair are to be computed anew; not kept.
    edition: int = 0

    def copy(self) -> PairCell:
        """Return an independent copy, without what is not kept."""
        return replace(
            self,
            line=replace(self.line),
            outcomes=replace(self.outcomes),
            quality=replace(self.quality),
            edition=0,
        )


@dataclass(slots=True)
class TypeCell:
    """One task type, over all agents."""

    line: Line = field(default_factory=Line)
    outcomes: Rate = field(default_factory=Rate)
    misses: float = 0.0
    #: Logarithm of the factor by which intervals are widened so that they hold what they promise.
    widening: float = 0.0
    #: Runs that had an interval, and those inside it, decayed.
    judged: float = 0.0
    inside: float = 0.0
    #: The first required skill of its newest task: what it is like while it is new.
    skill: str = ""
    count: int = 0
    time: Instant = BEGINNING
    #: What tasks of this type say of themselves, oldest first: the classifier learns from them.
    texts: tuple[str, ...] = ()
    edition: int = 0
    #: `count` at which all estimates of the type are computed anew; neither of the two is kept.
    renew_count: int = 0

    def copy(self) -> TypeCell:
        """Return an independent copy, without what is not kept."""
        return replace(
            self, line=replace(self.line), outcomes=replace(self.outcomes), edition=0, renew_count=0
        )


@dataclass(slots=True)
class AgentCell:
    """One agent: its pairs by type and its outcomes by skill, least recently used first."""

    pairs: dict[str, PairCell] = field(default_factory=dict)
    skills: dict[str, Rate] = field(default_factory=dict)
    time: Instant = BEGINNING

    def copy(self) -> AgentCell:
        """Return an independent copy."""
        return AgentCell(
            {task_type: pair.copy() for task_type, pair in self.pairs.items()},
            {skill: replace(rate) for skill, rate in self.skills.items()},
            self.time,
        )


class LearnedKey(NamedTuple):
    """Names one record of what was learned."""

    kind: Literal["agents", "types", "policies"]
    #: The agent's name, the task type, or what chooses policies.
    name: str


#: What one record holds, as an independent copy.
Learned = AgentCell | TypeCell | PolicyCell
