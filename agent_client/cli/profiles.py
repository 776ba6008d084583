"""`muster agents profile`, `muster alerts`, `muster task assess`: what the plane has learned and noticed."""

from __future__ import annotations

import argparse
from datetime import datetime

from muster.registry.v1 import agent_pb2
from muster.scheduler.v1 import alert_pb2, profile_pb2, task_pb2

from agent_client.cli.output import OK, PATIENCE_S, Output, clock
from agent_client.cli.words import Commands, command
from agent_client.client import Client
from agent_client.errors import NotFoundError
from agent_client.plain import to_plain
from agent_client.wire import moment

PROFILE_HELP = """\
Skills: the level that the agent declares, and its proficiency as learned from how its work ended; with the
interval that holds the true value in 80 of 100 cases. Few outcomes: a wide interval around what was declared.
Types: how long its runs are expected to take and how often they succeed, from its own runs, its speed at
other work, and what others need for the type. Older runs count less: each further run of a type leaves 98 %
of the weight of those before, and two weeks without news half of it.
"""
ALERTS_HELP = """\
STUCK_TASK            an attempt runs far longer than such runs do, or is not begun
FLAPPING_AGENT        an agent's link comes and goes
GROWING_QUEUE         more becomes ready than is begun, for two minutes
DRIFTING_PREDICTION   runs of a type are longer or shorter than predicted, one after the other
LATE                  a deadline is predicted to be missed; `muster watch` shows which task is late
"""


def add_profile(agents: Commands, common: argparse.ArgumentParser) -> None:
    """Declare `muster agents profile`."""
    shown = command(
        agents, common, "profile", _profile, "show what was learned about an agent, and why", PROFILE_HELP
    )
    shown.add_argument("name", help="the agent's name, as `muster agents list` shows it")


def add_assess(tasks: Commands, common: argparse.ArgumentParser) -> None:
    """Declare `muster task assess`."""
    assessed = command(
        tasks,
        common,
        "assess",
        _assess,
        "say how good a task's result is",
        "The profile of the agent that did it learns from it, and the audit log keeps who said so.",
    )
    assessed.add_argument("collaboration", help="its collaboration's id")
    assessed.add_argument("task", help="the task's id; it must have succeeded")
    assessed.add_argument("score", type=score, help="0 (worthless) to 1 (as good as can be)")
    assessed.add_argument("--comment", default="", help="why, for people and the audit log")


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Declare `muster alerts`."""
    alerts = command(commands, common, "alerts", _alerts, "show what is out of the ordinary", ALERTS_HELP)
    alerts.add_argument("--all", action="store_true", help="also what was, the newest 256")


def score(text: str) -> float:
    """Return a number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return number


async def _profile(options: argparse.Namespace, output: Output) -> int:
    async with Client(patience=PATIENCE_S) as client:
        profile = await client.insight.agent_profile(options.name)
        try:
            agent = await client.agent(options.name)
        except NotFoundError:
            # Not registered any more; what was learned stays.
            agent = agent_pb2.Agent(agent_id=options.name)
    if output.as_json:
        output.json({**to_plain(profile), "reported": to_plain(agent)["instances"]})
        return OK
    factor = profile.duration_factor
    output.line(
        f"{profile.agent_id}  needs {factor.mean:.2f} times as long as the fleet "
        f"(80 %: {factor.low:.2f} to {factor.high:.2f})"
    )
    output.line(f"learned  {_ago(moment(profile.learn_time))}; half of it is forgotten in two weeks")
    _skills(profile, output)
    _types(profile, output)
    _instances(profile, agent, output)
    return OK


def _skills(profile: profile_pb2.AgentProfile, output: Output) -> None:
    output.line("")
    output.table(
        ("SKILL", "DECLARED", "PROFICIENCY", "80 %", "OUTCOMES THAT COUNT"),
        [
            (
                row.skill,
                f"{row.declared_level:.2f}" if row.declared_level else "-",
                f"{row.proficiency.mean:.2f}",
                f"{row.proficiency.low:.2f} to {row.proficiency.high:.2f}",
                f"{row.outcomes:.1f}, {row.successes:.1f} good" if row.outcomes else "none: as declared",
            )
            for row in profile.skills
        ],
        (),
        "no skill was declared or used",
    )


