"""The SAFE team: Strategist, Awareness, Field expert, Executor; each runs as a process of its own.

python -m examples.flood_response.agents strategist
"""

from __future__ import annotations

import sys
from typing import Any

from agent_client import Agent, Delivery, NotFoundError, Task
from examples.flood_response import decision, evacuation, forecast, hydrology, roads, shelters, teams

strategist = Agent("strategist", skills=["risk-priorities", "shelter-assignment", "decision"])
awareness = Agent("awareness", skills=["gauge-quality", "road-status", "situation-picture"], slots=2)
field = Agent("field", skills=["rainfall-outlook", "inundation-forecast", "road-outlook"])
executor = Agent("executor", skills=["team-readiness", "evacuation-routes", "team-orders"], slots=2)
TEAM = {agent.name: agent for agent in (strategist, awareness, field, executor)}

notices: list[str] = []


async def _tell_coordinator(task: Task, text: str, *, emergency: bool = False) -> None:
    if not task.coordinator or task.coordinator == task.agent_id:
        return
    kind, priority = ("emergency", "EMERGENCY") if emergency else ("status_update", "NORMAL")
    try:
        await task.send(task.coordinator, {"text": text}, type=kind, priority=priority)
    except NotFoundError as error:
        # The coordinator never joined the plane. What it would have heard is in the result too, so the task
        # goes on.
        sys.stderr.write(f"{task.id}: {error}\n")


@strategist.on_message()
async def hear(delivery: Delivery) -> None:
    """Keep what the others report, for the decision."""
    notices.append(f"{delivery.sender}: {delivery.payload['text']}")


# -- awareness ------------------------------------------------------------------------------------


@awareness.handler("gauge-quality")
async def gauge_quality(task: Task) -> dict[str, Any]:
    """Reject broken readings; say where the river stands and how fast it rises."""
    gauges = [hydrology.check_gauge(gauge) for gauge in task.shared_context["gauges"]]
    for gauge in gauges:
        if gauge["faults"]:
            await _tell_coordinator(task, f"gauge {gauge['id']}: {', '.join(gauge['faults'])}")
    return {"gauges": gauges}


@awareness.handler("road-status")
async def road_status(task: Task) -> dict[str, Any]:
    """Settle what the reports say about the roads."""
    return {"roads": roads.road_status(task.shared_context)}


@awareness.handler("situation-picture")
async def situation_picture(task: Task) -> dict[str, Any]:
    """Put gauges, roads and rain together."""
    gauges = task.inputs["gauge-quality"]["gauges"]
    status = task.inputs["road-status"]["roads"]
    rising = [gauge["id"] for gauge in gauges if gauge["trend_m_per_h"] > 0.2]
    if len(rising) == len(gauges):
        await _tell_coordinator(task, "every gauge rises faster than 0.2 m/h", emergency=True)
    return {
        "gauges_above_alarm": [gauge["id"] for gauge in gauges if gauge["alarm"]],
        "hours_to_alarm": {
            gauge["id"]: round(max(0.0, gauge["to_alarm_m"]) / gauge["trend_m_per_h"], 1)
            for gauge in gauges
            if gauge["trend_m_per_h"] > 0
        },
        "roads_closed": [road for road, row in status.items() if row["state"] == "closed"],
        "rain_to_come_mm": {
            name: row["rain_mm"]["p50"] for name, row in task.inputs["rainfall-outlook"]["catchments"].items()
        },
    }


# -- field expert ---------------------------------------------------------------------------------


@field.handler("rainfall-outlook")
def rainfall_outlook(task: Task) -> dict[str, Any]:
    """Spread the rain forecast into an ensemble."""
    return forecast.rainfall_outlook(task.shared_context)


@field.handler("inundation-forecast")
def inundation_forecast(task: Task) -> dict[str, Any]:
    """Route every member of the ensemble down the river; CPU-bound, so a plain function."""
    stages = {gauge["id"]: gauge["stage_m"] for gauge in task.inputs["gauge-quality"]["gauges"]}

    def report(share: float) -> None:
        task.progress(share, "routing the ensemble")

    return forecast.inundation(task.shared_context, stages, report)


@field.handler("road-outlook")
async def road_outlook(task: Task) -> dict[str, Any]:
    """Say until when each road can be driven."""
    outlook = roads.road_outlook(
        task.shared_context, task.inputs["road-status"]["roads"], task.inputs["inundation-forecast"]
    )
    horizon = task.shared_context["horizon_h"] * 60
    cut = {road: minute for road, minute in outlook.items() if 0 < minute < horizon}
    if cut:
        first = min(cut, key=lambda road: cut[road])
        await _tell_coordinator(task, f"first road to be cut: {first} at minute {cut[first]}")
    return {"open_until_min": outlook}


# -- strategist -----------------------------------------------------------------------------------


@strategist.handler("risk-priorities")
async def priorities(task: Task) -> dict[str, Any]:
    """Rank the districts."""
    return {"ranked": shelters.priorities(task.shared_context, task.inputs["inundation-forecast"])}


@strategist.handler("shelter-assignment")
async def shelter_assignment(task: Task) -> dict[str, Any]:
    """Find everybody a place."""
    return shelters.assign_shelters(
        task.shared_context,
        task.inputs["priorities"]["ranked"],
        task.inputs["road-status"]["roads"],
        task.inputs["road-outlook"]["open_until_min"],
        task.inputs["inundation-forecast"],
    )


@strategist.handler("decision")
async def decide(task: Task) -> dict[str, Any]:
    """Check the plan and order."""
    return decision.decide(task.shared_context, task.inputs, list(notices))


# -- executor -------------------------------------------------------------------------------------


@executor.handler("team-readiness")
async def team_readiness(task: Task) -> dict[str, Any]:
    """Count what can move."""
    return teams.readiness(task.shared_context)


@executor.handler("evacuation-routes")
async def evacuation_routes(task: Task) -> dict[str, Any]:
    """Put convoys on the roads, under the bridge's lock."""
    return evacuation.plan_routes(
        task.shared_context,
        task.inputs["road-status"]["roads"],
        task.inputs["road-outlook"]["open_until_min"],
        task.inputs["shelter-assignment"],
        task.inputs["priorities"]["ranked"],
    )


@executor.handler("team-orders")
async def team_orders(task: Task) -> dict[str, Any]:
    """Send the teams, under the bridge's lock."""
    wanted = teams.needs(
        task.shared_context,
        forecast.dike_margins(task.shared_context, task.inputs["inundation-forecast"]),
        task.inputs["priorities"]["ranked"],
        task.inputs["shelter-assignment"],
    )
    return teams.order_teams(
        task.shared_context,
        task.inputs["road-status"]["roads"],
        task.inputs["road-outlook"]["open_until_min"],
        wanted,
    )


def main() -> int:
    """Run the agent named on the command line until it is told to stop."""
    if len(sys.argv) != 2 or sys.argv[1] not in TEAM:
        sys.stderr.write(f"usage: python -m examples.flood_response.agents {{{'|'.join(TEAM)}}}\n")
        return 2
    return TEAM[sys.argv[1]].run()


if __name__ == "__main__":
    sys.exit(main())
