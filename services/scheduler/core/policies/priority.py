"""PRIORITY: the most skilled and least loaded agent for each task in order; the default."""

from __future__ import annotations

from services.scheduler.core.model import PolicyWeights
from services.scheduler.core.policies.base import Columns, Part


class PriorityPolicy:
    """Level (0 to 1) + free share (0 to 1): a better or a less loaded agent wins."""

    predicts = False

    def parts(self, columns: Columns, weights: PolicyWeights) -> tuple[Part, ...]:
        """See `Policy.parts`."""
        del weights
        return Part("level", 1.0, columns.level), Part("free share", 1.0, columns.free_share)
