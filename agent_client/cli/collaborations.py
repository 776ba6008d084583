"""`muster submit|watch|collaborations|task|cancel|pause|resume|locks`: work, from submission to result."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from muster.common.v1 import priority_pb2
from muster.scheduler.v1 import collaboration_pb2, task_pb2

from agent_client.cli.live import LiveView
from agent_client.cli.output import FAILED, OK, PATIENCE_S, USAGE, Output, clock, complain
from agent_client.cli.profiles import add_assess
from agent_client.cli.words import Commands, command, group, natural, positive
from agent_client.client import Client, Collaboration
from agent_client.errors import NotFoundError
from agent_client.plain import to_plain
from agent_client.views import CollaborationInfo, TaskInfo
from agent_client.wire import moment

SUBMIT_HELP = """\
FILE is JSON, "-" reads standard input. The least that works:

  {"name": "a greeting",
   "tasks": [{"task_id": "hello", "required_skills": ["greet"], "payload": {"name": "Ada"}}]}

Tasks may also have dependencies, priority, deadline, estimated_duration (seconds), resources and
retry_policy; all fields are described in proto/muster/scheduler/v1/task.proto.
"""
PAUSE_HELP = """\
What runs goes on and its results count; a task whose agent is lost, or that fails, is not tried again before
the collaboration is resumed. With --suspend what runs is asked to save and stop, and goes on from there.
Deadlines go on: what is not done when they pass fails. Time before the pause does not count as waiting.
"""
LOCKS_HELP = """\
CLASS is the priority class of the owner's own. LENT is the class in which it counts because more urgent work
waits for the resource, and who lends that, directly or through others: the owner is served and kept as if it
were of that class.
"""
ID_HELP = "its id, as `muster submit` printed it"


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    submit = command(commands, common, "submit", _submit, "submit a collaboration", SUBMIT_HELP)
    submit.add_argument("file", metavar="FILE", help='the collaboration as JSON; "-" reads standard input')
    submit.add_argument("--wait", action="store_true", help="show it until it ends, then print its result")
    submit.add_argument(
        "--request-id", help="make it idempotent: the same id with the same content is accepted once"
    )
    watch = command(commands, common, "watch", _watch, "show a collaboration until it ends")
    watch.add_argument("collaboration", help=ID_HELP)
    watch.add_argument(
        "--from-generation", type=natural, default=0, metavar="N", help="only what came after generation N"
    )
    cancel = command(commands, common, "cancel", _cancel, "cancel what has not ended of a collaboration")
    cancel.add_argument("collaboration", help=ID_HELP)
    cancel.add_argument("--reason", default="", help="for people and the audit log")
    text = "let nothing new of a collaboration begin"
    pause = command(commands, common, "pause", _pause, text, PAUSE_HELP)
    pause.add_argument("collaboration", help=ID_HELP)
    pause.add_argument("--suspend", action="store_true", help="ask what runs to save and stop, too")
    pause.add_argument("--reason", default="", help="for people and the audit log")
    resume = command(commands, common, "resume", _resume, "let a paused collaboration go on")
    resume.add_argument("collaboration", help=ID_HELP)
    resume.add_argument("--reason", default="", help="for people and the audit log")
    collaborations = group(commands, common, "collaborations", "what was submitted")
    listed = command(collaborations, common, "list", _list, "list collaborations, newest first")
    listed.add_argument("--state", action="append", default=[], help="only in this state; may be repeated")
    listed.add_argument("--limit", type=positive, default=50, help="at most this many (default 50)")
    task = group(commands, common, "task", "the tasks of a collaboration")
    tasks = command(task, common, "list", _tasks, "list the tasks of a collaboration")
    tasks.add_argument("collaboration", help=ID_HELP)
    shown = command(task, common, "show", _task, "show one task: attempts, why this agent, why it waits")
    shown.add_argument("collaboration", help=ID_HELP)
    shown.add_argument("task", help="its task_id, as `muster task list` shows it")
    add_assess(task, common)
    explained = command(task, common, "explain", _explain, "why a task has its place, its agent or its wait")
    explained.add_argument("collaboration", help=ID_HELP)
    explained.add_argument("task", help="its task_id, as `muster task list` shows it")
    locks = command(
        commands, common, "locks", _locks, "who holds and who waits for each resource", LOCKS_HELP
    )
    locks.add_argument("resource", nargs="?", default="", help="only this one")


async def follow(collaboration: Collaboration, output: Output, from_generation: int = 0) -> CollaborationInfo:
    """Show a collaboration until it ends; return it as it ended."""
    with LiveView(output) as view:
        async for event in collaboration.watch(from_generation=from_generation):
            view.show(event)
    return await collaboration.info()


def tell_result(info: CollaborationInfo, output: Output) -> int:
    """Print what a collaboration brought; return the exit code."""
    if output.as_json:
        output.json(info.to_dict())
    elif info.state == "COMPLETED":
        for task_id, value in info.result().outputs.items():
            output.line(f"\n{task_id}:")
            output.line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2))
    if info.state != "COMPLETED":
        complain(f"{info.id} is {info.state}: {info.failure}; `muster task list {info.id}` shows where")
        return FAILED
    return OK


async def _submit(options: argparse.Namespace, output: Output) -> int:
    spec = read_spec(options.file)
    if spec is None:
        return USAGE
    async with Client() as client:
        collaboration = await client.submit(spec, request_id=options.request_id)
        for warning in collaboration.warnings:
            sys.stderr.write(f"muster: warning: {warning}\n")
        if options.wait:
            return tell_result(await follow(collaboration, output), output)
    again = " (it had been accepted before)" if collaboration.already_accepted else ""
    output.item(
        {
            "collaboration_id": collaboration.id,
            "already_accepted": collaboration.already_accepted,
            "warnings": list(collaboration.warnings),
        },
        f"{collaboration.id}{again}; `muster watch {collaboration.id}` shows it",
    )
    return OK


def read_spec(file: str) -> Any:
    """Return the JSON of a file or of standard input; None when that was not possible, which is said."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        return json.loads(text)
    except OSError as error:
        complain(f"{file} can not be read: {error.strerror}")
    except ValueError as error:
        complain(f"{file} is not JSON: {error}; `muster submit --help` shows an example")
    return None


