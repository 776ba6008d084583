"""The audit service's protos: golden bytes of a leaf, round trips, hostile input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from muster.audit.v1 import audit_service_pb2 as pb
from muster.audit.v1 import entry_pb2

from agent_client.operations import operation_count, operations, summary
from services.audit import wire
from services.audit.core.model import Leaf
from services.audit.core.query import EntryFilter, IndexRow, Operation, RowGroup
from services.common.core.entries import DraftGroup, EntryDraft, Outcome
from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import Instant
from services.common.outbox import add_entries, encode_entry

# What a leaf looks like; it must never change, or logs that were written before could not be checked.
GOLDEN_ENTRY = entry_pb2.Entry(
    entry_id="broker/broker-1/spool.7",
    replica_id="broker-1",
    actor="agent/field-1",
    operation="envelope.accept",
    subject="message/7",
    outcome=entry_pb2.OUTCOME_REFUSED,
    reason="MAILBOX_FULL",
    cause_id="rpc-1",
    collaboration_id="c-1",
    attributes={"zeta": "last", "alpha": "first", "mu": "中"},
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)
GOLDEN_ENTRY.event_time.seconds, GOLDEN_ENTRY.event_time.nanos = 1_700_000_000, 123_000_000
GOLDEN_LEAF = bytes.fromhex(
    "0a1762726f6b65722f62726f6b65722d312f73706f6f6c2e37120b0880e2cfaa0610c0a9d33a1a0662726f6b6572220862726f6b65"
    "722d312a0d6167656e742f6669656c642d31320f656e76656c6f70652e6163636570743a096d6573736167652f374002"
    "4a0c4d41494c424f585f46554c4c52057270632d315a03632d31620e0a05616c7068611205666972737462090a026d751203"
    "e4b8ad620c0a047a65746112046c6173746a3730302d3061663736353139313663643433646438343438656232313163383033"
    "3139632d623761643662373136393230333333312d3031"
)


def frame(*entries: entry_pb2.Entry, **fields: object) -> pb.AppendRequest:
    values = {"first_sequence_number": 1, "spool_id": "spool", **fields}
    return pb.AppendRequest(entries=entries, **values)  # type: ignore[arg-type]


def test_the_leaf_is_the_deterministic_encoding_of_the_entry() -> None:
    decoded = wire.decode_append(frame(GOLDEN_ENTRY), "broker", "")
    assert decoded.leaves == (GOLDEN_LEAF,)
    assert (decoded.replica_id, decoded.spool_id, decoded.first_sequence) == ("broker-1", "spool", 1)


@given(st.permutations(["zeta", "alpha", "mu"]))
def test_the_order_in_which_attributes_were_sent_does_not_matter(order: list[str]) -> None:
    entry = entry_pb2.Entry()
    entry.CopyFrom(GOLDEN_ENTRY)
    entry.attributes.clear()
    for key in order:
        entry.attributes[key] = GOLDEN_ENTRY.attributes[key]
    assert wire.decode_append(frame(entry), "broker", "").leaves == (GOLDEN_LEAF,)


def test_fields_of_a_newer_producer_are_kept() -> None:
    newer = entry_pb2.Entry.FromString(GOLDEN_ENTRY.SerializeToString() + b"\xaa\x06\x03new")
    (leaf,) = wire.decode_append(frame(newer), "broker", "").leaves
    assert leaf == GOLDEN_LEAF + b"\xaa\x06\x03new"
    assert wire.index_row(leaf).subject == "message/7"


def test_an_entry_is_read_back_as_it_was_sent() -> None:
    (logged,) = wire.encode_logged([Leaf(5, GOLDEN_LEAF)])
    assert logged.leaf_index == 5
    assert logged.leaf == GOLDEN_LEAF
    logged.entry.service = ""
    assert logged.entry == GOLDEN_ENTRY


def test_the_facts_of_a_leaf() -> None:
    assert wire.index_row(GOLDEN_LEAF) == IndexRow(
        Instant(1_700_000_000_123),
        "broker",
        "agent/field-1",
        "envelope.accept",
        "message/7",
        2,
        "c-1",
        "rpc-1",
    )


def entry_of(draft: EntryDraft) -> entry_pb2.Entry:
    """Return what the broker's outbox makes of a draft."""
    return entry_pb2.Entry.FromString(encode_entry(draft, "broker/broker-1/0123456789abcdef.7", "broker-1"))


