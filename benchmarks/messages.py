"""P1 and P2: durable messages from one sender to one receiver, ours and the peers' in turn.

Ours runs as a whole plane with mTLS on every hop; accepted means synced. The peers run as their users start
them, without TLS, which is to their advantage. Two clients of ours: `agent_client`, which is what an agent is
written with, and the generated stubs, which show what the broker itself does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from benchmarks.ceiling import bare_forwarder, data_sync
from benchmarks.exchange import UNLOADED_COUNT, UNLOADED_RATE, Volume, both
from benchmarks.figures import Figure, Param
from benchmarks.peer_servers import jetstream, peer_script, redis
from benchmarks.plane import running_plane
from benchmarks.programs import module
from benchmarks.turns import Contender, Measured, Outcome, take_turns

AGENTS = ("sender", "receiver")
CLIENT, STUBS = "Muster, agent_client", "Muster, generated stubs"
JETSTREAM, REDIS = "NATS JetStream, nats-py", "Redis Streams, redis-py"
FORWARDER, SYNC = "bare forwarder", "fdatasync"

# Sized so that a run takes one to three seconds.
VOLUMES = {
    CLIENT: Volume(count=20_000, warmup=2_000),
    STUBS: Volume(count=60_000, warmup=5_000),
    JETSTREAM: Volume(count=8_000, warmup=1_000),
    REDIS: Volume(count=20_000, warmup=2_000),
    FORWARDER: Volume(count=60_000, warmup=5_000),
}
# How the peers are set up, for the figures' parameters.
_PEERS: dict[str, dict[str, Param]] = {
    JETSTREAM: {"peer_tls": False, "peer_fsync": "every 2 min (default)"},
    REDIS: {"peer_tls": False, "peer_fsync": "always"},
}


async def through_client(folder: Path) -> Measured:
    """Measure the plane as an agent sees it."""
    async with running_plane(folder, AGENTS) as plane:

        def command(role: str, options: Sequence[str]) -> list[str]:
            return [
                "env", f"MUSTER_HOME={plane.home}", *module("benchmarks.client_load", role, *options)
            ]  # fmt: skip

        return await both(command, VOLUMES[CLIENT], folder)


async def through_stubs(folder: Path) -> Measured:
    """Measure the broker with the leanest client."""
    async with running_plane(folder, AGENTS) as plane:

        def command(role: str, options: Sequence[str]) -> list[str]:
            return module(
                "benchmarks.mailbox_load", role, "--home", plane.home,
                "--address", plane.addresses["broker-1"], "--registry", plane.addresses["registry-1"],
                *options,
            )  # fmt: skip

        return await both(command, VOLUMES[STUBS], folder)


async def through_jetstream(folder: Path) -> Measured:
    """Measure NATS JetStream."""
    async with jetstream(folder) as port:
        return await both(_peer("jetstream_messages", port), VOLUMES[JETSTREAM], folder)


async def through_redis(folder: Path) -> Measured:
    """Measure Redis Streams."""
    async with redis(folder, durable=True) as port:
        return await both(_peer("redis_messages", port), VOLUMES[REDIS], folder)


def _peer(script: str, port: int) -> Callable[[str, Sequence[str]], list[str]]:
    def command(role: str, options: Sequence[str]) -> list[str]:
        return peer_script(script, role, "--port", port, *options)

    return command


async def run(runs: int, directory: Path) -> list[Figure]:
    """Measure everybody in turn."""
    measures: dict[str, Callable[[Path], Awaitable[Measured]]] = {
        CLIENT: through_client,
        STUBS: through_stubs,
        JETSTREAM: through_jetstream,
        REDIS: through_redis,
        FORWARDER: bare_forwarder,
        SYNC: data_sync,
    }
    contenders = [Contender(name, measure, is_peer=name in _PEERS) for name, measure in measures.items()]
    outcome = await take_turns(contenders, runs, directory)
    return [
        *(figure for ours in (CLIENT, STUBS) for figure in _throughput(outcome, ours)),
        *(figure for ours in (CLIENT, STUBS) for figure in _latency(outcome, ours)),
    ]


def _throughput(outcome: Outcome, ours: str) -> list[Figure]:
    return [
        Figure(
            "P1",
            f"durable messages, 256 B, one sender, one receiver, each acked ({ours})",
            outcome.of(ours, "rate").median,
            "messages/s",
            peer,
            outcome.of(peer, "rate").median,
            params=outcome.params(
                ours, "rate", loop="closed", count=VOLUMES[ours].count, tls=True, fsync=True,
                **_PEERS.get(peer, {"peer_stored": False}),
            ),
        )
        for peer in (JETSTREAM, REDIS, FORWARDER)
        if outcome.has(peer)
    ]  # fmt: skip


def _latency(outcome: Outcome, ours: str) -> list[Figure]:
    figures = []
    for quantile in ("p50", "p99"):
        quantity = f"{quantile}_ms"
        peers = {peer: outcome.of(peer, quantity).median for peer in _PEERS if outcome.has(peer)}
        # The least that is possible with these parts: two hops, and one block made durable between them.
        floor = outcome.of(FORWARDER, quantity).median + outcome.of(SYNC, f"in_place_{quantity}").median
        peers["two bare stream hops and one fdatasync"] = floor
        figures += [
            Figure(
                "P2",
                f"unloaded, send to delivered, {quantile} ({ours})",
                outcome.of(ours, quantity).median,
                "ms",
                peer,
                value,
                more_is_better=False,
                params=outcome.params(
                    ours, quantity, loop="open", rate=UNLOADED_RATE, samples_per_run=UNLOADED_COUNT
                ),
            )
            for peer, value in peers.items()
        ]
    return figures
