"""Where the water will stand: districts, roads and shelters under the ensemble of levels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from examples.flood_response.hydrology import (
    STEP_H,
    level_at,
    level_members,
    quantile,
    rain_members,
    runoff_mm,
)

STEP_MIN = round(STEP_H * 60)


def rainfall_outlook(scenario: dict[str, Any]) -> dict[str, Any]:
    """Return rain and runoff to come per catchment, with the ensemble's spread (mm)."""
    members = list(rain_members(scenario))
    outlook = {}
    for catchment in scenario["catchments"]:
        totals = [sum(member[catchment["id"]]) for member in members]
        runoffs = [
            sum(runoff_mm(member[catchment["id"]], catchment["curve_number"], catchment["observed_mm_12h"]))
            for member in members
        ]
        outlook[catchment["id"]] = {
            "rain_mm": {f"p{p}": round(quantile(totals, p / 100), 1) for p in (10, 50, 90)},
            "runoff_mm": {f"p{p}": round(quantile(runoffs, p / 100), 1) for p in (10, 50, 90)},
        }
    return {"catchments": outlook, "members": len(members)}


def inundation(
    scenario: dict[str, Any], stages: dict[str, float], report: Callable[[float], None] = lambda _: None
) -> dict[str, Any]:
    """Return per district the chance, depth (m) and onset (min) of flooding, and levels at the gauges."""
    members = level_members(scenario, stages, report)
    gauges, steps = scenario["gauges"], len(members[0][0])
    districts = {}
    for district in scenario["districts"]:
        depths, onsets = [], []
        for member in members:
            levels = [level_at(gauges, [g[s] for g in member], district["river_km"]) for s in range(steps)]
            onset = next((s for s, level in enumerate(levels) if level > district["dike_crest_m"]), None)
            depths.append(max(levels) - district["ground_m"] if onset is not None else 0.0)
            if onset is not None:
                onsets.append(float(onset * STEP_MIN))
        districts[district["id"]] = {
            "probability": round(len(onsets) / len(members), 3),
            "depth_p50_m": round(quantile(depths, 0.5), 2),
            "depth_p90_m": round(quantile(depths, 0.9), 2),
            "onset_p10_min": round(quantile(onsets, 0.1)) if onsets else None,
            "onset_p50_min": round(quantile(onsets, 0.5)) if onsets else None,
        }
    hourly = range(0, steps, round(1 / STEP_H))
    levels_p90 = [
        [round(quantile([member[g][s] for member in members], 0.9), 2) for s in hourly]
        for g in range(len(gauges))
    ]
    return {"districts": districts, "levels_p90_m": levels_p90, "members": len(members)}


def dike_margins(scenario: dict[str, Any], forecast: dict[str, Any]) -> dict[str, float]:
    """Return per district the height (m) between the dike's crest and the 90 % level's peak."""
    gauges, levels = scenario["gauges"], forecast["levels_p90_m"]
    return {
        district["id"]: round(
            district["dike_crest_m"]
            - max(
                level_at(gauges, [g[h] for g in levels], district["river_km"]) for h in range(len(levels[0]))
            ),
            2,
        )
        for district in scenario["districts"]
    }


def open_until(
    scenario: dict[str, Any], forecast: dict[str, Any], low_point_m: float, river_km: float
) -> int:
    """Return the minute from which a road may stand too deep in water; the horizon's end when never."""
    gauges, levels = scenario["gauges"], forecast["levels_p90_m"]
    limit = low_point_m + scenario["flood_depth_closes_road_m"]
    for hour in range(len(levels[0])):
        if level_at(gauges, [g[hour] for g in levels], river_km) > limit:
            return hour * 60
    return int(scenario["horizon_h"] * 60)
