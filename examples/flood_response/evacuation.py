"""Convoys on the roads: who leaves when, on which way, before which road is cut (minutes).

Method: list scheduling by urgency on a time-expanded network: a convoy books the capacity of each road
for the ten-minute slot in which it passes it, and takes the first departure at which all have room.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from typing import Any

from examples.flood_response.roads import network, roads_of, route

SLOT_MIN = 10
LOADING_MIN = 15
CAR_CONVOY_PEOPLE = 200


def plan_routes(
    scenario: dict[str, Any],
    status: dict[str, Any],
    outlook: dict[str, int],
    assignment: dict[str, Any],
    ranked: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return one movement for each pair of district and shelter, and who would be late or stranded."""
    graph = network(scenario, status, outlook)
    junctions = {place["id"]: place["junction"] for place in scenario["districts"] + scenario["shelters"]}
    urgency = {row["district"]: place for place, row in enumerate(ranked)}
    clear_by = {row["district"]: row["clear_by_min"] for row in ranked}
    buses = _buses(scenario["teams"])
    booked: dict[tuple[str, int], float] = defaultdict(float)
    movements, stranded = [], []
    for flow in sorted(assignment["flows"], key=lambda f: (urgency[f["district"]], f["shelter"])):
        found = route(graph, junctions[flow["district"]], junctions[flow["shelter"]])
        if found is None:
            stranded.append(flow)
            continue
        path, minutes = found
        edges = roads_of(graph, path)
        by_car = round(flow["people"] * scenario["self_evacuation_share"])
        car_end, car_lost = _cars(edges, by_car, booked)
        bus_end, trips, bus_lost = _bus_trips(edges, minutes, flow["people"] - by_car, buses, booked)
        if car_lost + bus_lost:
            stranded.append({**flow, "people": car_lost + bus_lost})
        last = max(car_end, bus_end)
        limit = clear_by[flow["district"]]
        movements.append(
            {
                "district": flow["district"],
                "shelter": flow["shelter"],
                "people": flow["people"] - car_lost - bus_lost,
                "by_car": by_car - car_lost,
                "bus_trips": trips,
                "roads": [edge["road"] for edge in edges],
                "last_arrival_min": round(last),
                "spare_min": round(limit - (last - minutes)) if limit is not None else None,
            }
        )
    return {"movements": movements, "stranded": stranded}


def _buses(teams: list[dict[str, Any]]) -> list[tuple[float, int, int]]:
    """Return a heap of (ready minute, number, seats), one item for each bus that has a driver."""
    heap: list[tuple[float, int, int]] = []
    for team in teams:
        if team["kind"] == "bus":
            for _ in range(min(team["vehicles"], team.get("drivers", team["vehicles"]))):
                heapq.heappush(heap, (float(team["ready_min"]), len(heap), team["seats"]))
    return heap


def _depart(
    edges: list[dict[str, Any]], earliest: float, people: int, booked: dict[tuple[str, int], float]
) -> tuple[float, float] | None:
    """Book the first passage not before `earliest`; (departure, arrival), or None when it is cut."""
    depart = earliest
    while True:
        now, slots = depart, []
        for edge in edges:
            if now + edge["minutes"] > edge["open_until"]:
                return None
            slots.append(((edge["road"], int(now // SLOT_MIN)), edge["capacity_per_h"] * SLOT_MIN / 60))
            now += edge["minutes"]
        if all(booked[slot] + people <= room for slot, room in slots):
            for slot, _ in slots:
                booked[slot] += people
            return depart, now
        depart = math.floor(depart / SLOT_MIN + 1) * SLOT_MIN


def _cars(
    edges: list[dict[str, Any]], people: int, booked: dict[tuple[str, int], float]
) -> tuple[float, int]:
    end, left = 0.0, people
    narrowest = min((edge["capacity_per_h"] * SLOT_MIN / 60 for edge in edges), default=CAR_CONVOY_PEOPLE)
    size = max(1, int(min(CAR_CONVOY_PEOPLE, narrowest)))
    while left > 0:
        passage = _depart(edges, LOADING_MIN, min(size, left), booked)
        if passage is None:
            break
        end = max(end, passage[1])
        left -= min(size, left)
    return end, left


def _bus_trips(
    edges: list[dict[str, Any]],
    minutes: float,
    people: int,
    buses: list[tuple[float, int, int]],
    booked: dict[tuple[str, int], float],
) -> tuple[float, int, int]:
    end, trips, left = 0.0, 0, people
    while left > 0 and buses:
        ready, number, seats = heapq.heappop(buses)
        passage = _depart(edges, ready + LOADING_MIN, min(seats, left), booked)
        if passage is None:
            # The road is cut for this trip; the bus stays free for another district.
            heapq.heappush(buses, (ready, number, seats))
            break
        end, trips = max(end, passage[1]), trips + 1
        left -= min(seats, left)
        heapq.heappush(buses, (passage[1] + minutes, number, seats))
    return end, trips, left
