"""Detectors: numbers in, "this is out of the ordinary" out. Each says how often it is wrong.

The false-alarm rates are held by `tests/unit/scheduler/test_monitoring_detectors.py`, from seeds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from services.common.core.instants import Instant
from services.scheduler.core.prediction.estimate import Estimate

#: An attempt is stuck beyond twice what 995 of 1,000 such runs stay below, or beyond so many times what is
#: expected while little is known; never before half a minute.
STUCK_QUANTILE = 0.995
STUCK_FACTOR = 2.0
STUCK_MEANS_MAX = 20.0
STUCK_MS_MIN = 30_000
#: An attempt that a linked agent has not begun after so long is stuck, whatever its length.
UNBEGUN_MS_MAX = 60_000

#: Links of one instance within this time are counted; from so many on it flaps, and to so few it must fall
#: back. An instance that reconnects once in half an hour by chance gets there once in 100,000 windows.
FLAP_WINDOW_MS = 600_000
FLAP_COUNT = 5
FLAP_CLEAR_COUNT = 2

#: Samples of the queue that are looked at, and by how much it must have grown at least.
QUEUE_SAMPLES = 24
QUEUE_GROWTH_MIN = 20
#: Value of the trend statistic: a normal deviate, lowered in its worth by the samples' dependence.
QUEUE_TREND_MIN = 4.0

#: Page's cumulative sum: drift in spreads that is let pass, where the alarm is, bound on one miss.
CUSUM_SLACK = 0.5
CUSUM_LIMIT = 12.0
CUSUM_MISS_MAX = 3.0


def stuck_after_ms(estimate: Estimate) -> float:
    """Return for how long an attempt may run before it counts as stuck."""
    usual_ms = min(STUCK_FACTOR * estimate.quantile(STUCK_QUANTILE), STUCK_MEANS_MAX * estimate.mean_ms)
    return max(STUCK_MS_MIN, usual_ms)


class LinkCounter:
    """How often one instance opened its link lately."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: deque[Instant] = deque(maxlen=64)

    def add(self, now: Instant) -> int:
        """Count one more link; return how many there were within the window."""
        self._times.append(now)
        return self.count(now)

    def count(self, now: Instant) -> int:
        """Return how many there were within the window."""
        while self._times and now - self._times[0] > FLAP_WINDOW_MS:
            self._times.popleft()
        return len(self._times)


def queue_grows(samples: Sequence[int]) -> bool:
    """Return whether a queue has been growing over all of `samples`, oldest first.

    Method: the Mann-Kendall test for a trend (Kendall, "Rank correlation methods", 1975), and, since the
    samples of a queue depend on each other, a last third that lies above the whole first third.
    """
    count = len(samples)
    if count < QUEUE_SAMPLES:
        return False
    third = count // 3
    first, last = max(samples[:third]), min(samples[-third:])
    if last < first + max(QUEUE_GROWTH_MIN, first // 2):
        return False
    score = sum(
        (later > earlier) - (later < earlier)
        for index, earlier in enumerate(samples)
        for later in samples[index + 1 :]
    )
    variance = count * (count - 1) * (2 * count + 5) / 18.0
    return score / math.sqrt(variance) > QUEUE_TREND_MIN


class DriftCounter:
    """Whether runs of one type are longer, or shorter, than predicted one after the other.

    Method: two-sided cumulative sums (Page, Biometrika 41, 1954) of misses in spreads.
    """

    __slots__ = ("longer", "shorter")

    def __init__(self) -> None:
        self.longer = self.shorter = 0.0

    def add(self, miss: float) -> None:
        """Take in by how many spreads one run was longer (positive) or shorter than predicted."""
        miss = max(-CUSUM_MISS_MAX, min(CUSUM_MISS_MAX, miss))
        self.longer = max(0.0, self.longer + miss - CUSUM_SLACK)
        self.shorter = max(0.0, self.shorter - miss - CUSUM_SLACK)

    @property
    def drifting(self) -> bool:
        """Whether that is an alarm."""
        return max(self.longer, self.shorter) > CUSUM_LIMIT

    @property
    def settled(self) -> bool:
        """Whether an alarm is over."""
        return max(self.longer, self.shorter) < CUSUM_LIMIT / 3.0
