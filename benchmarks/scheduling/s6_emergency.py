"""An emergency with 10,000 busy agents and 100,000 queued tasks: how long the core takes to decide.

In this process, without a store. The emergency is submitted while every slot is taken; the decision is made
when it has an attempt at an agent: by the next slot that becomes free, or at once where a running task makes
room for it. The time is that of the core's steps: the submission, and the placement after it or after the
report that frees the slot.
Times are CPU times of this process, which other programs on the machine disturb less than the clock.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from time import process_time

from benchmarks.figures import Figure, percentile
from benchmarks.scheduling.crowd import Crowd
from benchmarks.scheduling.options import Options
from services.scheduler.core.events import PlacementDue
from services.scheduler.core.model import Priority

AGENTS, QUEUED, EMERGENCIES = 10_000, 100_000, 2_000


def run(options: Options) -> Iterator[Figure]:
    """Measure; `quick` takes a tenth of the agents and tasks."""
    scale = 10 if options.quick else 1
    crowd = Crowd(AGENTS // scale, seed=3)
    crowd.offer(1)
    crowd.submit((QUEUED + AGENTS) // scale)
    crowd.place()
    gc.collect()
    gc.freeze()
    accepted: list[float] = []
    placed: list[float] = []
    for frame in crowd.frames(EMERGENCIES // scale):
        begun = process_time()
        crowd.submit(1, Priority.EMERGENCY)
        effects = crowd.state.handle(PlacementDue("place"), crowd.now)
        accepted.append(process_time() - begun)
        crowd.take(effects)
        effects = crowd.state.handle(frame, crowd.now)
        begun = process_time()
        effects += crowd.state.handle(PlacementDue("place"), crowd.now)
        placed.append(process_time() - begun)
        crowd.take(effects)
    gc.unfreeze()
    params = {"agents": AGENTS // scale, "queued": QUEUED // scale, "emergencies": len(placed)}
    for name, times in (("emergency taken in", accepted), ("slot free to next task decided", placed)):
        for share in (0.5, 0.99):
            yield Figure(
                "S6",
                f"{name}, p{share * 100:.0f}",
                percentile(times, share) * 1_000,
                "ms",
                more_is_better=False,
                params=params,
            )
