"""Share of a GPU cluster that a real trace fills, beside best fit, dot product and random.

`alibaba_openb/`: the tasks of the trace, each with its needs of CPU, memory and GPU, come one after another
in order of arrival, to the trace's 1,523 nodes, and stay. (With the ends of the trace the cluster is never
more than 2 % full, and any rule places everything at once.) What fits nowhere when it comes waits, and gets
nothing. GPU is a node's sum, as capacities are here: that single cards do not span tasks is not looked at, on
either side.

Ours is the scheduler's real core under MULTI_OBJECTIVE with the weight on cost alone. Each node declares a
cost: its shares of all CPU and of all GPU there is, so that what is scarce is dear, and by a millionth more
for each node before it, so that equal nodes are filled one after the other. The others choose among the nodes
with room: best fit the one with the least left over, dot product the one whose room points most in the
direction of the needs, both in units of the largest node; random any (the mean of five seeds).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure
from benchmarks.scheduling.options import Options
from benchmarks.turns import say
from services.common.core.ids import AgentId, CollaborationId, InstanceId, RequestId, Skill, TaskId
from services.common.core.instants import Instant
from services.scheduler.core.book import Settings
from services.scheduler.core.effects import Assign
from services.scheduler.core.events import (
    AgentsChanged,
    AgentView,
    InstanceView,
    PlacementDue,
    ReplyId,
    StreamId,
    Submitted,
    WorkFrame,
    WorkOpened,
)
from services.scheduler.core.model import (
    CollaborationSpec,
    InstanceKey,
    PolicyWeights,
    SchedulingPolicy,
    Submission,
    TaskSpec,
)
from services.scheduler.core.state import SchedulerState

NAMES = ("cpu_milli", "gpu_milli", "memory_mib")
GPU = NAMES.index("gpu_milli")
SEEDS, QUICK_STRIDE = 5, 8
_NOW = Instant(1_700_000_000_000)
_SKILL = Skill("run")
#: (needs, what the nodes with room have left, which nodes these are) -> the position of the chosen one.
Rule = Callable[[Any, Any, Any], int]


@dataclass(frozen=True, slots=True)
class Trace:
    """Capacities of nodes and needs of tasks in order of arrival, in the order of `NAMES`."""

    nodes: Any
    tasks: Any


def run(options: Options) -> Iterator[Figure]:
    """Fill the cluster by every rule; one figure, beside the best of the others."""
    trace = load(options.data / "alibaba_openb", QUICK_STRIDE if options.quick else 1)
    ours = filled(trace, core_choices(trace))
    largest = trace.nodes.max(axis=0)
    others = {
        "best fit": filled(trace, by_rule(trace, best_fit(largest))),
        "dot product": filled(trace, by_rule(trace, dot_product(largest))),
        "random": float(np.mean([filled(trace, by_rule(trace, at_random(seed))) for seed in range(SEEDS)])),
    }
    say(f"ours {ours:.4f}, " + ", ".join(f"{name} {value:.4f}" for name, value in others.items()))
    best = max(others, key=lambda name: others[name])
    wanted = float(trace.tasks[:, GPU].sum() / trace.nodes[:, GPU].sum())
    yield Figure(
        id="S10",
        name="share of all GPUs that the tasks of the trace get, in order of arrival",
        value=ours,
        unit="of all GPUs",
        peer=best,
        peer_value=others[best],
        params={
            **{name.replace(" ", "_"): round(value, 4) for name, value in others.items()},
            "ours": round(ours, 4),
            "asked_for": round(wanted, 4),
            "nodes": len(trace.nodes),
            "tasks": len(trace.tasks),
            "policy": "MULTI_OBJECTIVE, cost",
        },
    )


def load(folder: Path, stride: int = 1) -> Trace:
    """Read the trace; of every `stride` nodes and tasks one."""
    with (folder / "openb_node_list_all_node.csv").open(newline="") as file:
        nodes = [
            (int(row["cpu_milli"]), 1_000 * int(row["gpu"]), int(row["memory_mib"]))
            for row in csv.DictReader(file)
        ]
    with (folder / "openb_pod_list_default.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: float(row["creation_time"]))
    tasks = [
        (int(row["cpu_milli"]), int(row["num_gpu"]) * int(row["gpu_milli"]), int(row["memory_mib"]))
        for row in rows
    ]
    return Trace(np.array(nodes[::stride], np.int64), np.array(tasks[::stride], np.int64))


def filled(trace: Trace, choices: list[int | None]) -> float:
    """Return the share of all GPUs that was given; raises when a node was given more than it has."""
    left = trace.nodes.copy()
    given = 0
    for needs, node in zip(trace.tasks, choices, strict=True):
        if node is not None:
            left[node] -= needs
            given += int(needs[GPU])
    if (left < 0).any():
        raise AssertionError("a node was given more than it has")
    return given / float(trace.nodes[:, GPU].sum())


def by_rule(trace: Trace, rule: Rule) -> list[int | None]:
    """Return the node of each task, None for those that fit nowhere."""
    left = trace.nodes.copy()
    choices: list[int | None] = []
    for needs in trace.tasks:
        room = np.flatnonzero((left >= needs).all(axis=1))
        if not len(room):
            choices.append(None)
            continue
        node = int(room[rule(needs, left[room], room)])
        left[node] -= needs
        choices.append(node)
    return choices


def best_fit(largest: Any) -> Rule:
    """Return the rule that leaves the least over."""
    return lambda needs, left, _: int(np.argmin(((left - needs) / largest).sum(axis=1)))


def dot_product(largest: Any) -> Rule:
    """Return the rule of the largest dot product of what is needed and what is left."""
    return lambda needs, left, _: int(np.argmax(((left / largest) * (needs / largest)).sum(axis=1)))


def at_random(seed: int) -> Rule:
    """Return the rule that takes any."""
    dice = np.random.default_rng(seed)
    return lambda _, left, __: int(dice.integers(len(left)))


def core_choices(trace: Trace) -> list[int | None]:
    """Return the node that the scheduler's core gives each task when it comes."""
    # Links do not break here and are not probed; nothing runs twice and nothing is out of the ordinary.
    state = SchedulerState(
        Settings(speculation_share=0.0, probe_interval_ms=10**9, silence_ms_max=2 * 10**9), 1
    )
    costs = (trace.nodes[:, :2] / trace.nodes[:, :2].sum(axis=0)).sum(axis=1)
    costs *= 1.0 + 1e-6 * np.arange(len(costs))
    views = []
    for node, (row, cost) in enumerate(zip(trace.nodes.tolist(), costs.tolist(), strict=True)):
        view = InstanceView(
            InstanceId("0"), 1, False, ((_SKILL, 1.0),), tuple(zip(NAMES, row, strict=True)), cost
        )
        views.append(AgentView(AgentId(f"n{node}"), frozenset({_SKILL}), (view,)))
    state.handle(AgentsChanged("nodes", 0.5, tuple(views), snapshot=True), _NOW)
    for node in range(len(views)):
        key, stream = InstanceKey(AgentId(f"n{node}"), InstanceId("0")), StreamId(node + 1)
        state.handle(WorkOpened("hello", stream, key, 1), _NOW)
        state.handle(WorkFrame("credit", stream, 0.5, credits=1_024), _NOW)
    choices: list[int | None] = []
    for number, needs in enumerate(trace.tasks.tolist()):
        wanted = tuple((name, amount) for name, amount in zip(NAMES, needs, strict=True) if amount)
        spec = CollaborationSpec(
            (TaskSpec(TaskId("t"), (_SKILL,), needs=wanted),),
            policy=SchedulingPolicy.MULTI_OBJECTIVE,
            weights=PolicyWeights(cost=1.0),
        )
        name = CollaborationId(f"c{number}")
        submission = Submission("operator/bench", RequestId(f"r{number}"), spec, str(number).encode())
        state.handle(Submitted("submit", submission, name, ReplyId(number)), _NOW)
        chosen: int | None = None
        for effect in state.handle(PlacementDue("place"), _NOW):
            if isinstance(effect, Assign):
                if effect.collaboration.collaboration_id != name:
                    raise AssertionError("a task that had no room got some although nothing has ended")
                chosen = int(effect.attempt.instance.agent_id[1:])
        choices.append(chosen)
    return choices
