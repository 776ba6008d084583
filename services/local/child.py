"""One child process: started tethered, logged to a file, waited for, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_TETHER = Path(__file__).with_name("tether.py")
# How often an exit is looked for where the system does not tell of it, in seconds.
_POLL_S = 0.05
# Beyond this a log is set aside when its process is started.
LOG_BYTES_MAX = 16 * 1024**2
# How many lines of its log a failed child's story shows.
STORY_LINES = 8


class PartFailedError(Exception):
    """A process ended, or did not get ready in time; the message has the end of its log."""


class Child:
    """A running process of ours. It gets a session of its own, so that Ctrl-C reaches only its parent.

    Start children from the main thread: the kernel's "parent died" means the thread that started them.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, log_path: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log_path = log_path
        descriptor = open_log(log_path)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=None if environ is None else dict(environ),
                start_new_session=True,
                # What a service or etcd writes is for its owner only.
                umask=0o077,
            )
        finally:
            os.close(descriptor)

    def __repr__(self) -> str:
        return f"<Child {self.name} pid {self.pid} exit code {self.exit_code}>"

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when the process has ended."""
        self._process.send_signal(number)

    async def wait(self) -> int:
        """Wait for the end; return the exit code."""
        if (code := self.exit_code) is not None:
            return code
        ended = asyncio.Event()
        with _end_readable(self.pid, ended) as told:
            while self.exit_code is None:  # where the kernel tells, the event is waited for
                await (ended.wait() if told else asyncio.sleep(_POLL_S))
        return self._process.wait()

    async def stop(self, grace_s: float) -> int:
        """Ask it to end (SIGTERM), after `grace_s` seconds kill it; return the exit code."""
        self.signal(signal.SIGTERM)
        # A stopped process (SIGSTOP) would not hear the request.
        self.signal(signal.SIGCONT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                return await self.wait()
        return self.kill()

    def kill(self) -> int:
        """Kill it at once and return its exit code."""
        self._process.kill()
        return self._process.wait()

    def story(self) -> str:
        """Return how it ended and the last lines of its log."""
        return f"{self.name} {ending(self.exit_code)}; the end of {self.log_path}:\n{tail(self.log_path)}"


def open_log(path: Path) -> int:
    """Return a descriptor that appends to a log which only its owner can read.

    A log that has grown beyond `LOG_BYTES_MAX` is set aside first, as `<name>.1`, over the one before it.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_name(f"{path.name}.1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


@contextlib.contextmanager
def _end_readable(pid: int, ended: asyncio.Event) -> Iterator[bool]:
    """Have `ended` set when the child ends; yield whether the system can (Linux 5.3, pidfd_open(2))."""
    try:
        descriptor = os.pidfd_open(pid)
    except (AttributeError, OSError):
        yield False
        return
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        yield True
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def ending(exit_code: int | None) -> str:
    """Return an exit code in words."""
    if exit_code is None:
        return "is running"
    if exit_code < 0:
        return f"was ended by {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code}"


def tail(path: Path, lines: int = STORY_LINES) -> str:
    """Return the last lines of a text file, indented; a note when there are none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            last = deque(file, maxlen=lines)
    except OSError:
        last = deque()
    return "".join(f"  {line.rstrip()}\n" for line in last).rstrip("\n") or "  (nothing was logged)"
