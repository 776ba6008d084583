"""Which team does what: readiness, needs, and the assignment that brings most urgent help soonest.

Method: minimum-cost matching of teams to needs as a flow; a need that nobody can meet is said.
"""

from __future__ import annotations

from typing import Any

import networkx as nx

from examples.flood_response.roads import network, route

SANDBAG_MARGIN_M = 0.6


def readiness(scenario: dict[str, Any]) -> dict[str, Any]:
    """Return people, vehicles and seats by kind of team, and what limits them."""
    kinds: dict[str, Any] = {}
    limits = []
    for team in scenario["teams"]:
        kind = kinds.setdefault(team["kind"], {"teams": 0, "people": 0, "seats": 0, "ready_min": 0})
        kind["teams"] += 1
        kind["people"] += team.get("people", 0)
        usable = min(team.get("vehicles", 0), team.get("drivers", team.get("vehicles", 0)))
        kind["seats"] += usable * team.get("seats", 0)
        kind["ready_min"] = max(kind["ready_min"], team["ready_min"])
        if usable < team.get("vehicles", 0):
            limits.append(f"{team['id']}: {team['vehicles'] - usable} vehicles without a driver")
    return {"kinds": kinds, "limits": limits}


def needs(
    scenario: dict[str, Any],
    margins: dict[str, float],
    ranked: list[dict[str, Any]],
    assignment: dict[str, Any],
) -> list[dict[str, Any]]:
    """Return what teams are needed for, most urgent first."""
    junction = {place["id"]: place["junction"] for place in scenario["districts"] + scenario["shelters"]}
    found: list[dict[str, Any]] = []
    leaving = [row["district"] for row in ranked if row["evacuate"]]
    for district, margin in sorted(margins.items(), key=lambda item: abs(item[1])):
        if abs(margin) <= SANDBAG_MARGIN_M:
            found.append({"kind": "sandbag", "at": district, "why": f"dike margin {margin + 0.0:+.2f} m"})
    people: dict[str, int] = {}
    for flow in assignment["flows"]:
        people[flow["shelter"]] = people.get(flow["shelter"], 0) + flow["people"]
    for shelter, count in sorted(people.items(), key=lambda item: -item[1])[:2]:
        found.append({"kind": "medical", "at": shelter, "why": f"{count} people expected"})
    found.extend({"kind": "traffic", "at": district, "why": "evacuation start"} for district in leaving[:2])
    stranded = sorted(assignment["unplaced"], key=lambda d: -assignment["unplaced"][d])
    found.extend(
        {"kind": "boat", "at": district, "why": "people who may be cut off"}
        for district in [*stranded, *(d for d in leaving if d not in stranded)][:2]
    )
    return [{**need, "junction": junction[need["at"]]} for need in found]


def order_teams(
    scenario: dict[str, Any],
    status: dict[str, Any],
    outlook: dict[str, int],
    wanted: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return the orders (team, need, minute of arrival) and the needs that stay open."""
    graph = network(scenario, status, outlook)
    flow: nx.DiGraph[str | int] = nx.DiGraph()
    arrival: dict[tuple[str, int], int] = {}
    for team in scenario["teams"]:
        flow.add_edge("source", team["id"], capacity=1, weight=0)
        for index, need in enumerate(wanted):
            found = route(graph, team["junction"], need["junction"])
            if team["kind"] == need["kind"] and found is not None:
                arrival[team["id"], index] = round(team["ready_min"] + found[1])
                flow.add_edge(team["id"], index, capacity=1, weight=arrival[team["id"], index])
    flow.add_node("sink")
    for index in range(len(wanted)):
        flow.add_edge(index, "sink", capacity=1, weight=0)
    solution = nx.max_flow_min_cost(flow, "source", "sink")
    orders, met = [], set()
    for team in scenario["teams"]:
        for index, units in solution.get(team["id"], {}).items():
            if units:
                met.add(index)
                need = wanted[index]
                orders.append(
                    {
                        "team": team["id"],
                        "kind": need["kind"],
                        "at": need["at"],
                        "why": need["why"],
                        "arrival_min": arrival[team["id"], index],
                    }
                )
    return {"orders": orders, "open": [need for i, need in enumerate(wanted) if i not in met]}
