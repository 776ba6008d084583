"""Who gets an envelope whose address names no single receiver.

A skill means one agent, chosen by load; a collaboration its other members; a topic its other subscribers.
The choice is made once, when the envelope is accepted, and is durable with it: a repeat is answered the same,
and does not follow what changed meanwhile. Several receivers get a copy each, all in one commit: if one of
them has no room, the envelope is refused as a whole, so that nobody misses what the others got.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from services.broker.core import flow
from services.broker.core.addresses import OPERATOR_PREFIX, address_text
from services.broker.core.desk import Desk
from services.broker.core.model import (
    Chosen,
    DomainKey,
    Envelope,
    Route,
    RoutedDraft,
    RoutedId,
    RouteKind,
    SendOutcome,
)
from services.broker.core.refusals import (
    RETRY_AFTER_MS,
    over_fanout,
    over_limit,
    over_quota,
    reused,
    shutting_down,
)
from services.broker.core.state import Domain, Item, Sender, State
from services.broker.core.table import DeliveryState
from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import Instant


def admit_routed(desk: Desk, sender: Sender, routed: RoutedDraft, now: Instant) -> SendOutcome:
    """Accept an envelope for whomever its address means, or say why not; a repeat gets its first outcome."""
    message_id = routed.message_id
    known = sender.window.find(message_id)
    if known is not None:
        fingerprint, sequence = known
        if fingerprint != routed.draft.fingerprint:
            return SendOutcome(message_id, 0, reused(message_id))
        return SendOutcome(message_id, sequence, None, sender.window.chosen(message_id))
    try:
        domains = _find_room(desk, sender, routed, now)
    except ServiceError as refusal:
        return SendOutcome(message_id, 0, refusal)
    return _accept(desk, sender, routed, domains, now)


def candidates(state: State, skill: str, sender: str) -> list[str]:
    """Return the agents with a skill but for `sender`, the one to choose first.

    Those that work reaches come before those that come back later; then counts how much each has at hand:
    what it works on and what waits in its mailbox, by its slots; then the name.
    """
    ranked: list[tuple[int, float, str]] = []
    for name in state.skilled.get(skill, ()):
        if name == sender or name not in state.known:
            continue
        profile = state.profiles[name]
        mailbox = state.mailboxes.get(name)
        waiting = 0 if mailbox is None else mailbox.count + mailbox.emergency_count
        load = (profile.slots_used + waiting) / max(profile.slots, 1)
        ranked.append((int(profile.reach), load, name))
    return [name for _, _, name in sorted(ranked)]


def _find_room(desk: Desk, sender: Sender, routed: RoutedDraft, now: Instant) -> list[Domain]:
    """Return the order domains that are to get it, all with room for it; raises why it is refused."""
    state, route = desk.state, routed.route
    if state.draining:
        raise shutting_down()
    limit = flow.window_limit_met(state, sender)
    if limit is not None:
        raise over_quota(limit, sender, now)
    if route.kind is RouteKind.SKILL:
        return [_choose(desk, sender, routed, now)]
    if route.kind is RouteKind.COLLABORATION:
        receivers: AbstractSet[str] = _members(state, sender.name, route)
    else:
        receivers = state.topics.match(route.name)
    wanted = sorted((receivers & state.known) - {sender.name})
    _check_copies(desk, sender, routed, len(wanted), now)
    return [_domain(desk, sender, receiver, routed, now) for receiver in wanted]


def _check_copies(desk: Desk, sender: Sender, routed: RoutedDraft, count: int, now: Instant) -> None:
    draft = routed.draft
    if not count and routed.requires_receiver:
        raise _nobody(routed.route, "nobody else would get a copy, and the envelope requires a receiver")
    if count > desk.limits.fanout_max:
        raise over_fanout(count, desk.limits.fanout_max)
    limit = flow.copies_limit_met(desk.state, sender, draft.lane, count, len(draft.body))
    if limit is not None:
        raise over_quota(limit, sender, now)


def _choose(desk: Desk, sender: Sender, routed: RoutedDraft, now: Instant) -> Domain:
    state, route = desk.state, routed.route
    names = candidates(state, route.name, sender.name)
    if not names and not state.profiles_complete:
        raise _unheard(route, "has not heard from the registry yet who has this skill")
    met: ServiceError | None = None
    for name in names:
        try:
            return _domain(desk, sender, name, routed, now)
        except ServiceError as full:
            # The next best, if it has room; else what the best one met.
            met = met or full
    raise met or _nobody(route, f"no other agent with the skill {route.name!r} is registered")


def _members(state: State, sender: str, route: Route) -> frozenset[str]:
    if route.name not in state.memberships:
        raise _unheard(route, "could not ask the scheduler who its members are")
    members = state.memberships[route.name]
    if members is None:
        raise ServiceError(
            Reason.COLLABORATION_NOT_FOUND,
            f"there is no collaboration {route.name!r}, or it ended long ago: check the id",
            metadata={"collaboration_id": route.name},
        )
    if sender not in members and not sender.startswith(OPERATOR_PREFIX):
        raise ServiceError(
            Reason.ACCESS_DENIED,
            f"{sender} is no member of collaboration {route.name}: only members and operators write to it",
            metadata={"identity": sender, "method": "collaboration"},
        )
    return members


def _domain(desk: Desk, sender: Sender, receiver: str, routed: RoutedDraft, now: Instant) -> Domain:
    """Return the order domain of one copy; raises when it has no room for it."""
    state, draft = desk.state, routed.draft
    key = DomainKey(sender.name, receiver, draft.lane)
    if key not in state.domains and len(state.domains) >= desk.limits.domains_max:
        raise over_quota("domains_max", sender, now)
    domain = state.domain(key)
    limit = flow.limit_met(state, domain, len(draft.body))
    if limit is not None:
        raise over_limit(limit, domain, now)
    return domain


def _accept(
    desk: Desk, sender: Sender, routed: RoutedDraft, domains: list[Domain], now: Instant
) -> SendOutcome:
    draft, kind = routed.draft, routed.route.kind
    for domain in domains:
        # The copies share the body's bytes.
        copy = draft._replace(receiver=domain.key.receiver)
        envelope = Envelope(domain.key, domain.next_sequence, now, copy)
        domain.next_sequence += 1
        flow.charge(desk.state, domain, 1, len(draft.body))
        desk.open.accepted.append(Item(domain, envelope, DeliveryState.ACCEPTING))
        desk.open.touched[domain] = None
    if kind is RouteKind.SKILL:
        chosen = Chosen(domains[0].key.receiver, 1)
        sequence = domains[0].next_sequence - 1
    else:
        chosen, sequence = Chosen("", len(domains)), 0
    keep_until = Instant(now + max(draft.ttl_ms, desk.limits.retry_horizon_ms))
    sender.window.add_routed(draft.message_id, draft.fingerprint, sequence, keep_until, chosen)
    desk.open.routed.append(
        RoutedId(
            sender.name,
            draft.message_id,
            draft.fingerprint,
            chosen.receiver,
            sequence,
            chosen.receiver_count,
            keep_until,
        )
    )
    desk.state.routed[kind] += 1
    return SendOutcome(draft.message_id, sequence, None, chosen)


def _nobody(route: Route, why: str) -> ServiceError:
    text = address_text(route)
    return ServiceError(Reason.RECEIVER_NOT_FOUND, f"{text} means nobody: {why}", metadata={"address": text})


def _unheard(route: Route, why: str) -> ServiceError:
    text = address_text(route)
    return ServiceError(
        Reason.ROUTE_UNAVAILABLE,
        f"{text}: this broker {why}: send it again in a moment",
        metadata={"address": text},
        retry_after_ms=RETRY_AFTER_MS,
    )
