"""The strategist's last word: check the plan against the facts once more, then order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def check_plan(scenario: dict[str, Any], inputs: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the plan; empty when it holds. Recomputed from the parts, not trusted."""
    problems = []
    ranked, movements = inputs["priorities"]["ranked"], inputs["evacuation-routes"]["movements"]
    capacity = {shelter["id"]: shelter["capacity"] for shelter in scenario["shelters"]}
    moved: dict[str, int] = {}
    for movement in movements:
        moved[movement["district"]] = moved.get(movement["district"], 0) + movement["people"]
        capacity[movement["shelter"]] -= movement["people"]
        outlook = inputs["road-outlook"]["open_until_min"]
        problems += [
            f"{road} is cut at minute {outlook[road]}, before the last convoy from "
            f"{movement['district']} arrives (minute {movement['last_arrival_min']})"
            for road in movement["roads"]
            if outlook[road] < movement["last_arrival_min"]
        ]
        if movement["spare_min"] is not None and movement["spare_min"] < 0:
            problems.append(f"{movement['district']} is cleared {-movement['spare_min']} min too late")
    problems += [
        f"{shelter} is over its capacity by {-left}" for shelter, left in capacity.items() if left < 0
    ]
    for row in ranked:
        missing = row["people"] - moved.get(row["district"], 0) if row["evacuate"] else 0
        if missing > 0:
            problems.append(f"{missing} people of {row['district']} have no way out or no place")
    return problems


def decide(scenario: dict[str, Any], inputs: Mapping[str, Any], notices: list[str]) -> dict[str, Any]:
    """Return the decision: headline, summary lines for people, orders, open problems."""
    ranked = inputs["priorities"]["ranked"]
    movements = inputs["evacuation-routes"]["movements"]
    teams = inputs["team-orders"]
    names = {place["id"]: place["name"] for place in scenario["districts"] + scenario["shelters"]}
    forecast = inputs["inundation-forecast"]["districts"]
    problems = check_plan(scenario, inputs)
    leaving = [row for row in ranked if row["evacuate"]]
    people = sum(movement["people"] for movement in movements)
    summary = []
    for row in leaving:
        outlook = forecast[row["district"]]
        summary.append(
            f"Evacuate {names[row['district']]}: {row['people']} people, flooding "
            f"{outlook['probability']:.0%} likely, up to {outlook['depth_p90_m']} m, "
            f"from minute {row['clear_by_min']} on"
        )
        summary += [
            f"  {movement['people']} to {names[movement['shelter']]} by {' > '.join(movement['roads'])}, "
            f"{movement['bus_trips']} bus trips, last arrival minute {movement['last_arrival_min']}"
            for movement in movements
            if movement["district"] == row["district"]
        ]
    summary += [
        f"{order['team']} ({order['kind']}) to {names[order['at']]}: {order['why']}; "
        f"there at minute {order['arrival_min']}"
        for order in teams["orders"]
    ]
    summary += [f"OPEN: {need['kind']} at {names[need['at']]} ({need['why']})" for need in teams["open"]]
    summary += [f"OPEN: {problem}" for problem in problems]
    return {
        "headline": f"Evacuate {len(leaving)} of {len(ranked)} districts: {people} people to "
        f"{len({movement['shelter'] for movement in movements})} shelters",
        "summary": summary,
        "districts": [row["district"] for row in leaving],
        "people": people,
        "feasible": not problems,
        "problems": problems,
        "gauges_above_alarm": inputs["situation-picture"]["gauges_above_alarm"],
        "notices": notices,
    }
