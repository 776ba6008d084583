"""Instants as text, against the standard library's calendar."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import example, given
from hypothesis import strategies as st

from services.common.core.instants import Instant, rfc3339

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@given(st.integers(0, 253_402_300_799_999))
@example(951_782_400_000)  # 29 February 2000
@example(4_107_542_399_999)  # the last millisecond of February 2100, which has no leap day
def test_is_what_the_calendar_says(instant: int) -> None:
    expected = (EPOCH + timedelta(milliseconds=instant)).isoformat(timespec="milliseconds")
    assert rfc3339(Instant(instant)) == expected.replace("+00:00", "Z")
