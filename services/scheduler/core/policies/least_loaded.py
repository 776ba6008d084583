"""LEAST_LOADED: the load is spread evenly over the agents, in proportion to their slots."""

from __future__ import annotations

from services.scheduler.core.model import PolicyWeights
from services.scheduler.core.policies.base import Columns, Part


class LeastLoadedPolicy:
    """The largest free share of the slots."""

    predicts = False

    def parts(self, columns: Columns, weights: PolicyWeights) -> tuple[Part, ...]:
        """See `Policy.parts`."""
        del weights
        return (Part("free share", 1.0, columns.free_share),)
