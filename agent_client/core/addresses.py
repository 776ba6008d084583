"""What a message can be sent to, and which topics a pattern means; the broker's README has the rules."""

from __future__ import annotations

SKILL, COLLABORATION, TOPIC = "skill/", "collaboration/", "topic/"


# Between an agent's name and its one instance that is meant.
INSTANCE_MARK = "#"


def address_of(name: str, instance: str) -> str:
    """Return the address of one instance of an agent; of any when `instance` is empty."""
    return f"{name}{INSTANCE_MARK}{instance}" if instance else name


def split_instance(address: str) -> tuple[str, str]:
    """Return the name and the instance in an address; the instance is empty when any will do."""
    name, _, instance = address.partition(INSTANCE_MARK)
    return name, instance


def is_routed(address: str) -> bool:
    """Return whether the broker looks for the receivers of `address`."""
    return address.startswith((SKILL, COLLABORATION, TOPIC))


def has_copies(address: str) -> bool:
    """Return whether each of several receivers of `address` gets a copy."""
    return address.startswith((COLLABORATION, TOPIC))


def topic_of(address: str) -> str:
    """Return the topic of an address; empty when it is none of a topic."""
    return address.removeprefix(TOPIC) if address.startswith(TOPIC) else ""


def matches(pattern: str, topic: str) -> bool:
    """Return whether a subscription to `pattern` gets what is published to `topic`."""
    wanted, segments = pattern.split("."), topic.split(".")
    if wanted[-1] == "**":
        wanted.pop()
        if len(segments) <= len(wanted):
            return False
        segments = segments[: len(wanted)]
    return len(wanted) == len(segments) and all(
        one in ("*", segment) for one, segment in zip(wanted, segments, strict=True)
    )
