"""Envelopes as CloudEvents, both ways."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from muster.common.v1 import envelope_pb2

from agent_client import Envelope, InvalidRequestError, MessageType, Payload, Priority
from agent_client.cloudevents import from_cloudevent, to_cloudevent

TEXT = st.text("abc-1.", max_size=8)
NAME = st.text("abc-1.", min_size=1, max_size=8)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)
PAYLOADS = JSON.map(
    lambda value: Payload(
        "application/json", json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    )
) | st.builds(
    Payload, st.sampled_from(["", "text/plain", "application/octet-stream"]), st.binary(max_size=20)
)
ENVELOPES = st.builds(
    Envelope,
    message_id=NAME,
    receiver=NAME,
    message_type=st.sampled_from(MessageType),
    payload=PAYLOADS,
    priority=st.sampled_from(Priority),
    requires_ack=st.booleans(),
    correlation_id=TEXT,
    ttl=st.none() | st.integers(1, 10**9).map(lambda milliseconds: milliseconds / 1000),
    retry_max=st.none() | st.integers(0, 100),
    causation_id=TEXT,
    traceparent=TEXT,
    tracestate=TEXT,
    collaboration_id=TEXT,
    requires_receiver=st.booleans(),
    reply_instance=TEXT,
    sender=NAME,
    address=TEXT,
    accepted_time=st.none() | st.datetimes(datetime(2000, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    sequence_number=st.integers(0, 2**63),
)


@given(ENVELOPES)
def test_nothing_is_lost_there_and_back(envelope: Envelope) -> None:
    event = json.loads(json.dumps(to_cloudevent(envelope)))
    assert from_cloudevent(event) == envelope
    # Names of attributes are lower-case letters and digits, as CloudEvents wants them.
    assert all(name.isalnum() and name.islower() for name in event if name != "data_base64")


def test_an_event_as_it_is_documented() -> None:
    envelope = Envelope(
        message_id="a7f3-1",
        receiver="field-1",
        message_type=MessageType.RESOURCE_REQUEST,
        payload=Payload("application/json", b'{"road":"r8"}'),
        priority=Priority.HIGH,
        sender="chief",
        ttl=90,
        address="skill/roads",
        accepted_time=datetime(2026, 7, 1, 12, tzinfo=UTC),
        sequence_number=7,
    )
    assert to_cloudevent(envelope) == {
        "specversion": "1.0",
        "id": "a7f3-1",
        "source": "/muster/chief",
        "type": "muster.resource_request",
        "subject": "field-1",
        "time": "2026-07-01T12:00:00+00:00",
        "datacontenttype": "application/json",
        "data": {"road": "r8"},
        "musteraddress": "skill/roads",
        "musterpriority": "high",
        "musterrequiresack": True,
        "mustersequence": "7",
        "musterttl": 90_000,
    }


def test_an_event_of_others_has_defaults() -> None:
    event = {
        "specversion": "1.0",
        "id": "1",
        "source": "https://sensors.example/7",
        "type": "muster.status_update",
        "subject": "topic/roads.closed",
        "someextension": "left out",
    }
    envelope = from_cloudevent(event)
    assert (envelope.sender, envelope.priority, envelope.requires_ack) == (
        "https://sensors.example/7",
        Priority.NORMAL,
        True,
    )
    assert envelope.payload == Payload("", b"")


FULL = Envelope(
    message_id="1",
    receiver="b",
    message_type=MessageType.HEARTBEAT,
    payload=Payload("", b"x"),
    correlation_id="c",
    ttl=1.0,
    retry_max=0,
    causation_id="d",
    traceparent="t",
    tracestate="s",
    collaboration_id="e",
    requires_receiver=True,
    reply_instance="north",
    sender="a",
    address="topic/x",
    sequence_number=1,
)
GOOD: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "/muster/a",
    "type": "muster.heartbeat",
    "subject": "b",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("specversion", "0.3"),
        ("id", ""),
        ("id", 7),
        ("subject", ""),
        ("source", None),
        ("type", "com.example.other"),
        ("time", "yesterday"),
        ("time", "2026-07-01T12:00:00"),
        ("data_base64", "%%%"),
        ("musterpriority", "urgent"),
        ("musterrequiresack", "yes"),
        ("musterttl", -1),
        ("musterttl", True),
        ("musterretrymax", "3"),
        ("mustersequence", "x"),
    ],
)
def test_what_is_wrong_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        from_cloudevent(GOOD | {name: value})
    assert refused.value.violations[0].field == name


def test_every_field_is_in_the_table() -> None:
    text = (Path(__file__).parents[3] / "docs" / "envelope.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    assert rows == {field.name for field in envelope_pb2.Envelope.DESCRIPTOR.fields}
    known = set(to_cloudevent(FULL)) | {"data", "data_base64", "specversion"}
    assert {name for name in known if name.startswith("muster")} == {
        word for word in text.split("`") if word.startswith("muster") and word.isalnum() and word != "muster"
    }