async def _watch(options: argparse.Namespace, output: Output) -> int:
    async with Client() as client:
        handle = client.collaboration(options.collaboration)
        info = await follow(handle, output, options.from_generation)
    return OK if info.state == "COMPLETED" else FAILED


async def _cancel(options: argparse.Namespace, output: Output) -> int:
    async with Client(patience=PATIENCE_S) as client:
        info = await client.cancel(options.collaboration, options.reason)
    output.item(info.to_dict(), f"{info.id} is {info.state}")
    return OK


async def _pause(options: argparse.Namespace, output: Output) -> int:
    async with Client(patience=PATIENCE_S) as client:
        info = await client.pause(options.collaboration, options.reason, suspend_running=options.suspend)
    running = sum(task.state in ("ASSIGNED", "RUNNING") for task in info.tasks)
    going_on = f"; {running} tasks still run" if running else ""
    output.item(
        info.to_dict(), f"{info.id} is {info.state}{going_on}; `muster resume {info.id}` lets it go on"
    )
    return OK


async def _resume(options: argparse.Namespace, output: Output) -> int:
    async with Client(patience=PATIENCE_S) as client:
        info = await client.resume(options.collaboration, options.reason)
    output.item(info.to_dict(), f"{info.id} is {info.state}")
    return OK


async def _list(options: argparse.Namespace, output: Output) -> int:
    async with Client(patience=PATIENCE_S) as client:
        found = await client.collaborations(states=options.state, limit=options.limit)
    rows = [
        (
            info.id,
            info.name,
            info.state,
            f"{info.task_succeeded_count}/{info.task_count}",
            clock(info.submit_time),
            clock(info.end_time),
        )
        for info in found
    ]
    columns = ("COLLABORATION", "NAME", "STATE", "TASKS", "SUBMITTED", "ENDED")
    output.table(columns, rows, (info.to_dict() for info in found), "nothing was submitted yet")
    return OK


async def _tasks(options: argparse.Namespace, output: Output) -> int:
    async with Client(patience=PATIENCE_S) as client:
        info = await client.get(options.collaboration)
    rows = [
        (
            task.id,
            task.state,
            task.agent,
            task.attempt_number or "",
            ", ".join(task.message.spec.dependencies),
            task.failure or task.waiting_for,
        )
        for task in info.tasks
    ]
    columns = ("TASK", "STATE", "AGENT", "TRY", "DEPENDS ON", "WHY")
    output.table(
        columns, rows, (task.to_dict() for task in info.tasks), "it has no tasks", folds=("DEPENDS ON", "WHY")
    )
    return OK


async def _task(options: argparse.Namespace, output: Output) -> int:
    async with Client(patience=PATIENCE_S) as client:
        info = await client.get(options.collaboration)
    task = next((task for task in info.tasks if task.id == options.task), None)
    if task is None:
        names = ", ".join(task.id for task in info.tasks)
        raise NotFoundError(
            f"{info.id} has no task {options.task!r}; it has {names}", reason="TASK_NOT_FOUND"
        )
    if output.as_json:
        output.json(task.to_dict())
    else:
        _show(task, output)
    return OK


