"""Hostile input at every entry point of a scheduler's process: a typed error or a clean end, it goes on and
leads, memory is flat.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from muster.scheduler.v1 import scheduler_service_pb2 as pb

from services.common.core.errors import Reason
from tests.conftest import Certificates
from tests.harness.etcd import EtcdHarness
from tests.integration.scheduler.scheduler_fuzz import Caller, conversations, hello, methods
from tests.integration.scheduler.scheduler_plane import Plane

# A run is replayed by MUSTER_FUZZ_SEED=<the seed that a failure names> and its own command.
SEED = int(os.environ.get("MUSTER_FUZZ_SEED", "1"))
CALLS, NIGHTLY_CALLS = 900, 150_000
CALLERS = 8
# What the process may have grown by after the first third (nightly: tenth), however many calls follow:
# allocator slack, and what the submissions that were fine in the end leave within `retained_max`.
GROWTH_BYTES_MAX = 32 * 1024 * 1024
PATIENCE_S = 60.0


class SchedulerProcess:
    """`python -m services.scheduler --config FILE`; etcd is real, the registry is played."""

    def __init__(self, plane: Plane, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self.log_path = plane.folder / "fuzzed.log"
        certificate, key = plane.certificates.issue("service/scheduler")
        values = {
            "replica_id": "fuzzed",
            "listen": self.address,
            "ca": str(plane.certificates.ca_path),
            "certificate": str(certificate),
            "key": str(key),
            "etcd_endpoints": list(plane.etcd.endpoints),
            "etcd_ca": str(plane.etcd.tls.ca),
            "etcd_certificate": str(plane.etcd.tls.certificate),
            "etcd_key": str(plane.etcd.tls.key),
            "key_prefix": plane.prefix,
            "data_directory": str(plane.folder / "fuzzed"),
            # A busy leader must not lose its lease to this machine's other work. (With 10 s a call was once
            # answered NOT_COORDINATOR, at a load above ten; should it come again, it is no lost lease.)
            "election_ttl_s": 60,
            "lock_ttl_s": 120,
            "open_collaboration_max": 200,
            "retained_max": 50,
        }
        config = plane.folder / "fuzzed.toml"
        config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
        command = [sys.executable, "-m", "services.scheduler", "--config", str(config)]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def alive(self) -> bool:
        return self.process.poll() is None

    def about_the_lead(self) -> str:
        """Return what its log says of elections and sessions."""
        words = ("session", "election", "lead")
        lines = self.log_path.read_text().splitlines()
        return "\n".join(line for line in lines if any(word in line for word in words))

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=30)


def serves(address: str, certificates: Certificates) -> bool:
    """Whether an honest requester's collaboration is accepted and found."""
    caller = Caller(address, certificates.tls("operator/admin"))
    request = pb.SubmitCollaborationRequest(request_id=random.randbytes(8).hex())
    request.collaboration.tasks.add(task_id="t", required_skills=["dig"])
    ending = caller.call("SubmitCollaboration", [request.SerializeToString()])
    assert ending.error is None or ending.error.reason is Reason.QUOTA_EXCEEDED, ending.error
    listed = caller.call("ListCollaborations", [b""])
    caller.close()
    return listed.error is None and bool(listed.answers)


@pytest_asyncio.fixture
async def fuzzed(
    certificates: Certificates,
    etcd: EtcdHarness,
    etcd_prefix: str,
    tmp_path: Path,
    free_port: Callable[[], int],
) -> AsyncIterator[SchedulerProcess]:
    """A scheduler's process of its own, so that its memory is nobody else's; it outlives every call."""
    plane = Plane(certificates, etcd, etcd_prefix, tmp_path)
    await plane.start()
    plane.registry.tell("mallory", "dig")
    made = SchedulerProcess(plane, free_port())
    async with asyncio.timeout(PATIENCE_S):
        while True:
            ready = Caller(made.address, certificates.tls("operator/admin"))
            ending = await asyncio.to_thread(ready.call, "ListCollaborations", [b""])
            ready.close()
            if ending.error is None:
                break
            assert made.alive(), made.log_path.read_text()[-2_000:]
    yield made
    alive = made.alive()
    made.kill()
    await plane.stop()
    assert alive, f"the scheduler died: {made.log_path.read_text()[-2_000:]}"


