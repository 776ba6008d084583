"""Dead letters in Redis: one stream, ordered by number, and for each mailbox a sorted set of its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.broker.core.model import DeadLetter, StoredDeadLetter
from services.broker.store import Retention
from services.broker.stores import records
from services.broker.stores.redis_link import Command, Entry, RedisLink, entry_id, entry_number, in_parts
from services.common.core.instants import Instant

# Dead letters read with one command.
PAGE_LETTERS = 64
# Dead letters that one compaction looks at and may drop.
DROP_DEAD_LETTERS_MAX = 2_000


class RedisLetters:
    """Reads them, and says which commands change them; the store runs these."""

    def __init__(self, link: RedisLink, tag: str) -> None:
        self._link, self._stream = link, f"{tag}letters"

    def add(self, letters: Sequence[DeadLetter], first_number: int) -> list[Command]:
        """Return what adds `letters`, numbered from `first_number` on."""
        commands: list[Command] = []
        for number, letter in enumerate(letters, first_number):
            text, body = records.encode_letter(letter), letter.envelope.draft.body
            commands.append(("XADD", self._stream, entry_id(number), "l", text, "b", body))
            commands.append(("ZADD", self._box(letter.envelope.key.receiver), number, number))
        return commands

    def drop(self, letters: Iterable[tuple[str, int]]) -> list[Command]:
        """Return what drops dead letters, each given by its receiver and number."""
        by_receiver: dict[str, list[int]] = {}
        for receiver, number in letters:
            by_receiver.setdefault(receiver, []).append(number)
        commands: list[Command] = []
        for receiver, numbers in by_receiver.items():
            commands += in_parts("XDEL", self._stream, [(entry_id(one),) for one in numbers])
            commands += in_parts("ZREM", self._box(receiver), [(one,) for one in numbers])
        return commands

    async def owners(self, numbers: Iterable[int]) -> list[tuple[str, int]]:
        """Return (receiver, number) of those of `numbers` that are dead letters."""
        return [(one.letter.envelope.key.receiver, one.number) for one in await self._read(numbers)]

    async def list_after(self, receiver: str, after: int, limit: int) -> list[StoredDeadLetter]:
        """Return up to `limit` dead letters of a mailbox with numbers above `after`, oldest first."""
        box = self._box(receiver)
        numbers = await self._link.call("ZRANGEBYSCORE", box, f"({after}", "+inf", "LIMIT", 0, limit)
        return await self._read([int(number) for number in numbers])

    async def find(self, receiver: str, numbers: Sequence[int]) -> list[StoredDeadLetter]:
        """Return those of `numbers` that are dead letters of this mailbox."""
        found = await self._read(numbers)
        return [one for one in found if one.letter.envelope.key.receiver == receiver]

    async def count(self, receiver: str) -> int:
        """Return how many dead letters of a mailbox are kept."""
        return int(await self._link.call("ZCARD", self._box(receiver)))

    async def find_old(
        self, now: Instant, retention: Retention, to_count: set[str]
    ) -> Sequence[tuple[str, int]]:
        """Return (receiver, number) of dead letters beyond their age, then of those that are too many.

        Takes the mailboxes that it has counted out of `to_count`.
        """
        chosen: dict[int, str] = {}
        oldest, after, look = now - retention.dead_letter_age_ms_max, "-", True
        while look and len(chosen) < DROP_DEAD_LETTERS_MAX:
            page = await self._link.call("XRANGE", self._stream, after, "+", "COUNT", PAGE_LETTERS)
            letters = [_letter(entry) for entry in page]
            old = [one for one in letters if one.letter.dead_at <= oldest]
            chosen |= {one.number: one.letter.envelope.key.receiver for one in old}
            look = len(old) == PAGE_LETTERS
            after = f"({page[-1][0].decode()}" if page else ""
        for receiver in list(to_count):
            if len(chosen) >= DROP_DEAD_LETTERS_MAX:
                break
            too_many = await self.count(receiver) - retention.dead_letters_max_per_mailbox
            if too_many > 0:
                numbers = await self._link.call("ZRANGE", self._box(receiver), 0, too_many - 1)
                chosen |= {int(number): receiver for number in numbers}
            to_count.discard(receiver)
        return [(receiver, number) for number, receiver in chosen.items()]

    def _box(self, receiver: str) -> str:
        return f"{self._stream}:{receiver}"

    async def _read(self, numbers: Iterable[int]) -> list[StoredDeadLetter]:
        entries = [entry_id(number) for number in numbers]
        found = []
        for start in range(0, len(entries), PAGE_LETTERS):
            pages = await self._link.call_all(
                [("XRANGE", self._stream, one, one) for one in entries[start : start + PAGE_LETTERS]]
            )
            found += [_letter(entry) for page in pages for entry in page]
        return found


def _letter(entry: Entry) -> StoredDeadLetter:
    name, fields = entry
    return StoredDeadLetter(entry_number(name), records.decode_letter(fields[b"l"], fields[b"b"]))
