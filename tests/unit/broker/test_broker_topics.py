"""Topics, patterns and who they match."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.broker.core.model import Subscription
from services.broker.core.topics import Topics, is_pattern, is_topic

SEGMENT = st.sampled_from(["a", "b", "c"])
TOPIC = st.lists(SEGMENT, min_size=1, max_size=4).map(".".join)
PATTERN = st.tuples(
    st.lists(st.sampled_from(["a", "b", "c", "*"]), min_size=1, max_size=3), st.booleans()
).map(lambda parts: ".".join([*parts[0], "**"] if parts[1] else parts[0]))


@pytest.mark.parametrize("text", ["a", "roads.closed", "A-1._x", "a.b.c.d.e.f.g.h", "a" * 128])
def test_topics(text: str) -> None:
    assert is_topic(text)
    assert is_pattern(text)


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".a", "a..b", "a b", "ä", "a.b.c.d.e.f.g.h.i", "a" * 129, "a\n", "roads/closed"]
)
def test_what_is_no_topic(text: str) -> None:
    assert not is_topic(text)
    assert not is_pattern(text)


@pytest.mark.parametrize("text", ["*", "**", "a.*", "*.b", "a.**", "a.*.c", "*.*.**", "a.b.c.d.e.f.g.**"])
def test_patterns(text: str) -> None:
    assert is_pattern(text)
    assert not is_topic(text)


@pytest.mark.parametrize("text", ["***", "a*", "**.a", "a.**.b", "a.b.c.d.e.f.g.h.**", "", "a.*."])
def test_what_is_no_pattern(text: str) -> None:
    assert not is_pattern(text)


def matches(pattern: str, topic: str) -> bool:
    """What the README says of patterns, as a regular expression."""
    segment = "[^.]+"
    rest = rf"{segment}(\.{segment})*"
    parts = {"*": segment, "**": rest}
    return re.fullmatch(r"\.".join(parts.get(one, one) for one in pattern.split(".")), topic) is not None


@given(st.sets(st.tuples(st.sampled_from(["x", "y", "z"]), PATTERN), max_size=8), TOPIC)
def test_the_tree_finds_whom_the_patterns_say(subscriptions: set[tuple[str, str]], topic: str) -> None:
    topics = Topics(Subscription(*one) for one in subscriptions)
    assert topics.match(topic) == {owner for owner, pattern in subscriptions if matches(pattern, topic)}
    assert len(topics) == len(subscriptions)


@given(st.lists(st.tuples(st.sampled_from(["x", "y"]), PATTERN), max_size=12), TOPIC)
def test_what_is_removed_is_gone(changes: list[tuple[str, str]], topic: str) -> None:
    """Each occurrence of a subscription adds it or removes it in turn."""
    topics, left = Topics(), set[tuple[str, str]]()
    for change in changes:
        subscription = Subscription(*change)
        assert (subscription in topics) == (change in left)
        if change in left:
            topics.remove(subscription)
        else:
            topics.add(subscription)
        left ^= {change}
    assert topics.match(topic) == {owner for owner, pattern in left if matches(pattern, topic)}
    for owner in ("x", "y"):
        assert topics.patterns(owner) == sorted(pattern for one, pattern in left if one == owner)
        assert topics.count(owner) == len(topics.patterns(owner))
    for change in left:
        topics.remove(Subscription(*change))
    # Nothing of them is left in the tree.
    assert not topics._root.next
    assert len(topics) == 0
