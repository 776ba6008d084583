"""How complex a task is: a score from 0 to 100 as a sum of named factors.

Two factors come from history and replace what was declared as soon as something was seen: how long such work
takes, and how often it fails or surprises.
"""

from __future__ import annotations

import math
from typing import NamedTuple

_DAY_MS = 24 * 3_600_000


class Facts(NamedTuple):
    """What the score is made from."""

    #: Expected on an average agent, and the end of the interval that holds 80 %, in milliseconds.
    expected_ms: float
    high_ms: float
    #: Probability that an attempt succeeds.
    success: float
    skills: int
    resources: int
    dependencies: int
    #: Tasks that depend on it, directly.
    dependents: int
    input_bytes: int
    #: Of its description and payload.
    text_characters: int


class Factor(NamedTuple):
    """One part of a score."""

    name: str
    points: float
    points_max: float
    #: What it is made from, for people.
    reason: str


class Complexity(NamedTuple):
    """A score with its factors; the points add up to it."""

    score: float
    factors: tuple[Factor, ...]


def complexity(facts: Facts) -> Complexity:
    """Return the complexity of a task."""
    spread = facts.high_ms / max(facts.expected_ms, 1.0)
    factors = (
        _factor(
            "duration",
            25,
            _log_share(facts.expected_ms, 100, _DAY_MS),
            f"{facts.expected_ms:.0f} ms expected",
        ),
        _factor(
            "uncertainty", 15, _log_share(spread, 1.0, 20.0), f"one run in ten exceeds {facts.high_ms:.0f} ms"
        ),
        _factor("risk", 20, (1.0 - facts.success) / 0.5, f"{facts.success:.0%} of attempts succeed"),
        _factor("skills", 10, (facts.skills - 1) / 4, f"skills wanted in one agent: {facts.skills}"),
        _factor("resources", 10, facts.resources / 4, f"locks held while it runs: {facts.resources}"),
        _factor(
            "dependencies",
            10,
            _log_share(1 + facts.dependencies + facts.dependents, 1, 65),
            f"tasks that it needs: {facts.dependencies}, that need it: {facts.dependents}",
        ),
        _factor(
            "content",
            10,
            _log_share(1 + facts.input_bytes + facts.text_characters, 32, 1 << 20),
            f"bytes of input: {facts.input_bytes}, characters of text: {facts.text_characters}",
        ),
    )
    return Complexity(sum(factor.points for factor in factors), factors)


def _factor(name: str, points_max: float, share: float, reason: str) -> Factor:
    return Factor(name, points_max * min(max(share, 0.0), 1.0), points_max, reason)


def _log_share(value: float, least: float, most: float) -> float:
    """Return where a value lies between two bounds, by its order of magnitude."""
    return math.log(max(value, least) / least) / math.log(most / least)
