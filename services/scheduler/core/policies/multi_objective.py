"""MULTI_OBJECTIVE: early finish, quality, low cost and evenness, weighed as the requester wants it.

Each objective is brought to 0 to 1 among the agents that are free now (1 is the best of them), and the
weights to a sum of 1: the score is their weighted sum.
"""

from __future__ import annotations

from services.scheduler.core.model import PolicyWeights
from services.scheduler.core.policies.base import Columns, Part, best_over


class MultiObjectivePolicy:
    """Weights over finish time, quality, cost and fairness."""

    predicts = True

    def parts(self, columns: Columns, weights: PolicyWeights) -> tuple[Part, ...]:
        """See `Policy.parts`."""
        whole = sum(weights)
        finish, quality, cost, fairness = (
            (each / whole for each in weights) if whole > 0 else (0.25, 0.25, 0.25, 0.25)
        )
        duration = columns.duration_ms
        early = (
            columns.level * 0.0 + 1.0 if duration is None else best_over(duration, columns.least_duration_ms)
        )
        return (
            Part("early finish", finish, early),
            Part("quality", quality, columns.level),
            Part("low cost", cost, best_over(columns.cost, columns.least_cost)),
            Part("evenness", fairness, columns.free_share),
        )
