"""P3 and P4: tasks that do nothing, submitted, assigned, done; ours and the peers' in turn.

Ours is durable at each of the three steps and goes over mTLS. The peers keep nothing on disk by default and
run so, which is to their advantage.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from benchmarks import task_floor
from benchmarks.figures import Figure, percentile
from benchmarks.peer_servers import peer_script, redis
from benchmarks.plane import running_plane
from benchmarks.programs import Program, module, running
from benchmarks.task_floor import FLOOR, floor
from benchmarks.task_load import SLOTS, WINDOW
from benchmarks.turns import Contender, Measured, Outcome, take_turns

OURS, RAY, DASK, CELERY = "Muster", "Ray", "Dask", "Celery on Redis"
PEERS = (RAY, DASK, CELERY)
# Tasks at once, sized so that a run takes one to five seconds; and how many one after the other.
COUNTS = {OURS: 5_000, RAY: 4_000, DASK: 1_500, CELERY: 800}
WARMUP = 300
SINGLE = 200
_DONE_S_MAX = 180.0


async def ours(folder: Path) -> Measured:
    """Measure the plane with one agent and one requester."""
    async with running_plane(folder, ["worker"]) as plane:
        environ = {"MUSTER_HOME": str(plane.home)}
        async with running("agent", module("benchmarks.task_load", "agent"), folder, environ) as agent:
            await agent.expect("ready")
            requester = module(
                "benchmarks.task_load", "requester", "--home", plane.home,
                "--registry", plane.addresses["registry-1"], "--agent-pid", agent.pid, *_options(OURS),
            )  # fmt: skip
            async with running("requester", requester, folder, environ) as program:
                done = await program.expect("done", _DONE_S_MAX)
    return {
        "rate": done["rate"],
        "p50_ms": percentile(done["took_us"], 0.50) / 1e3,
        "p99_ms": percentile(done["took_us"], 0.99) / 1e3,
        "client_p50_ms": percentile(done["client_took_us"], 0.50) / 1e3,
        "client_p99_ms": percentile(done["client_took_us"], 0.99) / 1e3,
        **{f"many {quantity}": value for quantity, value in done["cost"].items()},
        **{f"single {quantity}": value for quantity, value in done["single_cost"].items()},
        **{f"stage {stage}": took_us / 1e3 for stage, took_us in done["stages_us"].items()},
    }


async def ray(folder: Path) -> Measured:
    """Measure Ray with two worker processes."""
    # A folder of its own: Ray puts sockets below it, whose paths have room for 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="mray-", dir="/tmp", ignore_cleanup_errors=True) as short:
        command = peer_script("ray_tasks", *_options(RAY), "--folder", short)
        async with running("ray", command, folder, {"RAY_USAGE_STATS_ENABLED": "0"}) as program:
            return await _peer_result(program)


async def dask(folder: Path) -> Measured:
    """Measure Dask with two worker processes."""
    async with running(
        "dask", peer_script("dask_tasks", *_options(DASK), "--folder", folder), folder
    ) as program:
        return await _peer_result(program)


async def celery(folder: Path) -> Measured:
    """Measure Celery with two worker processes."""
    async with redis(folder, durable=False) as port:
        environ = {"BENCH_REDIS_URL": f"redis://127.0.0.1:{port}/0"}
        command = peer_script("celery_tasks", *_options(CELERY), "--folder", folder)
        async with running("celery", command, folder, environ) as program:
            return await _peer_result(program)


def _options(name: str) -> list[str]:
    return ["--count", str(COUNTS[name]), "--warmup", str(WARMUP), "--single", str(SINGLE)]


async def _peer_result(program: Program) -> Measured:
    done = await program.expect("done", _DONE_S_MAX)
    return {
        "rate": done["rate"],
        "p50_ms": percentile(done["took_us"], 0.50) / 1e3,
        "p99_ms": percentile(done["took_us"], 0.99) / 1e3,
    }


async def run_alone(runs: int, directory: Path) -> list[Figure]:
    """Measure ours only, and the parts that it stands on."""
    return await _measure([], runs, directory)


async def run(runs: int, directory: Path) -> list[Figure]:
    """Measure everybody in turn."""
    peers: dict[str, Callable[[Path], Awaitable[Measured]]] = {RAY: ray, DASK: dask, CELERY: celery}
    contenders = [Contender(name, measure, is_peer=True) for name, measure in peers.items()]
    return await _measure(contenders, runs, directory)


async def _measure(peers: list[Contender], runs: int, directory: Path) -> list[Figure]:
    contenders = [Contender(OURS, ours), Contender(FLOOR, floor), *peers]
    outcome = await take_turns(contenders, runs, directory)
    return [*_throughput(outcome), *_latency(outcome), *task_floor.figures(outcome), *_cost(outcome)]


def _throughput(outcome: Outcome) -> list[Figure]:
    return [
        Figure(
            "P3",
            "durable no-op tasks: submitted, assigned, done",
            outcome.of(OURS, "rate").median,
            "tasks/s",
            peer,
            outcome.of(peer, "rate").median if peer is not None else None,
            params=outcome.params(
                OURS, "rate", loop="closed", count=COUNTS[OURS], window=WINDOW, slots=SLOTS,
                tls=True, fsync=True, **({"peer_durable": False} if peer is not None else {}),
            ),
        )
        for peer in _peers(outcome)
    ]  # fmt: skip


def _latency(outcome: Outcome) -> list[Figure]:
    ways = (
        ("p50", "p50_ms", "stream"),
        ("p50", "client_p50_ms", "agent_client"),
        ("p99", "p99_ms", "stream"),
    )
    return [
        Figure(
            "P4",
            f"one task, submit to result, {quantile} ({way})",
            outcome.of(OURS, quantity).median,
            "ms",
            peer,
            outcome.of(peer, f"{quantile}_ms").median if peer is not None else None,
            more_is_better=False,
            params=outcome.params(OURS, quantity, loop="closed, one at a time", samples_per_run=SINGLE),
        )
        for quantile, quantity, way in ways
        for peer in _peers(outcome)
    ]


# Quantity of `budget.spent` -> (what it is, unit). Under load, and with one task at a time.
_COUNTED = {
    "transactions": ("etcd transactions per task", "transactions"),
    "operations": ("writes in one etcd transaction", "operations"),
    "writes": ("etcd writes per task", "operations"),
    "bytes": ("bytes sent to etcd per task", "B"),
    "syncs": ("syncs of etcd's log per task", "syncs"),
    "sync_ms": ("one sync of etcd's log, mean", "ms"),
    "batches": ("batches of the leader per task", "batches"),
    "batch_events": ("events in one batch of the leader", "events"),
    "step_ms": ("deciding about one batch, mean", "ms"),
    "commit_ms": ("one commit of the leader, entries included, mean", "ms"),
    "entries": ("audit entries per task", "entries"),
    "flush_ms": ("one flush of the leader's audit spool, mean", "ms"),
}


def _cost(outcome: Outcome) -> Iterator[Figure]:
    """Return where the time goes: CPU by process, group commit, stages of a single task."""
    for quantity in outcome.runs[OURS]:
        kind, _, name = quantity.partition(" ")
        value, params = outcome.of(OURS, quantity).median, outcome.params(OURS, quantity)
        if kind == "stage":
            yield Figure("P4.stage", f"{name}, p50", value, "ms", more_is_better=False, params=params)
        elif kind in ("many", "single"):
            what, _, process = name.partition(" ")
            name, unit = (f"CPU time per task: {process}", "us") if process else _COUNTED[what]
            id_ = "P3.cost" if kind == "many" else "P4.cost"
            yield Figure(id_, name, value, unit, more_is_better=False, params=params)


def _peers(outcome: Outcome) -> list[str | None]:
    """Return who took part; without anybody our own figure stands alone."""
    return [peer for peer in PEERS if outcome.has(peer)] or [None]
