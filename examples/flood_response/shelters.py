"""Who must leave, in which order, and to which shelter.

Method: minimum-cost flow over the pairs of district and shelter that roads connect (Ahuja, Magnanti &
Orlin 1993); the cost is person-minutes of travel, and a place that is missing costs more than any road.
"""

from __future__ import annotations

from typing import Any

import networkx as nx

from examples.flood_response.forecast import open_until
from examples.flood_response.roads import network, route

EVACUATE_PROBABILITY = 0.25
UNPLACED_COST = 10_000
PEOPLE_PER_UNIT = 10


def priorities(scenario: dict[str, Any], forecast: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all districts, most urgent first, with a score and whether to evacuate.

    The score is the expected number of people in water deeper than half a metre, vulnerable people
    counted twice, divided by the hours that are left.
    """
    ranked = []
    for district in scenario["districts"]:
        outlook = forecast["districts"][district["id"]]
        onset = outlook["onset_p10_min"]
        hours = max(0.5, onset / 60) if onset is not None else float(scenario["horizon_h"])
        weight = district["population"] * (1 + district["vulnerable_share"])
        depth = min(1.0, outlook["depth_p90_m"] / 0.5)
        ranked.append(
            {
                "district": district["id"],
                "score": round(outlook["probability"] * depth * weight / hours, 1),
                "evacuate": outlook["probability"] >= EVACUATE_PROBABILITY,
                "people": district["population"],
                "clear_by_min": onset,
            }
        )
    return sorted(ranked, key=lambda row: (-row["score"], row["district"]))


def assign_shelters(
    scenario: dict[str, Any],
    ranked: list[dict[str, Any]],
    status: dict[str, Any],
    outlook: dict[str, int],
    forecast: dict[str, Any],
) -> dict[str, Any]:
    """Return how many people of each district go to each shelter, and how many find no place."""
    graph = network(scenario, status, outlook)
    junction = {d["id"]: d["junction"] for d in scenario["districts"]}
    dry = [
        shelter
        for shelter in scenario["shelters"]
        if open_until(scenario, forecast, shelter["floor_m"], shelter["river_km"])
        >= scenario["horizon_h"] * 60
    ]
    flow: nx.DiGraph[str | tuple[str, str]] = nx.DiGraph()
    leaving = [row for row in ranked if row["evacuate"]]
    for row in leaving:
        units = -(-row["people"] // PEOPLE_PER_UNIT)
        flow.add_edge("source", ("district", row["district"]), capacity=units, weight=0)
        flow.add_edge(("district", row["district"]), "sink", capacity=units, weight=UNPLACED_COST)
        for shelter in dry:
            found = route(graph, junction[row["district"]], shelter["junction"])
            if found is not None:
                flow.add_edge(
                    ("district", row["district"]), ("shelter", shelter["id"]), weight=round(found[1])
                )
    for shelter in dry:
        flow.add_edge(
            ("shelter", shelter["id"]), "sink", capacity=shelter["capacity"] // PEOPLE_PER_UNIT, weight=0
        )
    if not leaving:
        return {"flows": [], "unplaced": {}, "dry_shelters": [shelter["id"] for shelter in dry]}
    solution = nx.max_flow_min_cost(flow, "source", "sink")
    flows, unplaced = [], {}
    for row in leaving:
        left = row["people"]
        for target, units in solution["district", row["district"]].items():
            people = min(left, units * PEOPLE_PER_UNIT)
            if people == 0:
                continue
            left -= people
            if target == "sink":
                unplaced[row["district"]] = people
            else:
                flows.append({"district": row["district"], "shelter": target[1], "people": people})
    return {"flows": flows, "unplaced": unplaced, "dry_shelters": [shelter["id"] for shelter in dry]}
