"""What an envelope's receiver_id may say: one receiver's name, one instance of it, or whom to look for."""

from __future__ import annotations

from functools import lru_cache

from services.broker.core.model import Route, RouteKind
from services.broker.core.topics import is_topic
from services.common.core.ids import AGENT_ID, NAME_64, SKILL

OPERATOR_PREFIX = "operator/"
# Between a receiver's name and the one instance of it that is meant: "field-1#north".
INSTANCE_MARK = "#"


# Receivers repeat; what is asked often is remembered.
@lru_cache(maxsize=4_096)
def is_mailbox(text: str) -> bool:
    """Return whether `text` names an agent ("field-1") or an operator ("operator/admin")."""
    return AGENT_ID.match(text.removeprefix(OPERATOR_PREFIX)) is not None


@lru_cache(maxsize=4_096)
def is_instance(text: str) -> bool:
    """Return whether `text` names one instance of an agent or operator ("field-1#north")."""
    owner, mark, instance = text.partition(INSTANCE_MARK)
    return bool(mark) and is_mailbox(owner) and NAME_64.match(instance) is not None


def owner_of(address: str) -> str:
    """Return whose mailbox the envelopes to a receiver or to one of its instances are in."""
    return address.partition(INSTANCE_MARK)[0]


def instance_of(address: str) -> str | None:
    """Return the one instance that is meant; None: any."""
    _, mark, instance = address.partition(INSTANCE_MARK)
    return instance if mark else None


@lru_cache(maxsize=4_096)
def read_route(text: str) -> Route | None:
    """Return what an address like "skill/shelter-planning" looks for; None when it is none of these."""
    word, _, name = text.partition("/")
    if word == RouteKind.SKILL and SKILL.match(name):
        return Route(RouteKind.SKILL, name)
    if word == RouteKind.COLLABORATION and NAME_64.match(name):
        return Route(RouteKind.COLLABORATION, name)
    if word == RouteKind.TOPIC and is_topic(name):
        return Route(RouteKind.TOPIC, name)
    return None


def address_text(route: Route) -> str:
    """Return the address that `read_route` reads as `route`."""
    return f"{route.kind}/{route.name}"
