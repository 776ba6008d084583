"""What every policy works with: columns of free agents in, named parts of a score out."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from services.scheduler.core.model import PolicyWeights

#: Arrays of equal length, one entry for each slot that is looked at.
Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


class Columns(NamedTuple):
    """Free slots of agents that can do a task. Slot `j` of an instance is its j-th free one.

    For a single slot every column is a plain number instead: policies use arithmetic that serves both.
    """

    #: Level of the weakest required skill, 0 to 1.
    level: Floats
    #: Attempts that the instance holds, and its slots with them.
    held: Numbers
    slots: Numbers
    #: When the instance last got an attempt; smaller waited longer. `newest` is the largest of all.
    turn: Numbers
    newest: int
    #: What a slot costs for an hour.
    cost: Floats
    #: How long the task is predicted to take there, in milliseconds; None when no policy asked for it.
    duration_ms: Floats | None
    #: Which of the instance's free slots it is.
    j: Numbers
    #: The smallest cost and duration among all the agents that are looked at.
    least_cost: float = 0.0
    least_duration_ms: float = 0.0

    def pick(self, index: Any) -> Columns:
        """Return the columns at some positions."""
        duration = None if self.duration_ms is None else self.duration_ms[index]
        return Columns(
            self.level[index],
            self.held[index],
            self.slots[index],
            self.turn[index],
            self.newest,
            self.cost[index],
            duration,
            self.j[index],
            self.least_cost,
            self.least_duration_ms,
        )

    @property
    def free_share(self) -> Floats:
        """Share of the instance's slots that is free when the slot's turn comes, 0 to 1."""
        return 1.0 - (self.held + self.j) / self.slots


class Part(NamedTuple):
    """One addend of a score: weight times value."""

    name: str
    weight: float
    values: Floats


class Policy(Protocol):
    """Larger scores win; equal ones go to the instance that waited longest, of those that never had work to
    the one that came first. Scores are compared in `steps`.

    The score of an instance's slots must not rise with `j`: that makes serving slot by slot the same as
    choosing anew for every task (see `core.placing.placement`).
    """

    #: Whether `Columns.duration_ms` is wanted.
    predicts: bool

    def parts(self, columns: Columns, weights: PolicyWeights) -> tuple[Part, ...]:
        """Return the parts of each slot's score."""
        ...


def total(parts: tuple[Part, ...]) -> Floats:
    """Return the scores that parts add up to."""
    first, *others = parts
    score = first.values if first.weight == 1.0 else first.weight * first.values
    for part in others:
        score = score + (part.values if part.weight == 1.0 else part.weight * part.values)
    return score


def steps(score: Any) -> Any:
    """Return scores as what is compared: whole numbers of 2^-30.

    Sums that differ by their rounding alone are equal, in whatever order and by whatever means they were
    added up; and whole numbers of so many bits are sorted together with what decides between equal ones.
    """
    return round(score * _STEPS) if isinstance(score, float) else np.rint(score * _STEPS)


def best_over(values: Floats, least: float) -> Floats:
    """Return the smallest value divided by each: 1 for the best, towards 0 for what is much larger."""
    # A little is added so that agents without a cost compare with those that have one.
    best: Floats = (least + _LITTLE) / (values + _LITTLE)
    return best


_LITTLE = 1e-9
_STEPS = 2.0**30
