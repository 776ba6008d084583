"""An outbox that keeps everything in a list."""

from __future__ import annotations

from collections.abc import Sequence

from services.common.core.entries import EntryDraft
from services.common.core.errors import Reason, ServiceError


class MemoryOutbox:
    """An `Outbox` for tests: look at `entries`; set `full` to see what happens when audit can not record.

    `dropped` counts operations.
    """

    def __init__(self) -> None:
        self.entries: list[EntryDraft] = []
        self.full = False
        self.dropped = 0

    async def record(self, entries: Sequence[EntryDraft], *, privileged: bool = False) -> None:
        """Keep `entries`, or behave like a full spool."""
        if not self.full:
            self.entries += entries
        elif privileged:
            raise ServiceError(Reason.AUDIT_UNAVAILABLE, "the spool is full; try again when audit is back")
        else:
            self.dropped += sum(entry.operation_count for entry in entries)

    def operations(self) -> list[str]:
        """Return every operation in the order in which they were recorded."""
        return [entry.operation for entry in self.entries for _ in range(entry.operation_count)]