async def storm(fuzzed: SchedulerProcess, certificates: Certificates, seeds: range) -> Counter[str]:
    """Make all calls, several at a time, and look at every ending; return how they ended."""
    wanted, seen = iter(seeds), Counter[str]()
    # Issued here: threads would write the same files.
    identities = {who: certificates.tls(who) for who in ("operator/admin", "agent/mallory")}

    def blow(number: int) -> None:
        who = "operator/admin" if number % 4 == 3 else "agent/mallory"
        caller = Caller(fuzzed.address, identities[who])
        for seed in wanted:
            for method, frames in conversations(random.Random(seed), number):
                ending = caller.call(method, frames)
                if ending.complaint():
                    # Nothing is left for the others: they end with the calls that they make now.
                    deque(wanted, maxlen=0)
                    story = f"{method} by {who}, MUSTER_FUZZ_SEED={seed}: {ending.complaint()}"
                    pytest.fail(f"{story}\n{fuzzed.about_the_lead()}")
                seen[ending.error.reason if ending.error else "OK"] += 1
                seen[method] += 1
        caller.close()

    async with asyncio.TaskGroup() as callers:
        for number in range(CALLERS):
            callers.create_task(asyncio.to_thread(blow, number))
    return seen


async def weather(fuzzed: SchedulerProcess, certificates: Certificates, calls: int, warm: int) -> None:
    memory = psutil.Process(fuzzed.process.pid).memory_info
    seen = await storm(fuzzed, certificates, range(SEED, SEED + warm))
    before = memory().rss
    for start in range(SEED + warm, SEED + calls, 10_000):
        end = min(start + 10_000, SEED + calls)
        seen += await storm(fuzzed, certificates, range(start, end))
        print(f"{end - SEED} calls, grown by {(memory().rss - before) / 2**20:.1f} MiB: {dict(seen)}")
    grown = memory().rss - before
    assert grown < GROWTH_BYTES_MAX, f"{grown / 2**20:.1f} MiB more after {calls} hostile calls"
    assert set(methods()) <= set(seen), "not every method was called"
    assert await asyncio.to_thread(serves, fuzzed.address, certificates)
    # Nothing of it was a defect that the edge had to catch, and the lead was never lost.
    log = fuzzed.log_path.read_text()
    for story in (
        "a call failed unexpectedly",
        "a query failed",
        "Traceback",
        "another replica leads",
        "lost the lead",
    ):
        assert story not in log, log[-2_000:]


def refuses_what_cannot_be_read(address: str, certificates: Certificates) -> None:
    for who in ("operator/admin", "agent/mallory"):
        caller = Caller(address, certificates.tls(who))
        for name in methods():
            frames = [hello(), b"\x0a\x20abc"] if name == "Work" else [b"\x0a\x20abc"]
            ending = caller.call(name, frames)
            assert not ending.complaint(), (name, ending)
            assert ending.error is not None, name
            assert ending.error.reason in {Reason.MALFORMED_FRAME, Reason.ACCESS_DENIED}, (name, ending)
        # Larger than any message may be: gRPC ends the call before the scheduler sees a byte of it.
        large = caller.call("ListLocks", [bytes(4 * 1024 * 1024 + 1)])
        assert large.code == "RESOURCE_EXHAUSTED", large
        caller.close()


async def test_a_storm_of_hostile_calls(fuzzed: SchedulerProcess, certificates: Certificates) -> None:
    await asyncio.to_thread(refuses_what_cannot_be_read, fuzzed.address, certificates)
    await weather(fuzzed, certificates, CALLS, CALLS // 3)


@pytest.mark.nightly
async def test_a_long_storm_of_hostile_calls(fuzzed: SchedulerProcess, certificates: Certificates) -> None:
    await weather(fuzzed, certificates, NIGHTLY_CALLS, NIGHTLY_CALLS // 10)
