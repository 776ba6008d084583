"""Contenders take turns: run 1 of each, then run 2 of each …, so that a noisy minute hits all of them alike.

Every turn starts from nothing: fresh processes, fresh data. What a contender leaves running while others are
measured would cost them.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Param, Runs
from benchmarks.programs import ProgramFailedError

# Name of a quantity -> its value in one run.
Measured = Mapping[str, float]


class MissingPeerError(Exception):
    """A peer is not installed here; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One side of a comparison; `measure` does one whole run with its data below the given folder."""

    name: str
    measure: Callable[[Path], Awaitable[Measured]]
    # Ours must work; a peer that is missing or fails is said and left out.
    is_peer: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The runs of all contenders that took part."""

    runs: Mapping[str, Mapping[str, Runs]]
    load_average_1m: float

    def has(self, name: str) -> bool:
        """Return whether a contender took part."""
        return name in self.runs

    def of(self, name: str, quantity: str) -> Runs:
        """Return one quantity of one contender."""
        return self.runs[name][quantity]

    def params(self, name: str, quantity: str, **more: Param) -> dict[str, Param]:
        """Return the parameters that every figure of `name` carries."""
        return {**more, **self.of(name, quantity).spread, "load_average_1m": self.load_average_1m}


async def take_turns(contenders: list[Contender], count: int, directory: Path) -> Outcome:
    """Run every contender `count` times, in turn. Peers that cannot take part are said on stderr."""
    load_average = round(os.getloadavg()[0], 1)
    taking_part = list(contenders)
    found: dict[str, list[Measured]] = {}
    for run in range(1, count + 1):
        for contender in list(taking_part):
            folder = directory / f"{contender.name.replace(' ', '-')}-{run}"
            folder.mkdir()
            say(f"run {run}/{count}: {contender.name}")
            try:
                measured = await contender.measure(folder)
            except (MissingPeerError, ProgramFailedError) as error:
                if not contender.is_peer:
                    raise
                say(f"{contender.name} is left out: {error}")
                taking_part.remove(contender)
                found.pop(contender.name, None)
                continue
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            found.setdefault(contender.name, []).append(measured)
    return Outcome({name: _by_quantity(runs) for name, runs in found.items()}, load_average)


def say(text: str) -> None:
    """Tell the person at the terminal; stdout is for figures only."""
    print(text, file=sys.stderr, flush=True)


def _by_quantity(runs: list[Measured]) -> dict[str, Runs]:
    return {quantity: Runs(tuple(run[quantity] for run in runs)) for quantity in runs[0]}
