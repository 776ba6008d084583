"""Subscriptions come and go. Told when that is durable; publishing sees them from the decision on, which is
no later: what is accepted meanwhile is durable only if they are.
"""

from __future__ import annotations

from services.broker.core.desk import Desk, SubscriptionWork
from services.broker.core.effects import TellSubscription
from services.broker.core.events import SubscriptionAsked
from services.broker.core.refusals import unknown_agent
from services.broker.core.topics import Topics
from services.common.core.errors import Reason, ServiceError


def change(desk: Desk, event: SubscriptionAsked) -> None:
    """Add or end a subscription."""
    topics, subscription = desk.state.topics, event.subscription
    present = subscription in topics
    if event.wanted and not present:
        error = _refusal(desk, event)
        if error is not None:
            desk.effects.append(TellSubscription(event.request_id, error))
            return
        topics.add(subscription)
    elif not event.wanted and present:
        topics.remove(subscription)
    desk.open.subscriptions.append(SubscriptionWork(event, changes=present is not event.wanted))


def take_back(topics: Topics, works: list[SubscriptionWork]) -> None:
    """Undo changes whose commit failed, newest first."""
    for work in reversed(works):
        if work.changes and work.event.wanted:
            topics.remove(work.event.subscription)
        elif work.changes:
            topics.add(work.event.subscription)


def _refusal(desk: Desk, event: SubscriptionAsked) -> ServiceError | None:
    state, limits, owner = desk.state, desk.limits, event.subscription.owner
    if owner not in state.known:
        if not event.own:
            return unknown_agent(owner)
        # Its certificate proves that it exists; the registry's news may still be on the way.
        state.known.add(owner)
        desk.open.agents_known.append(owner)
    limit = ""
    if state.topics.count(owner) >= limits.subscriptions_max_per_agent:
        limit = "subscriptions_max_per_agent"
    elif len(state.topics) >= limits.subscriptions_max:
        limit = "subscriptions_max"
    if not limit:
        return None
    return ServiceError(
        Reason.QUOTA_EXCEEDED,
        f"no more subscriptions ({limit}): end one first, or use a pattern",
        metadata={"limit": limit},
    )
