"""An emergency with 10,000 busy agents and 100,000 queued tasks: how long the core takes to decide.

First in this process, without a store. The emergency is submitted while every slot is taken; the decision is
made when it has an attempt at an agent: by the next slot that becomes free where agents can not suspend what
they do, at once where a running task makes room for it. The time is that of the core's steps: the submission,
and the placement after it or after the report that frees the slot. These are CPU times of this process, which
other programs on the machine disturb less than the clock. Then through gRPC: see `served`.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator, Sequence
from time import process_time
from typing import Any

from benchmarks.figures import Figure, percentile
from benchmarks.scheduling.crowd import Crowd
from benchmarks.scheduling.options import Options
from benchmarks.scheduling.served import served, stopped
from services.scheduler.core.effects import SuspendAttempt
from services.scheduler.core.events import PlacementDue, WorkFrame
from services.scheduler.core.model import Priority

AGENTS, QUEUED, EMERGENCIES = 10_000, 100_000, 2_000
#: Through gRPC, one after the other.
SERVED = 500


def run(options: Options) -> Iterator[Figure]:
    """Measure; `quick` takes a tenth of the agents and tasks."""
    scale = 10 if options.quick else 1
    yield from _next_slot(scale)
    yield from _making_room(scale)
    times = asyncio.run(served(options.directory, AGENTS // scale, QUEUED // scale, SERVED // scale))
    params = {"agents": AGENTS // scale, "queued": QUEUED // scale, "emergencies": SERVED // scale}
    for name, milliseconds in times.items():
        for share in (0.5, 0.99):
            yield _figure(f"through gRPC: {name}", milliseconds, share, params | {"tls": True, "fsync": True})


def _next_slot(scale: int) -> Iterator[Figure]:
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
            yield _figure(name, [1_000 * each for each in times], share, params)


def _making_room(scale: int) -> Iterator[Figure]:
    crowd = Crowd(AGENTS // scale, seed=3, suspendable=True)
    crowd.offer(1)
    crowd.submit((QUEUED + AGENTS) // scale)
    crowd.place()
    gc.collect()
    gc.freeze()
    decided: list[float] = []
    for _ in range(EMERGENCIES // scale):
        begun = process_time()
        crowd.submit(1, Priority.EMERGENCY)
        effects = crowd.state.handle(PlacementDue("place"), crowd.now)
        decided.append(1_000 * (process_time() - begun))
        crowd.take(effects)
        for effect in effects:
            if isinstance(effect, SuspendAttempt):
                crowd.held[effect.stream].remove(effect.attempt)
                frame = WorkFrame("stop", effect.stream, 0.5, results=(stopped(effect),))
                crowd.take(crowd.state.handle(frame, crowd.now))
        crowd.place()
    gc.unfreeze()
    params = {"agents": AGENTS // scale, "queued": QUEUED // scale, "emergencies": len(decided)}
    for share in (0.5, 0.99):
        yield _figure("emergency decided by making room", decided, share, params)


def _figure(name: str, milliseconds: Sequence[float], share: float, params: dict[str, Any]) -> Figure:
    return Figure(
        "S6",
        f"{name}, p{share * 100:.0f}",
        percentile(milliseconds, share),
        "ms",
        more_is_better=False,
        params=params,
    )