def test_own_entries_are_like_all_others() -> None:
    draft = EntryDraft(
        Instant(1_500), "operator/admin", "entries.query", "log/x", Outcome.OK, cause_id="rpc-1"
    )
    leaf = wire.encode_own(draft, "audit/audit-1/1", "audit-1")
    entry = entry_pb2.Entry.FromString(leaf)
    assert (entry.service, entry.replica_id, entry.entry_id) == ("audit", "audit-1", "audit/audit-1/1")
    assert leaf == entry.SerializeToString(deterministic=True)
    entry.ClearField("service")
    assert wire.decode_append(frame(entry), "audit", "").leaves == (leaf,)


@pytest.mark.parametrize(
    ("nanos", "instant"), [(0, 1_000), (1, 1_001), (500_000, 1_001), (1_000_000, 1_001), (999_999_999, 2_000)]
)
def test_a_filters_time_is_the_first_whole_millisecond_not_before_it(nanos: int, instant: int) -> None:
    request = pb.QueryRequest(start_time={"seconds": 1, "nanos": nanos})  # type: ignore[arg-type]
    assert wire.decode_filter(request).start_time == instant


def test_a_query_is_read_with_all_its_fields() -> None:
    request = pb.QueryRequest(
        actor="agent/a",
        operation="task.*",
        subject="task/*",
        collaboration_id="c-1",
        outcomes=[entry_pb2.OUTCOME_FAILED, entry_pb2.OUTCOME_TIMED_OUT],
        start_time={"seconds": 1},  # type: ignore[arg-type]
        end_time={"seconds": 2},  # type: ignore[arg-type]
        service="scheduler",
        cause_id="rpc-1",
    )
    wanted = wire.decode_filter(request)
    assert wanted == EntryFilter(
        service="scheduler",
        actor="agent/a",
        operation="task.*",
        subject="task/*",
        outcomes=frozenset({3, 5}),
        start_time=Instant(1_000),
        end_time=Instant(2_000),
        collaboration_id="c-1",
        cause_id="rpc-1",
    )
    assert wire.filter_facts(wanted) == {
        "service": "scheduler",
        "actor": "agent/a",
        "operation": "task.*",
        "subject": "task/*",
        "outcomes": "FAILED,TIMED_OUT",
        "start_time": "1000",
        "end_time": "2000",
        "collaboration_id": "c-1",
        "cause_id": "rpc-1",
    }


texts = st.one_of(
    st.text(max_size=20), st.builds("".join, st.lists(st.sampled_from(["x" * 400, "中" * 300]), max_size=6))
)


@st.composite
def drafted_groups(draw: st.DrawFn) -> DraftGroup:
    """What one entry says of several operations: each list is empty, or as long as the names."""
    count = draw(st.integers(2, 40))
    columns = st.one_of(st.just(()), st.lists(texts, min_size=count, max_size=count))
    names = draw(st.lists(texts, min_size=count, max_size=count))
    facts = draw(
        st.dictionaries(st.integers(0, 40), st.lists(texts, min_size=count, max_size=count), max_size=3)
    )
    return DraftGroup(
        names,
        draw(columns),
        draw(columns),
        draw(columns),
        {f"fact-{at}": values for at, values in facts.items()},
    )


def consistent(draft: EntryDraft) -> EntryDraft:
    """Return the draft without what its group says too."""
    group = draft.group
    if group is None:
        return draft
    return draft._replace(
        cause_id="" if group.cause_ids else draft.cause_id,
        collaboration_id="" if group.collaboration_ids else draft.collaboration_id,
        traceparent="" if group.traceparents else draft.traceparent,
    )