def _savepoint(task: TaskInfo) -> str:
    if not task.message.HasField("savepoint"):
        return ""
    saved = task.message.savepoint
    return f"of try {saved.attempt_number}, {saved.bytes} bytes, {clock(moment(saved.save_time))}"


def _show(task: TaskInfo, output: Output) -> None:
    output.line(f"{task.id}  {task.state}  generation {task.message.generation}")
    for label, text in (
        ("waits for", task.waiting_for),
        ("failure", task.failure),
        ("skills", ", ".join(task.message.spec.required_skills)),
        ("depends on", ", ".join(task.message.spec.dependencies)),
        ("savepoint", _savepoint(task)),
        ("resources", ", ".join(claim.resource for claim in task.message.spec.resources)),
    ):
        if text:
            output.line(f"{label:<11} {text}")
    for attempt in task.message.attempts:
        state = task_pb2.AttemptState.Name(attempt.state).removeprefix("ATTEMPT_STATE_")
        ended = clock(moment(attempt.end_time) if attempt.HasField("end_time") else None)
        output.line(
            f"try {attempt.token.number} (token {attempt.token.epoch}.{attempt.token.number})  {state}  "
            f"{attempt.agent_id}/{attempt.instance_id}  {clock(moment(attempt.assign_time))} to {ended}"
        )
        if attempt.speculative:
            output.line("  a second attempt beside one that was slow")
        if attempt.explanation:
            output.line(f"  chosen because {attempt.explanation}")
        if attempt.HasField("failure"):
            output.line(f"  {attempt.failure.reason}: {attempt.failure.message}")
    if task.result is not None:
        output.line("result")
        output.line(json.dumps(task.result, ensure_ascii=False, indent=2, default=repr))


async def _explain(options: argparse.Namespace, output: Output) -> int:
    async with Client(patience=PATIENCE_S) as client:
        found = await client.explain(options.collaboration, options.task)
    if output.as_json:
        output.json(to_plain(found))
        return OK
    state = task_pb2.TaskState.Name(found.state).removeprefix("TASK_STATE_")
    policy = collaboration_pb2.SchedulingPolicy.Name(found.scheduling_policy)
    output.line(f"{found.task_id}  {state}  policy {policy.removeprefix('SCHEDULING_POLICY_')}")
    if found.waiting_for:
        output.line(f"waits for {found.waiting_for}")
    if found.chosen_because:
        output.line(f"chosen because {found.chosen_because}")
    for title, parts in (("priority", found.priority), ("analysis", found.analysis)):
        output.line(title)
        for part in parts:
            meaning = f"  ({part.meaning})" if part.meaning else ""
            output.line(f"  {part.name:<18} {part.value}{meaning}")
    if found.HasField("predicted_end_time"):
        output.line(
            f"will end at {clock(moment(found.predicted_end_time))} at the earliest, as far as predicted"
        )
    if found.candidate_count:
        output.line(f"candidates: {found.candidate_count}, of which {found.free_count} free")
    for candidate in found.candidates:
        score = " + ".join(f"{part.weight:g} * {part.name} {part.value:.2f}" for part in candidate.parts)
        why = candidate.obstacle or (f"{candidate.score:.2f} = {score}" if score else "free")
        output.line(f"  {candidate.agent_id}/{candidate.instance_id}  {why}")
    return OK


def _class(priority: priority_pb2.Priority.ValueType) -> str:
    """Return a class's name; "-" for a key that another program put."""
    return priority_pb2.Priority.Name(priority).removeprefix("PRIORITY_") if priority else "-"


async def _locks(options: argparse.Namespace, output: Output) -> int:
    async with Client(patience=PATIENCE_S) as client:
        locks = await client.locks(options.resource)
    rows = [
        (
            lock.resource,
            task_pb2.LockMode.Name(lock.mode).removeprefix("LOCK_MODE_").lower(),
            "held" if lock.held else "waits",
            f"{lock.agent_id}/{lock.instance_id}",
            lock.attempt.task_id,
            f"{lock.token.epoch}.{lock.token.number}" if lock.held else "",
            clock(moment(lock.since_time)),
            _class(lock.priority),
            f"{_class(lock.lent_priority)} by {lock.lent_by}" if lock.lent_by else "",
        )
        for lock in locks
    ]
    columns = ("RESOURCE", "MODE", "", "AGENT", "TASK", "TOKEN", "SINCE", "CLASS", "LENT")
    output.table(columns, rows, map(to_plain, locks), "nothing is held and nothing waits")
    return OK
