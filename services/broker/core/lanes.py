"""Which lane is served next: strict priority, with a share that no higher lane can take away.

Method: each lower lane that waits gains its share, in hundredths of an envelope, for every envelope that is
handed over; at 100 it is owed one, and what is owed goes first (deficit counters, as in Shreedhar
and Varghese, "Efficient Fair Queuing using Deficit Round Robin", 1995, with strict priority for the rest).
EMERGENCY is not in this arithmetic: it has its own credit and always goes first.
"""

from __future__ import annotations

from collections.abc import Collection

from services.broker.core.model import Lane

OWED = 100
_TOP_DOWN = (Lane.HIGH, Lane.NORMAL, Lane.LOW)


class LaneShares:
    """The deficit counters of one receiving session."""

    __slots__ = ("_gained", "_share")

    def __init__(self, normal_percent: int, low_percent: int) -> None:
        self._share = {Lane.HIGH: 0, Lane.NORMAL: normal_percent, Lane.LOW: low_percent}
        self._gained = {Lane.HIGH: 0, Lane.NORMAL: 0, Lane.LOW: 0}

    def choose(self, waiting: Collection[Lane]) -> tuple[Lane, int]:
        """Return the lane to serve, and how many envelopes may go before the choice must be made again.

        `waiting` holds at least one of HIGH, NORMAL and LOW.
        """
        top = min(waiting)
        if len(waiting) == 1:
            return top, OWED
        allowance = OWED
        for lane in _TOP_DOWN:
            if lane not in waiting or lane is top:
                continue
            if self._gained[lane] >= OWED:
                return lane, 1
            allowance = min(allowance, -((self._gained[lane] - OWED) // self._share[lane]))
        return top, allowance

    def charge(self, served: Lane, count: int, waiting: Collection[Lane]) -> None:
        """Note that `count` envelopes went to `served` while the lanes in `waiting` had some."""
        gained = self._gained
        for lane in (Lane.NORMAL, Lane.LOW):
            if lane not in waiting:
                # Nothing waits, so nothing is owed: a share is not saved up.
                gained[lane] = 0
                continue
            gained[lane] += self._share[lane] * count
            if lane is served:
                gained[lane] = max(0, gained[lane] - OWED * count)