@given(
    st.builds(
        EntryDraft,
        event_time=st.builds(Instant, st.integers(-(10**13), 10**14)),
        actor=texts,
        operation=texts,
        subject=texts,
        outcome=st.sampled_from(Outcome),
        reason=texts,
        cause_id=texts,
        collaboration_id=texts,
        attributes=st.dictionaries(texts, texts, max_size=40),
        traceparent=texts,
        group=st.one_of(st.none(), drafted_groups()),
    ).map(consistent)
)
def test_whatever_an_outbox_has_to_record_is_taken(draft: EntryDraft) -> None:
    # One entry that is refused would stop all that its outbox holds behind it.
    payloads: list[bytes] = []
    add_entries(payloads, [draft], "broker/broker-1/0123456789abcdef.", 7, "broker-1")
    entries = [entry_pb2.Entry.FromString(payload) for payload in payloads]
    assert [entry.entry_id.rpartition(".")[2] for entry in entries] == [
        str(7 + n) for n in range(len(entries))
    ]
    assert sum(operation_count(entry) for entry in entries) == draft.operation_count
    for entry in entries:
        assert len(wire.decode_append(frame(entry), "broker", "").leaves) == 1


GROUPED_ENTRY = entry_pb2.Entry(
    entry_id="broker/broker-1/spool.8",
    replica_id="broker-1",
    actor="agent/field-1",
    operation="envelope.ack",
    subject="envelope/alpha/",
    outcome=entry_pb2.OUTCOME_OK,
    attributes={"lane": "NORMAL", "receiver": "field-1"},
    group=entry_pb2.Group(
        names=["m-1", "m-2"],
        cause_ids=["", "attempt-7"],
        collaboration_ids=["c-1", ""],
        traceparents=["", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
        attributes={"sequence": {"values": ["7", "8"]}, "correlation_id": {"values": ["", "k-1"]}},  # type: ignore[dict-item]
    ),
)
GROUPED_ENTRY.event_time.seconds = 1_700_000_000
# As GOLDEN_LEAF: it must never change.
GROUPED_LEAF = bytes.fromhex(
    "0a1762726f6b65722f62726f6b65722d312f73706f6f6c2e3812060880e2cfaa061a0662726f6b6572220862726f6b65"
    "722d312a0d6167656e742f6669656c642d31320c656e76656c6f70652e61636b3a0f656e76656c6f70652f616c706861"
    "2f4001620e0a046c616e6512064e4f524d414c62130a08726563656976657212076669656c642d317288010a036d2d31"
    "0a036d2d3212001209617474656d70742d371a03632d311a002200223730302d30616637363531393136636434336464"
    "383434386562323131633830333139632d623761643662373136393230333333312d30312a190a0e636f7272656c6174"
    "696f6e5f696412070a000a036b2d312a120a0873657175656e636512060a01370a0138"
)


def test_the_leaf_of_a_group_and_its_facts() -> None:
    (leaf,) = wire.decode_append(frame(GROUPED_ENTRY), "broker", "").leaves
    assert leaf.hex() == GROUPED_LEAF.hex()
    assert wire.index_row(leaf) == IndexRow(
        Instant(1_700_000_000_000),
        "broker",
        "agent/field-1",
        "envelope.ack",
        "envelope/alpha/",
        1,
        "",
        "",
        RowGroup(("m-1", "m-2"), ("", "attempt-7"), ("c-1", "")),
    )
    assert list(wire.index_row(leaf).operations()) == [
        Operation("envelope/alpha/m-1", "c-1", "m-1"),
        Operation("envelope/alpha/m-2", "", "attempt-7"),
    ]


def test_the_client_and_the_service_tell_operations_apart_alike() -> None:
    first, second = operations(GROUPED_ENTRY)
    assert [(one.subject, one.collaboration_id, one.cause_id) for one in (first, second)] == [
        tuple(one) for one in wire.index_row(GROUPED_LEAF).operations()
    ]
    assert dict(first.attributes) == {"lane": "NORMAL", "receiver": "field-1", "sequence": "7"}
    assert dict(second.attributes) == {
        "lane": "NORMAL",
        "receiver": "field-1",
        "sequence": "8",
        "correlation_id": "k-1",
    }
    assert (first.traceparent, second.traceparent[:3]) == ("", "00-")
    assert not first.HasField("group")
    assert first.entry_id == second.entry_id == GROUPED_ENTRY.entry_id
    assert operations(GROUPED_ENTRY, [1, 2]) == [second]
    assert summary(GROUPED_ENTRY) == "envelope/alpha/ 2 from m-1 to m-2"
    assert summary(GROUPED_ENTRY, [1]) == "envelope/alpha/m-2"


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("group.names", lambda entry: entry.group.names.pop()),
        ("group.names", lambda entry: entry.group.names.extend(["m"] * 1_023)),
        ("group.names", lambda entry: entry.group.names.__setitem__(0, "x" * 1_010)),
        ("group.cause_ids", lambda entry: entry.group.cause_ids.pop()),
        ("group.cause_ids", lambda entry: setattr(entry, "cause_id", "c")),
        ("group.collaboration_ids", lambda entry: entry.group.collaboration_ids.append("c")),
        ("group.collaboration_ids", lambda entry: setattr(entry, "collaboration_id", "c")),
        ("group.traceparents", lambda entry: entry.group.traceparents.pop()),
        ("group.traceparents", lambda entry: setattr(entry, "traceparent", "00")),
        ("group.attributes['sequence']", lambda entry: entry.group.attributes["sequence"].values.pop()),
        (
            "group.attributes['sequence']",
            lambda entry: entry.group.attributes["sequence"].values.__setitem__(0, "中" * 400),
        ),
        ("group.attributes['sequence']", lambda entry: entry.attributes.update({"sequence": "7"})),
        ("group.attributes", lambda entry: entry.attributes.update({f"k{n}": "v" for n in range(29)})),
    ],
)
def test_a_group_that_contradicts_itself_is_refused(
    field: str, change: Callable[[entry_pb2.Entry], object]
) -> None:
    entry = entry_pb2.Entry()
    entry.CopyFrom(GROUPED_ENTRY)
    change(entry)
    with pytest.raises(ServiceError) as caught:
        wire.decode_append(frame(entry), "broker", "")
    assert caught.value.reason is Reason.INVALID_FIELD
    assert f"entries[0].{field}" in {one.field for one in caught.value.violations}


