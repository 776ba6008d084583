"""Which policy serves best, found out by trying, within guard rails: a bandit whose arms are policies.

A trial is one collaboration under one arm; its reward, 0 to 1, is how near it came to the earliest end that
could be predicted for it (`policies.adapting`). Trials are kept apart by how loaded the fleet was, and each
further one of an arm leaves `KEEP` of the weight of its earlier ones. The first arm is the default's.

Method: UCB1-Tuned, Auer, Cesa-Bianchi and Fischer, "Finite-time analysis of the multiarmed bandit problem"
(Machine Learning 47, 2002): deterministic; held back by these guard rails:

- nothing is explored before the default has `TRIALS_MIN` trials;
- at most `EXPLORED_SHARE` of the collaborations get an arm other than the preferred one;
- all rewards together stay above `1 - LOSS_SHARE` of what the default's mean would have brought, however bad
  what is under way should turn out: otherwise the default is taken. Wu, Shariff, Lattimore and Szepesvari,
  "Conservative bandits" (ICML 2016);
- an arm whose interval lies wholly more than `LOSS_SHARE` below the default's is shut until somebody resets;
- an arm is preferred to another only when the lower end of its interval lies above the other's mean.

Whether anything may be tried at all (emergencies never, nothing while frozen) is the caller's decision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

KEEP = 0.995
TRIALS_MIN = 20
#: What is known about an arm counts from so many of its trials on: its interval says how little that is.
KNOWN_MIN = 8
EXPLORED_SHARE = 0.10
LOSS_SHARE = 0.05
#: The conservative bound counts what was won before up to so many default trials' worth.
CREDIT_MAX = 10.0
#: Of a normal distribution: 95 % lie within so many deviations; and trials before a deviation means anything.
_DEVIATIONS = 1.96
_FEW = 3.0
#: Largest variance of a number from 0 to 1.
_VARIANCE_MAX = 0.25


class Choice(NamedTuple):
    """Which arm a collaboration gets, and why."""

    arm: str
    why: str
    #: Not the preferred arm.
    exploring: bool = False


class Change(NamedTuple):
    """Something about an arm that people should be able to find again."""

    #: "prefer" or "shut".
    what: str
    arm: str
    why: str


@dataclass(slots=True)
class ArmCell:
    """One arm under one load. Weights are effective numbers of trials."""

    weight: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    #: Trials in all, never decayed.
    count: int = 0
    shut: bool = False
    #: Trials under way; not kept.
    pending: int = 0

    @property
    def mean(self) -> float:
        """Mean reward; 0 without any trial."""
        return self.total / self.weight if self.weight else 0.0

    @property
    def variance(self) -> float:
        """Variance of the rewards; as large as can be while there are few."""
        if self.weight < _FEW:
            return _VARIANCE_MAX
        return max(0.0, self.squares / self.weight - self.mean**2)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the mean lies with 95 % confidence, as of a normal distribution; 0 to 1 of very few."""
        if self.weight < _FEW:
            return 0.0, 1.0
        # One more trial of middling luck: equal rewards are no certainty.
        half = _DEVIATIONS * math.sqrt((self.variance + _VARIANCE_MAX / self.weight) / self.weight)
        return max(0.0, self.mean - half), min(1.0, self.mean + half)


@dataclass(slots=True)
class LoadCell:
    """All arms under one load."""

    arms: dict[str, ArmCell] = field(default_factory=dict)
    #: Empty before anything was tried: the default.
    preferred: str = ""
    #: Decayed numbers of choices, and of those that explored.
    chosen: float = 0.0
    explored: float = 0.0
    #: What the rewards brought so far above `1 - LOSS_SHARE` of the default's mean.
    credit: float = 0.0


@dataclass(slots=True)
class PolicyCell:
    """What was learned about policies, by load: one record in the store."""

    loads: dict[str, LoadCell] = field(default_factory=dict)
    frozen: bool = False

    def copy(self) -> PolicyCell:
        """Return an independent copy, without what is under way."""
        loads = {
            name: replace(load, arms={each: replace(arm, pending=0) for each, arm in load.arms.items()})
            for name, load in self.loads.items()
        }
        return PolicyCell(loads, self.frozen)


