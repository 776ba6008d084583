"""Quantiles of Student's t and of the beta distribution, and what is left of the normal one.

`scipy.special` computes them in a few microseconds; what a leader asks for again and again is kept.
"""

from __future__ import annotations

import math
from functools import lru_cache

from scipy.special import betainc, betaincinv, erfcx, stdtrit


@lru_cache(maxsize=4_096)
def student_quantile(p: float, degrees: float) -> float:
    """Return the `p` quantile (0 < p < 1) of Student's t with `degrees` > 0 degrees of freedom."""
    if not 0.0 < p < 1.0:
        raise ValueError(f"p is {p}: it must be between 0 and 1")
    return float(stdtrit(degrees, p))


def beta_quantile(p: float, a: float, b: float) -> float:
    """Return the `p` quantile (0 to 1) of the beta distribution with parameters `a`, `b` > 0."""
    return float(betaincinv(a, b, p))


def beta_cumulative(x: float, a: float, b: float) -> float:
    """Return the regularized incomplete beta function I_x(a, b)."""
    return float(betainc(a, b, min(max(x, 0.0), 1.0)))


def normal_above(score: float) -> tuple[float, float]:
    """Return (mean, variance) of a standard normal variable that is above `score`."""
    hazard = math.sqrt(2.0 / math.pi) / float(erfcx(score / math.sqrt(2.0)))
    return hazard, max(0.0, 1.0 + score * hazard - hazard * hazard)
