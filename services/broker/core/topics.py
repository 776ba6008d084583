"""Topics, patterns of topics, and who subscribed to what.

A topic is one to eight segments of [A-Za-z0-9_-] with dots between them, at most 128 bytes: "roads.closed".
In a pattern "*" stands for exactly one segment and "**", which comes last, for one or more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from services.broker.core.model import Subscription

TOPIC_BYTES_MAX = 128
_TOPIC = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+){0,7}\Z")
_PATTERN = re.compile(r"(?=(?:[^.]*\.){0,7}[^.]*\Z)(?:(?:[A-Za-z0-9_-]+|\*)\.)*(?:[A-Za-z0-9_-]+|\*\*?)\Z")
ONE = "*"
REST = "**"


def is_topic(text: str) -> bool:
    """Return whether something can be published to `text`."""
    return len(text) <= TOPIC_BYTES_MAX and _TOPIC.match(text) is not None


def is_pattern(text: str) -> bool:
    """Return whether `text` can be subscribed to; every topic can."""
    return len(text) <= TOPIC_BYTES_MAX and _PATTERN.match(text) is not None


class _Node:
    """What follows one beginning of patterns."""

    __slots__ = ("next", "owners")

    def __init__(self) -> None:
        self.next: dict[str, _Node] = {}
        # Of the pattern that ends here.
        self.owners: set[str] = set()


class Topics:
    """Every subscription, by pattern and by owner."""

    def __init__(self, subscriptions: Iterable[Subscription] = ()) -> None:
        self._root = _Node()
        self._by_owner: dict[str, set[str]] = {}
        self._count = 0
        for subscription in subscriptions:
            self.add(subscription)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, subscription: Subscription) -> bool:
        return subscription.pattern in self._by_owner.get(subscription.owner, ())

    def patterns(self, owner: str) -> list[str]:
        """Return what `owner` subscribed to, ascending."""
        return sorted(self._by_owner.get(owner, ()))

    def count(self, owner: str) -> int:
        """Return how many patterns `owner` subscribed to."""
        return len(self._by_owner.get(owner, ()))

    def add(self, subscription: Subscription) -> None:
        """Add a subscription that is not in yet."""
        owner, pattern = subscription
        node = self._root
        for segment in pattern.split("."):
            node = node.next.setdefault(segment, _Node())
        node.owners.add(owner)
        self._by_owner.setdefault(owner, set()).add(pattern)
        self._count += 1

    def remove(self, subscription: Subscription) -> None:
        """Remove a subscription that is in."""
        owner, pattern = subscription
        way: list[tuple[_Node, str]] = []
        node = self._root
        for segment in pattern.split("."):
            way.append((node, segment))
            node = node.next[segment]
        node.owners.remove(owner)
        for before, segment in reversed(way):
            child = before.next[segment]
            if child.owners or child.next:
                break
            del before.next[segment]
        self._by_owner[owner].remove(pattern)
        if not self._by_owner[owner]:
            del self._by_owner[owner]
        self._count -= 1

    def match(self, topic: str) -> set[str]:
        """Return the owners of all patterns that `topic` matches."""
        found: set[str] = set()
        nodes = [self._root]
        for segment in topic.split("."):
            following: list[_Node] = []
            for node in nodes:
                rest = node.next.get(REST)
                if rest is not None:
                    found |= rest.owners
                following += [node.next[one] for one in (segment, ONE) if one in node.next]
            nodes = following
        for node in nodes:
            found |= node.owners
        return found
