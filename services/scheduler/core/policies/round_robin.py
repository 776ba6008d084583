"""ROUND_ROBIN: agents take turns, whatever their level or load."""

from __future__ import annotations

from services.scheduler.core.model import PolicyWeights
from services.scheduler.core.policies.base import Columns, Part


class RoundRobinPolicy:
    """The agent that waited longest for work; a second slot of one comes after every other's first."""

    predicts = False

    def parts(self, columns: Columns, weights: PolicyWeights) -> tuple[Part, ...]:
        """See `Policy.parts`."""
        del weights
        waited = (columns.newest - columns.turn) * (columns.j == 0) - columns.j
        return (Part("turns waited", 1.0, waited * 1.0),)
