"""The in-memory plane, as a test uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from agent_client.agent import Agent
from agent_client.errors import CallTimeoutError
from agent_client.link import Envelope
from agent_client.spec import Spec, build_spec
from agent_client.testing.engine import Engine
from agent_client.testing.mailboxes import DeadLetter
from agent_client.testing.seat import Seat
from agent_client.testing.tasks import Board
from agent_client.views import CollaborationInfo, Result, TaskInfo

# Seconds that a submission waits for its end before it says what it hangs on.
RESULT_TIMEOUT_S = 10.0


class InMemoryPlane:
    """Registry, scheduler and broker for tests: `async with InMemoryPlane() as plane:`.

    Agents run as they would in a real plane: with the same `Task`, dependencies, locks, messages, retries
    and cancellation. Retries come without delay, so that tests are quick, and nothing is durable.
    """

    def __init__(self) -> None:
        self._opened: Engine | None = None

    async def __aenter__(self) -> Self:
        self._opened = Engine(asyncio.get_running_loop())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.close()
        for seat in self._engine.seats.values():
            await seat.agent.detach()

    def add(self, *agents: Agent) -> None:
        """Let agents take part."""
        for agent in agents:
            if agent.name in self._engine.seats:
                raise ValueError(f"{agent.name} is in the plane already")
            seat = Seat(self._engine, agent)
            with self._engine.lock:
                self._engine.seats[agent.name] = seat
                self._engine.post.add(agent.name, agent.instance)
            agent.attach(seat)
        self._engine.place()

    async def submit(self, spec: Mapping[str, Any] | Spec, *, timeout: float = RESULT_TIMEOUT_S) -> Result:
        """Submit a collaboration and return its result.

        Raises InvalidRequestError for a bad one, CollaborationFailedError when it fails, and
        CallTimeoutError, which says what it hangs on, after `timeout` seconds.
        """
        return await self.start(spec).result(timeout)

    def start(self, spec: Mapping[str, Any] | Spec) -> InMemoryCollaboration:
        """Submit a collaboration without waiting for its end."""
        board, end = self._engine.open_board(build_spec(spec))
        return InMemoryCollaboration(self._engine, board, end)

    @property
    def messages(self) -> list[Envelope]:
        """Every message that was accepted, in order."""
        return list(self._engine.post.accepted)

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """Every message that was rejected or given up."""
        return list(self._engine.post.dead_letters)

    @property
    def lock_holders(self) -> dict[str, list[str]]:
        """The agents that hold each resource now."""
        with self._engine.lock:
            return self._engine.locks.holders()

    @property
    def _engine(self) -> Engine:
        if self._opened is None:
            raise RuntimeError("use `async with InMemoryPlane() as plane:`")
        return self._opened


class InMemoryCollaboration:
    """A collaboration in the in-memory plane."""

    def __init__(self, engine: Engine, board: Board, end: Future[None]) -> None:
        self._engine, self._board, self._end = engine, board, end

    @property
    def id(self) -> str:
        """Its id."""
        return self._board.id

    def info(self) -> CollaborationInfo:
        """Return it with its tasks as they are now."""
        return CollaborationInfo(self._board.info())

    def task(self, task_id: str) -> TaskInfo:
        """Return one of its tasks."""
        return TaskInfo(self._board.rows[task_id].message)

    def cancel(self, reason: str = "") -> None:
        """Cancel what has not ended of it."""
        self._engine.cancel(self._board, reason)

    def fence(self, task_id: str) -> None:
        """Take a running attempt away from its agent, as after a lost link, and assign the task anew."""
        self._engine.fence(self.id, task_id)

    def suspend(self, task_id: str) -> None:
        """Ask for a running attempt to save and stop, as for more urgent work; the task then goes on."""
        self._engine.suspend(self.id, task_id)

    async def result(self, timeout: float = RESULT_TIMEOUT_S) -> Result:
        """Wait for its end and return the result; see `InMemoryPlane.submit`."""
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(asyncio.wrap_future(self._end))
        except TimeoutError:
            open_tasks = ", ".join(
                f"{task.id} is {task.state}" + (f", waits for {task.waiting_for}" if task.waiting_for else "")
                for task in self.info().tasks
                if task.state != "SUCCEEDED"
            )
            raise CallTimeoutError(f"no result within {timeout:g} s: {open_tasks}") from None
        return self.info().result()
