"""`muster plan`: how a collaboration would go, before it is submitted."""

from __future__ import annotations

import argparse
from datetime import timedelta
from pathlib import Path
from typing import Any

from muster.scheduler.v1 import plan_pb2

from agent_client.cli.collaborations import read_spec
from agent_client.cli.output import OK, USAGE, Output, complain
from agent_client.cli.words import Commands, command, positive, seconds
from agent_client.client import Client
from agent_client.gantt import Bar, Chart, draw
from agent_client.plain import to_plain

PLAN_HELP = """\
Nothing is submitted, and nobody is bound to a plan: the coordinator decides when a task is ready, by what is
true then. Durations are the tasks' estimates, or what the plane has learned of its agents.

  muster plan flood.json                     who would do what, and when
  muster plan flood.json --svg plan.svg      the same as a picture
  muster plan flood.json --pareto 6          plans to choose from: end, quality, cost, fairness
  muster plan flood.json --pareto 6 --choose 3 | muster submit -
                                             submit it with the third plan's agents as required_agents
"""
PARETO_PLANS = 8


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Declare the subcommand."""
    plan = command(commands, common, "plan", _plan, "say how a collaboration would go", PLAN_HELP)
    plan.add_argument("file", metavar="FILE", help='the collaboration as JSON; "-" reads standard input')
    plan.add_argument(
        "--pareto",
        type=positive,
        nargs="?",
        const=PARETO_PLANS,
        metavar="N",
        help=f"show up to N plans to choose from (default {PARETO_PLANS}, at most 32)",
    )
    plan.add_argument(
        "--budget",
        type=seconds,
        default=1.0,
        metavar="SECONDS",
        help="time to search (default 1)",
    )
    plan.add_argument(
        "--choose",
        type=positive,
        metavar="I",
        help="print the collaboration as JSON, with plan I's agents required",
    )
    plan.add_argument("--svg", type=Path, metavar="FILE", help="draw the first plan, or the chosen one")


async def _plan(options: argparse.Namespace, output: Output) -> int:
    spec = read_spec(options.file)
    if spec is None:
        return USAGE
    async with Client(patience=options.budget + 30) as client:
        answer = await client.plan(spec, budget=options.budget, most=options.pareto or 1)
    number = options.choose or 1
    if number > len(answer.plans):
        complain(f"there are {len(answer.plans)} plans: choose 1 to {len(answer.plans)}")
        return USAGE
    chosen = answer.plans[number - 1]
    if options.svg is not None:
        options.svg.write_text(_picture(chosen, spec.get("name") or "plan"), encoding="utf-8")
    if options.choose:
        output.json(_pinned(spec, chosen))
    elif options.pareto:
        _show_front(answer, output)
    elif output.as_json:
        output.json(to_plain(answer))
    else:
        _show(answer, chosen, output)
    return OK


def _show(answer: plan_pb2.PlanCollaborationResponse, plan: plan_pb2.Plan, output: Output) -> None:
    critical = frozenset(plan.critical_tasks)
    rows = [
        (
            task.task_id,
            f"{task.agent_id}/{task.instance_id}",
            _seconds(task.start.ToTimedelta()),
            _seconds(task.end.ToTimedelta()),
            "critical" if task.task_id in critical else "",
        )
        for task in plan.tasks
    ]
    output.table(("TASK", "AGENT", "START", "END", ""), rows, (), "it has no tasks")
    ahead = f"; {answer.tasks_ahead} waiting tasks of others come first" if answer.tasks_ahead else ""
    output.line(
        f"ends after {_seconds(plan.makespan.ToTimedelta())}, no plan before "
        f"{_seconds(answer.makespan_bound.ToTimedelta())}; quality {plan.quality:.2f}, cost {plan.cost:.4g}, "
        f"fairness {plan.fairness:.2f}{ahead}"
    )


def _show_front(answer: plan_pb2.PlanCollaborationResponse, output: Output) -> None:
    rows = [
        (
            number,
            _seconds(plan.makespan.ToTimedelta()),
            f"{plan.quality:.3f}",
            f"{plan.cost:.4g}",
            f"{plan.fairness:.3f}",
            len({task.agent_id for task in plan.tasks}),
        )
        for number, plan in enumerate(answer.plans, 1)
    ]
    columns = ("PLAN", "ENDS AFTER", "QUALITY", "COST", "FAIRNESS", "AGENTS")
    output.table(columns, rows, map(to_plain, answer.plans), "no plan was found")


def _pinned(spec: Any, plan: plan_pb2.Plan) -> Any:
    """Return the collaboration with each task's planned agent required."""
    agents = {task.task_id: task.agent_id for task in plan.tasks}
    tasks = [{**task, "required_agents": [agents[task["task_id"]]]} for task in spec["tasks"]]
    return {**spec, "tasks": tasks}


def _picture(plan: plan_pb2.Plan, title: str) -> str:
    critical = frozenset(plan.critical_tasks)
    bars = [
        Bar(
            f"{task.agent_id}/{task.instance_id}" + (f" #{task.slot + 1}" if task.slot else ""),
            task.task_id,
            task.start.ToMilliseconds(),
            task.end.ToMilliseconds(),
            task.task_id in critical,
        )
        for task in plan.tasks
    ]
    return draw([Chart(title, bars)])


def _seconds(delta: timedelta) -> str:
    return f"{delta.total_seconds():.3f} s"
