"""The dedupe window: which message_ids of a sender were accepted, with which content and outcome.

Every id is kept at least until its `keep_until`, and a sender whose window is full is refused rather than
forgotten, so that a repeat inside the window is always known (guarantee M2). At 50,000 envelopes a second
with the default ttl that is 15 million ids, far too many for a dict of strings (about 300 bytes each). Ids
that count up behind a dash ("a7f3-1", "a7f3-2", …; agent_client makes such ids) are therefore kept as runs,
16 bytes each. All others go into a dict; they only cost more.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from heapq import heappop, heappush
from typing import NamedTuple

from services.broker.core.model import Chosen
from services.common.core.instants import Instant

# What the parts cost, in bytes; measured with tracemalloc on CPython 3.11 and rounded up.
RUN_ID_BYTES = 18
RUN_BYTES = 700
LOOSE_ID_BYTES = 400
# An id whose receivers the broker chose; the longest receiver included.
ROUTED_ID_BYTES = 700
# The most that one more id may cost: a run of its own.
ID_BYTES_MAX = RUN_BYTES + RUN_ID_BYTES
FINGERPRINT_BYTES = 8
# A run ends after this many ids, so that it can be forgotten in one piece soon after its last id may be.
RUN_IDS_MAX = 4_096
# Loose ids are forgotten together with those whose time ends in the same span.
SPAN_MS = 10_000


class _Run:
    """Ids `prefix` + first, first + 1, …; fingerprints and outcomes by position."""

    __slots__ = ("fingerprints", "first", "keep_until", "prefix", "sequences")

    def __init__(self, prefix: str, first: int, keep_until: Instant) -> None:
        self.prefix, self.first, self.keep_until = prefix, first, keep_until
        self.fingerprints = bytearray()
        self.sequences = array("Q")


class _Loose(NamedTuple):
    fingerprint: bytes
    sequence: int
    keep_until: Instant
    chosen: Chosen | None = None

    @property
    def size(self) -> int:
        return LOOSE_ID_BYTES if self.chosen is None else ROUTED_ID_BYTES


class DedupWindow:
    """The ids of one sender. `bytes_used` estimates its memory from above."""

    __slots__ = ("_loose", "_loose_ends", "_loose_spans", "_made", "_run_ends", "_runs", "bytes_used")

    def __init__(self) -> None:
        self.bytes_used = 0
        self._made = 0
        # By prefix, ascending by first number and never overlapping.
        self._runs: dict[str, list[_Run]] = {}
        # Heaps of when something may be forgotten; an entry may be early, then it is pushed again.
        self._run_ends: list[tuple[Instant, int, _Run]] = []
        self._loose: dict[str, _Loose] = {}
        self._loose_spans: dict[int, list[str]] = {}
        self._loose_ends: list[int] = []

    def __len__(self) -> int:
        return len(self._loose) + sum(len(run.sequences) for runs in self._runs.values() for run in runs)

    def find(self, message_id: str) -> tuple[bytes, int] | None:
        """Return the fingerprint and the sequence number of an id in the window."""
        prefix, number = _counted(message_id)
        if number is not None and (runs := self._runs.get(prefix)) is not None:
            run = runs[-1]
            if number < run.first:
                at = bisect_right(runs, number, key=_first) - 1
                run = runs[max(at, 0)]
            position = number - run.first
            if 0 <= position < len(run.sequences):
                at = position * FINGERPRINT_BYTES
                return bytes(run.fingerprints[at : at + FINGERPRINT_BYTES]), run.sequences[position]
        kept = self._loose.get(message_id) if self._loose else None
        return None if kept is None else (kept.fingerprint, kept.sequence)

    def add(
        self, message_id: str, fingerprint: bytes, sequence: int, keep_until: Instant
    ) -> tuple[bytes, int] | None:
        """Add an id and return None; or change nothing and return what `find` returns for it."""
        prefix, number = _counted(message_id)
        if number is not None:
            runs = self._runs.get(prefix)
            run = runs[-1] if runs else None
            # The common case first: it counts on.
            if (
                run is not None
                and number == run.first + len(run.sequences) < run.first + RUN_IDS_MAX
                and (not self._loose or message_id not in self._loose)
            ):
                run.fingerprints += fingerprint
                run.sequences.append(sequence)
                if keep_until > run.keep_until:  # noqa: PLR1730  # max() is a call per envelope
                    run.keep_until = keep_until
                self.bytes_used += RUN_ID_BYTES
                return None
        known = self.find(message_id)
        if known is None:
            self._add_slowly(message_id, _Loose(fingerprint, sequence, keep_until))
        return known

    def add_routed(
        self, message_id: str, fingerprint: bytes, sequence: int, keep_until: Instant, chosen: Chosen
    ) -> None:
        """Add an id that `find` does not know, with the receivers that the broker chose."""
        self._add_loose(message_id, _Loose(fingerprint, sequence, keep_until, chosen))

    def chosen(self, message_id: str) -> Chosen | None:
        """Return for whom an id was accepted; None for one that named its receiver."""
        kept = self._loose.get(message_id)
        return None if kept is None else kept.chosen

    def take_back(self, message_id: str) -> None:
        """Remove the id that was remembered last of all that are still in: its commit failed."""
        kept = self._loose.pop(message_id, None)
        if kept is not None:
            self.bytes_used -= kept.size
            return
        run = self._runs[_counted(message_id)[0]][-1]
        run.sequences.pop()
        del run.fingerprints[-FINGERPRINT_BYTES:]
        self.bytes_used -= RUN_ID_BYTES
        if not run.sequences:
            self._drop_run(run)

    def expire(self, now: Instant) -> None:
        """Forget what need not be kept any longer; costs as much as it forgets."""
        while self._run_ends and self._run_ends[0][0] <= now:
            _, made, run = heappop(self._run_ends)
            if run.keep_until > now:
                heappush(self._run_ends, (run.keep_until, made, run))
            elif run.sequences:
                self._drop_run(run)
        while self._loose_ends and (self._loose_ends[0] + 1) * SPAN_MS <= now:
            for message_id in self._loose_spans.pop(heappop(self._loose_ends)):
                kept = self._loose.get(message_id)
                if kept is not None and kept.keep_until <= now:
                    del self._loose[message_id]
                    self.bytes_used -= kept.size

    def next_expiry(self) -> Instant | None:
        """Return when `expire` may have something to do, or None when the window is empty."""
        ends = [end for end, _, _ in self._run_ends[:1]]
        ends += [Instant((span + 1) * SPAN_MS) for span in self._loose_ends[:1]]
        return min(ends, default=None)

    def _add_slowly(self, message_id: str, kept: _Loose) -> None:
        prefix, number = _counted(message_id)
        runs = self._runs.get(prefix)
        run = runs[-1] if runs else None
        if number is None or (run is not None and number < run.first + len(run.sequences)):
            # No number; or it counts down or jumped back: a run would have to be put between others.
            self._add_loose(message_id, kept)
            return
        run = self._new_run(prefix, number, kept.keep_until)
        run.fingerprints += kept.fingerprint
        run.sequences.append(kept.sequence)
        self.bytes_used += RUN_ID_BYTES

    def _new_run(self, prefix: str, first: int, keep_until: Instant) -> _Run:
        run = _Run(prefix, first, keep_until)
        self._runs.setdefault(prefix, []).append(run)
        self._made += 1
        heappush(self._run_ends, (keep_until, self._made, run))
        self.bytes_used += RUN_BYTES
        return run

    def _drop_run(self, run: _Run) -> None:
        runs = self._runs[run.prefix]
        runs.remove(run)
        if not runs:
            del self._runs[run.prefix]
        self.bytes_used -= RUN_BYTES + RUN_ID_BYTES * len(run.sequences)
        # What is left of it in the heap is skipped there.
        run.sequences = array("Q")

    def _add_loose(self, message_id: str, kept: _Loose) -> None:
        self._loose[message_id] = kept
        self.bytes_used += kept.size
        span = kept.keep_until // SPAN_MS
        ids = self._loose_spans.get(span)
        if ids is None:
            ids = self._loose_spans[span] = []
            heappush(self._loose_ends, span)
        ids.append(message_id)


def _counted(message_id: str) -> tuple[str, int | None]:
    """Split "<prefix>-<number>"; None for the number of an id that is not made like this."""
    prefix, dash, digits = message_id.rpartition("-")
    if not dash or not digits.isdecimal() or not digits.isascii() or len(digits) > 18:
        return message_id, None
    if digits[0] == "0" and len(digits) > 1:
        # "a-01" and "a-1" are two ids but one number.
        return message_id, None
    return prefix, int(digits)


def _first(run: _Run) -> int:
    return run.first
