"""What every figure of scheduling is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.scheduling.kept import Kept


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one run."""

    #: The folder of the data sets.
    data: Path
    #: Whether a sample will do; a figure says in its params how much of it was measured.
    quick: bool
    #: An empty folder for what a figure keeps while it runs.
    directory: Path
    #: Fleets drawn for each cell, and the budget in seconds of the figures that have one; None: their own.
    draws: int | None = None
    seconds: float | None = None
    #: What earlier runs measured, of the figures that take long.
    kept: Kept = field(default_factory=lambda: Kept(None))
