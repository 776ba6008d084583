"""How much may be spent on running things twice: a share of the work that was done lately."""

from __future__ import annotations

import math

from services.common.core.instants import Instant

#: Part of the share that second attempts shorter than usual may fill.
_SHORT_PART = 0.9
#: Weight of the newest wish in the average.
_USUAL_STEP = 0.02


class WorkBudget:
    """Work in milliseconds of slot time, fading with a time constant of `window_ms`. Owned by the book.

    Nothing of it is durable: after a change of leader it begins at zero, which spends less, never more.
    """

    def __init__(self, share: float, window_ms: int) -> None:
        self._share, self._window_ms = share, window_ms
        self._at = Instant(0)
        #: What first attempts took, and what second ones took or are expected to take.
        self.work_ms = self.extra_ms = 0.0
        # What second attempts that were wanted would have taken on average.
        self._usual_ms = 0.0

    def done(self, elapsed_ms: int, now: Instant) -> None:
        """A first attempt ended after `elapsed_ms`."""
        self._fade(now)
        self.work_ms += elapsed_ms

    def wanted(self, expected_ms: float) -> None:
        """A second attempt would help."""
        self._usual_ms += (expected_ms - self._usual_ms) * _USUAL_STEP

    def allows(self, expected_ms: float, now: Instant) -> bool:
        """Return whether a second attempt of `expected_ms` is within the share.

        Those shorter than usual leave a part to the others, whose stragglers would end last.
        """
        self._fade(now)
        part = 1.0 if expected_ms >= self._usual_ms else _SHORT_PART
        return self.extra_ms + expected_ms <= part * self._share * self.work_ms

    def reserve(self, expected_ms: float, now: Instant) -> None:
        """A second attempt begins."""
        self._fade(now)
        self.extra_ms += expected_ms

    def settle(self, expected_ms: float, elapsed_ms: int, now: Instant) -> None:
        """A second attempt ended: what it took counts, not what was expected."""
        self._fade(now)
        self.extra_ms = max(0.0, self.extra_ms + elapsed_ms - expected_ms)

    def _fade(self, now: Instant) -> None:
        if now > self._at:
            kept = math.exp((self._at - now) / self._window_ms)
            self._at = now
            self.work_ms *= kept
            self.extra_ms *= kept
