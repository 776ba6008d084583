"""What must always be true of the core's memory; every unit test asks after every step."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from services.broker.core.desk import Desk
from services.broker.core.model import Lane
from services.broker.core.state import Domain, Item, Mailbox, Session
from services.broker.core.table import DeliveryState


def validate(desk: Desk) -> None:
    """Raise AssertionError with the subject's story when an invariant is broken."""
    state = desk.state
    tentative = [one for one in (desk.in_flight, desk.open) if one is not None]
    accepting = [item for one in tentative for item in one.accepted]
    acking = [item for one in tentative for acks in one.acks for item in acks.items]
    blocking = [item for one in tentative for release in one.releases for item in release.items]
    blocking += [burial.item for one in tentative for burial in one.burials]
    held: list[Item] = []
    for mailbox in state.mailboxes.values():
        for session in mailbox.sessions.values():
            _session(session)
            held += [*session.outstanding.values(), *session.extended.values()]
    by_domain: dict[Domain, list[Item]] = {}
    for item in held:
        by_domain.setdefault(item.domain, []).append(item)
    tentatively: dict[Domain, list[Item]] = {}
    for item in (*accepting, *acking, *blocking):
        tentatively.setdefault(item.domain, []).append(item)
    for domain in state.domains.values():
        _domain(domain, by_domain.get(domain), tentatively.get(domain))
    for mailbox in state.mailboxes.values():
        _mailbox(mailbox)
    _sums(desk, [*held, *accepting, *acking, *blocking])


def _session(session: Session) -> None:
    assert not session.ended, session
    assert session.credits >= 0, session
    assert session.emergency_credits >= 0, session
    if not (session.outstanding or session.extended):
        return
    assert list(session.outstanding) == sorted(session.outstanding), session
    for token, item in (session.outstanding | session.extended).items():
        assert item.token == token, item
        assert item.state is DeliveryState.OUTSTANDING, item
        assert item.session is session, item
        assert item.domain.session is session, item
    assert session.due <= min(
        item.deadline for item in (*session.outstanding.values(), *session.extended.values())
    ), session


def _domain(domain: Domain, held: list[Item] | None, tentative: list[Item] | None) -> None:
    # Most of a long run's domains are at rest, and there this is most of its time.
    if domain.waiting or held or tentative:
        _items(domain, held or [], tentative or [])
        ready = domain.ready
    else:
        assert domain.held == domain.blocked == domain.unsettled == 0, domain
        settled = domain.settled
        assert settled.cursor == domain.next_sequence - 1, domain
        assert not settled.above, domain
        # Nothing waits.
        ready = False
    lane, taker, instance, mailbox = domain.key.lane, domain.session, domain.instance, domain.mailbox
    assert bool(domain.held) == (taker is not None), domain
    if taker is None and instance is not None:
        # Only this one may take of it, whether it does or not.
        taker = mailbox.sessions.get(instance)
    in_line = domain in mailbox.ready[lane]
    in_held = taker is not None and domain in taker.ready[lane]
    assert in_line == (ready and taker is None and instance is None), domain
    assert in_held == (ready and taker is not None), domain
    if domain.tombstones:
        assert all(a.sequence < b.first_sequence for a, b in pairwise(domain.tombstones)), domain


def _items(domain: Domain, held: list[Item], tentative: list[Item]) -> None:
    waiting = [item.envelope.sequence for item in domain.waiting]
    assert len(waiting) < 2 or all(a < b for a, b in pairwise(waiting)), domain
    for item in domain.waiting:
        assert item.state is DeliveryState.WAITING or item.state is DeliveryState.DELAYED, item
        assert item.state is DeliveryState.WAITING or domain.delayed_until, item
        assert item.expire_at >= domain.expire_first, item
    numbers = [item.envelope.sequence for item in held]
    if held and waiting:
        # M3: nothing is outstanding behind what waits.
        assert max(numbers) < waiting[0], domain
    states = [item.state for item in tentative]
    assert domain.held == len(held) + states.count(DeliveryState.ACKING), domain
    blocked = states.count(DeliveryState.RELEASING) + states.count(DeliveryState.BURYING)
    assert domain.blocked == blocked, domain
    numbers += waiting
    numbers += [item.envelope.sequence for item in tentative if item.state is DeliveryState.ACCEPTING]
    settled = domain.settled
    # Every number is settled or in exactly one place: M5 has no unexplained gap.
    beyond = range(settled.cursor + 1, domain.next_sequence)
    assert sorted(numbers) == [number for number in beyond if number not in settled], domain
    assert domain.unsettled == len(numbers) + len(states) - states.count(DeliveryState.ACCEPTING), domain


def _mailbox(mailbox: Mailbox) -> None:
    for session in mailbox.sessions.values():
        for line in session.ready:
            for domain in line:
                assert domain.session in {session, None}, session
                assert domain.session is session or domain.instance == session.instance, session
    emergency = everything = 0
    for domain in mailbox.domains:
        everything += domain.unsettled
        if domain.key.lane is Lane.EMERGENCY:
            emergency += domain.unsettled
    assert mailbox.emergency_count == emergency, mailbox.owner
    assert mailbox.count == everything - emergency, mailbox.owner


def _sums(desk: Desk, items: list[Item]) -> None:
    state = desk.state
    everything = items.copy()
    for domain in state.domains.values():
        everything += domain.waiting
    size = 0
    pending: Counter[str] = Counter()
    emergency_pending: Counter[str] = Counter()
    for item in everything:
        key, draft = item.envelope.key, item.envelope.draft
        size += len(draft.body)
        (emergency_pending if key.lane is Lane.EMERGENCY else pending)[key.sender] += 1
    assert state.pending_bytes == size
    assert state.dedup_bytes == sum(sender.window.bytes_used for sender in state.senders.values())
    streams = Counter(stream.sender.name for stream in state.streams.values())
    for sender in state.senders.values():
        assert sender.pending == pending[sender.name], sender.name
        assert sender.emergency_pending == emergency_pending[sender.name], sender.name
        assert sender.streams == streams[sender.name], sender.name
    for stream in state.streams.values():
        assert stream.unanswered >= 0, stream.stream_id
        assert stream.settling >= 0, stream.stream_id
