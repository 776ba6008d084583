"""PREDICTIVE: where the task is predicted to end first, agents that are still busy counted as well.

Which agent that is, and whether to wait for it, is found for all tasks under this policy together
(`foreseeing.forecast`). What is here chooses among free agents, for tasks that do not wait.
"""

from __future__ import annotations

from services.scheduler.core.model import PolicyWeights
from services.scheduler.core.policies.base import Columns, Part, best_over

#: Between equally fast agents the less loaded one wins.
_LOAD_WEIGHT = 0.01


class PredictivePolicy:
    """The shortest predicted duration, and a little free share to choose among equals."""

    predicts = True

    def parts(self, columns: Columns, weights: PolicyWeights) -> tuple[Part, ...]:
        """See `Policy.parts`."""
        del weights
        duration = columns.duration_ms
        early = (
            columns.level * 0.0 + 1.0 if duration is None else best_over(duration, columns.least_duration_ms)
        )
        return Part("early finish", 1.0, early), Part("free share", _LOAD_WEIGHT, columns.free_share)
