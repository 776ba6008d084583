"""proto <-> model, both ways, and every check of what others sent."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp
from muster.audit.v1 import audit_service_pb2 as pb
from muster.audit.v1 import entry_pb2

from services.audit.core.model import Leaf
from services.audit.core.query import EntryFilter, IndexRow, RowGroup
from services.audit.core.tiles import LEAF_BYTES_MAX
from services.common.core.entries import EntryDraft, Outcome
from services.common.core.errors import FieldViolation, Reason, ServiceError, invalid
from services.common.core.ids import NAME_64
from services.common.core.instants import Instant
from services.common.outbox import encode_entry

FRAME_ENTRIES_MAX = 1_024
# Of the entries; the frame's own fields come on top.
FRAME_BYTES_MAX = 2**20
_FRAME_FIELDS_BYTES_MAX = 256
TEXT_BYTES_MAX = 1_024
ENTRY_ID_BYTES_MAX = 256
ATTRIBUTES_MAX = 32
GROUP_MIN, GROUP_MAX = 2, 1_024
PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000
_SEQUENCE_MAX = 2**63 - 1
# 0001-01-01 to 9999-12-31, what a Timestamp may hold.
_SECONDS_MIN, _SECONDS_MAX = -62_135_596_800, 253_402_300_799
_SPOOL_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_OUTCOMES = frozenset(entry_pb2.Outcome.values()) - {entry_pb2.OUTCOME_UNSPECIFIED}
_FILTER_TEXTS = ("actor", "operation", "subject", "collaboration_id", "service", "cause_id")
_TOO_LONG = f"must have at most {TEXT_BYTES_MAX} bytes each, subjects as a whole"
_TEXTS = ("actor", "operation", "subject", "reason", "cause_id", "collaboration_id", "traceparent")


@dataclass(frozen=True, slots=True)
class AppendFrame:
    """A frame whose every field was checked."""

    replica_id: str
    spool_id: str
    first_sequence: int
    leaves: tuple[bytes, ...]


def decode_append(request: pb.AppendRequest, service: str, replica_id: str) -> AppendFrame:
    """Return the frame of a stream that `service` opened and `replica_id` sends on ("" in its first frame).

    Raises INVALID_FIELD, PAYLOAD_TOO_LARGE, or IDENTITY_MISMATCH for an entry of another replica.
    """
    size_bytes = request.ByteSize()
    if size_bytes > FRAME_BYTES_MAX + _FRAME_FIELDS_BYTES_MAX:
        raise _too_large("a frame", FRAME_BYTES_MAX, size_bytes)
    if not 1 <= len(request.entries) <= FRAME_ENTRIES_MAX:
        raise invalid("entries", f"must be 1 to {FRAME_ENTRIES_MAX}, not {len(request.entries)}")
    if not 1 <= request.first_sequence_number <= _SEQUENCE_MAX:
        raise invalid("first_sequence_number", "must start at 1")
    if _SPOOL_ID.match(request.spool_id) is None:
        raise invalid("spool_id", "must be 1 to 64 of [A-Za-z0-9._-]")
    replica_id = replica_id or request.entries[0].replica_id
    if NAME_64.match(replica_id) is None:
        raise invalid("entries[0].replica_id", "must be 1 to 64 of [A-Za-z0-9._-]")
    id_prefix = f"{service}/{replica_id}/"
    leaves = []
    for at, entry in enumerate(request.entries):
        _check_entry(entry, at, replica_id, id_prefix)
        # From the certificate, whatever the producer wrote.
        entry.service = service
        leaf = entry.SerializeToString(deterministic=True)
        if len(leaf) > LEAF_BYTES_MAX:
            raise _too_large(f"entries[{at}]", LEAF_BYTES_MAX, len(leaf))
        leaves.append(leaf)
    return AppendFrame(replica_id, request.spool_id, request.first_sequence_number, tuple(leaves))


def encode_own(draft: EntryDraft, entry_id: str, replica_id: str) -> bytes:
    """Return the leaf of an entry of the audit service itself."""
    return encode_entry(draft, entry_id, replica_id, "audit")


def index_row(leaf: bytes) -> IndexRow:
    """Return the facts by which the entry of a leaf can be found."""
    entry = entry_pb2.Entry.FromString(leaf)
    group = entry.group if entry.HasField("group") else None
    return IndexRow(
        _instant(entry.event_time),
        entry.service,
        entry.actor,
        entry.operation,
        entry.subject,
        entry.outcome,
        entry.collaboration_id,
        entry.cause_id,
        group and RowGroup(tuple(group.names), tuple(group.cause_ids), tuple(group.collaboration_ids)),
    )


def encode_logged(leaves: Iterable[Leaf]) -> list[entry_pb2.LoggedEntry]:
    """Return leaves as readers get them."""
    answers = []
    for leaf in leaves:
        logged = entry_pb2.LoggedEntry(leaf_index=leaf.index, leaf=leaf.data, group_positions=leaf.positions)
        logged.entry.ParseFromString(leaf.data)
        answers.append(logged)
    return answers


def decode_filter(request: pb.QueryRequest) -> EntryFilter:
    """Return what a query wants; INVALID_FIELD names each field that cannot be wanted."""
    too_long = [field for field in _FILTER_TEXTS if _longer(getattr(request, field), TEXT_BYTES_MAX)]
    violations = [FieldViolation(field, f"must have at most {TEXT_BYTES_MAX} bytes") for field in too_long]
    violations += [
        FieldViolation(f"outcomes[{at}]", "must be one of the Outcome values but 0")
        for at, outcome in enumerate(request.outcomes)
        if outcome not in _OUTCOMES
    ]
    start_time = request.start_time if request.HasField("start_time") else None
    end_time = request.end_time if request.HasField("end_time") else None
    violations += [
        FieldViolation(field, "must be a time of the years 1 to 9999")
        for field, time in (("start_time", start_time), ("end_time", end_time))
        if time is not None and not _valid_time(time)
    ]
    if violations:
        raise _invalid_fields(violations)
    return EntryFilter(
        service=request.service,
        actor=request.actor,
        operation=request.operation,
        subject=request.subject,
        outcomes=frozenset(request.outcomes),
        start_time=None if start_time is None else _instant_from(start_time),
        end_time=None if end_time is None else _instant_from(end_time),
        collaboration_id=request.collaboration_id,
        cause_id=request.cause_id,
    )


def decode_tail_filter(request: pb.TailRequest) -> EntryFilter:
    """Return what a tail wants."""
    return decode_filter(pb.QueryRequest(collaboration_id=request.collaboration_id))


def filter_facts(wanted: EntryFilter) -> dict[str, str]:
    """Return what was asked for, as attributes of the entry about it."""
    facts = {field: str(getattr(wanted, field)) for field in _FILTER_TEXTS if getattr(wanted, field)}
    if wanted.outcomes:
        facts["outcomes"] = ",".join(Outcome(one).name for one in sorted(wanted.outcomes))
    for field in ("start_time", "end_time"):
        if (instant := getattr(wanted, field)) is not None:
            facts[field] = str(instant)
    return facts


def decode_page_size(page_size: int) -> int:
    """Return how many entries a page may have."""
    if page_size > PAGE_SIZE_MAX:
        raise invalid("page.page_size", f"must be at most {PAGE_SIZE_MAX}")
    return page_size or PAGE_SIZE_DEFAULT


def _check_entry(entry: entry_pb2.Entry, at: int, replica_id: str, id_prefix: str) -> None:
    if entry.replica_id != replica_id:
        raise ServiceError(
            Reason.IDENTITY_MISMATCH,
            f"entries[{at}].replica_id is {entry.replica_id[:64]!r}, but this stream is {replica_id}'s: "
            "open a stream per replica",
        )
    # The usual entry is small as a whole, so that no text of it can be too long.
    if (
        not entry.HasField("group")
        and entry.ByteSize() <= TEXT_BYTES_MAX
        and entry.entry_id.startswith(id_prefix)
        and len(entry.entry_id) * 4 <= ENTRY_ID_BYTES_MAX
        and entry.outcome in _OUTCOMES
        and entry.actor
        and entry.operation
        and entry.HasField("event_time")
        and _valid_time(entry.event_time)
        and len(entry.attributes) <= ATTRIBUTES_MAX
    ):
        return
    if violations := _violations(entry, id_prefix):
        path = f"entries[{at}]."
        raise _invalid_fields([FieldViolation(path + one.field, one.description) for one in violations])


def _violations(entry: entry_pb2.Entry, id_prefix: str) -> list[FieldViolation]:
    id_fits = entry.entry_id.startswith(id_prefix) and not _longer(entry.entry_id, ENTRY_ID_BYTES_MAX)
    checks = [
        (id_fits, "entry_id", f"must begin with {id_prefix!r} and have at most {ENTRY_ID_BYTES_MAX} bytes"),
        (
            entry.HasField("event_time") and _valid_time(entry.event_time),
            "event_time",
            "must be a time of the years 1 to 9999",
        ),
        (entry.outcome in _OUTCOMES, "outcome", "must be one of the Outcome values but 0"),
        (entry.actor != "", "actor", "must say who acted"),
        (entry.operation != "", "operation", "must say what was done"),
        (len(entry.attributes) <= ATTRIBUTES_MAX, "attributes", f"must be at most {ATTRIBUTES_MAX}"),
    ]
    texts = [(field, getattr(entry, field)) for field in _TEXTS]
    for key, value in entry.attributes.items():
        texts += [("attributes", key), (f"attributes[{key[:32]!r}]", value)]
    checks += [
        (not _longer(text, TEXT_BYTES_MAX), field, f"must have at most {TEXT_BYTES_MAX} bytes")
        for field, text in texts
    ]
    if entry.HasField("group"):
        checks += _group_checks(entry, entry.group)
    return [FieldViolation(field, description) for holds, field, description in checks if not holds]


def _group_checks(entry: entry_pb2.Entry, group: entry_pb2.Group) -> list[tuple[bool, str, str]]:
    count = len(group.names)
    lists = [
        ("group.cause_ids", group.cause_ids, entry.cause_id),
        ("group.collaboration_ids", group.collaboration_ids, entry.collaboration_id),
        ("group.traceparents", group.traceparents, entry.traceparent),
    ]
    for key, column in group.attributes.items():
        lists.append((f"group.attributes[{key[:32]!r}]", column.values, entry.attributes.get(key, "")))
    attributes = len(entry.attributes) + len(group.attributes)
    checks = [
        (GROUP_MIN <= count <= GROUP_MAX, "group.names", f"must be {GROUP_MIN} to {GROUP_MAX}"),
        (
            attributes <= ATTRIBUTES_MAX,
            "group.attributes",
            f"must be {ATTRIBUTES_MAX} with the entry's",
        ),
        (_all_fit(group.names, len(entry.subject.encode())), "group.names", _TOO_LONG),
        (_all_fit(group.attributes, 0), "group.attributes", _TOO_LONG),
    ]
    for field, values, shared in lists:
        checks += [
            (len(values) in (0, count), field, "must be as many as the names, or none"),
            (not (values and shared), field, "must not be beside the entry's own"),
            (_all_fit(values, 0), field, _TOO_LONG),
        ]
    return checks


def _all_fit(texts: Collection[str], taken_bytes: int) -> bool:
    room = TEXT_BYTES_MAX - taken_bytes
    # Of a hundred texts the longest nearly always answers for all.
    if len(max(texts, key=len, default="")) * 4 <= room:
        return True
    return not any(_longer(text, room) for text in texts)


def _longer(text: str, limit_bytes: int) -> bool:
    # UTF-8 takes one to four bytes a character: most texts need no encoding to be judged.
    if len(text) * 4 <= limit_bytes:
        return False
    return len(text) > limit_bytes or len(text.encode()) > limit_bytes


def _valid_time(time: Timestamp) -> bool:
    return _SECONDS_MIN <= time.seconds <= _SECONDS_MAX and 0 <= time.nanos <= 999_999_999


def _instant(time: Timestamp) -> Instant:
    """Return the millisecond in which `time` lies."""
    return Instant(time.seconds * 1_000 + time.nanos // 1_000_000)


def _instant_from(time: Timestamp) -> Instant:
    """Return the first whole millisecond that is not before `time`."""
    return Instant(time.seconds * 1_000 - -time.nanos // 1_000_000)


def _too_large(what: str, limit_bytes: int, size_bytes: int) -> ServiceError:
    return ServiceError(
        Reason.PAYLOAD_TOO_LARGE,
        f"{what} has {size_bytes} bytes, more than {limit_bytes}: send less at once",
        metadata={"limit_bytes": str(limit_bytes), "size_bytes": str(size_bytes)},
    )


def _invalid_fields(violations: list[FieldViolation]) -> ServiceError:
    first = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return ServiceError(Reason.INVALID_FIELD, f"{first.field} {first.description}{more}", tuple(violations))
