"""The worst that an adversary finds: annealing over tiny instances against each classic heuristic.

Method: PISA (Coleman and Krishnamachari, "PISA: an adversarial approach to comparing task graph scheduling
algorithms", 2024). An instance is a network and a graph of up to five tasks; a step changes a speed, a link,
a cost or a size, or adds or removes a dependency. For each heuristic it looks for the instance on which our
plan is worst beside the heuristic's, and for the one on which the heuristic is worst beside ours; once more
for the one on which our plan is worst beside the optimum.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.figures import Figure, Param
from benchmarks.scheduling.exhaustive import optimum_ms
from benchmarks.scheduling.options import Options
from benchmarks.turns import say
from services.scheduler.core.planning.portfolio import CLASSICS, Planner
from services.scheduler.core.planning.problem import Dependency, Network, Problem, whole_agents
from services.scheduler.core.planning.search import plan, steps
from services.scheduler.core.planning.validate import check

# Steps of the adversary, its temperatures (of the logarithm of the ratio), and steps of our plan.
STEPS, STEPS_QUICK = 300, 60
_HOT, _COLD = 0.1, 0.001
PLAN_STEPS = 150
# Floats of an instance become whole milliseconds and bytes by this factor.
_SCALE = 10_000
_LEAST = 0.1


@dataclass(frozen=True, slots=True)
class Instance:
    """A network and a task graph, everything between 0 and 1."""

    speed: tuple[float, ...]
    #: [agent][agent]; only the part above the diagonal counts.
    link: tuple[tuple[float, ...], ...]
    cost: tuple[float, ...]
    #: (before, after) -> size; tasks depend on smaller ones.
    size: dict[tuple[int, int], float]

    def problem(self) -> Problem:
        """Return it as a problem."""
        agents = len(self.speed)
        inverse = tuple(
            tuple(1 / self.link[min(a, b)][max(a, b)] for b in range(agents)) for a in range(agents)
        )
        return Problem(
            tuple(tuple(max(1, round(_SCALE * cost / speed)) for speed in self.speed) for cost in self.cost),
            tuple(Dependency(a, b, round(_SCALE * size)) for (a, b), size in self.size.items()),
            whole_agents(agents),
            Network(((0.0,) * agents,) * agents, inverse),
        )


def run(options: Options) -> Iterator[Figure]:
    """Anneal against every heuristic and against the optimum."""
    count = STEPS_QUICK if options.quick else STEPS
    known = [published(path) for path in sorted((options.data / "pisa").glob("*.json"))]
    params: dict[str, Param] = {"adversary_steps": count, "plan_steps": PLAN_STEPS, "published": len(known)}
    for seed, (name, planner) in enumerate(CLASSICS.items()):
        ours_worst, theirs_worst = partial(ratio, planner), partial(ratio_back, planner)
        worst = max([anneal(ours_worst, count, seed), *map(ours_worst, known)])
        back = max([anneal(theirs_worst, count, seed), *map(theirs_worst, known)])
        say(f"{name}: we are at worst {worst:.4f} of it, it is at worst {back:.3f} of ours")
        text = "worst ratio of makespans that an adversary finds, ours to theirs, theirs to ours beside it"
        yield Figure("S3", text, worst, "times", name, back, more_is_better=False, params=params)
    worst = max([anneal(beside_optimum, count, len(CLASSICS)), *map(beside_optimum, known)])
    text = "worst ratio of makespans that an adversary finds, ours to the optimum"
    yield Figure("S3", text, worst, "times", "optimum", 1.0, more_is_better=False, params=params)


def ratio(planner: Planner, problem: Problem) -> float:
    """Return our makespan over a heuristic's."""
    return ours_ms(problem) / planner(problem).makespan_ms


def ratio_back(planner: Planner, problem: Problem) -> float:
    """Return a heuristic's makespan over ours."""
    return planner(problem).makespan_ms / ours_ms(problem)


