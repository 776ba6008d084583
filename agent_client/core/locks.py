"""Locks that the agent's code asks for, from the wish to the release.

A lock is known by a handle, a number that is never used twice in a process; it also serves as the
lock_request_id of every stream, so that an answer always finds its wish. A wish that is still open when
the stream breaks is asked again on the next one; a lock that is held is reported in the hello.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent_client.core.records import AttemptRef, Claim, HeldLock


@dataclass(frozen=True, slots=True)
class LockAsk:
    """A request to write."""

    handle: int
    claims: tuple[Claim, ...]
    # Milliseconds left to wait; None without limit, 0 to try once.
    wait_ms: int | None
    attempt: AttemptRef | None


@dataclass(frozen=True, slots=True)
class LockDrop:
    """A release to write; without locks it withdraws a waiting request."""

    handle: int
    locks: tuple[HeldLock, ...]


@dataclass(slots=True)
class _Wish:
    claims: tuple[Claim, ...]
    # Monotonic milliseconds after which nobody waits any more; None for never.
    give_up_at: int | None
    attempt: AttemptRef | None
    sent: bool = False
    locks: tuple[HeldLock, ...] = ()


class LockCore:
    """Every lock that this agent wants or holds in its code."""

    def __init__(self) -> None:
        self._wishes: dict[int, _Wish] = {}
        # Handles to ask for; may name wishes that were withdrawn meanwhile.
        self._unsent: list[int] = []
        self._drops: list[LockDrop] = []
        # Handles whose attempt ended first; their owners must be told.
        self._orphans: list[int] = []
        self._open = False

    def __repr__(self) -> str:
        held = sum(1 for wish in self._wishes.values() if wish.locks)
        return f"LockCore(held={held}, waiting={len(self._wishes) - held})"

    def held(self) -> tuple[HeldLock, ...]:
        """Return all locks that are believed to be held."""
        return tuple(lock for wish in self._wishes.values() for lock in wish.locks)

    def opened(self) -> None:
        """A new stream: every open wish is asked again."""
        self._open = True
        self._drops.clear()
        self._unsent = [handle for handle, wish in self._wishes.items() if not wish.locks]
        for wish in self._wishes.values():
            wish.sent = bool(wish.locks)

    def closed(self) -> None:
        """The stream ended; releases that were not written are void, the next hello leaves them out."""
        self._open = False
        self._drops.clear()

    def wanted(
        self,
        handle: int,
        claims: tuple[Claim, ...],
        *,
        wait_ms: int | None,
        attempt: AttemptRef | None,
        now: int,
    ) -> None:
        """The agent's code wants these locks, all or none; `wait_ms` 0 means that it tries once."""
        self._wishes[handle] = _Wish(claims, None if wait_ms is None else now + wait_ms, attempt)
        self._unsent.append(handle)

    def released(self, handle: int) -> None:
        """The agent's code gives the locks back, or no longer waits for them."""
        wish = self._wishes.pop(handle, None)
        if wish is not None and wish.sent and self._open:
            self._drops.append(LockDrop(handle, wish.locks))

    def granted(self, handle: int, locks: tuple[HeldLock, ...]) -> bool:
        """All claims of a wish are held. Returns False, and gives them back, when nobody waits any more."""
        wish = self._wishes.get(handle)
        if wish is None:
            self._drops.append(LockDrop(handle, locks))
            return False
        wish.locks = locks
        return True

    def refused(self, handle: int) -> bool:
        """A wish will not be granted. Returns whether somebody still waits for it."""
        return self._wishes.pop(handle, None) is not None

    def revoked(self, lock: HeldLock) -> int | None:
        """A lock ended without a release. Returns the handle that held it; its other locks are given back."""
        for handle, wish in self._wishes.items():
            if lock in wish.locks:
                rest = tuple(other for other in wish.locks if other != lock)
                del self._wishes[handle]
                if rest:
                    self._drops.append(LockDrop(handle, rest))
                return handle
        return None

    def attempt_ended(self, attempt: AttemptRef) -> None:
        """The coordinator ends the locks of an attempt with the attempt itself; nothing is written."""
        ended = [handle for handle, wish in self._wishes.items() if wish.attempt == attempt]
        for handle in ended:
            del self._wishes[handle]
        self._orphans += ended

    def take_orphans(self) -> list[int]:
        """Return, and forget, the handles that ended with their attempt."""
        orphans, self._orphans = self._orphans, []
        return orphans

    def overdue_at(self) -> int | None:
        """Return when `overdue` will have something to say; None while a stream is open or nobody waits."""
        if self._open:
            return None
        ends = [wish.give_up_at for wish in self._wishes.values() if not wish.locks]
        return min((end for end in ends if end is not None), default=None)

    def overdue(self, now: int) -> list[int]:
        """Return, and forget, the wishes that waited their time without a stream to ask on.

        On an open stream the coordinator watches the time.
        """
        if self._open:
            return []
        late = [
            handle
            for handle, wish in self._wishes.items()
            if not wish.locks and wish.give_up_at is not None and now >= wish.give_up_at
        ]
        for handle in late:
            del self._wishes[handle]
        return late

    def take(self, now: int) -> tuple[list[LockAsk], list[LockDrop]]:
        """Return the requests and releases to write now."""
        asks = []
        for handle in self._unsent:
            wish = self._wishes.get(handle)
            if wish is None or wish.sent:
                continue
            wish.sent = True
            wait_ms = None if wish.give_up_at is None else max(0, wish.give_up_at - now)
            asks.append(LockAsk(handle, wish.claims, wait_ms, wish.attempt))
        self._unsent = []
        drops, self._drops = self._drops, []
        return asks, drops