def test_the_largest_entry_of_an_outbox_fits_a_leaf() -> None:
    full = "x" * 2_000
    attributes = {f"{n:03}{full}": full for n in range(32)}
    draft = EntryDraft(Instant(1), full, full, full, Outcome.OK, full, full, full, attributes, full)
    entry = entry_of(draft)
    (leaf,) = wire.decode_append(frame(entry), "broker", "").leaves
    assert 40_000 < len(leaf) < 65_535


@given(st.binary(max_size=200))
def test_hostile_bytes_are_no_frame_or_a_refused_one(raw: bytes) -> None:
    try:
        request = pb.AppendRequest.FromString(raw)
    except DecodeError:
        return
    with pytest.raises(ServiceError) as caught:
        wire.decode_append(request, "broker", "")
    assert caught.value.row.code in ("INVALID_ARGUMENT", "PERMISSION_DENIED")


@given(st.data())
def test_a_changed_frame_is_taken_or_refused_with_its_field(data: st.DataObject) -> None:
    raw = bytearray(frame(GOLDEN_ENTRY, GOLDEN_ENTRY).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = wire.decode_append(pb.AppendRequest.FromString(bytes(raw)), "broker", "broker-1")
    except DecodeError:
        return
    except ServiceError as error:
        named = bool(error.violations) or error.reason is Reason.IDENTITY_MISMATCH
    else:
        named = all(wire.index_row(leaf).service == "broker" for leaf in decoded.leaves)
    assert named


@given(st.binary(max_size=100))
def test_hostile_bytes_are_no_query_or_one_that_can_be_judged(raw: bytes) -> None:
    try:
        request = pb.QueryRequest.FromString(raw)
    except DecodeError:
        return
    try:
        wire.decode_filter(request)
    except ServiceError as error:
        named = bool(error.violations)
    else:
        named = True
    assert named
