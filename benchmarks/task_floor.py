"""The floor of P4: what one task would take if nothing had to be decided, with the same parts.

Two guarded transactions of one put each, one after the other, through the services' own etcd client; and
four hops of frames over open streams with mTLS, each through a process that does nothing with them. A task
has just these, one after another: what it takes beyond their sum is ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.ceiling import bare_etcd, bare_forwarder
from benchmarks.exchange import Command, Volume, latency
from benchmarks.figures import Figure, percentile
from benchmarks.turns import Measured, Outcome

FLOOR = "bare parts"
PAIRS, WARMUP = 300, 50


async def floor(folder: Path) -> Measured:
    """Measure both parts alone, in milliseconds."""
    took_ms: list[float] = []
    async with bare_etcd(folder / "store") as commit:
        for number in range(WARMUP + PAIRS):
            begin = time.monotonic()
            await commit(number, 1)
            await commit(number, 1)
            took_ms.append((time.monotonic() - begin) * 1e3)
    # From the sender through the forwarder to the receiver, and back again.
    hops_ms = 2 * (await bare_forwarder(folder, measure=_latency))["p50_ms"]
    commits_ms = percentile(took_ms[WARMUP:], 0.50)
    return {"commits_ms": commits_ms, "hops_ms": hops_ms, "sum_ms": commits_ms + hops_ms}


async def _latency(command: Command, _volume: Volume, folder: Path) -> Measured:
    return await latency(command, folder)


def figures(outcome: Outcome) -> Iterator[Figure]:
    """Return the floor, in parts and as a whole."""
    for quantity, name in (
        ("commits_ms", "two bare etcd transactions, one after the other, p50"),
        ("hops_ms", "four hops over bare streams with mTLS (twice a forwarder's p50)"),
        ("sum_ms", "both: the floor of one task"),
    ):
        value, params = outcome.of(FLOOR, quantity).median, outcome.params(FLOOR, quantity)
        yield Figure("P4.floor", name, value, "ms", more_is_better=False, params=params)
