"""What an agent's code may say of a message, and how it is told what it may not."""

from __future__ import annotations

import math
from typing import Any

import pytest

from agent_client import InvalidRequestError
from agent_client.core.fields import RULES, fault
from agent_client.link import Envelope
from agent_client.payload import encode


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ttl", 1),
        ("ttl", 604_800.0),
        ("ttl", None),
        ("retry_max", 0),
        ("retry_max", 100),
        ("retry_max", None),
        ("correlation_id", ""),
        ("correlation_id", "\u6d88\u606f"),
        ("requires_ack", False),
    ],
)
def test_what_may_be_said(name: str, value: Any) -> None:
    assert fault(name, value) is None


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ttl", [0, -1, 0.5, True, "5", math.nan, math.inf, 1e12, 1e300, [1]]),
        ("retry_max", [-1, 101, 2**40, 1.0, "3", True]),
        ("correlation_id", [5, b"x", ["a"], "\ud800"]),
        ("reply_instance", [5, "\udfff"]),
        ("requires_ack", ["yes", 1, None]),
        ("requires_receiver", ["", None]),
        ("sender", ["beta"]),
        ("sequence_number", [4]),
        ("nonsense", [1]),
    ],
)
def test_what_may_not_be_said_is_named(name: str, values: list[Any]) -> None:
    for value in values:
        wrong = fault(name, value)
        assert wrong is not None, value
        assert len(wrong) < 300


def test_every_field_that_a_sender_sets_has_a_rule() -> None:
    elsewhere = {"message_id", "receiver", "message_type", "payload", "priority"}
    by_the_broker = {name for name in Envelope._fields if "set by the broker" in (fault(name, 1) or "")}
    assert set(RULES) == set(Envelope._fields) - elsewhere - by_the_broker


@pytest.mark.parametrize("payload", ["\ud800", {"a": "\ud800"}, math.nan, {1: object()}])
def test_a_payload_that_can_not_be_written_is_named(payload: Any) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        encode(payload)
    assert refused.value.violations[0].field == "payload"
