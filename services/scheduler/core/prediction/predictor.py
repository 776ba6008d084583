"""How long a task will take on an agent, learned from what ended.

Model, with durations as logarithms (run times are skewed, and errors are ratios):

    actual = type(declared) + agent + (agent, type) + noise

`type` is a regression on the declared duration: a type that is always declared too short is corrected, and a
declaration that says nothing loses its say. Each term is pulled towards the one before it, the more the fewer
observations it has: a pair towards its agent, an agent towards the fleet, a type towards others of its skill,
these towards the declared duration. Method: empirical Bayes shrinkage for nested normal means (Gelman et al.,
"Bayesian Data Analysis", chapter 5) with fixed variances of the terms; what is predicted is Student's t.

Intervals are kept honest by what happened: where fewer than 80 % of the runs of a type fell into theirs, the
type's intervals are widened, and narrowed where more did. Method: adaptive conformal inference, Gibbs and
Candès (NeurIPS 2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

from services.common.core.instants import Instant
from services.scheduler.core.policies.bandit import PolicyCell
from services.scheduler.core.prediction.cells import (
    PAIR_KEEP,
    TYPE_KEEP,
    AgentCell,
    Learned,
    LearnedKey,
    PairCell,
    Rate,
    TypeCell,
    aged,
)
from services.scheduler.core.prediction.distributions import normal_above
from services.scheduler.core.prediction.estimate import COVERAGE, Estimate, make

#: What is assumed before anything was seen: the variance of single runs of a type (a standard deviation of
#: 0.4: 80 % lie within a factor of 1.7), and how many runs that assumption counts for.
_NOISE_SQUARE = 0.16
_NOISE_WEIGHT = 3.0
#: Variances of the terms: a declaration against its type, an agent's speed, a pair beyond its agent's speed.
_DECLARED_SQUARE = 1.0
_AGENT_SQUARE = 0.12
_PAIR_SQUARE = 0.06
#: Runs that the prior "twice the declared duration takes twice as long" counts for.
_SLOPE_WEIGHT = 1.0
#: A miss counts as at most so many spreads: one straggler must not blur every later prediction.
_MISS_MAX = 4.0
#: Step of the widening per run that was judged, and its bounds as factors.
_WIDENING_STEP = 0.04
_WIDENING_MAX = math.log(4.0)
#: Runs of a type before its intervals are judged.
_JUDGED_FROM = 4
_JUDGED_KEEP = 0.995
#: Degrees of freedom are rounded to halves and bounded, so that few quantiles are ever computed.
_DEGREES_MAX = 60.0
#: While a pair is young every run renews its estimates; later each eighth.
_YOUNG = 16
_RENEW = 8
#: What is left after a while without news that makes estimates be computed anew.
_FADED = 0.95
#: The prior of every success rate: nine of ten, worth two outcomes.
SUCCESS_PRIOR = 0.9
SUCCESS_WEIGHT = 2.0
_SUCCESS_PRIOR_MAX = 0.95
#: A declared skill level counts as much as this many outcomes.
LEVEL_WEIGHT = 4.0

AGENTS_MAX = 20_000
TYPES_MAX = 2_048
TYPES_PER_AGENT_MAX = 64
SKILLS_PER_AGENT_MAX = 64
_CACHE_MAX = 65_536


class Predictor:
    """All that was learned about durations and outcomes. Owned by the scheduler's book; deterministic.

    Bounded: the agents and types heard of last, and of each agent the types and skills used last.
    """

    def __init__(self) -> None:
        self.agents: dict[str, AgentCell] = {}
        self.types: dict[str, TypeCell] = {}
        #: What changed since it was last taken for the store.
        self.changed: dict[LearnedKey, None] = {}
        # The cells that were opened last, with whose they are.
        self._opened: tuple[str, str, Instant, PairCell, TypeCell] | None = None
        # Of each skill, how its types deviate from what is declared; until a type is renewed.
        self._skills: dict[str, tuple[float, float]] = {}
        self._cache: dict[tuple[str, str, int, str], tuple[int, int, Estimate]] = {}

    # Reading.

    def estimate(self, agent_id: str, task_type: str, declared_ms: int, skill: str = "") -> Estimate:
        """Return how long a task of this type and declared duration will take on this agent.

        `skill` helps while the type is new: its first required skill. Never fails; knows nothing at first.
        """
        key = (agent_id, task_type, declared_ms, skill)
        kind = self.types.get(task_type)
        agent = self.agents.get(agent_id)
        pair = None if agent is None else agent.pairs.get(task_type)
        kind_edition = 0 if kind is None else kind.edition
        pair_edition = 0 if pair is None else pair.edition
        known = self._cache.get(key)
        if known is not None and known[0] == kind_edition and known[1] == pair_edition:
            return known[2]
        estimate = self._compute(agent, pair, kind, declared_ms, skill)
        if len(self._cache) >= _CACHE_MAX:
            self._cache.clear()
        self._cache[key] = (kind_edition, pair_edition, estimate)
        return estimate

    def typical(self, task_type: str, declared_ms: int, skill: str = "") -> Estimate:
        """Return how long such a task will take on an agent of which nothing is known."""
        return self.estimate("", task_type, declared_ms, skill)

    def success(self, agent_id: str, task_type: str) -> float:
        """Return the probability that an attempt of this type by this agent succeeds."""
        kind = self.types.get(task_type)
        # A type that never failed so far is no proof that it can not.
        prior = SUCCESS_PRIOR
        if kind is not None:
            prior = min(kind.outcomes.mean(SUCCESS_PRIOR, SUCCESS_WEIGHT), _SUCCESS_PRIOR_MAX)
        pair = self._pair(agent_id, task_type)
        return prior if pair is None else pair.outcomes.mean(prior, SUCCESS_WEIGHT)

    def quality(self, agent_id: str, task_type: str) -> tuple[float, float]:
        """Return (expected quality 0 to 1, judgements that count) of this agent's results of this type."""
        pair = self._pair(agent_id, task_type)
        rate = Rate() if pair is None else pair.quality
        return rate.mean(SUCCESS_PRIOR, SUCCESS_WEIGHT), rate.weight

    def proficiency(self, agent_id: str, skill: str, level: float) -> tuple[float, float]:
        """Return the parameters (a, b) of the beta distribution of an agent's proficiency in a skill.

        The declared `level` is its mean while nothing was observed; the more outcomes, the less it counts.
        """
        agent = self.agents.get(agent_id)
        rate = None if agent is None else agent.skills.get(skill)
        good, bad = (0.0, 0.0) if rate is None else (rate.successes, rate.failures)
        level = min(max(level, 0.01), 0.99)
        return level * LEVEL_WEIGHT + good, (1.0 - level) * LEVEL_WEIGHT + bad

    def factor(self, agent_id: str) -> tuple[float, float]:
        """Return (logarithm of an agent's factor on usual durations over all its types, its variance)."""
        agent = self.agents.get(agent_id)
        return (0.0, _AGENT_SQUARE) if agent is None else self._speed(agent)

    def coverage(self) -> float:
        """Return the share of runs inside their 80 % interval over all types, 0 before any was judged."""
        judged = sum(kind.judged for kind in self.types.values())
        return sum(kind.inside for kind in self.types.values()) / judged if judged else 0.0

    # Learning.

    def finished(
        self,
        agent_id: str,
        task_type: str,
        declared_ms: int,
        actual_ms: int,
        *,
        now: Instant,
        skill: str = "",
    ) -> Estimate:
        """Learn how long a run took that ended by itself; return what had been expected."""
        expected = self.estimate(agent_id, task_type, declared_ms, skill)
        actual_ms = max(actual_ms, 1)
        pair, kind = self._open(agent_id, task_type, now, skill)
        # In spreads as they are without widening, which must not feed back into the noise.
        miss = expected.score(actual_ms) * math.exp(kind.widening)
        miss = max(-_MISS_MAX, min(_MISS_MAX, miss))
        noise = self._noise(pair, kind)
        if kind.count >= _JUDGED_FROM:
            inside = expected.low_ms <= actual_ms <= expected.high_ms
            kind.judged = kind.judged * _JUDGED_KEEP + 1.0
            kind.inside = kind.inside * _JUDGED_KEEP + inside
            step = _WIDENING_STEP * (COVERAGE - inside)
            kind.widening = max(-_WIDENING_MAX, min(_WIDENING_MAX, kind.widening + step))
        # A miss in spreads, times the noise that the spread contains: what the noise alone would have missed.
        self._take(pair, kind, math.log(declared_ms), math.log(actual_ms), miss * miss * noise)
        return expected

    def stopped(
        self, agent_id: str, task_type: str, declared_ms: int, ran_ms: int, *, now: Instant, skill: str = ""
    ) -> None:
        """Learn that a run was stopped after `ran_ms`: it would have taken longer, nobody knows by how much.

        It counts as a run of the length that is expected of those that last longer, with the variance that is
        left. Without it only the faster one of two attempts would be seen, and every prediction drawn to the
        short side. One that was stopped before its median says next to nothing and is passed over, and no
        interval is judged by one. Method: Schmee and Hahn, "A simple method for regression analysis with
        censored data" (Technometrics 21:4, 1979), one run at a time, with the normal in place of t.
        """
        expected = self.estimate(agent_id, task_type, declared_ms, skill)
        score = expected.score(max(ran_ms, 1))
        if score <= 0.0:
            return
        pair, kind = self._open(agent_id, task_type, now, skill)
        beyond, left = normal_above(score)
        actual = math.log(expected.mean_ms) + expected.spread * beyond
        miss = min(beyond * math.exp(kind.widening), _MISS_MAX)
        self._take(pair, kind, math.log(declared_ms), actual, (miss * miss + left) * self._noise(pair, kind))

    def ended(
        self, agent_id: str, task_type: str, skills: tuple[str, ...], *, success: bool, now: Instant
    ) -> None:
        """Learn that a run by this agent succeeded, or failed by its own doing."""
        pair, kind = self._open(agent_id, task_type, now, skills[0] if skills else "")
        value = 1.0 if success else 0.0
        pair.outcomes.add(value)
        kind.outcomes.add(value, TYPE_KEEP)
        rates = self.agents[agent_id].skills
        for skill in skills:
            rate = rates.pop(skill, None) or Rate()
            rate.add(value)
            _bound(rates, SKILLS_PER_AGENT_MAX)
            rates[skill] = rate

    def judged(self, agent_id: str, task_type: str, score: float, now: Instant) -> None:
        """Learn how good a result was, 0 to 1."""
        pair, _ = self._open(agent_id, task_type, now, "")
        pair.quality.add(min(max(score, 0.0), 1.0))

    # Keeping.

    def value(self, key: LearnedKey) -> Learned | None:
        """Return a copy of what is to be kept under `key`; None when it is to be deleted."""
        # What is learned from now on is to be kept with the next change.
        self._opened = None
        cell = (self.agents if key.kind == "agents" else self.types).get(key.name)
        return None if cell is None else cell.copy()

    def restore(self, rows: Iterable[tuple[LearnedKey, Learned]]) -> None:
        """Take over what was kept, on an empty predictor; what was used last stays the longest."""
        cells = [(key, cell) for key, cell in rows if not isinstance(cell, PolicyCell)]
        for key, cell in sorted(cells, key=lambda row: row[1].time):
            copy = cell.copy()
            if isinstance(copy, AgentCell):
                self.agents[key.name] = copy
            else:
                self.types[key.name] = copy

    # Inside.

    def _pair(self, agent_id: str, task_type: str) -> PairCell | None:
        agent = self.agents.get(agent_id)
        return None if agent is None else agent.pairs.get(task_type)

    def _open(self, agent_id: str, task_type: str, now: Instant, skill: str) -> tuple[PairCell, TypeCell]:
        """Return the cells to learn into, aged to `now`, as the ones used last."""
        opened = self._opened
        if opened is not None and opened[:3] == (agent_id, task_type, now):
            # One result is learned from twice, duration and outcome: the second time all of this is done.
            return opened[3], opened[4]
        kind = self.types.pop(task_type, None)
        if kind is None:
            kind = TypeCell(time=now)
            self._drop("types", self.types, TYPES_MAX)
        self.types[task_type] = kind
        kind.skill = skill or kind.skill
        agent = self.agents.pop(agent_id, None)
        if agent is None:
            agent = AgentCell()
            self._drop("agents", self.agents, AGENTS_MAX)
        self.agents[agent_id] = agent
        pair = agent.pairs.pop(task_type, None)
        if pair is None:
            pair = PairCell(time=now)
            _bound(agent.pairs, TYPES_PER_AGENT_MAX)
        agent.pairs[task_type] = pair
        for cell in (kind, pair):
            if now > cell.time:
                left = aged(1.0, cell.time, now)
                cell.line.scale(left)
                cell.misses *= left
                cell.outcomes.successes *= left
                cell.outcomes.failures *= left
                cell.time = now
                cell.edition += left < _FADED
        agent.time = max(agent.time, now)
        # A plain tuple is found like the key it equals, and costs a fifth to make.
        if ("agents", agent_id) not in self.changed:
            self.changed[LearnedKey("agents", agent_id)] = None
        if ("types", task_type) not in self.changed:
            self.changed[LearnedKey("types", task_type)] = None
        self._opened = (agent_id, task_type, now, pair, kind)
        return pair, kind

    def _take(self, pair: PairCell, kind: TypeCell, declared: float, actual: float, square: float) -> None:
        """Take in one run: logarithms of its durations, and the square of what was missed."""
        kind.line.add(declared, actual, TYPE_KEEP)
        pair.line.add(declared, actual, PAIR_KEEP)
        kind.misses = kind.misses * TYPE_KEEP + square
        pair.misses = pair.misses * PAIR_KEEP + square
        pair.count += 1
        kind.count += 1
        self._renew(pair, kind)

    def _drop(self, kind: Literal["agents", "types"], rows: dict[str, Any], most: int) -> None:
        """Make room for one more row; what goes is deleted from the store, too."""
        while len(rows) >= most:
            name = next(iter(rows))
            del rows[name]
            self.changed[LearnedKey(kind, name)] = None

    def _renew(self, pair: PairCell, kind: TypeCell) -> None:
        if pair.count <= _YOUNG or pair.count % _RENEW == 0:
            pair.edition += 1
        if kind.count >= kind.renew_count:
            kind.edition += 1
            self._skills.clear()
            kind.renew_count = kind.count + max(1, min(kind.count // _RENEW, 4 * _RENEW))

    def _compute(
        self,
        agent: AgentCell | None,
        pair: PairCell | None,
        kind: TypeCell | None,
        declared_ms: int,
        skill: str,
    ) -> Estimate:
        declared = math.log(declared_ms)
        centre, variance = self._usual(kind, declared, skill)
        offset, offset_variance = self._offset(agent, pair, kind)
        noise = self._noise(pair, kind)
        widening = 0.0 if kind is None else kind.widening
        spread = math.sqrt(noise + variance + offset_variance) * math.exp(widening)
        weight = 0.0 if kind is None else kind.line.weight
        degrees = min(_NOISE_WEIGHT + weight, _DEGREES_MAX)
        observations = 0.0 if pair is None else pair.line.weight
        return make(centre + offset, spread, round(degrees * 2) / 2, observations)

    def _usual(self, kind: TypeCell | None, declared: float, skill: str) -> tuple[float, float]:
        """Return (log duration of a type on an average agent, variance of that)."""
        if kind is None:
            offset, variance = self._skill_offset(skill)
            return declared + offset, variance
        line, noise = kind.line, self._noise(None, kind)
        # An old type speaks for itself.
        young = kind.count < _YOUNG
        offset, prior_variance = self._skill_offset(kind.skill or skill) if young else (0.0, _DECLARED_SQUARE)
        prior_weight = noise / prior_variance
        weight = line.weight + prior_weight
        middle = line.mean_declared if line.weight else declared
        # The line's value at its own middle, pulled towards what was declared there.
        level = (line.weight * line.mean_actual + prior_weight * (middle + offset)) / weight
        slope = (line.products + _SLOPE_WEIGHT) / (line.declared_squares + _SLOPE_WEIGHT)
        away = declared - middle
        variance = noise / weight + noise * away * away / (line.declared_squares + _SLOPE_WEIGHT)
        return level + slope * away, variance

    def _skill_offset(self, skill: str) -> tuple[float, float]:
        """Return (log of actual over declared among a skill's types, variance for one more such type)."""
        if not skill:
            return 0.0, _DECLARED_SQUARE
        if (known := self._skills.get(skill)) is not None:
            return known
        rows = [
            kind.line.mean_actual - kind.line.mean_declared
            for kind in self.types.values()
            if kind.skill == skill and kind.line.weight > 1.0
        ]
        count = len(rows)
        mean = sum(rows) / (count + 1.0)
        scatter = sum((row - mean) ** 2 for row in rows)
        variance = _DECLARED_SQUARE
        if rows:
            variance = (variance + scatter) / (1.0 + count) * (1.0 + 1.0 / (count + 1.0))
        self._skills[skill] = mean, variance
        return mean, variance

    def _noise(self, pair: PairCell | None, kind: TypeCell | None) -> float:
        """Return the variance of single runs about their expectation."""
        noise = _NOISE_SQUARE
        if kind is not None:
            noise = (_NOISE_WEIGHT * noise + kind.misses) / (_NOISE_WEIGHT + kind.line.weight)
        if pair is not None:
            noise = (4 * _NOISE_WEIGHT * noise + pair.misses) / (4 * _NOISE_WEIGHT + pair.line.weight)
        return max(noise, 1e-6)

    def _offset(
        self, agent: AgentCell | None, pair: PairCell | None, kind: TypeCell | None
    ) -> tuple[float, float]:
        """Return an agent's deviation from a type's usual duration, and the variance of that."""
        noise = self._noise(pair, kind)
        speed, speed_variance = (0.0, _AGENT_SQUARE) if agent is None else self._speed(agent)
        if pair is None or kind is None or pair.line.weight <= 0.0:
            return speed, speed_variance + _PAIR_SQUARE
        missed = pair.line.mean_actual - self._usual(kind, pair.line.mean_declared, "")[0]
        prior_weight = noise / (_PAIR_SQUARE + speed_variance)
        weight = pair.line.weight + prior_weight
        return (pair.line.weight * missed + prior_weight * speed) / weight, noise / weight

    def _speed(self, agent: AgentCell) -> tuple[float, float]:
        """Return the log of an agent's own factor over all its types, and the variance of that."""
        total = weights = 0.0
        for task_type, pair in agent.pairs.items():
            kind = self.types.get(task_type)
            if kind is None or pair.line.weight <= 0.0:
                continue
            noise = self._noise(pair, kind)
            missed = pair.line.mean_actual - self._usual(kind, pair.line.mean_declared, "")[0]
            # A type tells about the agent as far as neither its noise nor its own peculiarity hides it.
            weight = 1.0 / (_PAIR_SQUARE + noise / pair.line.weight)
            total += weight * missed
            weights += weight
        precision = 1.0 / _AGENT_SQUARE
        return total / (precision + weights), 1.0 / (precision + weights)


def _bound(rows: dict[str, Any], most: int) -> None:
    """Drop the least recently used rows until one more has room."""
    while len(rows) >= most:
        del rows[next(iter(rows))]
