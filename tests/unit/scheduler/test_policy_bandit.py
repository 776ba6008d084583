"""The bandit over policies: it finds the best arm, and its guard rails hold whatever the arms bring."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from services.scheduler.core.policies.bandit import EXPLORED_SHARE, LOSS_SHARE, TRIALS_MIN, Bandit

LOAD = "busy"
ARMS = ("default", "b", "c", "d")
TRIALS = 1_500


class Play:
    """A workload whose rewards are drawn: normal around each arm's mean, several trials under way at once."""

    def __init__(self, seed: int, means: Sequence[float], *, spread: float = 0.1, under_way: int = 6) -> None:
        self.random = Random(seed)
        self.means = dict(zip(ARMS, means, strict=False))
        self.bandit = Bandit(tuple(self.means))
        self.spread, self.under_way = spread, under_way
        self.chosen: list[str] = []
        self.explored = 0
        #: What every trial brought, and what the default's mean would have brought.
        self.rewards: list[float] = []
        self.changes: list[tuple[str, str]] = []
        self._open: list[str] = []

    def go(self, trials: int = TRIALS) -> Play:
        for _ in range(trials):
            choice = self.bandit.choose(LOAD)
            self.explored += choice.exploring
            self.chosen.append(choice.arm)
            self._open.append(choice.arm)
            if len(self._open) > self.under_way:
                arm = self._open.pop(self.random.randrange(len(self._open)))
                reward = min(1.0, max(0.0, self.random.gauss(self.means[arm], self.spread)))
                self.rewards.append(reward)
                changes = self.bandit.learn(LOAD, arm, reward)
                self.changes += [(change.what, change.arm) for change in changes]
        return self

    def worst_ratio(self, after: int = 200) -> float:
        """Return the smallest ratio of all rewards so far to what the default would have brought."""
        total, worst = 0.0, 1.0
        for number, reward in enumerate(self.rewards, 1):
            total += reward
            if number >= after:
                worst = min(worst, total / (number * self.means["default"]))
        return worst


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("means", [(0.6, 0.75, 0.5, 0.3), (0.5, 0.3, 0.3, 0.8), (0.7, 0.4, 0.9, 0.9)])
def test_it_converges_to_the_best_arm(seed: int, means: Sequence[float]) -> None:
    play = Play(seed, means).go()
    best = {name for name, mean in play.means.items() if mean == max(means)}
    late = play.chosen[TRIALS // 2 :]
    assert sum(arm in best for arm in late) / len(late) > 0.85
    assert play.bandit.load(LOAD).preferred in best
    assert ("prefer", play.bandit.load(LOAD).preferred) in play.changes


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    "means", [(0.6, 0.5, 0.4, 0.3), (0.6, 0.0, 0.0, 0.0), (0.9, 0.85, 0.1, 0.8), (0.3, 0.0, 0.29, 0.31)]
)
def test_it_never_falls_below_the_guard_rail(seed: int, means: Sequence[float]) -> None:
    """Up to the noise of the default's own mean: 0.1 over the root of 200 trials, four deviations."""
    play = Play(seed, means).go()
    noise = 4 * play.spread / 200**0.5 / means[0]
    assert play.worst_ratio() >= 1.0 - LOSS_SHARE - noise


@pytest.mark.parametrize("seed", range(10))
def test_a_clearly_worse_arm_is_shut_and_not_tried_again(seed: int) -> None:
    play = Play(seed, (0.8, 0.65)).go()
    assert ("shut", "b") in play.changes
    assert play.bandit.load(LOAD).arms["b"].shut
    assert "b" not in play.chosen[-200:]
    assert play.bandit.load(LOAD).preferred == "default"


@pytest.mark.parametrize("seed", range(10))
def test_no_more_than_a_share_explores(seed: int) -> None:
    play = Play(seed, (0.6, 0.6, 0.6, 0.6), spread=0.3).go()
    assert play.explored <= EXPLORED_SHARE * TRIALS + 1


def test_the_default_comes_first() -> None:
    bandit = Bandit(ARMS)
    for _ in range(TRIALS_MIN):
        assert bandit.choose(LOAD).arm == "default"
        bandit.learn(LOAD, "default", 0.5)


def test_what_is_under_way_counts_as_lost_until_it_is_known() -> None:
    bandit = Bandit(("default", "b"))
    for _ in range(TRIALS_MIN):
        bandit.choose(LOAD)
        bandit.learn(LOAD, "default", 0.8)
    # One credit for each loss: of many that begin at once, few may go to what nobody knows.
    chosen = [bandit.choose(LOAD).arm for _ in range(100)]
    assert chosen.count("b") <= 1


def test_loads_are_kept_apart_and_arms_that_are_not_configured_are_passed_over() -> None:
    bandit = Bandit(("default", "b"))
    bandit.learn("light", "b", 1.0)
    assert bandit.load("full").arms["b"].count == 0
    bandit.load("light").preferred = "gone"
    assert bandit.preferred("light").arm == "default"
    assert bandit.learn("light", "gone", 1.0) == []


def test_the_same_course_gives_the_same_choices() -> None:
    assert Play(3, (0.6, 0.7, 0.5)).go(300).chosen == Play(3, (0.6, 0.7, 0.5)).go(300).chosen
