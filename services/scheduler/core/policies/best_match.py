"""BEST_MATCH: the tasks of a wave go to agents so that their skill levels together are as high as can be.

One task alone goes to the best of its agents; what several of them get is decided together, see
`placing.matching`.
"""

from __future__ import annotations

from services.scheduler.core.model import PolicyWeights
from services.scheduler.core.policies.base import Columns, Part

#: Between equally good agents the less loaded one wins, and the load never outweighs a level of 0.01.
_LOAD_WEIGHT = 0.01


class BestMatchPolicy:
    """Level, and a little free share to choose among equals."""

    predicts = False

    def parts(self, columns: Columns, weights: PolicyWeights) -> tuple[Part, ...]:
        """See `Policy.parts`."""
        del weights
        return Part("level", 1.0, columns.level), Part("free share", _LOAD_WEIGHT, columns.free_share)
