"""A predicted duration: a distribution, not a number."""

from __future__ import annotations

import math
from typing import NamedTuple

from services.scheduler.core.prediction.distributions import student_quantile

#: Share of durations that fall between `low_ms` and `high_ms`.
COVERAGE = 0.8
#: Nothing is predicted to be shorter than this, or longer than what can be declared: 30 days.
DURATION_MS_MIN = 1.0
DURATION_MS_MAX = 30.0 * 24 * 3_600_000


class Estimate(NamedTuple):
    """How long one task will take on one agent: log-t distributed. Durations in milliseconds."""

    #: The centre: as many runs are shorter as are longer. The declared duration while nothing was observed.
    mean_ms: float
    #: The central interval that holds 80 % of the runs.
    low_ms: float
    high_ms: float
    #: Runs of this type by this agent that count, after decay; 0: it is known from others only.
    observations: float
    #: Of the logarithm: standard deviation and degrees of freedom.
    spread: float
    degrees: float

    def quantile(self, p: float) -> float:
        """Return the duration that a share `p` (0 < p < 1) of the runs does not exceed, in milliseconds."""
        value = self.mean_ms * math.exp(min(self.spread * student_quantile(p, self.degrees), 50.0))
        return min(max(value, DURATION_MS_MIN), DURATION_MS_MAX)

    def score(self, actual_ms: float) -> float:
        """Return by how many spreads an actual duration is longer (positive) or shorter than expected."""
        return math.log(max(actual_ms, DURATION_MS_MIN) / self.mean_ms) / self.spread


def make(log_centre: float, spread: float, degrees: float, observations: float) -> Estimate:
    """Return the estimate whose logarithm has this centre, spread and degrees of freedom."""
    mean_ms = min(max(math.exp(min(log_centre, 50.0)), DURATION_MS_MIN), DURATION_MS_MAX)
    factor = math.exp(min(spread * student_quantile(0.5 + COVERAGE / 2.0, degrees), 50.0))
    return Estimate(
        mean_ms,
        max(mean_ms / factor, DURATION_MS_MIN),
        min(mean_ms * factor, DURATION_MS_MAX),
        observations,
        spread,
        degrees,
    )
