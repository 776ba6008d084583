"""Addresses, patterns, and requests that are answered in time, late or not at all."""

from __future__ import annotations

import pytest

from agent_client.core.addresses import has_copies, is_routed, matches, topic_of
from agent_client.core.requests import Answered, RequestBook


@pytest.mark.parametrize(
    ("pattern", "topic", "matching"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.b", "a", False),
        ("a", "a.b", False),
        ("a.*", "a.b", True),
        ("*.b", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.*", "a", False),
        ("a.**", "a.b", True),
        ("a.**", "a.b.c", True),
        ("a.**", "a", False),
        ("**", "a", True),
        ("*.**", "a", False),
    ],
)
def test_patterns(pattern: str, topic: str, matching: bool) -> None:
    assert matches(pattern, topic) is matching


def test_addresses() -> None:
    assert [is_routed(one) for one in ("field-1", "operator/admin", "skill/s", "topic/t")] == [
        False,
        False,
        True,
        True,
    ]
    assert [has_copies(one) for one in ("skill/s", "collaboration/c", "topic/t")] == [False, True, True]
    assert (topic_of("topic/a.b"), topic_of("skill/a"), topic_of("")) == ("a.b", "", "")


def test_a_reply_counts_when_it_is_the_repliers() -> None:
    book = RequestBook()
    book.asked("q-1", "beta")
    assert book.arrived("q-1", "gamma") is Answered.NOT
    assert book.arrived("q-1", "beta") is Answered.IN_TIME
    assert book.arrived("q-2", "beta") is Answered.NOT
    assert book.arrived("", "beta") is Answered.NOT
    book.ended("q-1")
    assert book.arrived("q-1", "beta") is Answered.NOT


def test_whom_the_broker_chose_may_reply() -> None:
    book = RequestBook()
    book.asked("q-1", "")
    assert book.arrived("q-1", "beta") is Answered.NOT
    book.chosen("q-1", "beta")
    assert book.arrived("q-1", "beta") is Answered.IN_TIME


def test_late_replies_are_told_apart_for_a_while() -> None:
    book = RequestBook(late_max=2)
    for number in range(3):
        book.asked(f"q-{number}", "beta")
        book.gave_up(f"q-{number}")
    assert [book.arrived(f"q-{number}", "beta") for number in range(3)] == [
        Answered.NOT,
        Answered.LATE,
        Answered.LATE,
    ]
    assert book.arrived("q-2", "gamma") is Answered.NOT
    # A request that was answered in time is not late afterwards.
    book.gave_up("q-9")
    assert book.arrived("q-9", "beta") is Answered.NOT
