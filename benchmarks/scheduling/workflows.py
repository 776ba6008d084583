"""Real workflow runs in WfFormat 1.5, and the fleets that they are planned on.

https://github.com/wfcommons/WfFormat. What a parent writes and a child reads is what travels between them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from services.scheduler.core.planning.problem import Dependency, Network, Problem, whole_agents

# A draw is clipped to this: an agent or a link has at least a quarter and at most twice the mean speed.
_SPEED_MIN, _SPEED_MAX = 0.25, 2.0


@dataclass(frozen=True, slots=True)
class Workflow:
    """One workflow run: what its tasks took, and what travels between them."""

    name: str
    task_names: tuple[str, ...]
    runtime_ms: tuple[float, ...]
    dependencies: tuple[Dependency, ...]


@cache
def load(path: Path) -> Workflow:
    """Read one file. A run time below 1 ms counts as 1 ms."""
    document = json.loads(path.read_text(encoding="utf-8"))["workflow"]
    tasks = document["specification"]["tasks"]
    size = {file["id"]: file["sizeInBytes"] for file in document["specification"].get("files", [])}
    runtime_s = {task["id"]: task["runtimeInSeconds"] for task in document["execution"]["tasks"]}
    index = {task["id"]: number for number, task in enumerate(tasks)}
    dependencies = []
    for parent in tasks:
        written = set(parent.get("outputFiles", []))
        for name in dict.fromkeys(parent["children"]):
            shared = written & set(tasks[index[name]].get("inputFiles", []))
            dependencies.append(
                Dependency(index[parent["id"]], index[name], sum(size[file] for file in shared))
            )
    return Workflow(
        path.stem,
        tuple(task["id"] for task in tasks),
        tuple(max(1.0, runtime_s[task["id"]] * 1000) for task in tasks),
        tuple(dependencies),
    )


def load_all(folder: Path) -> list[Workflow]:
    """Read every workflow of a folder, by name."""
    return [load(path) for path in sorted(folder.glob("*.json"))]


def on_fleet(workflow: Workflow, agents: int, ratio: float, draw: int) -> Problem:
    """Return the workflow on a fleet drawn from the seed (`draw`, `agents`).

    Speeds of agents and of the symmetric links between them are drawn from a normal distribution of mean 1
    and deviation 1/3, clipped to 1/4 … 2, much as PISA draws its networks. A task takes its run time over the
    agent's speed, rounded, at least 1 ms. Links have no latency; their bandwidth is scaled so that the mean
    delay of a dependency (over dependencies and pairs of agents) is `ratio` times the mean duration of a task
    (over tasks and agents).
    """
    random = np.random.default_rng((draw, agents))
    speed = np.clip(random.normal(1, 1 / 3, agents), _SPEED_MIN, _SPEED_MAX)
    link = np.clip(random.normal(1, 1 / 3, (agents, agents)), _SPEED_MIN, _SPEED_MAX)
    link = np.triu(link, 1) + np.triu(link, 1).T + np.eye(agents)
    duration = np.maximum(1, np.rint(np.outer(workflow.runtime_ms, 1 / speed))).astype(int)
    inverse = 1 / link
    mean_inverse = (inverse.sum() - agents) / max(1, agents * (agents - 1))
    sizes = [dependency.size_bytes for dependency in workflow.dependencies]
    mean_size = sum(sizes) / max(1, len(sizes))
    scale = ratio * float(duration.mean()) / (mean_size * mean_inverse) if mean_size else 0.0
    return Problem(
        duration_ms=tuple(tuple(row) for row in duration.tolist()),
        dependencies=workflow.dependencies,
        slots_from_ms=whole_agents(agents),
        network=Network(((0.0,) * agents,) * agents, tuple(tuple(row) for row in (inverse * scale).tolist())),
    )
