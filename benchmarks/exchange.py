"""One sender, one receiver, each a process of its own: how many messages a second, and how long one takes.

The two programs only have to keep a small protocol, so that the same code measures us and every peer:
`sender` prints {"event": "sent", "first_ns", "accepted_ns"}; `receiver` prints {"event": "ready"} and in the
end {"event": "received", "last_ns", "latency_us"}. Times are those of the system-wide monotonic clock. Both
know --count, --warmup and --rate (0: closed-loop, as fast as possible; else open-loop).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import percentile
from benchmarks.programs import running
from benchmarks.turns import Measured

# Envelopes per second at which a sender does not load anything.
UNLOADED_RATE = 100.0
UNLOADED_COUNT = 400
UNLOADED_WARMUP = 50
_RECEIVED_S_MAX = 120.0

# (role, options that every load program knows) -> command
Command = Callable[[str, Sequence[str]], list[str]]


@dataclass(frozen=True, slots=True)
class Volume:
    """How many messages a run sends."""

    count: int
    warmup: int


# What is measured of one pair of load programs, with its data below a folder.
Measure = Callable[[Command, Volume, Path], Awaitable[Measured]]


async def throughput(command: Command, volume: Volume, folder: Path) -> float:
    """Return messages per second, from the first send to the last ack on both ends."""
    first_ns, last_ns, _ = await _exchange(command, volume, 0.0, folder)
    return volume.count / ((last_ns - first_ns) / 1e9)


async def latency(command: Command, folder: Path) -> Measured:
    """Return p50 and p99 in milliseconds, from the instant a message is due to its delivery."""
    volume = Volume(UNLOADED_COUNT, UNLOADED_WARMUP)
    _, _, latency_us = await _exchange(command, volume, UNLOADED_RATE, folder)
    return {"p50_ms": percentile(latency_us, 0.50) / 1e3, "p99_ms": percentile(latency_us, 0.99) / 1e3}


async def both(command: Command, volume: Volume, folder: Path) -> Measured:
    """Return throughput and latency; each load program runs once for each."""
    rate = await throughput(command, volume, folder)
    return {"rate": rate, **await latency(command, folder)}


async def _exchange(
    command: Command, volume: Volume, rate: float, folder: Path
) -> tuple[int, int, list[float]]:
    options = ["--count", str(volume.count), "--warmup", str(volume.warmup), "--rate", str(rate)]
    async with running("receiver", command("receiver", options), folder) as receiver:
        await receiver.expect("ready")
        async with running("sender", command("sender", options), folder) as sender:
            received = await receiver.expect("received", _RECEIVED_S_MAX)
            sent = await sender.expect("sent")
    return sent["first_ns"], max(received["last_ns"], sent["accepted_ns"]), received["latency_us"]
