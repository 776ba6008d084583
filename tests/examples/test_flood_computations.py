"""The flood example's arithmetic: methods against cases checked by hand, and the plan's limits."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from examples.flood_response import decision, evacuation, forecast, hydrology, roads, shelters, teams
from examples.flood_response.collaboration import TASKS, collaboration

SCENARIO = Path(__file__).parents[2] / "examples" / "flood_response" / "scenario.json"


@pytest.fixture
def scenario() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(SCENARIO.read_text(encoding="utf-8"))
    loaded["ensemble_members"] = 60
    return loaded


def run(scenario: dict[str, Any]) -> dict[str, Any]:
    """All twelve tasks in order, without the plane."""
    done: dict[str, Any] = {
        "gauge-quality": {"gauges": [hydrology.check_gauge(g) for g in scenario["gauges"]]}
    }
    gauges = done["gauge-quality"]["gauges"]
    status = roads.road_status(scenario)
    done["inundation-forecast"] = forecast.inundation(scenario, {g["id"]: g["stage_m"] for g in gauges})
    outlook = roads.road_outlook(scenario, status, done["inundation-forecast"])
    done["road-outlook"] = {"open_until_min": outlook}
    ranked = shelters.priorities(scenario, done["inundation-forecast"])
    done["priorities"] = {"ranked": ranked}
    done["shelters"] = shelters.assign_shelters(
        scenario, ranked, status, outlook, done["inundation-forecast"]
    )
    done["evacuation-routes"] = evacuation.plan_routes(scenario, status, outlook, done["shelters"], ranked)
    margins = forecast.dike_margins(scenario, done["inundation-forecast"])
    wanted = teams.needs(scenario, margins, ranked, done["shelters"])
    done["team-orders"] = teams.order_teams(scenario, status, outlook, wanted)
    done["situation-picture"] = {"gauges_above_alarm": []}
    done["decision"] = decision.decide(scenario, done, [])
    return done


def test_spikes_and_stuck_sensors_are_found_and_nothing_else(scenario: dict[str, Any]) -> None:
    faults = {g["id"]: hydrology.check_gauge(g)["faults"] for g in scenario["gauges"]}
    assert faults == {"G1-Shimen": [], "G2-Dukou": ["spike"], "G3-Laocheng": [], "G4-Hekou": ["stuck"]}


def test_runoff_follows_the_curve_number_equation() -> None:
    # CN 80: S = 63.5 mm; 100 mm of rain gives (100 - 12.7)^2 / (100 + 50.8) = 50.54 mm.
    assert sum(hydrology.runoff_mm([50.0, 50.0], 80, 0)) == pytest.approx(50.54, abs=0.01)
    assert sum(hydrology.runoff_mm([10.0], 80, 0)) == 0


def test_unit_hydrograph_and_routing_keep_the_volume() -> None:
    # 1 mm on 100 km² is 100,000 m³.
    unit = hydrology.unit_hydrograph(100, 3)
    assert sum(unit) * 600 == pytest.approx(100_000, rel=0.02)
    # Routing starts from a steady state, here a dry river.
    routed = hydrology.muskingum([0.0, *unit, *[0.0] * 200], 1.5, 0.2)
    assert sum(routed) == pytest.approx(sum(unit), rel=0.02)
    assert max(routed) < max(unit)


def test_more_rain_never_lowers_the_chance_of_flooding(scenario: dict[str, Any]) -> None:
    wetter = copy.deepcopy(scenario)
    for catchment in wetter["catchments"]:
        catchment["forecast_mm_per_h"] = [mm * 1.4 for mm in catchment["forecast_mm_per_h"]]
    before, after = run(scenario), run(wetter)
    for name, row in before["inundation-forecast"]["districts"].items():
        assert after["inundation-forecast"]["districts"][name]["probability"] >= row["probability"]
    assert len(after["decision"]["districts"]) >= len(before["decision"]["districts"])


def test_the_plan_moves_everybody_in_time_and_overfills_no_shelter(scenario: dict[str, Any]) -> None:
    done = run(scenario)
    assert done["decision"]["feasible"], done["decision"]["problems"]
    assert done["decision"]["people"] == sum(
        r["people"] for r in done["priorities"]["ranked"] if r["evacuate"]
    )


def test_a_closed_road_changes_the_routes_and_a_cut_off_district_is_said(scenario: dict[str, Any]) -> None:
    for road in ("bridge-3", "r6", "ferry"):
        scenario["road_reports"].append(
            {"road": road, "state": "closed", "time_min": 0, "source": "police", "reliability": 1.0}
        )
    done = run(scenario)
    assert done["shelters"]["unplaced"] == {"Laocheng": 5200}
    assert not done["decision"]["feasible"]
    assert any("5200 people of Laocheng" in problem for problem in done["decision"]["problems"])


def test_the_checker_refuses_a_plan_that_overfills_or_comes_late(scenario: dict[str, Any]) -> None:
    done = run(scenario)
    done["evacuation-routes"]["movements"][0]["people"] += 9_000
    done["evacuation-routes"]["movements"][1]["spare_min"] = -5
    problems = decision.check_plan(scenario, done)
    assert any("over its capacity" in problem for problem in problems)
    assert any("5 min too late" in problem for problem in problems)


def test_contradicting_reports_are_weighed_by_reliability_and_age(scenario: dict[str, Any]) -> None:
    status = roads.road_status(scenario)
    assert status["r7"]["state"] == "closed"
    assert status["r4"]["state"] == "open"
    assert status["r4"]["contradicted"]


def test_the_submission_is_a_dag_that_fits_the_inline_limit(scenario: dict[str, Any]) -> None:
    spec = collaboration(scenario)
    assert len(json.dumps(spec["shared_context"]).encode()) < 65_536
    seen: set[str] = set()
    for task in spec["tasks"]:
        assert set(task["dependencies"]) <= seen
        seen.add(task["task_id"])
    assert seen == set(TASKS)
