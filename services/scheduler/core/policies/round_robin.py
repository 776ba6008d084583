"""ROUND_ROBIN: agents take turns, whatever their level or load."""

from __future__ import annotations

import numpy as np

from services.scheduler.core.model import PolicyWeights
from services.scheduler.core.policies.base import Columns, Part


class RoundRobinPolicy:
    """The agent that waited longest for work; a second slot of one comes after every other's first."""

    predicts = False

    def parts(self, columns: Columns, weights: PolicyWeights) -> tuple[Part, ...]:
        """See `Policy.parts`."""
        del weights
        waited = np.where(columns.j == 0, columns.newest - columns.turn, -columns.j)
        return (Part("turns waited", 1.0, waited.astype(np.float64)),)
