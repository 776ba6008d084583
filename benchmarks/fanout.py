"""One publisher, many subscribers of its topic: how many copies are delivered and settled a second.

Ours runs as a whole plane; all subscribers are played by one process, each with a certificate, a connection
and a mailbox of its own, on the generated stubs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.exchange import Volume, throughput
from benchmarks.figures import Figure
from benchmarks.plane import running_plane, service_process
from benchmarks.programs import module
from benchmarks.turns import Contender, Measured, take_turns

OURS = "Muster, generated stubs"
SUBSCRIBERS = int(os.environ.get("MUSTER_BENCH_SUBSCRIBERS", "100"))
VOLUME = Volume(count=200, warmup=20)
PUBLISHER = "sender"


def subscriber_name(number: int) -> str:
    """Return the name of one subscriber."""
    return f"reader-{number}"


async def fanned_out(folder: Path) -> Measured:
    """Return copies per second, and what one costs the broker."""
    names = [subscriber_name(number) for number in range(SUBSCRIBERS)]
    async with running_plane(folder, [PUBLISHER, *names]) as plane:

        def command(role: str, options: Sequence[str]) -> list[str]:
            return module(
                "benchmarks.fanout_load", role, "--home", plane.home,
                "--address", plane.addresses["broker-1"], "--subscribers", SUBSCRIBERS, *options,
            )  # fmt: skip

        before = sum(service_process("broker").cpu_times()[:2])
        rate = await throughput(command, VOLUME, folder)
        spent_s = sum(service_process("broker").cpu_times()[:2]) - before
        copies = (VOLUME.count + VOLUME.warmup) * SUBSCRIBERS
        return {"rate": rate * SUBSCRIBERS, "broker_us": spent_s / copies * 1e6}


async def run(runs: int, directory: Path) -> list[Figure]:
    """Measure; there is no peer."""
    outcome = await take_turns([Contender(OURS, fanned_out)], runs, directory)
    what = f"copies of one publication to {SUBSCRIBERS} subscribers, 256 B, each durable and acked"
    return [
        Figure(
            "fan-out",
            f"{what} ({OURS})",
            outcome.of(OURS, "rate").median,
            "deliveries/s",
            params=outcome.params(OURS, "rate", subscribers=SUBSCRIBERS, count=VOLUME.count),
        ),
        Figure(
            "fan-out.cost",
            f"processor time of broker, handshakes included, for {what} ({OURS})",
            outcome.of(OURS, "broker_us").median,
            "us",
            more_is_better=False,
            params=outcome.params(OURS, "broker_us", subscribers=SUBSCRIBERS, count=VOLUME.count),
        ),
    ]
