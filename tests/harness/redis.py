"""A real Redis for tests: Debian's, synced at each write, on a loopback port, gone afterwards."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from services.broker.config import RedisSettings
from services.local.ports import free_ports

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / ".tools" / "debian"
UNPACK = ROOT / "benchmarks" / "peers" / "unpack_debian.sh"
START_S_MAX = 30.0


def find_redis() -> tuple[Path, dict[str, str]]:
    """Return the server and its environment; Debian's package is unpacked below .tools when there is none.

    `make test` does that beforehand; a test that is run alone does it here.
    """
    if (found := shutil.which("redis-server")) is not None:
        return Path(found), dict(os.environ)
    binary = DEBIAN / "usr" / "bin" / "redis-server"
    DEBIAN.mkdir(parents=True, exist_ok=True)
    with (DEBIAN / ".lock").open("w") as lock:
        # Test processes run side by side: one unpacks, the others wait.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            subprocess.run(["sh", str(UNPACK), str(DEBIAN), "redis-server"], check=True, timeout=100)
    assert binary.exists(), "no redis-server: install it, so that it is on PATH"
    folders = sorted({str(library.parent) for library in (DEBIAN / "usr" / "lib").rglob("*.so*")})
    return binary, os.environ | {"LD_LIBRARY_PATH": ":".join(folders)}


class RedisServer:
    """One server that a test may kill and start again; its data and its port stay."""

    def __init__(self, folder: Path, *options: str, settings: RedisSettings | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (port,) = free_ports(1)
        settings = settings or RedisSettings()
        self.settings = replace(settings, host="127.0.0.1", port=port)
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        listen = ["--port", str(port)] if settings.ca is None else ["--port", "0", "--tls-port", str(port)]
        self._binary, self._environment = find_redis()
        self._options = [
            *listen,
            *("--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--daemonize", "no"),
            *("--appendonly", "yes", "--appendfsync", "always"),
            *options,
        ]

    @property
    def address(self) -> str:
        """host:port."""
        return f"{self.settings.host}:{self.settings.port}"

    def start(self) -> None:
        """Start it and wait until it answers; blocks."""
        assert self.process is None
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(self._binary), *self._options], env=self._environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_S_MAX
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "redis.log").read_text()
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.01)  # sleeps: between two looks at the port

    def kill(self) -> None:
        """Kill it as the kernel would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(timeout=30)
            self.process = None

    def _answers(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.settings.port), 1) as link,
        ):
            if self.settings.ca is not None:
                return True
            link.sendall(b"PING\r\n")
            # While it still reads its file it refuses everything.
            answer = link.recv(100)
            return bool(answer) and not answer.startswith(b"-LOADING")
        return False


@contextlib.contextmanager
def running_redis(
    folder: Path, *options: str, settings: RedisSettings | None = None
) -> Iterator[RedisServer]:
    """Run a Redis for the length of a `with` block."""
    server = RedisServer(folder, *options, settings=settings)
    try:
        server.start()
        yield server
    finally:
        server.kill()