class Bandit:
    """See the module. Owned by the scheduler's book; without arms there is nothing to choose."""

    def __init__(self, arms: tuple[str, ...]) -> None:
        self.arms = arms
        self.cell = PolicyCell()

    @property
    def default(self) -> str:
        """The arm that the others are measured against."""
        return self.arms[0]

    def load(self, name: str) -> LoadCell:
        """Return what is known under a load, with a cell for every arm."""
        load = self.cell.loads.setdefault(name, LoadCell())
        for arm in self.arms:
            load.arms.setdefault(arm, ArmCell())
        if load.preferred not in self.arms:
            load.preferred = self.default
        return load

    def preferred(self, name: str) -> Choice:
        """Return the preferred arm, without trying anything."""
        return Choice(self.load(name).preferred, "the preferred one")

    def choose(self, name: str) -> Choice:
        """Return the arm for one more collaboration, which is under way from now on."""
        load = self.load(name)
        choice = self._choose(load)
        load.chosen = load.chosen * KEEP + 1.0
        load.explored = load.explored * KEEP + choice.exploring
        load.arms[choice.arm].pending += 1
        return choice

    def _choose(self, load: LoadCell) -> Choice:
        base = load.arms[self.default]
        if base.weight < TRIALS_MIN:
            return Choice(self.default, f"the default's first {TRIALS_MIN} trials")
        best = max((arm for arm in self.arms if not load.arms[arm].shut), key=lambda arm: _reach(load, arm))
        wanted = best
        if best != load.preferred and load.explored * KEEP + 1.0 > EXPLORED_SHARE * (
            load.chosen * KEEP + 1.0
        ):
            wanted = load.preferred
        if wanted != self.default and not self._affordable(load, wanted):
            return Choice(self.default, "the default: what is under way could cost too much otherwise")
        if wanted == load.preferred:
            return Choice(wanted, "the preferred one")
        return Choice(wanted, "tried: it may be better than what is known", exploring=True)

    def _affordable(self, load: LoadCell, wanted: str) -> bool:
        """Return whether the bound on the loss holds if every trial under way brings as little as can be."""
        floor = (1.0 - LOSS_SHARE) * load.arms[self.default].mean
        at_risk = 0.0
        for name in self.arms:
            if name != self.default:
                arm = load.arms[name]
                low = arm.interval[0] if arm.weight >= KNOWN_MIN else 0.0
                at_risk += (arm.pending + (name == wanted)) * max(0.0, floor - low)
        return at_risk <= load.credit

    def abandon(self, name: str, arm: str) -> None:
        """A trial is over and says nothing about its arm."""
        if (cell := self.load(name).arms.get(arm)) is not None:
            cell.pending = max(0, cell.pending - 1)

    def adopt(self, name: str, arm: str) -> None:
        """Note a trial that began under another leader."""
        if (cell := self.load(name).arms.get(arm)) is not None:
            cell.pending += 1

    def learn(self, name: str, arm: str, reward: float) -> list[Change]:
        """Take in what a trial brought, 0 to 1; return what changes by it."""
        self.abandon(name, arm)
        load = self.load(name)
        if arm not in self.arms:
            return []
        cell = load.arms[arm]
        cell.weight = cell.weight * KEEP + 1.0
        cell.total = cell.total * KEEP + reward
        cell.squares = cell.squares * KEEP + reward * reward
        cell.count += 1
        base = load.arms[self.default].mean
        gain = reward - (1.0 - LOSS_SHARE) * base
        load.credit = min(load.credit + gain, CREDIT_MAX * LOSS_SHARE * max(base, LOSS_SHARE) * TRIALS_MIN)
        return [*self._shut(load), *self._prefer(load)]

    def _shut(self, load: LoadCell) -> list[Change]:
        base = load.arms[self.default]
        changes = []
        for name in self.arms[1:]:
            arm = load.arms[name]
            if arm.shut or arm.weight < KNOWN_MIN or base.weight < TRIALS_MIN:
                continue
            if arm.interval[1] < (1.0 - LOSS_SHARE) * base.interval[0]:
                arm.shut = True
                why = f"at most {arm.interval[1]:.3f}, the default brings {base.interval[0]:.3f} at least"
                changes.append(Change("shut", name, why))
                if load.preferred == name:
                    load.preferred = self.default
        return changes

    def _prefer(self, load: LoadCell) -> list[Change]:
        before = load.arms[load.preferred]
        better = [
            name
            for name in self.arms
            if not load.arms[name].shut
            and load.arms[name].weight >= KNOWN_MIN
            and load.arms[name].interval[0] > before.mean
        ]
        if not better or before.weight < 1.0:
            return []
        best = max(better, key=lambda name: load.arms[name].mean)
        if best == load.preferred:
            return []
        why = f"at least {load.arms[best].interval[0]:.3f}, {load.preferred} brings {before.mean:.3f}"
        load.preferred = best
        return [Change("prefer", best, why)]


def _reach(load: LoadCell, name: str) -> float:
    """Return how much an arm may bring: UCB1-Tuned, trials under way counted as made."""
    arm = load.arms[name]
    weight = arm.weight + arm.pending
    if weight < 1.0:
        return math.inf
    spent = math.log(max(math.e, sum(each.weight + each.pending for each in load.arms.values())))
    bound = arm.variance + math.sqrt(2.0 * spent / weight)
    return arm.mean + math.sqrt(spent / weight * min(_VARIANCE_MAX, bound))
