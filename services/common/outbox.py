"""How a service tells audit what it did: recorded on its own disk first, shipped when audit can take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from services.common.core.entries import EntryDraft


class Outbox(Protocol):
    """A service's way to the audit log.

    Durability: when `record` returns, the entries survive power loss of this machine; they reach audit in
                the order of the calls, each exactly once in the log.
    Bound:      beyond its bound an outbox drops what is not privileged and counts it; one entry
                "spool.overflow" then says how many are missing (guarantee A3).
    """

    async def record(self, entries: Sequence[EntryDraft], *, privileged: bool = False) -> None:
        """Keep `entries`; call it before replying, alongside the store's commit.

        With `privileged` raises AUDIT_UNAVAILABLE when they can not be kept: the operation must then not
        happen. Without it never raises for lack of room.
        """
        ...
