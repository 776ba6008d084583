"""What an agent's code may say of a message, looked at before it leaves.

The broker looks as well, at what other clients send. Here it is about values that could not be written at
all, or whose units it can not know: a refusal names the field as the code wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, NamedTuple

# In seconds: ttl (envelope.proto), extension and delay of a nack (broker_service.proto).
TTL_S_MIN, TTL_S_MAX = 1.0, 604_800.0
EXTENSION_S_MIN, EXTENSION_S_MAX = 1.0, 3_600.0
DELAY_S_MAX = 3_600.0
RETRY_MAX_MAX = 100
_SET_BY_THE_BROKER = frozenset({"sender", "address", "accepted_time", "sequence_number"})
# What most messages leave out, which is not looked at any closer.
NO_TEXT = ""


class Rule(NamedTuple):
    """What a field may be: a test, and how to say it."""

    allows: Callable[[Any], bool]
    says: str


def is_seconds(value: Any, low: float, high: float) -> bool:
    """Return whether `value` is a number of seconds in a range; NaN, infinities and booleans are none."""
    return isinstance(value, int | float) and value is not True and isfinite(value) and low <= value <= high


def is_count(value: Any) -> bool:
    """Return whether `value` is a whole number that the protos can hold."""
    return type(value) is int and 0 <= value < 2**63


def is_text(value: Any) -> bool:
    """Return whether `value` is a text that can be written as UTF-8."""
    return isinstance(value, str) and (
        value.isascii() or not any("\ud800" <= one <= "\udfff" for one in value)
    )


_TEXT = Rule(is_text, "a text")
_FLAG = Rule(lambda value: isinstance(value, bool), "True or False")
# Further fields of `Agent.send`.
RULES: Mapping[str, Rule] = {
    "correlation_id": _TEXT,
    "causation_id": _TEXT,
    "collaboration_id": _TEXT,
    "traceparent": _TEXT,
    "tracestate": _TEXT,
    "reply_instance": _TEXT,
    "requires_ack": _FLAG,
    "requires_receiver": _FLAG,
    "ttl": Rule(
        lambda value: value is None or is_seconds(value, TTL_S_MIN, TTL_S_MAX),
        f"{TTL_S_MIN:g} to {TTL_S_MAX:,.0f} seconds, or None for the broker's default",
    ),
    "retry_max": Rule(
        lambda value: value is None or (type(value) is int and 0 <= value <= RETRY_MAX_MAX),
        f"a whole number from 0 to {RETRY_MAX_MAX}, or None for the broker's default",
    ),
}


# None stands for the default there.
MAY_BE_NONE = frozenset(name for name, rule in RULES.items() if rule is not _FLAG)


def fault(name: str, value: Any) -> str | None:
    """Return what is wrong with a field of a message; None: nothing that can be seen here."""
    rule = RULES.get(name)
    if rule is not None:
        return None if rule.allows(value) else f"must be {rule.says}, not {value!r:.80}"
    if name in _SET_BY_THE_BROKER:
        return "is set by the broker: leave it out"
    return f"is no field of a message; there are {', '.join(sorted(RULES))}"
