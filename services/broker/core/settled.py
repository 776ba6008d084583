"""Which numbers of an order domain are settled: a cursor and what lies above it.

Receivers settle nearly in order, so that the set above the cursor stays small; it can never be larger than
the number of deliveries that are outstanding.
"""

from __future__ import annotations

from collections.abc import Iterable


class SettledSet:
    """Numbers from 1 on; everything up to `cursor` is in, and so is what is in `above`."""

    __slots__ = ("above", "cursor")

    def __init__(self, cursor: int = 0, above: Iterable[int] = ()) -> None:
        self.cursor = cursor
        self.above = set(above)

    def __contains__(self, number: int) -> bool:
        return number <= self.cursor or number in self.above

    def add(self, number: int) -> None:
        """Add a number that is not in yet."""
        if number != self.cursor + 1:
            self.above.add(number)
            return
        self.cursor = number
        above = self.above
        while above and self.cursor + 1 in above:
            self.cursor += 1
            above.remove(self.cursor)

    def take_back(self, numbers: Iterable[int]) -> None:
        """Remove numbers that were added; for a commit that failed, so it may cost as much as it wants."""
        gone = set(numbers)
        below = [number for number in gone if number <= self.cursor]
        if below:
            lowest = min(below)
            self.above.update(range(lowest, self.cursor + 1))
            self.cursor = lowest - 1
        self.above -= gone
