"""Child processes that take part in a measurement and tell what they saw as JSON lines on stdout."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# How long a program may take to end after SIGTERM before it is killed, in seconds.
STOP_GRACE_S = 10.0
_LINE_BYTES_MAX = 64 * 1024 * 1024
_TAIL_BYTES = 2_000


class ProgramFailedError(Exception):
    """A program ended early or stayed silent; the message has the end of its log."""


class Program:
    """A running child process; its stderr goes to a log file."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name, self.log = name, log
        self._process = process

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the process is over."""
        return self._process.returncode is not None

    async def next_event(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """Return the next JSON line. Raises `ProgramFailedError`."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise ProgramFailedError(f"{self.name} said nothing for {timeout_s} s; {self._tail()}") from None
        if not line:
            raise ProgramFailedError(f"{self.name} ended too early; {self._tail()}")
        event: dict[str, Any] = json.loads(line)
        return event

    async def expect(self, kind: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """Return the next JSON line, which must be an event of `kind`. Raises `ProgramFailedError`."""
        event = await self.next_event(timeout_s)
        if event["event"] != kind:
            raise ProgramFailedError(f"{self.name} said {event!r:.200} instead of {kind!r}; {self._tail()}")
        return event

    async def stop(self) -> None:
        """End it and what it started: SIGTERM first, SIGKILL after a grace period."""
        if not self.has_ended:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_GRACE_S):
                    await self._process.wait()
        # The group may outlive its first process.
        self._signal(signal.SIGKILL)
        await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        # Each program leads a group of its own; see `start_new_session` below.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _tail(self) -> str:
        text = self.log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
        return f"the end of its log:\n{text}" if text else "it logged nothing"


@asynccontextmanager
async def running(
    name: str, command: Sequence[str], folder: Path, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Program]:
    """Start a program; end it, whatever happens, when the block ends."""
    log = folder / f"{name}.log"
    with log.open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command,
            # Never written to: its end tells a program that its parent is gone.
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            cwd=ROOT,
            env={**os.environ, **(environ or {})},
            start_new_session=True,
            limit=_LINE_BYTES_MAX,
        )
    program = Program(name, process, log)
    try:
        yield program
    finally:
        await program.stop()


def module(name: str, *arguments: object) -> list[str]:
    """Return the command that runs one of our modules with this Python."""
    return [sys.executable, "-m", name, *map(str, arguments)]


def tell(event: str, **facts: object) -> None:
    """Say something to the process that started this program."""
    print(json.dumps({"event": event, **facts}), flush=True)
