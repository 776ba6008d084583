"""Many seeded worlds, shared out over processes. Run: python -m tests.unit.broker.broker_seeds --help

Prints how far it is, and for each seed that breaks a promise the command that plays it again.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed

from services.common.core.errors import ServiceError
from tests.unit.broker.broker_checker import BrokenPromise
from tests.unit.broker.broker_disks import Disk, MemoryDisk
from tests.unit.broker.broker_parties import World

# The reference store, and the real ones; what the last does not only to the broker but to Redis, too.
KINDS = ("memory", "sqlite", "redis", "redis-killed")
# Seeds of one piece of work: some seconds.
BLOCK = 250

MakeDisk = Callable[[int], contextlib.AbstractContextManager[Disk]]


@contextlib.contextmanager
def disks(kind: str) -> Iterator[MakeDisk]:
    """Return what makes the disk of one world after the other."""
    if kind == "memory":
        yield lambda seed: contextlib.nullcontext(MemoryDisk(seed))
        return
    # Only here: the worlds of the reference store need no event loop and no Redis.
    from tests.integration.broker.broker_real_disks import workshop  # noqa: PLC0415

    with workshop(kind) as shop:
        yield shop.disk


def play(seed: int, kind: str, make: MakeDisk) -> None:
    """Play one world to its end; raises AssertionError with the seed and how to see it again."""
    try:
        with make(seed) as disk:
            World(seed, disk).play()
    except (AssertionError, BrokenPromise, ServiceError) as error:
        again = f"python -m tests.unit.broker.broker_seeds --store {kind} --first {seed} --count 1"
        raise AssertionError(f"seed {seed}: {error}\nplay it again: {again}") from error


def play_all(first: int, count: int, processes: int, kind: str) -> Iterator[tuple[int, list[str]]]:
    """Play `count` worlds; yield (seeds done so far, what they found broken) as pieces of the work end."""
    ends = range(first + BLOCK, first + count + BLOCK, BLOCK)
    blocks = [range(end - BLOCK, min(end, first + count)) for end in ends]
    done = 0
    with ProcessPoolExecutor(processes) as pool:
        for work in as_completed([pool.submit(_block, block, kind) for block in blocks]):
            played, broken = work.result()
            done += played
            yield done, broken


def _block(seeds: range, kind: str) -> tuple[int, list[str]]:
    # A world is many small things that all go at once; to look for cycles among them takes a tenth of the
    # time.
    gc.set_threshold(100_000)
    broken = []
    with disks(kind) as make:
        for seed in seeds:
            try:
                play(seed, kind, make)
            except AssertionError as error:
                broken.append(str(error))
    return len(seeds), broken


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.unit.broker.broker_seeds", description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="first seed (default 0)")
    parser.add_argument("--count", type=int, default=1_000, help="how many (default 1,000)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: all processors")
    parser.add_argument("--store", choices=KINDS, default="memory", help="default: memory")
    options = parser.parse_args()
    began = time.monotonic()
    found: list[str] = []
    for done, broken in play_all(options.first, options.count, options.processes, options.store):
        found += broken
        spent_s = time.monotonic() - began
        print(f"{done}/{options.count} worlds in {spent_s:.0f} s, {len(found)} broken", flush=True)
        for one in broken:
            print(one, flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
