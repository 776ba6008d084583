"""Key ranges, conditions and endpoints, without an etcd."""

from __future__ import annotations

import pytest
from aetcd import rpc
from hypothesis import given
from hypothesis import strategies as st

from services.common.etcd.channel import target
from services.common.etcd.errors import CompactedError, LeaseGoneError
from services.common.etcd.follow import Mirror, Snapshot
from services.common.etcd.messages import (
    answers,
    compare_message,
    encode_txn,
    operation_message,
    range_of,
)
from services.common.etcd.ops import (
    Compare,
    Delete,
    Done,
    Get,
    KeyEvent,
    KeyValue,
    Operation,
    Put,
    Rows,
    WatchBatch,
    decode_key,
    encode_key,
    prefix_end,
)


@given(st.binary(min_size=1, max_size=8), st.binary(max_size=8))
def test_a_prefix_range_holds_exactly_the_keys_with_the_prefix(prefix: bytes, other: bytes) -> None:
    end = prefix_end(prefix)
    for key in (prefix + other, other):
        inside = key >= prefix and (end == b"\0" or key < end)
        assert inside == key.startswith(prefix)


@given(st.binary(max_size=32))
def test_any_key_survives_as_text(key: bytes) -> None:
    assert encode_key(decode_key(key)) == key


def test_ranges() -> None:
    assert range_of("/a", prefix=False) == (b"/a", b"")
    assert range_of("/a", prefix=True) == (b"/a", b"/b")
    # The whole key space.
    assert range_of("", prefix=True) == (b"\0", b"\0")


def test_conditions_become_messages() -> None:
    message = compare_message(Compare.unchanged_since("/a", 7))
    assert (message.key, message.mod_revision, message.result) == (b"/a", 7, message.EQUAL)
    message = compare_message(Compare("/a", "lease", ">", 5))
    assert (message.lease, message.result, message.target) == (5, message.GREATER, message.LEASE)
    assert compare_message(Compare.value_is("/a", b"\xff")).value == b"\xff"
    assert compare_message(Compare.absent("/a")).create_revision == 0


def test_operations_become_messages() -> None:
    assert operation_message(Put("/a", b"1", 9)).request_put.lease == 9
    assert operation_message(Delete("/a", prefix=True)).request_delete_range.range_end == b"/b"
    request = operation_message(Get("/a", limit=3, order="newest", create_revision_max=4)).request_range
    assert (request.limit, request.max_create_revision) == (3, 4)
    assert (request.sort_order, request.sort_target) == (request.DESCEND, request.CREATE)


_KEYS = st.text(max_size=200) | st.binary(max_size=200).map(decode_key)
_OPERATIONS = st.one_of(
    st.builds(Put, _KEYS, st.binary(max_size=20_000), st.integers(0, 2**62)),
    st.builds(Delete, _KEYS, st.booleans()),
    st.builds(Get, _KEYS, st.booleans(), st.integers(0, 9)),
)


@given(st.lists(_OPERATIONS, max_size=5), st.lists(_OPERATIONS, max_size=5), _KEYS)
def test_a_transaction_put_together_by_hand_is_the_generated_codes(
    success: list[Operation], failure: list[Operation], key: str
) -> None:
    guard = Compare.created_at(key, 2**40)
    expected = rpc.TxnRequest(
        compare=[compare_message(guard)],
        success=[operation_message(operation) for operation in success],
        failure=[operation_message(operation) for operation in failure],
    )
    assert rpc.TxnRequest.FromString(encode_txn([guard], success, failure)) == expected


def test_answers_follow_the_operations_that_ran() -> None:
    kv = rpc.KeyValue(key=b"/a", value=b"1", mod_revision=4)
    responses = [
        rpc.ResponseOp(response_put=rpc.PutResponse()),
        rpc.ResponseOp(response_delete_range=rpc.DeleteRangeResponse(deleted=2)),
        rpc.ResponseOp(response_range=rpc.RangeResponse(kvs=[kv])),
    ]
    response = rpc.TxnResponse(header=rpc.ResponseHeader(revision=7), responses=responses)
    found = answers([Put("/a", b""), Delete("/b"), Get("/a")], response)
    assert found == (Done(), Done(), Rows(7, (KeyValue("/a", b"1", 0, 4, 0),)))
    assert answers([Put("/a", b"")] * 2, rpc.TxnResponse(responses=responses[:1] * 2)) == (Done(),) * 2


def test_targets() -> None:
    assert target(["127.0.0.1:1", "127.0.0.2:2"]) == "ipv4:127.0.0.1:1,127.0.0.2:2"
    assert target(["[::1]:1", "[::2]:2"]) == "ipv6:[::1]:1,[::2]:2"
    assert target(["etcd.muster.svc:2379"]) == "dns:///etcd.muster.svc:2379"


@pytest.mark.parametrize(
    ("endpoints", "part"),
    [
        ([], "no etcd endpoint"),
        (["127.0.0.1"], "not host:port"),
        (["https://127.0.0.1:2379"], "not host:port"),
        (["a:1", "b:2"], "one DNS name"),
        (["a:1", "127.0.0.1:2"], "one DNS name"),
        (["127.0.0.1:1", "[::1]:1"], "one family"),
    ],
)
def test_endpoints_that_can_not_work_are_refused(endpoints: list[str], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        target(endpoints)


def test_etcds_own_errors_are_definite() -> None:
    assert CompactedError(5).row.definite
    assert LeaseGoneError(5).row.definite
    assert "5" in str(LeaseGoneError(5))


def test_a_mirror_follows_snapshots_and_changes() -> None:
    def kv(key: str, revision: int) -> KeyValue:
        return KeyValue(key, b"", revision, revision, 1)

    mirror = Mirror()
    assert mirror.apply(Snapshot(3, (kv("a", 1), kv("b", 2))))
    assert not mirror.apply(WatchBatch(4, ()))
    assert mirror.apply(WatchBatch(5, (KeyEvent(kv("c", 5), False), KeyEvent(kv("a", 5), True))))
    assert set(mirror.kvs) == {"b", "c"}
    # Deleting what is not there is fine: the event may be older than the snapshot.
    assert mirror.apply(WatchBatch(6, (KeyEvent(kv("z", 6), True),)))
    mirror.apply(Snapshot(9, (kv("d", 9),)))
    assert set(mirror.kvs) == {"d"}
