"""The kinds of words on the command line: what they take, and what they say of what they do not."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from agent_client.cli.words import instant, name, natural, port, positive, seconds


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (natural, "0", 0),
        (natural, "9223372036854775807", 2**63 - 1),
        (positive, "1", 1),
        (port, "0", 0),
        (port, "65535", 65_535),
        (seconds, "0.5", 0.5),
        (name, "a", "a"),
        (name, "field-1", "field-1"),
        (name, "a" * 64, "a" * 64),
        (instant, "2026-07-01T12:00:00Z", datetime(2026, 7, 1, 12, tzinfo=UTC)),
        (instant, "2026-07-01T14:00:00+02:00", datetime(2026, 7, 1, 12, tzinfo=UTC)),
    ],
)
def test_what_is_taken(kind: Callable[[str], object], text: str, value: object) -> None:
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (natural, "-1", "no whole number"),
        (natural, "1.5", "no whole number"),
        (natural, "²", "no whole number"),
        (natural, "9223372036854775808", "too large"),
        (natural, "9" * 5_000, "too large"),
        (positive, "0", "at least 1"),
        (port, "65536", "no port"),
        (seconds, "0", "no number of seconds"),
        (seconds, "nan", "no number of seconds"),
        (seconds, "inf", "no number of seconds"),
        (seconds, "soon", "no number of seconds"),
        (name, "", "no name"),
        (name, "-a", "no name"),
        (name, "a" * 65, "no name"),
        (name, "a\n", "no name"),
        (name, "../ca", "no name"),
        (instant, "yesterday", "such as 2026-07-01T12:00"),
        (instant, "0001-01-01", "such as 2026-07-01T12:00"),
    ],
)
def test_what_is_not(kind: Callable[[str], object], text: str, said: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        kind(text)


def test_a_time_without_a_zone_is_local() -> None:
    assert instant("2026-07-01T12:00") == datetime(2026, 7, 1, 12).astimezone()
