"""From gauge readings and rain to water levels: quality control, ensemble, runoff, routing, stage.

Methods: Hampel filter for spikes (Pearson 2002); Theil-Sen slope for the trend (Sen 1968); SCS curve-number
runoff and triangular unit hydrograph (USDA NEH-4); Muskingum routing (Chow, Maidment & Mays 1988, ch. 8).
Levels and stages are metres, discharge is m³/s, rain is mm, times are minutes from the scenario's start.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

STEP_H = 1 / 6
STUCK_RUN = 8
Series = list[list[float]]


def check_gauge(gauge: dict[str, Any]) -> dict[str, Any]:
    """Return the gauge's usable readings, its present stage and trend, and what was wrong with it."""
    readings: Series = gauge["readings"]
    stages = [stage for _, stage in readings]
    spikes = [i for i in range(len(stages)) if _is_spike(stages, i)]
    stuck = _stuck_run(stages)
    bad = {*spikes, *stuck}
    good = [reading for i, reading in enumerate(readings) if i not in bad]
    recent = [(t, stage) for t, stage in good if t >= readings[-1][0] - 120]
    slopes = [
        (b[1] - a[1]) / (b[0] - a[0]) * 60
        for i, a in enumerate(recent)
        for b in recent[i + 1 :]
        if b[0] > a[0]
    ]
    trend = median(slopes) if slopes else 0.0
    last_time, last_stage = good[-1]
    stage = last_stage + trend * (readings[-1][0] - last_time) / 60
    return {
        "id": gauge["id"],
        "stage_m": round(stage, 3),
        "trend_m_per_h": round(trend, 3),
        "alarm": stage >= gauge["alarm_stage_m"],
        "to_alarm_m": round(gauge["alarm_stage_m"] - stage, 2),
        "rejected_readings": len(bad),
        "faults": [*(["spike"] if spikes else []), *(["stuck"] if stuck else [])],
    }


def _is_spike(stages: list[float], index: int) -> bool:
    window = stages[max(0, index - 4) : index + 5]
    middle = median(window)
    spread = 1.4826 * median(abs(stage - middle) for stage in window)
    return abs(stages[index] - middle) > max(3 * spread, 0.5)


def _stuck_run(stages: list[float]) -> set[int]:
    stuck: set[int] = set()
    start = 0
    for index in range(1, len(stages) + 1):
        if index == len(stages) or stages[index] != stages[start]:
            if index - start >= STUCK_RUN:
                # The first of equal readings was still a reading.
                stuck.update(range(start + 1, index))
            start = index
    return stuck


def rain_members(scenario: dict[str, Any]) -> Iterator[dict[str, list[float]]]:
    """Yield one hourly rain series per catchment for each ensemble member.

    The forecast error is a lognormal factor with lag-one correlation 0.7, shared in half by the catchments.
    """
    rng = random.Random(scenario["seed"])
    hours = scenario["horizon_h"]
    for _ in range(scenario["ensemble_members"]):
        common = _correlated(rng, hours)
        member = {}
        for catchment in scenario["catchments"]:
            own = _correlated(rng, hours)
            member[catchment["id"]] = [
                mm * math.exp(0.35 * (0.7 * common[h] + 0.7 * own[h]) - 0.06)
                for h, mm in enumerate(catchment["forecast_mm_per_h"])
            ]
        yield member


def _correlated(rng: random.Random, count: int) -> list[float]:
    values, value = [], rng.gauss(0, 1)
    for _ in range(count):
        values.append(value)
        value = 0.7 * value + math.sqrt(1 - 0.49) * rng.gauss(0, 1)
    return values


def runoff_mm(rain_mm: list[float], curve_number: float, antecedent_mm: float) -> list[float]:
    """Return hourly direct runoff of hourly rain that follows `antecedent_mm` of rain."""
    storage = 25400 / curve_number - 254

    def cumulative(total: float) -> float:
        excess = total - 0.2 * storage
        return excess * excess / (total + 0.8 * storage) if excess > 0 else 0.0

    runoff, total = [], antecedent_mm
    before = cumulative(total)
    for mm in rain_mm:
        total += mm
        now = cumulative(total)
        runoff.append(now - before)
        before = now
    return runoff


