"""What a handler sees of the task that it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from agent_client.core.addresses import COLLABORATION
from agent_client.core.records import AttemptRef, Claim, FencingToken
from agent_client.core.vocabulary import MessageType, Priority
from agent_client.delivery import Reply
from agent_client.errors import CancelledBySuspend, TaskCancelled
from agent_client.link import Assignment, Link, Receipt
from agent_client.locks import Lock
from agent_client.mailbox import Mailbox
from agent_client.payload import decode, encode
from agent_client.pending import Pending

# Longest stage text in bytes (task.proto).
STAGE_BYTES_MAX = 128


_waking = threading.Lock()


class _Reported:
    """What `Task.progress` returns: awaiting it lets other work of the loop run, ignoring it is fine."""

    def __await__(self) -> Generator[Any, None, None]:
        yield


class Task:
    """One attempt of one task.

    `payload`, `inputs` and `shared_context` are decoded: JSON to Python values, text to str, all else bytes.
    """

    def __init__(self, assignment: Assignment, agent_id: str, link: Link, mailbox: Mailbox) -> None:
        self._assignment, self._link, self._mailbox = assignment, link, mailbox
        self._cancelled, self._cancel_reason = False, ""
        # Made when a thread waits for the cancellation, which few handlers do; under `_waking`.
        self._woken: threading.Event | None = None
        self._suspending, self._suspend_reason = False, ""
        # The same for a thread that waits for either request.
        self._nudged: threading.Event | None = None
        self._on_suspend: Callable[[], Any] | None = None
        self.agent_id = agent_id

    def __repr__(self) -> str:
        return f"Task({self.attempt}{', cancelled' if self.cancelled else ''})"

    # What is to be done.

    @property
    def id(self) -> str:
        """Its id, unique in its collaboration."""
        return self.attempt.task_id

    @property
    def name(self) -> str:
        """Its name for people, or its id."""
        return self._assignment.task_name or self.id

    @property
    def description(self) -> str:
        """What is wanted, in words."""
        return self._assignment.description

    @property
    def type(self) -> str:
        """What chose the handler: the task's type, or its first skill."""
        return self._assignment.task_type or next(iter(self._assignment.required_skills), "")

    @property
    def priority(self) -> Priority:
        """Its priority class."""
        return self._assignment.priority

    @cached_property
    def payload(self) -> Any:
        """What the requester gave to this task."""
        return decode(self._assignment.payload)

    @cached_property
    def inputs(self) -> Mapping[str, Any]:
        """The results of the tasks on which this one depends, by task_id."""
        return {task_id: decode(payload) for task_id, payload in self._assignment.inputs.items()}

    @cached_property
    def shared_context(self) -> Any:
        """The facts that every task of the collaboration gets."""
        return decode(self._assignment.shared_context)

    @property
    def deadline(self) -> datetime | None:
        """When it must be done, UTC; None for no deadline."""
        return self._assignment.deadline

    @property
    def time_left(self) -> float | None:
        """Seconds until the deadline, negative after it; None for no deadline."""
        return None if self.deadline is None else (self.deadline - datetime.now(UTC)).total_seconds()

    # Whom it belongs to.

    @property
    def collaboration_id(self) -> str:
        """The collaboration that it is part of."""
        return self.attempt.collaboration_id

    @property
    def collaboration_name(self) -> str:
        """The collaboration's name for people."""
        return self._assignment.collaboration_name

    @property
    def coordinator(self) -> str:
        """The agent that coordinates the collaboration locally; may be this one, may be empty."""
        return self._assignment.coordinator_agent

    @property
    def team(self) -> str:
        """The address of all other members: agents that have or had a task of it, coordinator, requester."""
        return f"{COLLABORATION}{self.collaboration_id}"

    @property
    def members(self) -> tuple[str, ...]:
        """Agents that were members of the collaboration when this attempt was assigned."""
        return self._assignment.members

    @property
    def requester(self) -> str:
        """The identity that asked for the collaboration, for example "operator/admin"."""
        return self._assignment.requester

    @property
    def attempt(self) -> AttemptRef:
        """The attempt; `attempt.token.number` counts the tries of this task: 1, 2, 3 …."""
        return self._assignment.attempt

    @property
    def token(self) -> FencingToken:
        """The attempt's fencing token: hand it to what you write, so that an older attempt can not."""
        return self.attempt.token

    @cached_property
    def locks(self) -> Mapping[str, FencingToken]:
        """Locks that came with the assignment because the task declares them; they end with the attempt."""
        return {lock.resource: lock.token for lock in self._assignment.locks}

    # Making room for more urgent work, and going on later.

    @cached_property
    def resumed_from(self) -> Any:
        """What an earlier attempt saved with `savepoint`, decoded; None when it begins anew."""
        saved = self._assignment.savepoint
        return None if saved is None else decode(saved)

    def savepoint(self, value: Any) -> Pending[None]:
        """Save from where another attempt of this task could go on; at most 65,536 bytes once encoded.

        The newest savepoint counts, whatever becomes of this attempt: it is suspended, fails or its agent
        dies. Save as often as you like; one is on its way at a time, and only the newest follows it. Await
        what is returned (`result()` in sync handlers) to know that it is durable; ignoring it is fine.
        """
        durable: Pending[None] = Pending()
        self._link.saved(self.attempt, encode(value, "savepoint"), durable)
        return durable

    @property
    def suspending(self) -> bool:
        """Whether the handler is asked to save and stop, because more urgent work needs its slot.

        What it returns within the grace still counts. An async handler is also cancelled at its next await.
        """
        return self._suspending

    def check_suspending(self) -> None:
        """Raise CancelledBySuspend when the handler is asked to save and stop, TaskCancelled when to stop.

        For sync handlers: call it where the work can be taken up again, after `savepoint`.
        """
        self.check_cancelled()
        if self.suspending:
            raise CancelledBySuspend(self._suspend_reason)

    def wait_suspending(self, timeout: float) -> bool:
        """In sync handlers: sleep `timeout` seconds, or until asked to save or to stop.

        Returns whether the handler is asked to do either; `check_suspending` then raises.
        """
        with _waking:
            if self._suspending or self._cancelled:
                return True
            nudged = self._nudged = self._nudged or threading.Event()
        return nudged.wait(timeout)

    def on_suspend(self, save: Callable[[], Any]) -> None:
        """In async handlers: let `save()` give the savepoint when the handler is asked to save and stop.

        It may be a coroutine function. It runs while the handler waits at an `await`, which it then cancels.
        """
        self._on_suspend = save

    # What a handler does.

    @property
    def cancelled(self) -> bool:
        """Whether the handler is asked to stop. An async handler is also cancelled at its next await."""
        return self._cancelled

    def check_cancelled(self) -> None:
        """Raise TaskCancelled when the handler is asked to stop; call it now and then in sync handlers."""
        if self.cancelled:
            raise TaskCancelled(self._cancel_reason)

    def wait_cancelled(self, timeout: float) -> bool:
        """In sync handlers: sleep `timeout` seconds, or until asked to stop; return `cancelled`."""
        with _waking:
            if self._cancelled:
                return True
            woken = self._woken = self._woken or threading.Event()
        return woken.wait(timeout)

    def progress(self, fraction: float, stage: str = "") -> _Reported:
        """Report how far the work is, 0 to 1, and what is being done (at most 128 bytes are kept).

        Works the same in async handlers (`await task.progress(...)`) and in sync ones.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress is a fraction from 0 to 1, not {fraction!r}")
        self._link.progressed(self.attempt, float(fraction), _cut(stage))
        return _Reported()

    def lock(self, *resources: str, shared: bool = False, wait: float | None = None) -> Lock:
        """Return locks on `resources`, all or none, to be entered with `async with` or `with`.

        They end with the attempt at the latest. `shared` lets other shared holders in. `wait` is how many
        seconds to wait at most: None without limit, 0 to try once; then ResourceHeldError says who holds it.
        """
        return make_lock(self._link, resources, shared=shared, wait=wait, attempt=self.attempt)

    def send(
        self,
        to: str,
        payload: Any,
        *,
        type: MessageType | str = MessageType.STATUS_UPDATE,  # noqa: A002  # the story's own word for it
        priority: Priority | str = Priority.NORMAL,
        correlation_id: str = "",
        ttl: float | None = None,
        **fields: Any,
    ) -> Pending[Receipt]:
        """Send an envelope as part of this collaboration, for example to `task.team`; see `Agent.send`."""
        return self._mailbox.send(
            to,
            payload,
            type=type,
            priority=priority,
            correlation_id=correlation_id,
            ttl=ttl,
            collaboration_id=self.collaboration_id,
            causation_id=self._causation_id,
            **fields,
        )

    def request(
        self,
        to: str,
        payload: Any,
        *,
        timeout: float = 30.0,
        type: MessageType | str = MessageType.COLLABORATION_REQUEST,  # noqa: A002  # as in send
        priority: Priority | str = Priority.NORMAL,
    ) -> Reply:
        """Send an envelope and wait for the reply's payload; see `Agent.request`."""
        return self._mailbox.request(
            to,
            payload,
            timeout=timeout,
            type=type,
            priority=priority,
            collaboration_id=self.collaboration_id,
            causation_id=self._causation_id,
        )

    # The runner's side.

    def cancel(self, reason: str) -> None:
        """Ask the handler to stop; the runner calls this."""
        self._cancel_reason = reason
        with _waking:
            self._cancelled = True
            for event in (self._woken, self._nudged):
                if event is not None:
                    event.set()

    def suspend(self, reason: str) -> Callable[[], Any] | None:
        """Ask the handler to save and stop; the runner calls this. Returns what saves, if set."""
        self._suspend_reason = reason
        with _waking:
            self._suspending = True
            if self._nudged is not None:
                self._nudged.set()
        return self._on_suspend

    @property
    def _causation_id(self) -> str:
        # At most 64 bytes (envelope.proto); a long task_id is cut, the collaboration is named beside it.
        return f"{self.id[:48]}#{self.token.number}"


def make_lock(
    link: Link, resources: tuple[str, ...], *, shared: bool, wait: float | None, attempt: AttemptRef | None
) -> Lock:
    """Return the lock that `Task.lock` and `Agent.lock` promise."""
    if not resources:
        raise ValueError("name at least one resource to lock")
    claims = tuple(Claim(resource, shared) for resource in resources)
    return Lock(link, claims, wait=wait, attempt=attempt)


def _cut(stage: str) -> str:
    raw = stage.encode()
    return stage if len(raw) <= STAGE_BYTES_MAX else raw[:STAGE_BYTES_MAX].decode(errors="ignore")
