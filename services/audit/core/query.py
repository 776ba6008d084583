"""What can be asked of the log, and how a list of answers is paged."""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

from services.common.core.errors import ServiceError, invalid
from services.common.core.instants import Instant

_TOKEN = struct.Struct(">QQ8s")
_LAST_CHARACTER = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)


class IndexRow(NamedTuple):
    """The facts of one entry by which it can be found."""

    event_time: Instant
    service: str
    actor: str
    operation: str
    subject: str
    # The number of `muster.audit.v1.Outcome`.
    outcome: int
    collaboration_id: str
    cause_id: str


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """What an entry must be like; an empty field matches all.

    `operation` and `subject` match exactly, or as a prefix when they end in "*".
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
            and _text_matches(self.subject, row.subject)
            and (not self.outcomes or row.outcome in self.outcomes)
            and (self.start_time is None or row.event_time >= self.start_time)
            and (self.end_time is None or row.event_time < self.end_time)
            and self.collaboration_id in ("", row.collaboration_id)
            and self.cause_id in ("", row.cause_id)
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
