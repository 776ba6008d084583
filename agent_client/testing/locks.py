"""The locks of the in-memory plane: exclusive or shared, several at once, first come first served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from agent_client.core.records import AttemptRef, Claim, FencingToken, HeldLock

# The in-memory plane has one leader for ever.
EPOCH = 1


@dataclass(eq=False)
class Request:
    """Claims of one owner, granted all or none."""

    agent: str
    claims: tuple[Claim, ...]
    attempt: AttemptRef | None
    on_grant: Callable[[tuple[HeldLock, ...]], None]
    held: tuple[HeldLock, ...] = field(default=())


class LockTable:
    """Who holds and who waits."""

    def __init__(self) -> None:
        self._number = 0
        self._holding: list[Request] = []
        self._waiting: list[Request] = []

    def holders(self) -> dict[str, list[str]]:
        """Return the agents that hold each resource."""
        table: dict[str, list[str]] = {}
        for request in self._holding:
            for claim in request.claims:
                table.setdefault(claim.resource, []).append(request.agent)
        return table

    def blocker(self, request: Request) -> str:
        """Return the agent that keeps `request` from being granted now; empty when nobody does."""
        for claim in request.claims:
            for other in (*self._holding, *self._before(request)):
                if any(
                    claim.resource == held.resource and not (claim.shared and held.shared)
                    for held in other.claims
                ):
                    return other.agent
        return ""

    def ask(self, request: Request) -> None:
        """Queue a request; it is granted at once when nothing is in its way."""
        self._waiting.append(request)
        self._grant()

    def try_once(self, request: Request) -> bool:
        """Grant a request now or not at all."""
        if self.blocker(request):
            return False
        self.ask(request)
        return True

    def end(self, request: Request) -> None:
        """Release or withdraw a request."""
        self._holding = [other for other in self._holding if other is not request]
        self._waiting = [other for other in self._waiting if other is not request]
        self._grant()

    def end_attempt(self, attempt: AttemptRef) -> None:
        """Release everything that belongs to an attempt."""
        for request in [*self._holding, *self._waiting]:
            if request.attempt == attempt:
                self.end(request)

    def _before(self, request: Request) -> list[Request]:
        if request in self._waiting:
            return self._waiting[: self._waiting.index(request)]
        return self._waiting

    def _grant(self) -> None:
        for request in list(self._waiting):
            if request not in self._waiting or self.blocker(request):
                continue
            self._waiting.remove(request)
            self._holding.append(request)
            self._number += 1
            token = FencingToken(EPOCH, self._number)
            request.held = tuple(HeldLock(claim.resource, token) for claim in request.claims)
            request.on_grant(request.held)
