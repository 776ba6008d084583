"""The broker's hand-written bytes against the generated classes, and its reading of what may come."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from muster.broker.v1 import broker_service_pb2 as pb
from muster.common.v1 import envelope_pb2, priority_pb2

from services.broker.core.addresses import address_text, is_mailbox
from services.broker.core.events import Extend, Nack, Reject
from services.broker.core.model import (
    Chosen,
    DeadLetter,
    DeadReason,
    Delivery,
    DomainKey,
    Draft,
    Envelope,
    Lane,
    RefusedDraft,
    Route,
    RoutedDraft,
    RouteKind,
    SendOutcome,
    StoredDeadLetter,
    Tombstone,
)
from services.broker.wire import requests, responses
from services.broker.wire.facts import envelope_facts
from services.broker.wire.handshake import FEATURES, Terms, read_hello
from services.common import protobuf
from services.common.core.errors import Reason, ServiceError, invalid
from services.common.core.instants import Instant
from services.common.rpc.status import from_status

ALL = Terms(1, FEATURES)
U64 = st.integers(0, 2**64 - 1)
TEXT = st.text("abcdefghijklmnopqrstuvwxyz0123456789._-", min_size=1, max_size=64)


def delivered(*deliveries: Delivery) -> list[pb.Delivery]:
    raw = b"".join(responses.deliveries(deliveries))
    return list(pb.MailboxResponse.FromString(raw).deliveries)


def an_envelope(body: bytes = b"", **fields: int) -> Envelope:
    key = DomainKey("alpha", "beta", Lane.HIGH)
    draft = Draft("m-1", "beta", Lane.HIGH, True, 60_000, 3, b"12345678", body)
    return Envelope(
        key, fields.get("sequence", 7), Instant(fields.get("accepted_at", 1_700_000_000_123)), draft
    )


@given(U64)
def test_varints_are_protobufs(number: int) -> None:
    raw = protobuf.varint(3 << 3) + protobuf.varint(number)
    assert pb.Ack.FromString(protobuf.varint(1 << 3) + protobuf.varint(number)).ack_token == number
    assert raw == protobuf.scalar(3, number)


@given(
    st.integers(1, 2**63 - 1),
    st.integers(1, 2**40),
    st.integers(0, 2**42),
    st.integers(1, 200),
    st.binary(max_size=300),
)
def test_a_delivery_is_what_the_generated_class_reads(
    token: int, sequence: int, accepted_at: int, number: int, payload: bytes
) -> None:
    sent = envelope_pb2.Envelope(message_id="m-1", receiver_id="beta", requires_ack=True, correlation_id="c")
    sent.payload.data = payload
    envelope = an_envelope(sent.SerializeToString(), sequence=sequence, accepted_at=accepted_at)
    (delivery,) = delivered(Delivery(token, envelope, number, Instant(accepted_at + 30_000)))
    got = delivery.envelope
    assert (delivery.ack_token, delivery.delivery_number) == (token, number)
    assert delivery.ack_deadline_time.ToMilliseconds() == accepted_at + 30_000
    assert (got.message_id, got.receiver_id, got.payload.data, got.correlation_id) == (
        "m-1",
        "beta",
        payload,
        "c",
    )
    assert (got.sender_id, got.sequence_number, got.retry_count) == ("alpha", sequence, number - 1)
    assert got.accepted_time.ToMilliseconds() == accepted_at


def test_the_brokers_fields_win_over_what_a_sender_wrote_there() -> None:
    sent = envelope_pb2.Envelope(sender_id="mallory", sequence_number=999, retry_count=50)
    sent.accepted_time.seconds, sent.accepted_time.nanos = 9, 999_999_999
    envelope = an_envelope(sent.SerializeToString(), accepted_at=5_000)
    (delivery,) = delivered(Delivery(3, envelope, 1, Instant(6_000)))
    got = delivery.envelope
    assert (got.sender_id, got.sequence_number, got.retry_count) == ("alpha", 7, 0)
    assert (got.accepted_time.seconds, got.accepted_time.nanos) == (5, 0)
    assert responses.envelope_proto(envelope).SerializeToString() == got.SerializeToString()


def test_fields_of_a_newer_version_travel_on() -> None:
    unknown = protobuf.block(200, b"from the future")
    (delivery,) = delivered(Delivery(3, an_envelope(unknown), 1, Instant(1)))
    assert unknown in delivery.envelope.SerializeToString()


def test_many_deliveries_come_in_pieces_and_in_order() -> None:
    sent = envelope_pb2.Envelope(message_id="x" * 64)
    sent.payload.data = bytes(60_000)
    body = sent.SerializeToString()
    many = [Delivery(token, an_envelope(body, sequence=token), 1, Instant(0)) for token in range(1, 31)]
    pieces = list(responses.deliveries(many))
    assert len(pieces) > 5
    read = [one for piece in pieces for one in pb.MailboxResponse.FromString(piece).deliveries]
    assert [one.ack_token for one in read] == list(range(1, 31))
    assert not read[0].HasField("ack_deadline_time")


@given(st.lists(st.tuples(TEXT, U64, st.booleans()), max_size=20))
def test_outcomes_are_what_the_generated_class_reads(rows: list[tuple[str, int, bool]]) -> None:
    error = invalid("sends[0].ttl", "too short")
    answered = [SendOutcome(name, number, error if bad else None) for name, number, bad in rows]
    read = pb.MailboxResponse.FromString(responses.outcomes(answered)).accepted
    assert [(one.message_id, one.sequence_number, one.HasField("error")) for one in read] == rows
    for one in read:
        if one.HasField("error"):
            assert from_status(one.error).reason is Reason.INVALID_FIELD


@given(st.lists(U64, max_size=50))
def test_tokens_are_what_the_generated_class_reads(tokens: list[int]) -> None:
    frame = pb.MailboxResponse.FromString(responses.settled(tokens) + responses.recalled(tokens[::-1]))
    assert (list(frame.settled), list(frame.recalled)) == (tokens, tokens[::-1])


def test_pieces_add_up_to_one_frame() -> None:
    key = DomainKey("alpha", "beta", Lane.LOW)
    stones = [Tombstone(3, 3, "m-3", DeadReason.EXPIRED), Tombstone(4, 9, "", DeadReason.REJECTED)]
    raw = (
        responses.welcome(
            Terms(1, frozenset({"routes"})), 12, ack_deadline_ms=30_000, payload_bytes_max=65_536
        )
        + responses.settled([1])
        + responses.settled([2])
        + b"".join(responses.refusals([5, 2**50], ServiceError(Reason.STALE_ACK_TOKEN, "late")))
        + responses.tombstones(key, stones)
        + responses.send_credits(0)
        + responses.send_credits(300)
    )
    frame = pb.MailboxResponse.FromString(raw)
    assert (frame.welcome.version, frame.welcome.waiting_count, frame.send_credits) == (1, 12, 300)
    assert frame.welcome.features == ["routes"]
    assert frame.welcome.ack_deadline.ToMilliseconds() == 30_000
    assert list(frame.settled) == [1, 2]
    assert from_status(frame.refusals[0].error).reason is Reason.STALE_ACK_TOKEN
    first, second = frame.tombstones
    assert (first.sequence_number, first.first_sequence_number, first.reason) == (3, 0, 1)
    assert (second.sequence_number, second.first_sequence_number, second.message_id) == (9, 4, "")
    assert (second.sender_id, second.priority) == ("alpha", priority_pb2.PRIORITY_LOW)


def test_the_numbers_of_the_core_are_the_protos() -> None:
    assert {lane.name: int(lane) for lane in Lane} == {
        name.removeprefix("PRIORITY_"): number for name, number in priority_pb2.Priority.items() if number
    }
    assert {reason.name: int(reason) for reason in DeadReason} == {
        name.removeprefix("TOMBSTONE_REASON_"): number
        for name, number in pb.TombstoneReason.items()
        if number
    }


def test_a_dead_letter_is_whole() -> None:
    body = envelope_pb2.Envelope(message_id="m-1").SerializeToString()
    letter = DeadLetter(an_envelope(body), DeadReason.DELIVERIES_EXHAUSTED, "failed", Instant(9_000), 4)
    read = responses.dead_letter(StoredDeadLetter(17, letter))
    assert (read.dead_letter_id, read.reason, read.message, read.delivery_count) == (17, 2, "failed", 4)
    assert (read.envelope.sender_id, read.envelope.retry_count) == ("alpha", 4)
    assert read.dead_time.ToMilliseconds() == 9_000


# -- what comes in


def good(**fields: object) -> envelope_pb2.Envelope:
    made = envelope_pb2.Envelope(
        message_id="m-1", receiver_id="beta", message_type=envelope_pb2.MESSAGE_TYPE_HEARTBEAT
    )
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def read(envelope: envelope_pb2.Envelope, terms: Terms = ALL) -> Draft | RoutedDraft | RefusedDraft:
    return requests.read_envelope(envelope, 0, "alpha", 1_000, terms)


def test_what_is_unset_has_its_default() -> None:
    draft = read(good())
    assert isinstance(draft, Draft)
    assert (draft.lane, draft.ttl_ms, draft.retry_max, draft.requires_ack) == (Lane.NORMAL, 300_000, 3, False)
    assert isinstance(zero := read(good(retry_max=0)), Draft)
    assert zero.retry_max == 0


def test_the_fingerprint_stands_for_the_content() -> None:
    drafts = [read(good()), read(good()), read(good(correlation_id="c")), read(good(priority=1))]
    marks = [one.fingerprint for one in drafts if isinstance(one, Draft)]
    assert marks[0] == marks[1]
    assert len(set(marks)) == 3
    assert all(len(mark) == requests.FINGERPRINT_BYTES for mark in marks)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1))
def test_any_duration_is_read_or_refused(seconds: int, nanos: int) -> None:
    envelope = good()
    envelope.ttl.CopyFrom(Duration(seconds=seconds, nanos=nanos))
    draft = read(envelope)
    if isinstance(draft, Draft):
        assert requests.TTL_MS_MIN <= draft.ttl_ms <= requests.TTL_MS_MAX
    else:
        assert isinstance(draft, RefusedDraft)
        assert draft.error.violations[0].field == "sends[0].ttl"


def test_what_is_too_large_says_how_large_it_may_be() -> None:
    envelope = good()
    envelope.payload.data = bytes(1_001)
    refused = read(envelope)
    assert isinstance(refused, RefusedDraft)
    assert refused.error.metadata == {"limit_bytes": "1000", "size_bytes": "1001"}
    padded = envelope_pb2.Envelope.FromString(
        good().SerializeToString() + protobuf.block(200, bytes(requests.ENVELOPE_OVERHEAD_BYTES_MAX))
    )
    assert isinstance(refused := read(padded), RefusedDraft)
    assert refused.error.reason is Reason.PAYLOAD_TOO_LARGE


@pytest.mark.parametrize("address", ["alpha", "a", "field-1", "operator/admin"])
def test_good_addresses(address: str) -> None:
    assert is_mailbox(address)


@pytest.mark.parametrize(
    "address", ["", "Alpha", "-a", "a-", "a b", "operator/", "operator/A", "service/x", "a" * 65]
)
def test_bad_addresses(address: str) -> None:
    assert not is_mailbox(address)


def test_a_frame_is_read_whole() -> None:
    request = pb.MailboxRequest(credits=3, emergency_credits=4, sends=[good(), good(message_id="")])
    request.acks.add(ack_token=1)
    request.nacks.add(ack_token=2)
    request.nacks.add(ack_token=3).delay.FromMilliseconds(250)
    request.extends.add(ack_token=4).extension.FromMilliseconds(5_000)
    request.rejects.add(ack_token=5, reason="no")
    frame, size = requests.read_frame(request, 9, "alpha", 1_000, ALL)
    assert (frame.stream_id, frame.acks, frame.credits, frame.emergency_credits) == (9, [1], 3, 4)
    assert frame.settlings == [Nack(2, None), Nack(3, 250), Extend(4, 5_000), Reject(5, "no")]
    accepted, refused = frame.drafts
    assert isinstance(accepted, Draft)
    assert isinstance(refused, RefusedDraft)
    assert size == len(accepted.body)


@pytest.mark.parametrize(
    ("address", "route"),
    [
        ("skill/shelter-planning", Route(RouteKind.SKILL, "shelter-planning")),
        ("collaboration/c-1A", Route(RouteKind.COLLABORATION, "c-1A")),
        ("topic/roads.closed", Route(RouteKind.TOPIC, "roads.closed")),
    ],
)
def test_an_address_of_many_is_kept_beside_the_receiver(address: str, route: Route) -> None:
    routed = read(good(receiver_id=address, requires_receiver=True))
    assert isinstance(routed, RoutedDraft)
    assert (routed.route, routed.requires_receiver, routed.message_id) == (route, True, "m-1")
    assert address_text(route) == address
    copy = Envelope(DomainKey("alpha", "beta", Lane.NORMAL), 4, Instant(5), routed.draft)
    (delivery,) = delivered(Delivery(3, copy, 1, Instant(6_000)))
    assert (delivery.envelope.receiver_id, delivery.envelope.address) == ("beta", address)
    # A repeat reads as the same.
    again = read(good(receiver_id=address, requires_receiver=True))
    assert isinstance(again, RoutedDraft)
    assert again.draft.fingerprint == routed.draft.fingerprint


@pytest.mark.parametrize(
    "address",
    [
        "skill/",
        "skill/A B",
        "topic/",
        "topic/a..b",
        "topic/a.*",
        "collaboration/",
        "team/x",
        "topic/" + "a" * 200,
    ],
)
def test_what_names_nothing_is_refused(address: str) -> None:
    refused = read(good(receiver_id=address))
    assert isinstance(refused, RefusedDraft)
    (violation,) = refused.error.violations
    assert violation.field == "sends[0].receiver_id"
    # It says what such an address is like.
    assert f"{address.partition('/')[0]}/<" in violation.description or address.startswith("team")


def test_routes_are_for_streams_that_agreed_on_them() -> None:
    refused = read(good(receiver_id="topic/roads"), Terms(1, frozenset()))
    assert isinstance(refused, RefusedDraft)
    assert "routes" in refused.error.violations[0].description


def test_one_instance_is_an_address_for_streams_that_agreed_on_it() -> None:
    terms = Terms(1, frozenset({"instances"}))
    taken = read(good(receiver_id="beta#north"), terms)
    assert isinstance(taken, Draft)
    assert taken.receiver == "beta#north"
    for other, feature in ((Terms(1, frozenset({"routes"})), "instances"), (terms, "routes")):
        address = "beta#north" if feature == "instances" else "topic/roads"
        refused = read(good(receiver_id=address), other)
        assert isinstance(refused, RefusedDraft)
        assert feature in refused.error.violations[0].description
    key = DomainKey("alpha", "beta#north", Lane.NORMAL)
    shared = Envelope(key._replace(receiver="beta"), 7, Instant(5), taken)
    both = delivered(
        Delivery(3, shared, 1, Instant(6_000)),
        Delivery(4, Envelope(key, 7, Instant(5), taken), 1, Instant(6_000)),
    )
    assert [one.envelope.receiver_id for one in both] == ["beta", "beta#north"]
    raw = responses.tombstones(key, [Tombstone(1, 1, "m-1", DeadReason.EXPIRED)])
    assert pb.MailboxResponse.FromString(raw).tombstones[0].receiver_id == "beta#north"
    raw = responses.tombstones(shared.key, [Tombstone(1, 1, "m-1", DeadReason.EXPIRED)])
    assert pb.MailboxResponse.FromString(raw).tombstones[0].receiver_id == ""


def test_nobody_says_for_the_broker_what_was_written() -> None:
    refused = read(good(address="topic/roads"))
    assert isinstance(refused, RefusedDraft)
    assert refused.error.violations[0].field == "sends[0].address"


@pytest.mark.parametrize("instance", ["north", "0", "a" * 64])
def test_a_reply_may_be_for_one_instance(instance: str) -> None:
    assert isinstance(read(good(reply_instance=instance)), Draft)


@pytest.mark.parametrize("instance", ["a b", "x#y", "a" * 65])
def test_what_names_no_instance_can_get_no_reply(instance: str) -> None:
    refused = read(good(reply_instance=instance))
    assert isinstance(refused, RefusedDraft)
    assert refused.error.violations[0].field == "sends[0].reply_instance"


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("traceparent", "tracestate", "field"),
    [
        ("", "", None),
        (TRACE, "", None),
        (TRACE, "vendor=1,other=2", None),
        (TRACE.replace("00-4", "ff-4"), "", "traceparent"),
        (TRACE.upper(), "", "traceparent"),
        (TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32), "", "traceparent"),
        (TRACE.replace("00f067aa0ba902b7", "0" * 16), "", "traceparent"),
        ("x" * 55, "", "traceparent"),
        (TRACE, "a=" + "b" * 600, "tracestate"),
        ("", "vendor=1", "tracestate"),
    ],
)
def test_traces_are_w3cs(traceparent: str, tracestate: str, field: str | None) -> None:
    got = read(good(traceparent=traceparent, tracestate=tracestate))
    if field is None:
        assert isinstance(got, Draft)
    else:
        assert isinstance(got, RefusedDraft)
        assert got.error.violations[0].field == f"sends[0].{field}"


def test_outcomes_say_who_was_chosen() -> None:
    answered = [
        SendOutcome("m-1", 7, None, Chosen("beta", 1)),
        SendOutcome("m-2", 0, None, Chosen("", 3)),
        SendOutcome("m-3", 0, None, Chosen("", 0)),
    ]
    read = pb.MailboxResponse.FromString(responses.outcomes(answered)).accepted
    assert [(one.sequence_number, one.receiver_id, one.receiver_count) for one in read] == [
        (7, "beta", 1),
        (0, "", 3),
        (0, "", 0),
    ]


def hello(**fields: Any) -> pb.MailboxRequest:
    return pb.MailboxRequest(hello=pb.MailboxHello(**fields))


def test_version_and_features_are_those_that_both_know() -> None:
    _, terms = read_hello(hello(versions=[7, 1], features=["compression", "routes"]))
    assert terms == Terms(1, frozenset({"routes"}))
    _, terms = read_hello(hello(versions=[1]))
    assert terms == Terms(1, frozenset())
    with pytest.raises(ServiceError) as unknown:
        read_hello(hello(versions=[2, 3]))
    assert unknown.value.reason is Reason.UNSUPPORTED_VERSION
    assert unknown.value.metadata == {"supported": "1"}


@pytest.mark.parametrize(
    "fields",
    [
        {"versions": [1], "features": ["f"] * 65},
        {"versions": [1], "features": ["f" * 65]},
        {"versions": list(range(1, 18))},
        {"versions": [1], "instance_id": "a b"},
    ],
)
def test_a_hello_has_bounds(fields: dict[str, Any]) -> None:
    with pytest.raises(ServiceError) as refused:
        read_hello(hello(**fields))
    assert refused.value.reason is Reason.INVALID_FIELD


def test_too_many_items_are_no_frame() -> None:
    request = pb.MailboxRequest()
    for _ in range(requests.SETTLINGS_MAX + 1):
        request.acks.add(ack_token=1)
    with pytest.raises(ServiceError, match="at most 16384"):
        requests.read_frame(request, 1, "alpha", 1_000, ALL)


def test_facts_hold_no_payload() -> None:
    envelope = good(collaboration_id="c-1", causation_id="a-1", traceparent="t")
    envelope.payload.data = b"secret"
    facts = envelope_facts(envelope.SerializeToString())
    assert facts == ("heartbeat", "c-1", "a-1", "", "t")
