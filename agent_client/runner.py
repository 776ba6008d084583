"""Runs the handlers of assigned attempts and says how they ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from agent_client.core.inbox import Domain, Key
from agent_client.core.records import AttemptRef, Failed, Outcome, Stopped, Succeeded, Suspended
from agent_client.errors import MusterError, PermanentFailure, TaskCancelled, TransientFailure
from agent_client.handlers import Handler, Threads, end_tasks
from agent_client.link import Assignment, Delivered, Link
from agent_client.loop import inlet_of
from agent_client.mailbox import Mailbox
from agent_client.payload import encode
from agent_client.task import Task

log = logging.getLogger("agent_client")

# Bounds of TaskFailure (task.proto), in bytes.
REASON_BYTES_MAX = 64
MESSAGE_BYTES_MAX = 4_096


class Runner:
    """The `Sink` of an agent: takes what the link brings to the loop that the handlers run in."""

    def __init__(
        self,
        name: str,
        handlers: Mapping[str | None, Handler],
        link: Link,
        mailbox: Mailbox,
        *,
        slots: int,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._name, self._handlers, self._link, self._mailbox = name, handlers, link, mailbox
        # One thread more than slots: a fenced handler may still run when its slot is given away.
        # And a suspended one saves while the work that took its slot begins.
        self._threads = Threads(2 * slots + 1, "muster-handler")
        self._inlet = inlet_of(loop)
        self._running: dict[AttemptRef, tuple[Task, asyncio.Task[Outcome]]] = {}
        # Keeps what its handlers save on request from being forgotten half-way.
        self._saving: set[asyncio.Task[None]] = set()
        self._abandoned = False

    def __repr__(self) -> str:
        return f"Runner({self._name}, running={len(self._running)})"

    # The sink; called from any thread.

    def assigned(self, assignment: Assignment) -> None:
        """Run the handler of a new attempt."""
        self._inlet.post(partial(self._start, assignment))

    def stopped(self, attempt: AttemptRef, *, fenced: bool, reason: str) -> None:
        """Ask a handler to stop."""
        self._inlet.post(partial(self._stop, attempt, fenced, reason))

    def suspend_asked(self, attempt: AttemptRef, *, reason: str, grace_ms: int) -> None:
        """Ask a handler to save and stop."""
        self._inlet.post(partial(self._suspend, attempt, reason, grace_ms))

    def delivered(self, deliveries: Sequence[Delivered]) -> None:
        """Envelopes arrived."""
        self._inlet.post(partial(self._mailbox.deliver, deliveries))

    def recalled(self, key: Key) -> None:
        """The broker took a delivery back."""
        self._inlet.post(partial(self._mailbox.recall, key))

    def nack_confirmed(self, domain: Domain) -> None:
        """The broker took note of a nack."""
        self._inlet.post(partial(self._mailbox.confirm_nack, domain))

    # On the loop.

    async def abandon(self) -> None:
        """Cancel every handler and wait for its end; used when the agent leaves without their results."""
        self._abandoned = True
        for task, _ in self._running.values():
            task.cancel("the agent leaves")
        await end_tasks({running for _, running in self._running.values()})
        self._threads.close()

    def _start(self, assignment: Assignment) -> None:
        task = Task(assignment, self._name, self._link, self._mailbox)
        running = asyncio.create_task(self._run(task), name=f"muster {task.attempt}")
        self._running[task.attempt] = task, running
        # A callback, not a `finally`: a task that is cancelled before its first step runs none of its code.
        running.add_done_callback(partial(self._done, task))

    def _done(self, task: Task, running: asyncio.Task[Outcome]) -> None:
        del self._running[task.attempt]
        if not running.cancelled():
            self._link.ended(task.attempt, running.result())
        elif not self._abandoned:
            self._link.ended(task.attempt, _stopped(task))
        # Else nothing is said: a lost attempt does not count as a failure, and somebody else does the task.

    def _stop(self, attempt: AttemptRef, fenced: bool, reason: str) -> None:
        found = self._running.get(attempt)
        if found is None:
            return
        task, running = found
        log.info("%s: asked to stop%s: %s", attempt, " (fenced)" if fenced else "", reason)
        # Once is enough: a second cancellation would take a thread's slot away while it still runs.
        if not task.cancelled:
            task.cancel(reason)
            if not running.cancelling():
                running.cancel()

    def _suspend(self, attempt: AttemptRef, reason: str, grace_ms: int) -> None:
        found = self._running.get(attempt)
        if found is None:
            return
        task, running = found
        log.info("%s: asked to save and stop within %d ms: %s", attempt, grace_ms, reason)
        if task.suspending or task.cancelled:
            return
        saving = task.suspend(reason)
        if saving is None:
            running.cancel()
        else:
            self._saving.add(step := asyncio.create_task(_save_and_stop(task, saving, running)))
            step.add_done_callback(self._saving.discard)

    async def _run(self, task: Task) -> Outcome:
        handler = self._handlers.get(task.type) or self._handlers.get(None)
        if handler is None:
            known = ", ".join(sorted(name for name in self._handlers if name)) or "nothing"
            message = f"agent {self._name} has no handler for {task.type!r}; it handles {known}"
            return _failed("NO_HANDLER", message, permanent=False)
        self._link.started(task.attempt)
        try:
            return Succeeded(encode(await handler.call(task, self._threads), "result"))
        except TaskCancelled:
            return _stopped(task)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # it ends the attempt, not the agent
            return _failure_of(error, task)


def _stopped(task: Task) -> Outcome:
    return Suspended() if task.suspending and not task.cancelled else Stopped()


async def _save_and_stop(task: Task, save: Callable[[], Any], running: asyncio.Task[Outcome]) -> None:
    """Save what the handler's own function gives, then stop the handler."""
    try:
        value = save()
        task.savepoint(await value if isinstance(value, Awaitable) else value)
    except Exception as error:  # the user's function: the attempt stops without its savepoint
        log.error("%s: its on_suspend function raised", task.attempt, exc_info=error)
    finally:
        running.cancel()


def _failure_of(error: BaseException, task: Task) -> Failed:
    match error:
        case PermanentFailure():
            return _failed(error.reason, str(error), permanent=True)
        case TransientFailure():
            return _failed(error.reason, str(error), permanent=False)
        case MusterError():
            # From a lock, a message or the result's encoding: its own reason tells more than ours would.
            log.warning("%s: %s", task.attempt, error)
            return _failed(error.reason, error.message, permanent=not error.retryable)
        case _:
            # The traceback stays here; the plane gets the message only.
            log.error("%s: the handler raised", task.attempt, exc_info=error)
            return _failed("HANDLER_RAISED", f"{type(error).__name__}: {error}", permanent=False)


def _failed(reason: str, message: Any, *, permanent: bool) -> Failed:
    return Failed(permanent, _cut(reason, REASON_BYTES_MAX), _cut(str(message), MESSAGE_BYTES_MAX))


def _cut(text: str, bytes_max: int) -> str:
    raw = text.encode(errors="replace")
    return text if len(raw) <= bytes_max else raw[:bytes_max].decode(errors="ignore")
