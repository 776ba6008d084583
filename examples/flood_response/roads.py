"""Which roads can be driven, and until when; fastest routes over them (minutes, kilometres)."""

from __future__ import annotations

import itertools
from typing import Any

import networkx as nx

from examples.flood_response.forecast import open_until

FRESHNESS_MIN = 60
RESTRICTED_SPEED_SHARE = 0.5


def road_status(scenario: dict[str, Any]) -> dict[str, Any]:
    """Settle contradicting reports: each counts by its reliability, halved for every hour of age."""
    roads: dict[str, Any] = {}
    for road in scenario["roads"]:
        votes: dict[str, float] = {}
        for report in scenario["road_reports"]:
            if report["road"] == road["id"]:
                weight = report["reliability"] * 0.5 ** (-report["time_min"] / FRESHNESS_MIN)
                votes[report["state"]] = votes.get(report["state"], 0.0) + weight
        state = max(votes, key=lambda key: votes[key]) if votes else "open"
        total = sum(votes.values())
        roads[road["id"]] = {
            "state": state,
            "confidence": round(votes[state] / total, 2) if votes else None,
            "contradicted": len(votes) > 1,
        }
    return roads


def road_outlook(
    scenario: dict[str, Any], status: dict[str, Any], forecast: dict[str, Any]
) -> dict[str, int]:
    """Return per road the minute until which it can be used; 0 when it is closed now."""
    return {
        road["id"]: 0
        if status[road["id"]]["state"] == "closed"
        else open_until(scenario, forecast, road["low_point_m"], road["river_km"])
        for road in scenario["roads"]
    }


def network(scenario: dict[str, Any], status: dict[str, Any], outlook: dict[str, int]) -> nx.Graph[str]:
    """Return the graph of usable roads; edges carry `minutes`, `open_until`, `capacity_per_h` and `road`."""
    graph: nx.Graph[str] = nx.Graph()
    for road in scenario["roads"]:
        graph.add_nodes_from((road["from"], road["to"]))
        if outlook[road["id"]] == 0:
            continue
        restricted = status[road["id"]]["state"] == "restricted"
        speed = road["speed_kmh"] * (RESTRICTED_SPEED_SHARE if restricted else 1)
        graph.add_edge(
            road["from"],
            road["to"],
            road=road["id"],
            minutes=road["length_km"] / speed * 60,
            open_until=outlook[road["id"]],
            capacity_per_h=road["capacity_per_h"],
        )
    return graph


def route(graph: nx.Graph[str], start: str, end: str) -> tuple[list[str], float] | None:
    """Return the junctions of the fastest route and its minutes, or None when there is none."""
    try:
        path = nx.dijkstra_path(graph, start, end, weight="minutes")
    except nx.NetworkXNoPath:
        return None
    return path, nx.path_weight(graph, path, "minutes")


def roads_of(graph: nx.Graph[str], path: list[str]) -> list[dict[str, Any]]:
    """Return the edge attributes along `path`."""
    return [graph.edges[a, b] for a, b in itertools.pairwise(path)]
