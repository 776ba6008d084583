"""Brings what happened to the audit log.

Envelopes come by the ten thousand a second and two operations are to be recorded of each, so that is not done
one by one before the reply: what happened is noted at once, in memory, and brought to the outbox in large
groups by a loop of its own. What that gives up, and what bounds it:

- a crash of the broker loses the notes of the last moments (the envelopes themselves are in the store);
- a backlog beyond `audit_backlog_max` is not noted but counted, and one entry "envelope.unrecorded" says how
  many are missing, as the outbox does when its own bound is reached (guarantee A3).

Refusals, fencing, streams and dead letters are noted whatever `audit_messages` says.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from services.broker.core import effects as fx
from services.broker.entries import ACTOR, Note, SendsRefused, entries_of
from services.broker.metrics import BrokerMetrics
from services.common.clock import Clock
from services.common.core.entries import EntryDraft, Outcome
from services.common.core.errors import Reason
from services.common.core.instants import Instant
from services.common.outbox import Outbox

# Operations brought to the outbox at once: enough to share one sync, few enough not to hold the loop.
OPERATIONS_MAX = 2_048
# Seconds that notes gather once there are some. Nobody waits for them, but the envelope that was just
# accepted is on its way out, over the same loop and, with its ack, to the same disk.
GATHER_S = 0.005
# Notes of what is rare have room of their own, so that a flood of envelopes does not push them out.
RARE_MAX = 10_000


class AuditRecorder:
    """Owned by the event loop. `note` never waits; `run` brings it to the outbox."""

    def __init__(
        self,
        outbox: Outbox,
        clock: Clock,
        metrics: BrokerMetrics,
        *,
        messages: str,
        backlog_max: int,
        group_max: int,
    ) -> None:
        self._outbox, self._clock, self._metrics = outbox, clock, metrics
        self._accepts, self._terminals = messages == "all", messages != "none"
        self._backlog_max, self._group_max = backlog_max, group_max
        self._notes: deque[tuple[Note, Instant]] = deque()
        # Operations that wait, and those that were given up since the last entry that says so.
        self._backlog = 0
        self._unrecorded = 0
        self._noted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def note(self, note: Note) -> None:
        """Take in what happened."""
        match note:
            case fx.NoteAccepted(envelopes=envelopes):
                count, limit = len(envelopes) if self._accepts else 0, self._backlog_max
            case fx.NoteUnheard(routed=routed):
                count, limit = len(routed) if self._accepts else 0, self._backlog_max
            case fx.NoteDone(envelopes=envelopes):
                count, limit = len(envelopes) if self._terminals else 0, self._backlog_max
            case fx.NoteDead(dead_letters=letters):
                count, limit = len(letters), self._backlog_max + RARE_MAX
            case SendsRefused(refusals=refusals):
                count, limit = len(refusals), self._backlog_max + RARE_MAX
            case _:
                count, limit = 1, self._backlog_max + RARE_MAX
        if not count:
            return
        if self._backlog + count > limit:
            self._unrecorded += count
            self._metrics.unrecorded.inc(count)
            return
        self._backlog += count
        self._notes.append((note, self._clock.now()))
        self._idle.clear()
        self._noted.set()

    async def record_letters(self, actor: str, operation: str, owner: str, numbers: Sequence[int]) -> None:
        """Record what somebody is about to do with dead letters; see `record_request`."""
        some = ",".join(str(number) for number in numbers[:50])
        facts = {"count": str(len(numbers)), "dead_letter_ids": some}
        await self.record_request(actor, operation, owner, facts)

    async def record_request(self, actor: str, operation: str, owner: str, facts: Mapping[str, str]) -> None:
        """Record a change by hand of a mailbox; AUDIT_UNAVAILABLE when that is impossible.

        Before it is done: what the log can not show does not happen (guarantee A3).
        """
        entry = EntryDraft(self._clock.now(), actor, operation, f"mailbox/{owner}", attributes=facts)
        await self._outbox.record([entry], privileged=True)

    async def run(self) -> None:
        """Bring notes to the outbox until cancelled."""
        entries, entries_wait = self._entries(), False
        while True:
            await self._noted.wait()
            if not entries_wait:
                await asyncio.sleep(GATHER_S)
            group: list[EntryDraft] = []
            room = OPERATIONS_MAX
            for entry in entries:
                group.append(entry)
                room -= entry.operation_count
                if room <= 0:
                    break
            if group:
                await self._outbox.record(group)
            entries_wait = room <= 0
            if not entries_wait:
                # The generator is used up whenever it has given fewer.
                entries = self._entries()
            if not self._notes and not self._backlog:
                self._noted.clear()
                self._idle.set()

    async def wait_idle(self) -> None:
        """Return when everything noted is recorded; `run` must be running."""
        await self._idle.wait()

    def _entries(self) -> Iterator[EntryDraft]:
        while self._notes:
            note, at = self._notes.popleft()
            for entry in entries_of(note, at, self._group_max):
                self._backlog -= entry.operation_count
                yield entry
        if self._unrecorded:
            count, self._unrecorded = self._unrecorded, 0
            yield EntryDraft(
                self._clock.now(),
                ACTOR,
                "envelope.unrecorded",
                "mailbox",
                Outcome.FAILED,
                Reason.AUDIT_UNAVAILABLE,
                attributes={"count": str(count)},
            )
