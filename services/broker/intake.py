"""How much may wait for the disk: streams are not read beyond it."""

from __future__ import annotations

import asyncio


class Intake:
    """Counts bytes that came, and those of them that a commit has decided about. Owned by the event loop."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        # Bytes that came; those of them that the last commit decides about; those that are decided.
        self._came = 0
        self._cut = 0
        self._decided = 0
        self._waiting: list[asyncio.Future[None]] = []

    def came(self, size_bytes: int) -> None:
        """So much more waits."""
        self._came += size_bytes

    async def wait_room(self) -> None:
        """Return when more may be read."""
        while self._came - self._decided > self._bytes_max:
            room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(room)
            await room

    def cut(self) -> None:
        """A commit begins, which decides about all that came."""
        self._cut = self._came

    def decide(self) -> None:
        """The commit that began last has ended, well or not."""
        self._let_in(self._cut)

    def decide_all(self) -> None:
        """Nothing that came waits any longer."""
        self._let_in(self._came)

    def _let_in(self, decided: int) -> None:
        self._decided = decided
        waiting, self._waiting = self._waiting, []
        for room in waiting:
            if not room.done():
                room.set_result(None)
