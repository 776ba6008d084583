"""The number that a privileged write must present: newer wins, equal may repeat, older is refused.

Method: Kleppmann, "How to do distributed locking" (2016); Chubby calls it a sequencer (Burrows, OSDI 2006).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class FencingToken(NamedTuple):
    """Ordered by epoch, then by number; see `muster.common.v1.FencingToken`."""

    epoch: int
    number: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.number}"


_NONE = FencingToken(0, 0)


@dataclass(slots=True)
class Fence:
    """Remembers the newest token seen for one thing."""

    newest: FencingToken = _NONE

    def admits(self, token: FencingToken) -> bool:
        """Return whether `token` may act, and remember it when it is the newest."""
        if token < self.newest:
            return False
        self.newest = token
        return True
