"""Quantiles of Student's t and of the beta distribution: pure functions, no table and no dependency."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

_NORMAL = NormalDist()
#: From here on t is the normal distribution for every purpose of this package.
_DEGREES_MAX = 200.0
_BISECTIONS = 60
_FRACTION_TERMS = 200
_TINY = 1e-300


@lru_cache(maxsize=4_096)
def student_quantile(p: float, degrees: float) -> float:
    """Return the `p` quantile (0 < p < 1) of Student's t with `degrees` > 0 degrees of freedom.

    Method: the cumulative distribution by the regularized incomplete beta function, inverted by bisection.
    """
    if not 0.0 < p < 1.0:
        raise ValueError(f"p is {p}: it must be between 0 and 1")
    if degrees >= _DEGREES_MAX:
        return _NORMAL.inv_cdf(p)
    tail = min(p, 1.0 - p)
    # P(|T| > t) = I_x(degrees / 2, 1 / 2) with x = degrees / (degrees + t²).
    x = beta_quantile(2.0 * tail, degrees / 2.0, 0.5) if tail < 0.5 else 1.0
    t = math.sqrt(degrees * (1.0 - x) / x) if x > 0.0 else math.inf
    return t if p > 0.5 else -t


def beta_quantile(p: float, a: float, b: float) -> float:
    """Return the `p` quantile (0 to 1) of the beta distribution with parameters `a`, `b` > 0."""
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        if beta_cumulative(middle, a, b) < p:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def beta_cumulative(x: float, a: float, b: float) -> float:
    """Return the regularized incomplete beta function I_x(a, b).

    Method: its continued fraction (Abramowitz and Stegun 26.5.8), evaluated as by Lentz (Applied Optics 15,
    1976), on the side of the mean where it converges fast.
    """
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - beta_cumulative(1.0 - x, b, a)
    front = math.exp(
        a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    )
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > _TINY else _TINY)
    value = d
    for m in range(1, _FRACTION_TERMS):
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0)),
        ):
            d = 1.0 + factor * d
            d = 1.0 / (d if abs(d) > _TINY else _TINY)
            c = 1.0 + factor / c
            c = c if abs(c) > _TINY else _TINY
            value *= c * d
        if abs(c * d - 1.0) < 1e-12:
            break
    return front * value / a