def unit_hydrograph(area_km2: float, time_to_peak_h: float) -> list[float]:
    """Return the triangular response (m³/s per mm, one value a step) to one hour of runoff."""
    base_h = 2.67 * time_to_peak_h
    peak = 0.208 * area_km2 / time_to_peak_h
    ordinates = []
    for step in range(1, math.ceil(base_h / STEP_H) + 1):
        hour = step * STEP_H
        rising = hour / time_to_peak_h
        ordinates.append(peak * max(0.0, min(rising, (base_h - hour) / (base_h - time_to_peak_h))))
    return ordinates


def muskingum(inflow: list[float], k_h: float, x: float) -> list[float]:
    """Route `inflow` through one reach."""
    low = 2 * k_h * (1 - x) + STEP_H
    c0, c1, c2 = (STEP_H - 2 * k_h * x) / low, (STEP_H + 2 * k_h * x) / low, (low - 2 * STEP_H) / low
    outflow = [inflow[0]]
    for before, now in itertools.pairwise(inflow):
        outflow.append(max(0.0, c0 * now + c1 * before + c2 * outflow[-1]))
    return outflow


def level_members(
    scenario: dict[str, Any], stages: dict[str, float], report: Callable[[float], None] = lambda _: None
) -> list[list[list[float]]]:
    """Return water levels [member][gauge][step] in metres above sea level.

    `stages` is each gauge's present stage; `report` gets the share that is done.
    """
    gauges = scenario["gauges"]
    steps = round(scenario["horizon_h"] / STEP_H)
    responses = {c["id"]: unit_hydrograph(c["area_km2"], c["time_to_peak_h"]) for c in scenario["catchments"]}
    members = []
    for number, rain in enumerate(rain_members(scenario)):
        local = [
            _response(
                runoff_mm(rain[c["id"]], c["curve_number"], c["observed_mm_12h"]), responses[c["id"]], steps
            )
            for c in scenario["catchments"]
        ]
        members.append(_levels(scenario, stages, local, steps))
        if number % 20 == 0:
            report(number / scenario["ensemble_members"])
    return [[member[g] for g in range(len(gauges))] for member in members]


def _response(runoff: list[float], unit: list[float], steps: int) -> list[float]:
    flow = [0.0] * steps
    per_hour = round(1 / STEP_H)
    for hour, mm in enumerate(runoff):
        if mm < 0.01:
            continue
        start = hour * per_hour
        for offset, ordinate in enumerate(unit[: steps - start]):
            flow[start + offset] += mm * ordinate
    return flow


def _levels(
    scenario: dict[str, Any], stages: dict[str, float], local: list[list[float]], steps: int
) -> list[list[float]]:
    levels, routed = [], [0.0] * steps
    for index, gauge in enumerate(scenario["gauges"]):
        if index:
            reach = scenario["reaches"][index - 1]
            routed = muskingum(routed, reach["k_h"], reach["x"])
        routed = [upstream + own for upstream, own in zip(routed, local[index], strict=True)]
        rating = gauge["rating"]
        base = rating["a"] * max(0.0, stages[gauge["id"]] - rating["h0"]) ** rating["b"]
        levels.append(
            [
                gauge["datum_m"]
                + rating["h0"]
                # What flows now recedes with a time constant of 60 hours; the new runoff comes on top.
                + ((base * math.exp(-step * STEP_H / 60) + flow) / rating["a"]) ** (1 / rating["b"])
                for step, flow in enumerate(routed)
            ]
        )
    return levels


def level_at(gauges: list[dict[str, Any]], levels: list[float], river_km: float) -> float:
    """Interpolate the level at `river_km` between the gauges; `levels` is one value per gauge."""
    places: list[float] = [gauge["river_km"] for gauge in gauges]
    if river_km >= places[0]:
        return levels[0]
    for index in range(1, len(places)):
        if river_km >= places[index]:
            share = (river_km - places[index]) / (places[index - 1] - places[index])
            return levels[index] + share * (levels[index - 1] - levels[index])
    return levels[-1]


def quantile(values: list[float], share: float) -> float:
    """Return the `share` quantile by linear interpolation."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
