"""Locks on resources: `async with task.lock("bridge-3") as held:`, or plain `with` in sync code.

A lock gives a condition, not a promise: it can end while its holder sleeps. Hand `held.token` to whatever
you write; what keeps the newest token and refuses older ones can not be written by two holders.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from types import TracebackType

from agent_client.core.records import AttemptRef, Claim, FencingToken, HeldLock
from agent_client.errors import MusterError
from agent_client.link import Link, LockWish
from agent_client.pending import Pending

# Never used twice in a process: a handle is also the lock_request_id of every stream.
_handles = itertools.count(1)


class _Loss:
    """Why locks ended before they were released; written once, by the link's thread."""

    error: MusterError | None = None


class Held:
    """Locks that are held."""

    def __init__(self, locks: tuple[HeldLock, ...], loss: _Loss) -> None:
        self._tokens = {lock.resource: lock.token for lock in locks}
        self._loss = loss

    def __repr__(self) -> str:
        tokens = ", ".join(f"{resource}={token}" for resource, token in self._tokens.items())
        return f"Held({tokens}{', lost' if self.lost else ''})"

    @property
    def token(self) -> FencingToken:
        """The fencing token; of several locks the newest."""
        return max(self._tokens.values())

    @property
    def tokens(self) -> Mapping[str, FencingToken]:
        """The fencing token of each resource."""
        return dict(self._tokens)

    @property
    def lost(self) -> bool:
        """Whether a lock has ended although it was not released."""
        return self._loss.error is not None

    def check(self) -> None:
        """Raise LockLostError when a lock has ended; call it before an effect that can not be undone."""
        if self._loss.error is not None:
            raise self._loss.error


class Lock:
    """Locks that are wanted; use it once, with `async with` or with `with`.

    Entering waits for the grant and raises ResourceHeldError when the wait is over. In async code the loss
    of a lock interrupts the body at its next await. Leaving the body raises LockLostError when a lock was
    lost meanwhile, so that nobody takes the body's work for protected.
    """

    def __init__(
        self, link: Link, claims: tuple[Claim, ...], *, wait: float | None, attempt: AttemptRef | None
    ) -> None:
        self._link = link
        self._loss = _Loss()
        self._wish = LockWish(
            handle=next(_handles),
            claims=claims,
            wait_ms=None if wait is None else max(0, int(wait * 1000)),
            attempt=attempt,
            granted=Pending(),
            lost=self._lost,
        )
        self._asked = False
        # Owned by the loop of an `async with`.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._body: asyncio.Task[object] | None = None
        self._inside = self._interrupted = False
        self._cancelling = 0

    def __repr__(self) -> str:
        return f"Lock({', '.join(claim.resource for claim in self._wish.claims)})"

    async def __aenter__(self) -> Held:
        self._loop, self._body = asyncio.get_running_loop(), asyncio.current_task()
        self._ask()
        try:
            locks = await self._wish.granted
        except BaseException:
            # Also when this wait is cancelled: the grant may be on its way and must not stay with us.
            self._link.unlock(self._wish.handle)
            raise
        held = self._enter(locks)
        self._cancelling = self._body.cancelling() if self._body is not None else 0
        self._inside = True
        return held

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside = False
        self._link.unlock(self._wish.handle)
        ours = kind is None
        if self._interrupted and self._body is not None:
            # As in asyncio.timeout: the cancellation is ours unless somebody else asked for one too.
            alone = self._body.uncancel() <= self._cancelling
            ours = ours or (alone and kind is asyncio.CancelledError)
        if self._loss.error is not None and ours:
            raise self._loss.error from error

    def __enter__(self) -> Held:
        self._ask()
        try:
            return self._enter(self._wish.granted.result())
        except BaseException:
            # As above, where a thread waits: also Ctrl-C must not leave a grant with us.
            self._link.unlock(self._wish.handle)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.unlock(self._wish.handle)
        if self._loss.error is not None and kind is None:
            raise self._loss.error

    def _ask(self) -> None:
        if self._asked:
            raise RuntimeError(f"{self!r} was used before: ask for a new lock each time")
        self._asked = True
        self._link.lock(self._wish)

    def _enter(self, locks: tuple[HeldLock, ...]) -> Held:
        held = Held(locks, self._loss)
        # The loss may have overtaken the one who waited.
        held.check()
        return held

    def _lost(self, error: MusterError) -> None:
        """Note the loss; called by the link's thread."""
        self._loss.error = error
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._interrupt)
            except RuntimeError:
                # The loop is closed, and with it the body.
                return

    def _interrupt(self) -> None:
        if self._inside and self._body is not None and not self._body.done():
            self._interrupted = True
            self._body.cancel()
