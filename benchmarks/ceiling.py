"""What the parts allow that Muster stands on: gRPC with TLS, etcd transactions, fdatasync.

No figure of ours can be better than these without leaving the parts behind; how far ours are below them is
the price of our features.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.exchange import UNLOADED_RATE, Measure, Volume, both
from benchmarks.figures import Figure, percentile
from benchmarks.plane import certificates
from benchmarks.priority import raise_own
from benchmarks.programs import module, running
from benchmarks.turns import Contender, Measured, Outcome, take_turns
from services.common.etcd.client import EtcdClient
from services.common.etcd.ops import Compare, Put
from services.local.etcd_server import EtcdMember, EtcdServer, find_etcd
from services.local.ports import free_ports

# Envelopes per frame -> envelopes per run, so that each run takes about a second.
STREAM_COUNTS = {1: 8_000, 16: 60_000, 128: 150_000}
FORWARDER_VOLUME = Volume(count=60_000, warmup=5_000)
ETCD_SECONDS = 1.0
ETCD_VALUE = b"." * 256
# etcd takes at most 128 operations in one transaction; the rest is left to the guard and to deletes.
ETCD_PUTS = 100
SYNC_COUNT = 200
SYNC_BYTES = 4_096


async def bare_stream(folder: Path) -> Measured:
    """Return envelopes per second over one stream into a process that only counts them, by frame size."""
    home = folder / "plane"
    certificates(home, ["sender"])
    rates: dict[str, float] = {}
    for frame, count in STREAM_COUNTS.items():
        server_command = module("benchmarks.bare", "sink", "--home", home, "--total", count)
        async with running("sink", server_command, folder) as server:
            address = (await server.expect("ready"))["address"]
            load = module(
                "benchmarks.mailbox_load", "filler", "--address", address, "--home", home,
                "--count", count, "--frame", frame,
            )  # fmt: skip
            async with running("filler", load, folder) as filler:
                sent = await filler.expect("sent")
        rates[f"rate_{frame}"] = count / ((sent["accepted_ns"] - sent["first_ns"]) / 1e9)
    return rates


async def bare_forwarder(
    folder: Path, volume: Volume = FORWARDER_VOLUME, measure: Measure = both
) -> Measured:
    """Return throughput and latency from sender to receiver through a process that stores nothing."""
    home = folder / "plane"
    certificates(home, ["sender", "receiver"])
    async with running("forwarder", module("benchmarks.bare", "forwarder", "--home", home), folder) as server:
        address = (await server.expect("ready"))["address"]

        def command(role: str, options: Sequence[str]) -> list[str]:
            return module("benchmarks.mailbox_load", role, "--address", address, "--home", home, *options)

        return await measure(command, volume, folder)


@asynccontextmanager
async def bare_etcd(folder: Path) -> AsyncIterator[Callable[[int, int], Awaitable[None]]]:
    """Yield `commit(writer, puts)`, a guarded transaction in an etcd that nobody else uses."""
    made = certificates(folder / "plane", [])
    client_port, peer_port = free_ports(2)
    member = EtcdMember("etcd", folder / "etcd", folder / "etcd.log", client_port, peer_port)
    server = EtcdServer(find_etcd(), member, made.etcd_server(), made.etcd_client())
    server.start()
    assert server.child is not None
    try:
        await server.wait_ready()
        async with EtcdClient([member.endpoint], made.etcd_client()) as client:
            await client.put("/bench/leader", b"")
            guard = Compare.exists("/bench/leader")

            async def commit(writer: int, puts: int) -> None:
                writes = [Put(f"/bench/{writer}/{number}", ETCD_VALUE) for number in range(puts)]
                result = await client.txn([guard], writes)
                assert result.succeeded

            yield commit
    finally:
        await server.child.stop(grace_s=5.0)


async def etcd_transactions(folder: Path) -> Measured:
    """Return guarded transactions per second, with one put and with many, alone and 64 at once."""
    async with bare_etcd(folder) as commit:
        return {
            "serial": await _per_second(lambda writer: commit(writer, 1), writers=1),
            "at_once": await _per_second(lambda writer: commit(writer, 1), writers=64),
            "batched": await _per_second(lambda writer: commit(writer, ETCD_PUTS), writers=1),
        }


async def _per_second(work: Callable[[int], Awaitable[None]], *, writers: int) -> float:
    """Return how often `work` is done per second by `writers` that do it one after the other."""
    done = 0
    await work(0)
    begin = time.monotonic()

    async def write(writer: int) -> None:
        nonlocal done
        while time.monotonic() - begin < ETCD_SECONDS:
            await work(writer)
            done += 1

    await asyncio.gather(*(write(writer) for writer in range(writers)))
    return done / (time.monotonic() - begin)


async def data_sync(folder: Path) -> Measured:
    """Return how long a write of one block with fdatasync takes, in milliseconds.

    An append changes the file's size, which the file system must make durable too; a write into space that
    was laid out before (as etcd and SQLite's WAL do it) does not.
    """
    return await asyncio.to_thread(_data_sync, folder / "log")


def _data_sync(path: Path) -> Measured:
    raise_own()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        append_ms = _sync_blocks(descriptor)
        os.lseek(descriptor, 0, os.SEEK_SET)
        in_place_ms = _sync_blocks(descriptor)
    finally:
        os.close(descriptor)
    return {
        f"{how}_{quantile}_ms": percentile(took_ms, share)
        for how, took_ms in (("append", append_ms), ("in_place", in_place_ms))
        for quantile, share in (("p50", 0.50), ("p99", 0.99))
    }


def _sync_blocks(descriptor: int) -> list[float]:
    block = b"." * SYNC_BYTES
    took_ms: list[float] = []
    for _ in range(SYNC_COUNT):
        begin = time.monotonic_ns()
        os.write(descriptor, block)
        os.fdatasync(descriptor)
        took_ms.append((time.monotonic_ns() - begin) / 1e6)
    return took_ms


async def run(runs: int, directory: Path) -> list[Figure]:
    """Measure everything in turn."""
    outcome = await take_turns(
        [
            Contender("bare stream", bare_stream),
            Contender("bare forwarder", bare_forwarder),
            Contender("etcd", etcd_transactions),
            Contender("fdatasync", data_sync),
        ],
        runs,
        directory,
    )
    return [*_grpc_figures(outcome), *_etcd_figures(outcome), *_sync_figures(outcome)]


def _grpc_figures(outcome: Outcome) -> list[Figure]:
    figures = [
        Figure(
            "ceiling.stream",
            f"bare grpc.aio stream with mTLS, 256 B, {frame} envelopes per frame",
            outcome.of("bare stream", f"rate_{frame}").median,
            "envelopes/s",
            params=outcome.params("bare stream", f"rate_{frame}", frame=frame, count=count, loop="closed"),
        )
        for frame, count in STREAM_COUNTS.items()
    ]
    figures.append(
        Figure(
            "ceiling.forwarder",
            "bare grpc.aio forwarder with mTLS, 256 B, sender to server to receiver, each acked",
            outcome.of("bare forwarder", "rate").median,
            "messages/s",
            params=outcome.params("bare forwarder", "rate", frame_max=128, loop="closed", stored=False),
        )
    )
    return figures + [
        Figure(
            "ceiling.forwarder",
            f"bare grpc.aio forwarder, one envelope, {quantile}",
            outcome.of("bare forwarder", f"{quantile}_ms").median,
            "ms",
            more_is_better=False,
            params=outcome.params("bare forwarder", f"{quantile}_ms", loop="open", rate=UNLOADED_RATE),
        )
        for quantile in ("p50", "p99")
    ]


def _etcd_figures(outcome: Outcome) -> list[Figure]:
    rows = (
        ("serial", "one put per transaction, one after the other", 1, 1),
        ("at_once", "one put per transaction, 64 at once", 1, 64),
        ("batched", f"{ETCD_PUTS} puts per transaction, one after the other", ETCD_PUTS, 1),
    )
    return [
        Figure(
            "ceiling.etcd",
            f"guarded etcd transactions, {name}",
            outcome.of("etcd", quantity).median,
            "transactions/s",
            params=outcome.params("etcd", quantity, puts=puts, writers=writers, value_bytes=len(ETCD_VALUE)),
        )
        for quantity, name, puts, writers in rows
    ]


def _sync_figures(outcome: Outcome) -> list[Figure]:
    return [
        Figure(
            "ceiling.fdatasync",
            f"{name} {SYNC_BYTES} B, then fdatasync, {quantile}",
            outcome.of("fdatasync", f"{how}_{quantile}_ms").median,
            "ms",
            more_is_better=False,
            params=outcome.params("fdatasync", f"{how}_{quantile}_ms", count=SYNC_COUNT),
        )
        for how, name in (("append", "append"), ("in_place", "write in place"))
        for quantile in ("p50", "p99")
    ]
