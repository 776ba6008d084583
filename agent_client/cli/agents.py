"""`muster agents list|show|profile|watch|enroll`."""

from __future__ import annotations

import argparse

from muster.registry.v1 import agent_pb2

from agent_client.cli.local import ask_local
from agent_client.cli.output import OK, PATIENCE_S, Output, clock
from agent_client.cli.profiles import add_profile
from agent_client.cli.words import Commands, command, group, name
from agent_client.client import Client
from agent_client.context import HOME_VARIABLE, find_home
from agent_client.plain import to_plain
from agent_client.wire import moment


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    agents = group(commands, common, "agents", "who takes part and can do what")
    listed = command(agents, common, "list", _list, "list the agents")
    listed.add_argument("--skill", default="", help="only agents with this skill")
    shown = command(agents, common, "show", _show, "show one agent with its instances")
    shown.add_argument("name", help="the agent's name, as `muster agents list` shows it")
    add_profile(agents, common)
    command(agents, common, "watch", _watch, "follow the agents' changes; Ctrl-C ends it")
    enrolled = command(
        agents,
        common,
        "enroll",
        _enroll,
        "issue a development certificate for an agent",
        "It is signed by the authority in the plane's folder and lies in agents/NAME.crt and .key there.",
    )
    enrolled.add_argument("name", type=name, help="1 to 64 of a-z, 0-9 and '-'")


async def _list(options: argparse.Namespace, output: Output) -> int:
    async with Client(patience=PATIENCE_S) as client:
        agents = await client.agents(options.skill)
    rows = [
        (agent.agent_id, _state(agent.state), _skills(agent), len(_live(agent)), _slots(agent))
        for agent in agents
    ]
    empty = "no agent has registered yet; `muster agents enroll NAME`, then run it"
    output.table(
        ("AGENT", "STATE", "SKILLS", "INSTANCES", "SLOTS USED"),
        rows,
        map(to_plain, agents),
        empty,
        folds=("SKILLS",),
    )
    return OK


async def _show(options: argparse.Namespace, output: Output) -> int:
    async with Client(patience=PATIENCE_S) as client:
        agent = await client.agent(options.name)
    if output.as_json:
        output.json(to_plain(agent))
        return OK
    output.line(f"{agent.agent_id}  {_state(agent.state)}  since {clock(moment(agent.register_time))}")
    output.line(f"skills  {_skills(agent)}")
    rows = [
        (
            one.instance_id,
            one.incarnation,
            _state(one.state),
            f"{one.load.slots_used}/{one.load.slots}",
            f"{one.round_trip_us / 1000:.1f} ms",
            one.reconnects,
        )
        for one in agent.instances
    ]
    columns = ("INSTANCE", "INCARNATION", "STATE", "SLOTS", "ROUND TRIP", "RECONNECTS")
    output.table(columns, rows, (), "no instance lives")
    return OK


async def _watch(_: argparse.Namespace, output: Output) -> int:
    async with Client(patience=PATIENCE_S) as client:
        async for frame in client.watch_agents():
            for agent in frame.agents:
                text = f"{agent.agent_id:<20} {_state(agent.state):<10} {_skills(agent)}"
                output.item(to_plain(agent), text)
    return OK


def _enroll(options: argparse.Namespace, output: Output) -> int:
    for event in ask_local("issue-certificate", "--agent", options.name):
        output.line(event["name"])
        output.line(f"  certificate  {event['certificate']}\n  key          {event['key']}")
        output.item(event, f"Run it with {HOME_VARIABLE}={find_home()}")
    return OK


def _state(state: agent_pb2.AgentState.ValueType) -> str:
    return agent_pb2.AgentState.Name(state).removeprefix("AGENT_STATE_")


def _skills(agent: agent_pb2.Agent) -> str:
    return ", ".join(skill.name for skill in agent.skills)


def _live(agent: agent_pb2.Agent) -> list[agent_pb2.AgentInstance]:
    gone = (agent_pb2.AGENT_STATE_LOST, agent_pb2.AGENT_STATE_OFFLINE)
    return [one for one in agent.instances if one.state not in gone]


def _slots(agent: agent_pb2.Agent) -> str:
    live = _live(agent)
    return f"{sum(one.load.slots_used for one in live)}/{sum(one.load.slots for one in live)}"
