"""The scheduler of the in-memory plane: placement, outcomes, retries, locks."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from muster.scheduler.v1 import collaboration_pb2, task_pb2

from agent_client.core.addresses import SKILL
from agent_client.core.records import AttemptRef, Failed, HeldLock, Outcome, Payload, Succeeded, Suspended
from agent_client.errors import AccessError, NotFoundError, PreconditionError, StaleTokenError
from agent_client.pending import Pending
from agent_client.spec import Spec
from agent_client.testing.locks import LockTable, Request
from agent_client.testing.mailboxes import Mailboxes
from agent_client.testing.tasks import Board, TaskRow

if TYPE_CHECKING:
    from agent_client.testing.seat import Seat


# What a handler that is suspended is told; the in-memory plane waits for as long as it takes.
SUSPEND_GRACE_MS = 2_000


class Engine:
    """Everything that the agents of one in-memory plane share.

    Whoever reads or changes it holds `lock`: handlers in threads and the loop both come here. The agents'
    sinks only queue, so nothing blocks under it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.lock = threading.RLock()
        self.seats: dict[str, Seat] = {}
        self.boards: dict[str, Board] = {}
        self.locks = LockTable()
        self.post = Mailboxes(self.later, self._find)
        self._ends: dict[str, Future[None]] = {}
        self._numbers = itertools.count(1)
        self._loop = loop
        self._timers: set[asyncio.TimerHandle] = set()

    def close(self) -> None:
        """Cancel what was to come later."""
        for timer in self._timers:
            timer.cancel()

    def open_board(self, spec: Spec) -> tuple[Board, Future[None]]:
        """Accept a collaboration; the future ends with it."""
        with self.lock:
            self._check_skills(spec)
            board = Board(f"c-{next(self._numbers)}", spec, self._coordinator(spec))
            self.boards[board.id] = board
            end = self._ends[board.id] = Future()
        self.place()
        return board, end

    def later(self, seconds: float, step: Callable[[], None]) -> None:
        """Run `step` on the loop after a delay; called from any thread."""
        self._loop.call_soon_threadsafe(self._set_timer, seconds, step)

    def _set_timer(self, seconds: float, step: Callable[[], None]) -> None:
        def fire() -> None:
            self._timers.discard(timer)
            with self.lock:
                step()

        timer = self._loop.call_later(seconds, fire)
        self._timers.add(timer)

    def place(self) -> None:
        """Assign every task that can be assigned now."""
        with self.lock:
            for board in self.boards.values():
                for row in [] if board.is_over() else board.ready():
                    self._place_one(board, row)

    def _place_one(self, board: Board, row: TaskRow) -> None:
        if row.message.state != task_pb2.TASK_STATE_SUSPENDED:
            row.message.state = task_pb2.TASK_STATE_READY
        able = self._able(row)
        free = [seat for seat in able if len(seat.attempts) < seat.agent.slots]
        if not free:
            skills = ", ".join(row.message.spec.required_skills)
            row.message.waiting_for = "a free slot" if able else f"an agent with the skills {skills}"
            return
        seat = min(free, key=lambda one: len(one.attempts))
        locks: list[HeldLock] = []
        if row.claims:
            request = Request(seat.agent.name, row.claims, None, locks.extend)
            if not self.locks.try_once(request):
                row.message.waiting_for = f"a lock that {self.locks.blocker(request)} holds"
                return
        row.message.waiting_for = ""
        assignment = board.assignment(row, seat.agent.name, tuple(locks))
        if row.claims:
            request.attempt = assignment.attempt
        seat.attempts.add(assignment.attempt)
        seat.sink.assigned(assignment)
        self.later(row.attempt_timeout_s, lambda: self._time_out(row, assignment.attempt))

    def _able(self, row: TaskRow) -> list[Seat]:
        spec = row.message.spec
        return [
            seat
            for seat in self.seats.values()
            if set(spec.required_skills) <= set(seat.agent.skills)
            and (not spec.required_agents or seat.agent.name in spec.required_agents)
        ]

    def _find(self, sender: str, address: str) -> list[str]:
        """Return whom an address of a skill or a collaboration means for `sender`, the best first."""
        kind, _, name = address.partition("/")
        if f"{kind}/" == SKILL:
            able = [one for one in self.seats.values() if name in one.agent.skills]
            ranked = sorted(able, key=self._load)
            return [seat.agent.name for seat in ranked if seat.agent.name != sender]
        board = self.boards.get(name)
        if board is None:
            raise NotFoundError(f"there is no collaboration {name!r}", reason="COLLABORATION_NOT_FOUND")
        members = {*board.members, board.coordinator} & self.seats.keys()
        if sender not in members:
            raise AccessError(f"{sender} is no member of collaboration {name}", reason="ACCESS_DENIED")
        return sorted(members - {sender})

    def _load(self, seat: Seat) -> tuple[float, str]:
        waiting = self.post.waiting_count(seat.agent.name)
        return (len(seat.attempts) + waiting) / seat.agent.slots, seat.agent.name

    def _check_skills(self, spec: Spec) -> None:
        known = {skill for seat in self.seats.values() for skill in seat.agent.skills}
        missing = {skill for task in spec.tasks for skill in task.required_skills} - known
        if missing and spec.unknown_skill_policy == collaboration_pb2.UNKNOWN_SKILL_POLICY_FAIL:
            skills = ", ".join(sorted(missing))
            raise PreconditionError(
                f"no agent has the skill {skills}", reason="UNKNOWN_SKILL", metadata={"skills": skills}
            )

    def _coordinator(self, spec: Spec) -> str:
        wanted = {skill for task in spec.tasks for skill in task.required_skills}
        able = [name for name, seat in self.seats.items() if wanted & set(seat.agent.skills)]
        return spec.coordinator_agent or next(iter(able), "")

    def started(self, attempt: AttemptRef) -> None:
        """A handler runs."""
        with self.lock:
            row = self._row(attempt)
            if row is not None:
                row.message.state = task_pb2.TASK_STATE_RUNNING

    def progressed(self, attempt: AttemptRef, fraction: float, stage: str) -> None:
        """A handler reported."""
        with self.lock:
            row = self._row(attempt)
            if row is not None:
                row.message.progress, row.message.stage = fraction, stage

    def saved(self, attempt: AttemptRef, savepoint: Payload, durable: Pending[None]) -> None:
        """A handler saved."""
        with self.lock:
            row = self._row(attempt)
            if row is not None:
                row.savepoint = savepoint
        if row is not None:
            durable.resolve(None)
        else:
            durable.fail(StaleTokenError(f"attempt {attempt} is not the current one"))

    def suspend(self, collaboration_id: str, task_id: str) -> None:
        """Ask for a running attempt to make room; the task goes on when it has."""
        with self.lock:
            row = self.boards[collaboration_id].rows[task_id]
            if row.attempt is None:
                raise PreconditionError(f"task {task_id} is not running")
            self.seats[row.agent].sink.suspend_asked(
                row.attempt, reason="suspended by the test", grace_ms=SUSPEND_GRACE_MS
            )

    def ended(self, seat: Seat, attempt: AttemptRef, outcome: Outcome) -> None:
        """A handler returned."""
        with self.lock:
            seat.attempts.discard(attempt)
            self.locks.end_attempt(attempt)
            row = self._row(attempt)
            if row is not None:
                self._take_outcome(self.boards[attempt.collaboration_id], row, outcome)
        self.place()

    def _take_outcome(self, board: Board, row: TaskRow, outcome: Outcome) -> None:
        row.attempt = None
        if board.is_over():
            return
        if isinstance(outcome, Succeeded):
            board.succeed(row, outcome.result)
        elif isinstance(outcome, Failed):
            row.failure_count += 1
            if outcome.permanent or row.failure_count >= row.attempt_max:
                kind = (
                    task_pb2.FAILURE_KIND_PERMANENT if outcome.permanent else task_pb2.FAILURE_KIND_TRANSIENT
                )
                failure = task_pb2.TaskFailure(kind=kind, reason=outcome.reason, message=outcome.message)
                board.fail(row, failure)
            else:
                row.message.state = task_pb2.TASK_STATE_READY
        elif isinstance(outcome, Suspended):
            row.savepoint = outcome.savepoint or row.savepoint
            row.message.state = task_pb2.TASK_STATE_SUSPENDED
        else:
            row.message.state = task_pb2.TASK_STATE_READY
        if board.is_over():
            self._finish(board)

    def _finish(self, board: Board) -> None:
        for row in board.rows.values():
            if row.attempt is not None:
                self._stop(row, fenced=False, reason="the collaboration has ended")
        if not self._ends[board.id].done():
            self._ends[board.id].set_result(None)

    def _stop(self, row: TaskRow, *, fenced: bool, reason: str) -> None:
        attempt = row.attempt
        if attempt is None:
            return
        self.seats[row.agent].sink.stopped(attempt, fenced=fenced, reason=reason)
        if fenced:
            row.attempt = None
            self.locks.end_attempt(attempt)

    def _time_out(self, row: TaskRow, attempt: AttemptRef) -> None:
        with self.lock:
            if row.attempt != attempt:
                return
            self._stop(row, fenced=True, reason="attempt_timeout")
            board = self.boards[attempt.collaboration_id]
            message = f"it ran longer than {row.attempt_timeout_s:g} s"
            outcome = Failed(permanent=False, reason="ATTEMPT_TIMED_OUT", message=message)
            self._take_outcome(board, row, outcome)
        self.place()

    def cancel(self, board: Board, reason: str) -> None:
        """End a collaboration without a result."""
        with self.lock:
            if not board.is_over():
                failure = task_pb2.TaskFailure(reason="CANCELLED", message=reason)
                board.end(collaboration_pb2.COLLABORATION_STATE_CANCELLED, failure)
                self._finish(board)

    def fence(self, collaboration_id: str, task_id: str) -> None:
        """Take a running attempt away from its agent and assign the task anew."""
        with self.lock:
            row = self.boards[collaboration_id].rows[task_id]
            if row.attempt is None:
                raise PreconditionError(f"task {task_id} is not running")
            self._stop(row, fenced=True, reason="fenced by the test")
            row.message.state = task_pb2.TASK_STATE_READY
        self.place()

    def _row(self, attempt: AttemptRef) -> TaskRow | None:
        """Return the task of an attempt, unless a newer attempt has taken its place."""
        board = self.boards.get(attempt.collaboration_id)
        row = board.rows.get(attempt.task_id) if board is not None else None
        return row if row is not None and row.attempt == attempt else None
