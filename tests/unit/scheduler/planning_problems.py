"""Problems to plan: published ones, and random ones with every constraint."""

from __future__ import annotations

import random

from services.scheduler.core.planning.problem import Dependency, Network, Problem, whole_agents


def heft_paper() -> Problem:
    """Figure 2 of Topcuoglu, Hariri and Wu (IEEE TPDS 13:3, 2002): HEFT 80, CPOP 86."""
    return _published(
        "14 16 9, 13 19 18, 11 13 19, 13 8 17, 12 13 10, 13 16 9, 7 15 11, 5 11 14, 18 12 20, 21 7 16",
        "1-2:18 1-3:12 1-4:9 1-5:11 1-6:14 2-8:19 2-9:16 3-7:23 4-8:27 4-9:23 5-9:13 6-8:15 7-10:17 8-10:11"
        " 9-10:13",
    )


def peft_paper() -> Problem:
    """Figure 1 of Arabnejad and Barbosa (IEEE TPDS 25:3, 2014): PEFT 122, HEFT 133."""
    return _published(
        "22 21 36, 22 18 18, 32 27 43, 7 10 4, 29 27 35, 26 17 24, 14 25 30, 29 23 36, 15 21 8, 13 16 33",
        "1-2:17 1-3:31 1-4:29 1-5:13 1-6:7 2-8:3 2-9:30 3-7:16 4-8:11 4-9:7 5-9:57 6-8:5 7-10:9 8-10:42"
        " 9-10:7",
    )


def _published(rows: str, edges: str) -> Problem:
    durations = tuple(tuple(map(int, row.split())) for row in rows.split(","))
    dependencies = []
    for edge in edges.split():
        pair, _, size = edge.partition(":")
        before, _, after = pair.partition("-")
        dependencies.append(Dependency(int(before) - 1, int(after) - 1, int(size)))
    agents = len(durations[0])
    return Problem(durations, tuple(dependencies), whole_agents(agents), Network.uniform(agents, 0, 1))


def random_problem(seed: int, tasks: int = 12, agents: int = 3) -> Problem:
    """Return a problem with unrelated agents, several slots, locks, releases and a lopsided network."""
    draw = random.Random(seed)
    durations = []
    for _ in range(tasks):
        may = [draw.random() < 0.7 for _ in range(agents)]
        may[draw.randrange(agents)] = True
        durations.append(tuple(draw.randint(1, 50) if allowed else None for allowed in may))
    dependencies = tuple(
        Dependency(a, b, draw.randint(0, 40))
        for b in range(tasks)
        for a in range(b)
        if draw.random() < min(0.4, 3 / tasks)
    )
    slots = tuple(tuple(draw.choice([0, 0, 7]) for _ in range(draw.choice([1, 1, 2]))) for _ in range(agents))
    network = Network(
        tuple(tuple(draw.choice([0.0, 1.5]) for _ in range(agents)) for _ in range(agents)),
        tuple(tuple(draw.random() * 2 for _ in range(agents)) for _ in range(agents)),
    )
    locks = {
        task: frozenset(draw.sample(["bridge", "pump"], draw.choice([1, 1, 2])))
        for task in range(tasks)
        if draw.random() < 0.2
    }
    release = {
        task: tuple(draw.randint(0, 30) for _ in range(agents))
        for task in range(tasks)
        if draw.random() < 0.2
    }
    return Problem(
        duration_ms=tuple(durations),
        dependencies=dependencies,
        slots_from_ms=slots,
        network=draw.choice([network, network, None]),
        locks=locks,
        release_ms=release,
    )
