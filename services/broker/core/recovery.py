"""From what the store holds back to what the broker remembers.

Everything that is unsettled waits again: what was outstanding when the broker ended is given again under
new tokens, in order, to whoever has credit.
"""

from __future__ import annotations

from services.broker.core import flow
from services.broker.core.admission import watch_window
from services.broker.core.desk import Desk
from services.broker.core.handover import enlist, watch_expiry
from services.broker.core.model import Chosen, Recovered
from services.broker.core.settled import SettledSet
from services.broker.core.state import Item
from services.broker.core.table import DeliveryState
from services.common.core.instants import Instant


def rebuild(desk: Desk, recovered: Recovered, now: Instant) -> None:
    """Fill the state of `desk`, which is empty."""
    state = desk.state
    state.known |= recovered.agents
    for record in recovered.domains:
        domain = state.domain(record.key)
        domain.next_sequence = record.next_sequence
        domain.settled = SettledSet(record.cursor, record.above)
        domain.failures = dict(record.failures)
        domain.tombstones = list(record.tombstones)
    for envelope in recovered.envelopes:
        domain = state.domain(envelope.key)
        item = Item(domain, envelope, DeliveryState.WAITING)
        item.failures = item.handed_over = domain.failures.get(envelope.sequence, 0)
        domain.waiting.append(item)
        domain.expire_first = Instant(min(domain.expire_first, item.expire_at))
        flow.charge(state, domain, 1, len(envelope.draft.body))
    for agent, instance, incarnation in recovered.incarnations:
        state.mailbox(agent).incarnations[instance] = incarnation
    for subscription in recovered.subscriptions:
        state.topics.add(subscription)
    # Before the ids of all envelopes, among which are those of the copies.
    for one in recovered.routed:
        window = state.sender(one.sender).window
        if one.keep_until > now:
            before = window.bytes_used
            window.add_routed(
                one.message_id,
                one.fingerprint,
                one.sequence,
                one.keep_until,
                Chosen(one.receiver, one.receiver_count),
            )
            state.dedup_bytes += window.bytes_used - before
    for known in recovered.remembered:
        window = state.sender(known.sender).window
        if known.keep_until > now:
            before = window.bytes_used
            window.add(known.message_id, known.fingerprint, known.sequence, known.keep_until)
            state.dedup_bytes += window.bytes_used - before
    for domain in state.domains.values():
        enlist(domain)
        watch_expiry(desk, domain, now)
    for sender in state.senders.values():
        watch_window(desk, sender, now)
