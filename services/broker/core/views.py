"""What people may see of a mailbox."""

from __future__ import annotations

from typing import NamedTuple

from services.broker.core.model import Lane
from services.broker.core.state import Item, State
from services.common.core.instants import Instant


class LaneDepth(NamedTuple):
    """One lane of a mailbox, counted."""

    waiting_count: int
    outstanding_count: int
    # Of the oldest unsettled envelope; None when there is none.
    oldest_accepted_at: Instant | None


class MailboxView(NamedTuple):
    """A mailbox, counted."""

    owner: str
    lanes: dict[Lane, LaneDepth]
    # Receiving streams that are open.
    stream_count: int


def view_mailbox(state: State, owner: str) -> MailboxView:
    """Return what the mailbox of `owner` holds: nothing, when nobody of that name is known."""
    mailbox = state.mailboxes.get(owner)
    lanes = {lane: LaneDepth(0, 0, None) for lane in Lane}
    if mailbox is None:
        return MailboxView(owner, lanes, 0)
    held: list[Item] = []
    for session in mailbox.sessions.values():
        held += session.outstanding.values()
        held += session.extended.values()
    for item in held:
        lane = item.envelope.key.lane
        waiting, outstanding, oldest = lanes[lane]
        lanes[lane] = LaneDepth(waiting, outstanding + 1, _older(oldest, item.envelope.accepted_at))
    for domain in mailbox.domains:
        if domain.waiting:
            waiting, outstanding, oldest = lanes[domain.key.lane]
            first = domain.waiting[0].envelope.accepted_at
            lanes[domain.key.lane] = LaneDepth(
                waiting + len(domain.waiting), outstanding, _older(oldest, first)
            )
    stream_count = sum(1 for session in mailbox.sessions.values() if session.stream is not None)
    return MailboxView(owner, lanes, stream_count)


def _older(oldest: Instant | None, accepted_at: Instant) -> Instant:
    return accepted_at if oldest is None else min(oldest, accepted_at)
