"""The last changes of one collaboration, so that a watcher can go on where it stopped.

Bounded: what is older than the bound is forgotten, and a watcher that asks for it is told so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.scheduler.core.changes import Change


class History:
    """Consecutive changes, one for each generation after `floor`.

    A list that is cut when it is twice too long: cheaper in time and memory than a ring for the many
    collaborations that have a handful of changes.
    """

    __slots__ = ("_changes", "_kept_max", "floor")

    def __init__(self, kept_max: int, floor: int = 0) -> None:
        self._changes: list[Change] = []
        self._kept_max = kept_max
        #: Changes up to this generation are not kept (any more).
        self.floor = floor

    def __len__(self) -> int:
        return len(self._changes)

    def append(self, change: Change) -> None:
        """Keep the change that raised the generation by one."""
        self._changes.append(change)
        if len(self._changes) >= 2 * self._kept_max:
            cut = len(self._changes) - self._kept_max
            self.floor += cut
            del self._changes[:cut]

    def clear(self) -> None:
        """Keep nothing."""
        self.floor += len(self._changes)
        self._changes.clear()

    def since(self, generation: int) -> list[Change] | None:
        """Return the changes after `generation`, oldest first; None when some of them are gone."""
        if generation < self.floor:
            return None
        return self._changes[generation - self.floor :]
