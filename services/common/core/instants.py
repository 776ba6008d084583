"""Time as the cores see it: integers, given to them, never read."""

from __future__ import annotations

from typing import NewType

# Milliseconds since the Unix epoch.
Instant = NewType("Instant", int)
# Milliseconds.
Duration = NewType("Duration", int)

NEVER = Instant(2**62)


def after(now: Instant, delay_ms: int) -> Instant:
    """Return the instant `delay_ms` milliseconds after `now`."""
    return Instant(now + delay_ms)


def rfc3339(instant: Instant) -> str:
    """Return `instant` as people and RFC 3339 write it: UTC, with milliseconds.

    Method: the Gregorian calendar counted from 1 March, so that the leap day ends its year; Hinnant,
    "chrono-Compatible Low-Level Date Algorithms" (civil_from_days).
    """
    days, of_day = divmod(instant, 86_400_000)
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted_month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * shifted_month + 2) // 5 + 1
    month = shifted_month + 3 if shifted_month < 10 else shifted_month - 9
    year = year_of_era + era * 400 + (1 if month <= 2 else 0)
    seconds, ms = divmod(of_day, 1_000)
    return (
        f"{year:04}-{month:02}-{day:02}"
        f"T{seconds // 3_600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{ms:03}Z"
    )
