"""What every test gets: certificates of a throwaway authority, free ports, conditions instead of sleeps,
and a check that nothing is left running.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import re
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings

from services.common.certificates import Authority, create_authority, write_authority, write_credential
from services.common.identity import TRUST_DOMAIN, Principal, spiffe_id
from services.common.rpc.channel import service_dns_name
from services.common.tls import TlsIdentity
from services.local.ports import free_ports

# A real etcd for those who ask for one.
pytest_plugins = ["tests.harness.fixtures", "tests.harness.skips"]

T = TypeVar("T")

# The machine may be busy: how long a condition may take before a test calls it missed.
PATIENCE_SECONDS = 20.0
# Threads that live as long as the process, or its event loop, by design; the last one is gRPC's poller.
KEPT_THREADS = re.compile(r"MainThread|asyncio_|uvloop_|pytest_timeout|muster-link|.*\(_poll_wrapper\)")

# A shell that starts the tests in the background leaves SIGINT ignored, and every program that they start
# would inherit that; some tests press Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "default", deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("nightly", parent=settings.get_profile("default"), max_examples=20_000)
settings.load_profile(os.environ.get("MUSTER_TEST_PROFILE", "default"))


class Certificates:
    """An authority and the identities that it issued, as files below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority: Authority = create_authority("muster test authority")
        self.ca_path, _ = write_authority(folder, self.authority)

    def issue(self, principal: str, *, lifetime: timedelta = timedelta(hours=1)) -> tuple[Path, Path]:
        """Return the paths of certificate and key of "agent/x", "service/registry", "operator/admin"."""
        kind, _, name = principal.partition("/")
        dns_names = [service_dns_name(name), "localhost"] if kind == "service" else []
        addresses = ["127.0.0.1"] if kind == "service" else []
        credential = self.authority.issue(spiffe_id(Principal(kind, name)), dns_names, addresses, lifetime)
        return write_credential(self.folder / kind, name, credential)

    def tls(self, principal: str) -> TlsIdentity:
        """Return a fresh TLS identity of `principal`."""
        certificate_path, key_path = self.issue(principal)
        return TlsIdentity(self.ca_path, certificate_path, key_path, TRUST_DOMAIN)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """The plane's throwaway authority, one for all tests."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Return a function that names a free port; prefer port 0 where you can."""
    return lambda: free_ports(1)[0]


Eventually = Callable[..., Awaitable[None]]


@pytest.fixture
def eventually() -> Eventually:
    """Return `await eventually(predicate, timeout=…)`: looks again and again until the condition holds.

    The predicate may be a plain or an async function; its last value is in the failure's message.
    """

    async def wait(
        predicate: Callable[[], object], timeout: float = PATIENCE_SECONDS, every: float = 0.005
    ) -> None:
        deadline = time.monotonic() + timeout
        while True:
            value = predicate()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"not within {timeout} s: {inspect.getsource(predicate).strip()} = {value!r}"
                )
            await asyncio.sleep(every)

    return wait


@pytest.fixture(autouse=True)
def _no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves an asyncio task, a thread or a child process running."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        # Only here, so that the tests of the pure cores get no event loop.
        request.getfixturevalue("_no_leaked_tasks")
    threads_before = set(threading.enumerate())
    children_before = _children()
    yield
    deadline = time.monotonic() + 5.0
    while left := _left_threads(threads_before) + _left_children(children_before):
        if time.monotonic() > deadline:
            pytest.fail(f"the test left running: {', '.join(left)}", pytrace=False)
        time.sleep(0.005)


@pytest_asyncio.fixture
async def _no_leaked_tasks() -> AsyncIterator[None]:
    complaints: list[str] = []
    # "Task exception was never retrieved" and its like would else be a line in a log that nobody reads.
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(repr(context)))
    yield
    deadline = time.monotonic() + 2.0
    while left := _left_tasks():
        if time.monotonic() > deadline:
            names = ", ".join(repr(one) for one in left)
            for one in left:
                one.cancel()
            pytest.fail(f"the test left asyncio tasks running: {names}", pytrace=False)
        await asyncio.sleep(0.005)
    if complaints:
        pytest.fail(f"asyncio complained: {'; '.join(complaints)}", pytrace=False)


def _left_threads(before: set[threading.Thread]) -> list[str]:
    return [
        f"thread {thread.name}"
        for thread in threading.enumerate()
        if thread not in before and KEPT_THREADS.match(thread.name) is None
    ]


def _left_children(before: set[int]) -> list[str]:
    return [
        f"process {pid}"
        for pid in _children() - before
        if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]


def _children() -> set[int]:
    """Return the ids of the child processes; psutil walks all of /proc for it, which each test would pay."""
    found: set[int] = set()
    for file in Path("/proc/self/task").glob("*/children"):
        # A thread may end between being listed and being read.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found |= {int(pid) for pid in file.read_text().split()}
    return found


def _left_tasks() -> list[asyncio.Task[object]]:
    current = asyncio.current_task()
    return [one for one in asyncio.all_tasks() if one is not current]
