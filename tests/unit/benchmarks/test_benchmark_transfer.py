"""Predictions for a machine on which nothing ran: scaled by benchmarks, with intervals that hold."""

from __future__ import annotations

import math
import random

import pytest

from benchmarks.scheduling.transfer import Benchmarks, Run, Transfer

#: How slow each machine is.
SPEEDS = {"m1": 1.0, "m2": 2.0, "m3": 0.7, "m4": 1.3, "new": 3.0}
TYPES = [f"t{number}" for number in range(12)]
NO_TYPES = Benchmarks(SPEEDS, {})


def runs(noise: float, seed: int = 1, sizes: tuple[float, ...] = (1.0, 10.0, 100.0)) -> list[Run]:
    """Return runs of every type on every machine: time grows with size, machine and chance."""
    chance = random.Random(seed)
    return [
        Run(machine, kind, size, 100 * (number + 1) * size * speed * math.exp(chance.gauss(0, noise)))
        for machine, speed in SPEEDS.items()
        for number, kind in enumerate(TYPES)
        for size in sizes
    ]


def test_without_noise_benchmarks_carry_everything_over() -> None:
    transfer = Transfer("new", runs(0.0), NO_TYPES)
    expected = transfer.expect("t4", 10.0)
    assert expected is not None
    assert expected.mean_ms == pytest.approx(100 * 5 * 10 * 3, rel=1e-6)
    assert expected.high_ms == pytest.approx(expected.low_ms, rel=1e-6)


def test_sizes_between_and_beyond_those_seen_follow_the_slope() -> None:
    transfer = Transfer("new", runs(0.0), NO_TYPES)
    for size in (3.0, 1_000.0):
        expected = transfer.expect("t0", size)
        assert expected is not None
        assert expected.mean_ms == pytest.approx(300 * size, rel=0.05)


def test_what_nobody_ran_is_not_predicted() -> None:
    assert Transfer("new", runs(0.1), NO_TYPES).expect("unheard-of", 1.0) is None
    assert Transfer("new", [], NO_TYPES).expect("t0", 1.0) is None


def test_its_own_runs_are_not_looked_at() -> None:
    known = runs(0.1)
    spoiled = [each._replace(duration_ms=7.0) if each.machine == "new" else each for each in known]
    assert Transfer("new", known, NO_TYPES).expect("t1", 10.0) == Transfer("new", spoiled, NO_TYPES).expect(
        "t1", 10.0
    )


def test_a_types_own_benchmark_counts_half() -> None:
    by_type = {(machine, kind): speed for machine, speed in SPEEDS.items() for kind in TYPES}
    plain = Transfer("new", runs(0.0), Benchmarks(SPEEDS, by_type)).expect("t3", 10.0)
    by_type["new", "t3"] *= 4
    moved = Transfer("new", runs(0.0), Benchmarks(SPEEDS, by_type)).expect("t3", 10.0)
    assert plain is not None
    assert moved is not None
    assert moved.mean_ms / plain.mean_ms == pytest.approx(2.0, rel=1e-6)


def test_intervals_hold_eighty_percent_of_what_a_new_machine_does() -> None:
    inside = total = 0
    for seed in range(20):
        known = runs(0.2, seed)
        transfer = Transfer("new", known, NO_TYPES)
        for each in known:
            if each.machine == "new":
                expected = transfer.expect(each.task_type, each.size)
                assert expected is not None
                inside += expected.low_ms <= each.duration_ms <= expected.high_ms
                total += 1
    assert 0.76 < inside / total < 0.86