def _types(profile: profile_pb2.AgentProfile, output: Output) -> None:
    output.line("")
    output.table(
        ("TYPE", "EXPECTED", "80 %", "USUAL", "SUCCESS", "QUALITY", "RUNS", "THAT COUNT", "INSIDE 80 %"),
        [
            (
                row.task_type,
                _time(row.predicted.mean.ToMilliseconds()),
                _range(row.predicted),
                _time(row.usual.ToMilliseconds()),
                f"{row.success.mean:.2f} ({row.success.low:.2f} to {row.success.high:.2f})",
                f"{row.quality.mean:.2f} of {row.judgements:.0f}" if row.judgements else "-",
                row.run_count,
                f"{row.predicted.observations:.1f}",
                f"{row.coverage:.0%} of {row.coverage_runs:.0f}" if row.coverage_runs else "-",
            )
            for row in profile.types
        ],
        (),
        "it has not run anything yet: durations are taken as declared",
    )


def _instances(profile: profile_pb2.AgentProfile, agent: agent_pb2.Agent, output: Output) -> None:
    output.line("")
    links = {link.instance_id: link for link in profile.links}
    rows = []
    for one in agent.instances:
        link = links.get(one.instance_id)
        load = one.load
        rows.append(
            (
                one.instance_id,
                agent_pb2.AgentState.Name(one.state).removeprefix("AGENT_STATE_"),
                f"{load.slots_used}/{load.slots}",
                f"{load.cpu_ratio:.0%}" if load.HasField("cpu_ratio") else "-",
                f"{load.memory_bytes / 2**20:.0f} MiB" if load.HasField("memory_bytes") else "-",
                _ago(moment(one.load_time)),
                "-" if link is None else f"{link.held} held, {link.free} free",
                "-" if link is None else _ago(moment(link.hear_time)),
            )
        )
    columns = ("INSTANCE", "STATE", "SLOTS", "CPU", "MEMORY", "REPORTED", "COORDINATOR", "HEARD")
    output.table(columns, rows, (), "no instance lives")


async def _assess(options: argparse.Namespace, output: Output) -> int:
    async with Client(patience=PATIENCE_S) as client:
        agent = await client.insight.assess(
            options.collaboration, options.task, options.score, options.comment
        )
    output.item({"agent_id": agent}, f"the profile of {agent} learns from it")
    return OK


async def _alerts(options: argparse.Namespace, output: Output) -> int:
    async with Client(patience=PATIENCE_S) as client:
        alerts = await client.insight.alerts(include_cleared=options.all)
    rows = [
        (
            alert_pb2.AlertKind.Name(alert.kind).removeprefix("ALERT_KIND_"),
            alert.subject,
            clock(moment(alert.raise_time)),
            clock(moment(alert.clear_time)),
            alert.message,
        )
        for alert in alerts
    ]
    columns = ("ALERT", "ABOUT", "SINCE", "UNTIL", "WHAT")
    output.table(columns, rows, map(to_plain, alerts), "nothing is out of the ordinary", folds=("WHAT",))
    return OK


def _range(predicted: task_pb2.PredictedDuration) -> str:
    return f"{_time(predicted.low.ToMilliseconds())} to {_time(predicted.high.ToMilliseconds())}"


def _time(milliseconds: float) -> str:
    """Return a duration in the unit that it reads best in."""
    for size, unit in ((3_600_000, "h"), (60_000, "min"), (1_000, "s")):
        if milliseconds >= 2 * size:
            return f"{milliseconds / size:.1f} {unit}"
    return f"{milliseconds:.0f} ms"


def _ago(at: datetime | None) -> str:
    """Return how long ago something was; "never" for None."""
    if at is None:
        return "never"
    return f"{_time(max(0.0, (datetime.now().astimezone() - at).total_seconds() * 1_000))} ago"
