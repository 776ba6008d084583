"""Decisions per second with 10,000 agents and 100,000 queued tasks: one at a time, in groups, and in waves.

Single: every agent is busy and 100,000 tasks wait; an agent ends a task, and the core decides what it gets:
selection in serving order (classes, fair shares of 20 requesters, deadlines, ageing), agents by skill, named
agents and needs, score with runners-up, verification, and the attempt with its records and audit entry. Wave:
all the agents' slots are free at once. Of both there are two figures: a decision alone is a task selected and
planned (`index.snapshot`, `plan`); what follows it (attempt, records, entry) is in the other one. Nothing is
written to a store.
Times are CPU times of this process, which other programs on the machine disturb less than the clock.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from time import process_time
from typing import Any

from benchmarks.figures import Figure, percentile
from benchmarks.scheduling.crowd import Crowd, resident_mb
from benchmarks.scheduling.options import Options
from benchmarks.turns import say
from services.scheduler.core.effects import Assign
from services.scheduler.core.events import PlacementDue
from services.scheduler.core.placing.placement import plan

AGENTS, QUEUED = 10_000, 100_000
#: Slots that become free before anything is placed.
GROUP, GROUPS = 100, 20


def run(options: Options) -> Iterator[Figure]:
    """Measure both; `quick` takes a tenth of the agents and tasks."""
    scale = 10 if options.quick else 1
    agents, queued = AGENTS // scale, QUEUED // scale
    params: dict[str, Any] = {"agents": agents, "queued": queued, "requesters": 20, "skills": 50}
    crowd = Crowd(agents)
    crowd.offer(1)
    crowd.submit(queued + agents)
    crowd.place()
    say(f"{agents} agents are busy, {crowd.state.book.index.waiting_count} tasks wait")
    gc.collect()
    gc.freeze()
    steps: list[float] = []
    decisions: list[float] = []
    planned: list[float] = []
    index, settings = crowd.state.book.index, crowd.state.book.settings
    for number, frame in enumerate(crowd.frames(10_000 // scale)):
        begun = process_time()
        effects = crowd.state.handle(frame, crowd.now)
        reported = process_time()
        if number % 2:
            # Every other one is planned alone first, so that neither figure has what the other one settled.
            snapshot = index.snapshot(settings.wave_max, crowd.now)
            if snapshot is not None:
                plan(snapshot)
            planned.append(process_time() - reported)
            crowd.take(effects + crowd.state.handle(PlacementDue("place"), crowd.now))
            continue
        effects += crowd.state.handle(PlacementDue("place"), crowd.now)
        ended = process_time()
        crowd.take(effects)
        steps.append(ended - begun)
        decisions.append(ended - reported)
    spread = {"p50_us": percentile(decisions, 0.5) * 1e6, "p99_us": percentile(decisions, 0.99) * 1e6}
    yield Figure("S7", "single decisions", len(decisions) / sum(decisions), "1/s", params=params | spread)
    yield Figure(
        "S7", "single decisions, selected and planned", len(planned) / sum(planned), "1/s", params=params
    )
    yield Figure(
        "S7",
        "single decisions with the report that frees the slot",
        len(steps) / sum(steps),
        "1/s",
        params=params,
    )
    yield from _groups(crowd, params)
    yield Figure("S7", "resident memory at most", resident_mb(), "MB", more_is_better=False, params=params)
    del crowd
    gc.unfreeze()
    gc.collect()
    yield from _waves(agents, queued, params)


def _groups(crowd: Crowd, params: dict[str, Any]) -> Iterator[Figure]:
    index, settings = crowd.state.book.index, crowd.state.book.settings
    count, seconds = [0, 0], [0.0, 0.0]
    for number in range(GROUPS):
        effects = [each for frame in crowd.frames(GROUP) for each in crowd.state.handle(frame, crowd.now)]
        begun = process_time()
        if number % 2:
            # Every other one is planned alone first, as above.
            snapshot = index.snapshot(settings.wave_max, crowd.now)
            count[1] += 0 if snapshot is None else len(plan(snapshot))
            seconds[1] += process_time() - begun
            crowd.take(effects + crowd.state.handle(PlacementDue("place"), crowd.now))
            continue
        made = crowd.state.handle(PlacementDue("place"), crowd.now)
        seconds[0] += process_time() - begun
        count[0] += sum(isinstance(each, Assign) for each in made)
        crowd.take(effects + made)
    for name, number, spent in zip(("", ", selected and planned"), count, seconds, strict=True):
        yield Figure(
            "S7", f"decisions in groups{name}", number / spent, "1/s", params=params | {"group": GROUP}
        )


def _waves(agents: int, queued: int, params: dict[str, Any]) -> Iterator[Figure]:
    crowd = Crowd(agents, seed=2)
    crowd.submit(queued)
    crowd.offer(12)
    index, settings = crowd.state.book.index, crowd.state.book.settings
    gc.collect()
    gc.freeze()
    # What the core does on PlacementDue, with the clock read in between: see core/placing/apply.py.
    index.snapshot(1, crowd.now)
    planned, planning = 0, 0.0
    for wave in (settings.wave_max, queued):
        best = 0.0
        for _ in range(3):
            begun = process_time()
            snapshot = index.snapshot(wave, crowd.now)
            placements = [] if snapshot is None else plan(snapshot)
            planning = process_time() - begun
            planned = len(placements)
            best = max(best, planned / planning)
        yield Figure(
            "S7",
            "decisions in a wave",
            best,
            "1/s",
            params=params | {"wave": wave, "placed": planned, "best_of": 3},
        )
    begun = process_time()
    given = crowd.place()
    whole = process_time() - begun
    yield Figure(
        "S7",
        "decisions in waves, attempts, records and entries made",
        len(given) / whole,
        "1/s",
        params=params | {"wave": settings.wave_max, "placed": len(given)},
    )
    gc.unfreeze()
