"""How long work will take on a machine on which nobody has run anything: from other machines and benchmarks.

For each other machine: what the task took there at this input size, times how much slower the new machine
is. How much slower is said by benchmarks: the machine's usual ratio over all benchmarked types, moved
half-way towards the ratio of this very type (a benchmark of one type is noisy: half is what shrinkage leaves
of it). The machines' answers are averaged, those that are nearer in speed counting more. Sizes that no
machine has seen are reached along the local slope of log time over log size, pulled towards "twice the input
takes twice as long".

Method: benchmark ratios carry run times from known to unknown machines as in Bader et al., "Lotaru" (SSDBM
2022; Future Generation Computer Systems 150, 2024); the average over all known machines, the half-way ratio
and the local slope are ours. Intervals: cross-conformal prediction (Vovk, 2015) whose folds are whole
machines: every known machine is predicted from the others, and what those predictions missed sets the width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from statistics import median
from typing import NamedTuple

from services.scheduler.core.prediction.estimate import COVERAGE

#: How far the ratio of one type counts against the machine's usual ratio.
_OWN_RATIO = 0.5
#: Two machines whose speeds differ by a factor e^0.14 count half as much as two of the same speed.
_NEAR_SQUARE = 0.02
#: The local slope: how many points, over what distance in log size, against how firm a prior of slope one.
_NEIGHBOURS = 6
_REACH = 1.0
_SLOPE_WEIGHT = 0.1


class Run(NamedTuple):
    """One run that ended."""

    machine: str
    task_type: str
    #: Of its input, in any unit; above 0.
    size: float
    duration_ms: float
    #: Whether it is like what will be asked for: those set the width of the intervals.
    typical: bool = True


class Benchmarks(NamedTuple):
    """What is known of machines before anything ran; larger means slower."""

    #: By machine: how slow it is overall.
    slowness: Mapping[str, float]
    #: By (machine, task type): how long a small run of this type took.
    by_type: Mapping[tuple[str, str], float]


class Expected(NamedTuple):
    """An expected duration in milliseconds, with the interval that holds 80 %."""

    mean_ms: float
    low_ms: float
    high_ms: float


class Transfer:
    """Predictions for one machine that is new, from runs on others."""

    def __init__(self, machine: str, runs: Iterable[Run], benchmarks: Benchmarks) -> None:
        self._machine = machine
        self._benchmarks = benchmarks
        self._points: dict[tuple[str, str], list[tuple[float, float]]] = {}
        known = [run for run in runs if run.machine != machine]
        for run in known:
            point = (math.log(run.size), math.log(max(run.duration_ms, 1.0)))
            self._points.setdefault((run.machine, run.task_type), []).append(point)
        self._machines = tuple(dict.fromkeys(run.machine for run in known))
        self._usual_ratio = cache(self._usual_ratio_of)
        self._width = self._missed(known)

    def expect(self, task_type: str, size: float) -> Expected | None:
        """Return how long a task will take; None when no machine ever ran its type."""
        centre = self._centre(self._machine, self._machines, task_type, math.log(size))
        if centre is None:
            return None
        return Expected(math.exp(centre), math.exp(centre - self._width), math.exp(centre + self._width))

    def _missed(self, runs: Sequence[Run]) -> float:
        """Return the width that held the share of runs that it should, each machine taken for unknown."""
        missed = []
        for machine in self._machines:
            others = tuple(name for name in self._machines if name != machine)
            for run in runs:
                if run.machine != machine or not run.typical:
                    continue
                centre = self._centre(machine, others, run.task_type, math.log(run.size))
                if centre is not None:
                    missed.append(abs(math.log(max(run.duration_ms, 1.0)) - centre))
        if not missed:
            return math.inf
        missed.sort()
        # The conformal quantile: one more than its share of the sample.
        return missed[min(math.ceil(COVERAGE * (len(missed) + 1)), len(missed)) - 1]

    def _centre(self, machine: str, others: Sequence[str], task_type: str, log_size: float) -> float | None:
        total = weights = 0.0
        for other in others:
            points = self._points.get((other, task_type))
            if points is None:
                continue
            ratio = self._log_ratio(machine, other, task_type)
            weight = 1.0 / (_NEAR_SQUARE + ratio * ratio)
            total += weight * (_along(points, log_size) + ratio)
            weights += weight
        return total / weights if weights else None

    def _log_ratio(self, machine: str, other: str, task_type: str) -> float:
        """Return the logarithm of how much slower `machine` is than `other` at this type."""
        usual = self._usual_ratio(machine, other)
        own = self._type_ratio(machine, other, task_type)
        return usual if own is None else usual + _OWN_RATIO * (own - usual)

    def _type_ratio(self, machine: str, other: str, task_type: str) -> float | None:
        here = self._benchmarks.by_type.get((machine, task_type))
        there = self._benchmarks.by_type.get((other, task_type))
        return math.log(here / there) if here and there else None

    def _usual_ratio_of(self, machine: str, other: str) -> float:
        types = {task_type for name, task_type in self._benchmarks.by_type if name == other}
        ratios = [self._type_ratio(machine, other, task_type) for task_type in sorted(types)]
        found = [ratio for ratio in ratios if ratio is not None]
        if found:
            return median(found)
        slowness = self._benchmarks.slowness
        return math.log(slowness[machine] / slowness[other])


def _along(points: Sequence[tuple[float, float]], log_size: float) -> float:
    """Return the log duration at a size: what was seen there, else along the slope nearby."""
    same = [duration for size, duration in points if abs(size - log_size) < 1e-9]
    if same:
        return sum(same) / len(same)
    near = sorted(points, key=lambda point: (abs(point[0] - log_size), point))[:_NEIGHBOURS]
    first = near[0][0]
    weights = [math.exp(-abs(size - first) / _REACH) for size, _ in near]
    total = sum(weights)
    middle = sum(weight * size for weight, (size, _) in zip(weights, near, strict=True)) / total
    level = sum(weight * duration for weight, (_, duration) in zip(weights, near, strict=True)) / total
    squares = products = _SLOPE_WEIGHT
    for weight, (size, duration) in zip(weights, near, strict=True):
        squares += weight * (size - middle) ** 2
        products += weight * (size - middle) * (duration - level)
    return level + products / squares * (log_size - middle)
