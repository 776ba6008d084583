"""P1 and P2: durable messages from one sender to one receiver, ours and the peers' in turn.

Ours runs as a whole plane with mTLS on every hop; accepted means synced. The peers run twice: as their users
start them, without TLS, which is to their advantage, and with mTLS as ours. Two clients of ours:
`agent_client`, which is what an agent is written with, and the generated stubs, which show what the
broker itself does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.ceiling import bare_forwarder, data_sync
from benchmarks.exchange import (
    UNLOADED_COUNT,
    UNLOADED_RATE,
    Command,
    Measure,
    Volume,
    both,
    latency,
    throughput,
)
from benchmarks.figures import Figure, Param
from benchmarks.peer_servers import TlsFiles, jetstream, peer_script, redis
from benchmarks.plane import running_plane, service_process
from benchmarks.priority import REALTIME, raise_process
from benchmarks.programs import module
from benchmarks.turns import Contender, Measured, Outcome, take_turns

AGENTS = ("sender", "receiver")
CLIENT, STUBS = "Muster, agent_client", "Muster, generated stubs"
UNRECORDED = "Muster, generated stubs, envelopes not recorded"
OURS = (CLIENT, STUBS, UNRECORDED)
JETSTREAM, REDIS = "NATS JetStream, nats-py", "Redis Streams, redis-py"
JETSTREAM_TLS, REDIS_TLS = f"{JETSTREAM}, mTLS", f"{REDIS}, mTLS"
FORWARDER, SYNC = "bare forwarder", "fdatasync"

# Sized so that a run takes one to three seconds.
VOLUMES = {
    CLIENT: Volume(count=20_000, warmup=2_000),
    STUBS: Volume(count=60_000, warmup=5_000),
    UNRECORDED: Volume(count=60_000, warmup=5_000),
    JETSTREAM: Volume(count=8_000, warmup=1_000),
    REDIS: Volume(count=20_000, warmup=2_000),
    FORWARDER: Volume(count=60_000, warmup=5_000),
}
# Services whose processor time is counted; they are calm when they use less than this share of a processor.
COSTED = ("broker", "audit")
CALM_SHARE, CALM_S_MAX = 0.1, 30
# How the peers are set up, for the figures' parameters.
_PEERS: dict[str, dict[str, Param]] = {
    JETSTREAM: {"peer_tls": False, "peer_fsync": "every 2 min (default)"},
    JETSTREAM_TLS: {"peer_tls": True, "peer_fsync": "every 2 min (default)"},
    REDIS: {"peer_tls": False, "peer_fsync": "always"},
    REDIS_TLS: {"peer_tls": True, "peer_fsync": "always"},
}


async def _with_cost(command: Command, volume: Volume, folder: Path) -> Measured:
    """Return throughput, latency, and the processor time of broker and audit for one message, in µs.

    All that a message leads to is counted, also what comes after the last ack: its entries' way to audit.
    """
    before = _spent_s()
    rate = await throughput(command, volume, folder)
    spent = await _when_calm()
    count = volume.count + volume.warmup
    cost = {f"{name}_us": (spent[name] - before[name]) / count * 1e6 for name in COSTED}
    return {"rate": rate, **cost, **await latency(command, folder)}


def _spent_s() -> dict[str, float]:
    """Return the processor time so far of the services that carry a message, in seconds."""
    spent = {}
    for name in COSTED:
        times = service_process(name).cpu_times()
        spent[name] = times.user + times.system
    return spent


async def _when_calm() -> dict[str, float]:
    """Return `_spent_s` once the services have nothing left to do."""
    spent = _spent_s()
    for _ in range(CALM_S_MAX):
        before = spent
        await asyncio.sleep(1)
        spent = _spent_s()
        if sum(spent.values()) - sum(before.values()) < CALM_SHARE:
            break
    return spent


async def _latency_alone(command: Command, volume: Volume, folder: Path) -> Measured:
    """Return the latency of an unloaded plane, after what a disk does for the first time was done."""
    del volume
    raise_process(service_process("broker"))
    await latency(command, folder)
    return await latency(command, folder)


async def _bare_latency(command: Command, volume: Volume, folder: Path) -> Measured:
    del volume
    return await latency(command, folder)


async def through_client(folder: Path, measure: Measure = _with_cost) -> Measured:
    """Measure the plane as an agent sees it."""
    async with running_plane(folder, AGENTS) as plane:

        def command(role: str, options: Sequence[str]) -> list[str]:
            return [
                "env", f"MUSTER_HOME={plane.home}", *module("benchmarks.client_load", role, *options)
            ]  # fmt: skip

        return await measure(command, VOLUMES[CLIENT], folder)


async def without_entries(folder: Path) -> Measured:
    """Measure the broker with the leanest client when envelopes are not recorded: what audit costs."""
    return await _through_stubs(folder, {"MUSTER_BROKER_AUDIT_MESSAGES": "none"})


async def through_stubs(folder: Path, measure: Measure = _with_cost) -> Measured:
    """Measure the broker with the leanest client."""
    return await _through_stubs(folder, {}, measure)


async def _through_stubs(folder: Path, environ: Mapping[str, str], measure: Measure = _with_cost) -> Measured:
    async with running_plane(folder, AGENTS, environ) as plane:

        def command(role: str, options: Sequence[str]) -> list[str]:
            return module(
                "benchmarks.mailbox_load", role, "--home", plane.home,
                "--address", plane.addresses["broker-1"], "--registry", plane.addresses["registry-1"],
                *options,
            )  # fmt: skip

        return await measure(command, VOLUMES[STUBS], folder)


async def through_jetstream(folder: Path, *, mtls: bool) -> Measured:
    """Measure NATS JetStream."""
    tls = TlsFiles.make(folder / "tls") if mtls else None
    async with jetstream(folder, tls) as port:
        return await both(_peer("jetstream_messages", port, tls), VOLUMES[JETSTREAM], folder)


async def through_redis(folder: Path, *, mtls: bool) -> Measured:
    """Measure Redis Streams."""
    tls = TlsFiles.make(folder / "tls") if mtls else None
    async with redis(folder, durable=True, tls=tls) as port:
        return await both(_peer("redis_messages", port, tls), VOLUMES[REDIS], folder)


def _peer(script: str, port: int, tls: TlsFiles | None = None) -> Callable[[str, Sequence[str]], list[str]]:
    def command(role: str, options: Sequence[str]) -> list[str]:
        shown = tls.client_arguments() if tls is not None else []
        return peer_script(script, role, "--port", port, *shown, *options)

    return command


async def run(runs: int, directory: Path) -> list[Figure]:
    """Measure everybody in turn."""
    return await _run({**_MEASURES, **_MEASURES_OF_PEERS}, runs, directory)


async def run_alone(runs: int, directory: Path) -> list[Figure]:
    """Measure us, beside what the parts allow."""
    return await _run(_MEASURES, runs, directory)


async def run_latency(runs: int, directory: Path) -> list[Figure]:
    """Measure P2 alone, beside what the parts allow: short runs, so that there can be many."""
    measures: dict[str, Callable[[Path], Awaitable[Measured]]] = {
        CLIENT: partial(through_client, measure=_latency_alone),
        STUBS: partial(through_stubs, measure=_latency_alone),
        FORWARDER: partial(bare_forwarder, measure=_bare_latency),
        SYNC: data_sync,
    }
    contenders = [Contender(name, measure) for name, measure in measures.items()]
    outcome = await take_turns(contenders, runs, directory)
    return [figure for ours in (CLIENT, STUBS) for figure in _latency(outcome, ours)]


_MEASURES: dict[str, Callable[[Path], Awaitable[Measured]]] = {
    CLIENT: through_client,
    STUBS: through_stubs,
    UNRECORDED: without_entries,
    FORWARDER: bare_forwarder,
    SYNC: data_sync,
}
_MEASURES_OF_PEERS: dict[str, Callable[[Path], Awaitable[Measured]]] = {
    JETSTREAM: partial(through_jetstream, mtls=False),
    JETSTREAM_TLS: partial(through_jetstream, mtls=True),
    REDIS: partial(through_redis, mtls=False),
    REDIS_TLS: partial(through_redis, mtls=True),
}


async def _run(
    measures: Mapping[str, Callable[[Path], Awaitable[Measured]]], runs: int, directory: Path
) -> list[Figure]:
    contenders = [Contender(name, measure, is_peer=name in _PEERS) for name, measure in measures.items()]
    outcome = await take_turns(contenders, runs, directory)
    return [
        *(figure for ours in OURS for figure in _throughput(outcome, ours)),
        *(figure for ours in OURS for figure in _latency(outcome, ours)),
        *(figure for ours in OURS for figure in _cost(outcome, ours)),
    ]


def _cost(outcome: Outcome, ours: str) -> list[Figure]:
    return [
        Figure(
            "P1.cost",
            f"processor time of {name} for one durable message ({ours})",
            outcome.of(ours, f"{name}_us").median,
            "us",
            more_is_better=False,
            params=outcome.params(ours, f"{name}_us", count=VOLUMES[ours].count),
        )
        for name in COSTED
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
        for peer in (*_PEERS, FORWARDER)
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
                    ours,
                    quantity,
                    loop="open",
                    rate=UNLOADED_RATE,
                    samples_per_run=UNLOADED_COUNT,
                    realtime=REALTIME,
                ),
            )
            for peer, value in peers.items()
        ]
    return figures
