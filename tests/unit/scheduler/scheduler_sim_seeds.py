"""Many seeded planes, shared out over processes: python -m tests.unit.scheduler.scheduler_sim_seeds --help

Prints how far it is, and for each seed that breaks a promise the command that plays it again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed

from tests.unit.scheduler.scheduler_sim_plane import World
from tests.unit.scheduler.scheduler_sim_seen import BrokenPromise

# Seeds of one piece of work: some seconds.
BLOCK = 250


def play(seed: int) -> World:
    """Play one plane to its end; raises AssertionError with the seed and how to see it again."""
    world = World(seed)
    try:
        world.play()
    except (AssertionError, BrokenPromise) as error:
        again = f"python -m tests.unit.scheduler.scheduler_sim_seeds --first {seed} --count 1"
        raise AssertionError(f"seed {seed}: {error}\nplay it again: {again}") from error
    return world


def play_all(first: int, count: int, processes: int) -> Iterator[tuple[int, list[str]]]:
    """Play `count` planes; yield (seeds done so far, what they found broken) as pieces of the work end."""
    ends = range(first + BLOCK, first + count + BLOCK, BLOCK)
    blocks = [range(end - BLOCK, min(end, first + count)) for end in ends]
    done = 0
    with ProcessPoolExecutor(processes) as pool:
        for work in as_completed([pool.submit(_block, block) for block in blocks]):
            played, broken = work.result()
            done += played
            yield done, broken


def _block(seeds: range) -> tuple[int, list[str]]:
    broken = []
    for seed in seeds:
        try:
            play(seed)
        except AssertionError as error:
            broken.append(str(error))
        except Exception as error:  # noqa: BLE001  # a defect that raises is one, and the others go on
            broken.append(f"seed {seed}: {type(error).__name__}: {error}")
    return len(seeds), broken


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.unit.scheduler.scheduler_sim_seeds", description=__doc__
    )
    parser.add_argument("--first", type=int, default=0, help="first seed (default 0)")
    parser.add_argument("--count", type=int, default=1_000, help="how many (default 1,000)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: all processors")
    options = parser.parse_args()
    began = time.monotonic()
    found: list[str] = []
    for done, broken in play_all(options.first, options.count, options.processes):
        found += broken
        spent_s = time.monotonic() - began
        print(f"{done}/{options.count} planes in {spent_s:.0f} s, {len(found)} broken", flush=True)
        for one in broken:
            print(one, flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
