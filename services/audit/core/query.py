"""What can be asked of the log, and how a list of answers is paged."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

from services.common.core.errors import ServiceError, invalid
from services.common.core.instants import Instant

_TOKEN = struct.Struct(">QQ8s")
_LAST_CHARACTER = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)


class RowGroup(NamedTuple):
    """What differs between the operations of one entry; see `muster.audit.v1.Group` for the fields."""

    names: Sequence[str]
    cause_ids: Sequence[str] = ()
    collaboration_ids: Sequence[str] = ()


class Operation(NamedTuple):
    """The facts of one operation that are not its entry's."""

    subject: str
    collaboration_id: str
    cause_id: str


class IndexRow(NamedTuple):
    """The facts of one entry by which it can be found."""

    event_time: Instant
    service: str
    actor: str
    operation: str
    # With a group: what the subjects of its operations begin with.
    subject: str
    # The number of `muster.audit.v1.Outcome`.
    outcome: int
    collaboration_id: str
    cause_id: str
    group: RowGroup | None = None

    def operations(self) -> Iterator[Operation]:
        """Yield what it records, one by one."""
        if self.group is None:
            yield Operation(self.subject, self.collaboration_id, self.cause_id)
            return
        names, cause_ids, collaboration_ids = self.group
        for at, name in enumerate(names):
            subject = self.subject + name
            cause_id = cause_ids[at] if cause_ids else self.cause_id
            collaboration_id = collaboration_ids[at] if collaboration_ids else self.collaboration_id
            yield Operation(subject, collaboration_id, cause_id or last_part(subject))

    def names(self) -> set[str]:
        """Return by which names operations of its group are looked for; see `name_wanted`."""
        if self.group is None:
            return set()
        names, cause_ids, collaboration_ids = self.group
        stem = last_part(self.subject)
        # Said of a hundred at once: an operation without a cause is its own.
        found = {last_part(name) if "/" in name else stem + name for name in names}
        found.update(cause_ids, collaboration_ids, (self.cause_id, self.collaboration_id))
        found.discard("")
        return found


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """What an entry must be like; an empty field matches all.

    `operation` and `subject` match exactly, or as a prefix when they end in "*". An entry with a group
    is wanted when one of its operations is.
    """

    service: str = ""
    actor: str = ""
    operation: str = ""
    subject: str = ""
    outcomes: frozenset[int] = frozenset()
    # start_time <= event_time < end_time.
    start_time: Instant | None = None
    end_time: Instant | None = None
    collaboration_id: str = ""
    cause_id: str = ""

    def matches(self, row: IndexRow) -> bool:
        """Return whether an entry with these facts is wanted."""
        return (
            self.service in ("", row.service)
            and self.actor in ("", row.actor)
            and _text_matches(self.operation, row.operation)
            and (not self.outcomes or row.outcome in self.outcomes)
            and (self.start_time is None or row.event_time >= self.start_time)
            and (self.end_time is None or row.event_time < self.end_time)
            and (not self.tells_operations_apart or any(map(self._wants, row.operations())))
        )

    @property
    def tells_operations_apart(self) -> bool:
        """Whether of one entry's operations some may be wanted and others not."""
        return bool(self.subject or self.collaboration_id or self.cause_id)

    def positions(self, row: IndexRow) -> tuple[int, ...]:
        """Return which operations of a matching entry's group are wanted; nothing when all are."""
        if row.group is None or not self.tells_operations_apart:
            return ()
        wanted = tuple(at for at, one in enumerate(row.operations()) if self._wants(one))
        return () if len(wanted) == len(row.group.names) else wanted

    def name_wanted(self) -> str:
        """Return a name that every group with a wanted operation has; "" when the filter gives none."""
        if self.subject and not is_prefix(self.subject):
            return last_part(self.subject)
        return self.cause_id or self.collaboration_id

    def _wants(self, one: Operation) -> bool:
        return (
            _text_matches(self.subject, one.subject)
            and self.collaboration_id in ("", one.collaboration_id)
            and self.cause_id in ("", one.cause_id)
        )

    def digest(self) -> bytes:
        """Return 8 bytes that tell filters apart."""
        fields = (
            self.service,
            self.actor,
            self.operation,
            self.subject,
            sorted(self.outcomes),
            self.start_time,
            self.end_time,
            self.collaboration_id,
            self.cause_id,
        )
        return sha256(repr(fields).encode()).digest()[:8]


class PageStart(NamedTuple):
    """Where a page begins: the tree size that the first page searched, and the first leaf to look at."""

    tree_size: int
    leaf_index: int


def encode_page_token(start: PageStart, wanted: EntryFilter) -> str:
    """Return the token of the page that begins at `start`."""
    return base64.urlsafe_b64encode(_TOKEN.pack(*start, wanted.digest())).decode()


def decode_page_token(token: str, wanted: EntryFilter, size: int) -> PageStart:
    """Return where the page begins; INVALID_FIELD for a token that this filter and this log never gave."""
    try:
        tree_size, leaf_index, digest = _TOKEN.unpack(base64.b64decode(token, altchars=b"-_", validate=True))
    except (ValueError, struct.error):
        raise _bad_token("is not one that a page came with; start without a token") from None
    if digest != wanted.digest():
        raise _bad_token("belongs to another filter; start without a token")
    if not leaf_index <= tree_size <= size:
        raise _bad_token("is not of this log; start without a token")
    return PageStart(tree_size, leaf_index)


def last_part(subject: str) -> str:
    """Return what stands behind the last "/" of a subject."""
    return subject.rpartition("/")[2]


def is_prefix(pattern: str) -> bool:
    """Return whether a filter's text stands for all that begin with it."""
    return pattern.endswith("*")


def prefix_end(prefix: str) -> str | None:
    """Return the smallest text after all that begin with `prefix`, by code point; None when there is none."""
    while prefix:
        following = ord(prefix[-1]) + 1
        prefix = prefix[:-1]
        if following in _SURROGATES:
            following = _SURROGATES.stop
        if following <= _LAST_CHARACTER:
            return prefix + chr(following)
    return None


def _text_matches(pattern: str, text: str) -> bool:
    if is_prefix(pattern):
        return text.startswith(pattern[:-1])
    return pattern in ("", text)


def _bad_token(what: str) -> ServiceError:
    return invalid("page.page_token", f"the token {what}")
