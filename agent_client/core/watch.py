"""From where a broken watch goes on."""

from __future__ import annotations


class WatchCursor:
    """Remembers which generations of a collaboration were seen.

    Every change has its own generation, except those of a snapshot, which share one. So a watch that breaks
    inside a snapshot can not say how much of it came, and begins a new one; changes may then be seen twice.
    """

    def __init__(self, from_generation: int = 0) -> None:
        self._generation = from_generation
        self._snapshot_due = from_generation == 0
        self._snapshot_generation: int | None = None

    def __repr__(self) -> str:
        return f"WatchCursor(resume_from={self.resume_from})"

    @property
    def resume_from(self) -> int:
        """The generation to ask for next; 0 asks for a snapshot."""
        return 0 if self._snapshot_due or self._snapshot_generation is not None else self._generation

    @property
    def in_snapshot(self) -> bool:
        """Whether what was seen last belongs to a snapshot, of which more may come."""
        return self._snapshot_generation is not None

    def opened(self) -> None:
        """A stream was opened from `resume_from`."""
        self._snapshot_due = self.resume_from == 0
        self._snapshot_generation = None

    def gap(self) -> None:
        """Changes are lost; a snapshot follows."""
        self._snapshot_due = True

    def seen(self, generation: int) -> None:
        """A durable change arrived."""
        if self._snapshot_due:
            self._snapshot_due, self._snapshot_generation = False, generation
        elif self._snapshot_generation is not None and generation > self._snapshot_generation:
            self._snapshot_generation = None
        self._generation = max(self._generation, generation)