def beside_optimum(problem: Problem) -> float:
    """Return our makespan over the shortest."""
    reached = ours_ms(problem)
    return reached / optimum_ms(problem, reached)


def ours_ms(problem: Problem) -> int:
    """Return the makespan of our plan, which the validator has seen."""
    schedule = plan(problem, steps(PLAN_STEPS)).schedule
    check(problem, schedule)
    return schedule.makespan_ms


def anneal(objective: Callable[[Problem], float], count: int, seed: int) -> float:
    """Return the largest value of the objective that was met."""
    draw = random.Random(seed)
    now = first(draw)
    value = best = objective(now.problem())
    for step in range(count):
        temperature = _HOT * (_COLD / _HOT) ** (step / count)
        other = changed(now, draw)
        found = objective(other.problem())
        if math.log(found / value) >= temperature * math.log(1.0 - draw.random()):
            now, value = other, found
            best = max(best, value)
    return best


def first(draw: random.Random) -> Instance:
    """Return a random instance: 3 to 4 agents, a chain of 3 to 5 tasks."""
    agents, tasks = draw.randint(3, 4), draw.randint(3, 5)

    def some() -> float:
        return draw.uniform(_LEAST, 1)

    return Instance(
        tuple(some() for _ in range(agents)),
        tuple(tuple(some() for _ in range(agents)) for _ in range(agents)),
        tuple(some() for _ in range(tasks)),
        {(task, task + 1): some() for task in range(tasks - 1)},
    )


def changed(now: Instance, draw: random.Random) -> Instance:
    """Return a neighbour: one number moved by up to a tenth, or a dependency more or less."""

    def moved(values: tuple[float, ...]) -> tuple[float, ...]:
        index = draw.randrange(len(values))
        value = min(1.0, max(_LEAST, values[index] + draw.uniform(-0.1, 0.1)))
        return (*values[:index], value, *values[index + 1 :])

    what = draw.randrange(6)
    if what == 0:
        return replace(now, speed=moved(now.speed))
    if what == 1:
        row = draw.randrange(len(now.link) - 1)
        return replace(now, link=(*now.link[:row], moved(now.link[row]), *now.link[row + 1 :]))
    if what == 2:
        return replace(now, cost=moved(now.cost))
    pairs = [(a, b) for b in range(len(now.cost)) for a in range(b)]
    if what == 3 and now.size:
        keys = list(now.size)
        return replace(now, size=dict(zip(keys, moved(tuple(now.size.values())), strict=True)))
    if what == 4 and now.size:
        gone = draw.choice(list(now.size))
        return replace(now, size={pair: size for pair, size in now.size.items() if pair != gone})
    return replace(now, size={**now.size, draw.choice(pairs): draw.uniform(_LEAST, 1)})


def published(path: Path) -> Problem:
    """Read an instance that PISA's authors or others found, in the format of SAGA."""
    document = json.loads(path.read_text(encoding="utf-8"))
    network, graph = document["network"], document["task_graph"]
    names = [node["name"] for node in network["nodes"]]
    speed = [node["speed"] for node in network["nodes"]]
    inverse = [[0.0] * len(names) for _ in names]
    for edge in network["edges"]:
        a, b = names.index(edge["source"]), names.index(edge["target"])
        inverse[a][b] = inverse[b][a] = 1 / edge["speed"]
    tasks = [task["name"] for task in graph["tasks"]]
    return Problem(
        tuple(tuple(max(1, round(_SCALE * task["cost"] / one)) for one in speed) for task in graph["tasks"]),
        tuple(
            Dependency(tasks.index(edge["source"]), tasks.index(edge["target"]), round(_SCALE * edge["size"]))
            for edge in graph["dependencies"]
        ),
        whole_agents(len(names)),
        Network(((0.0,) * len(names),) * len(names), tuple(map(tuple, inverse))),
    )
