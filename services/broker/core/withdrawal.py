"""What happens when a commit failed: everything that nobody was promised yet is taken back.

Both what the commit held and what gathered meanwhile, since that was numbered behind what is now gone.
"""

from __future__ import annotations

from services.broker.core import letters
from services.broker.core.burial import unbury
from services.broker.core.desk import Acks, Answers, Desk, Release, Tentative
from services.broker.core.durability import answer, discharge, finish_if_done
from services.broker.core.effects import TellLetters, TellSubscription
from services.broker.core.handover import drain, let_go, watch_deadlines, watch_expiry
from services.broker.core.model import Lane, SendOutcome
from services.broker.core.settlement import put_back, recall_from
from services.broker.core.state import Domain, Item, Stream
from services.broker.core.subscribing import take_back
from services.broker.core.table import DeliveryInput
from services.common.core.errors import ServiceError
from services.common.core.instants import Instant


def failed(desk: Desk, error: ServiceError, now: Instant) -> None:
    """Nothing of what was decided since the last good commit is durable: take it back, newest first."""
    lost = [one for one in (desk.in_flight, desk.open) if one is not None]
    desk.in_flight, desk.open = None, Tentative()
    for one in lost:
        # Facts that nobody waits for are kept for the next commit.
        desk.open.touched.update(one.touched)
        desk.open.agents_known += one.agents_known
        desk.open.agents_forgotten += one.agents_forgotten
        desk.open.incarnations += one.incarnations
        desk.open.nacks += one.nacks
        desk.open.urgent |= one.urgent
        taken_back = [len(one.accepted), len(one.burials)]
        taken_back += [len(acks.items) for acks in one.acks]
        taken_back += [len(release.items) for release in one.releases]
        desk.count(DeliveryInput.PERSIST_FAILED, sum(taken_back))
    for one in reversed(lost):
        take_back(desk.state.topics, one.subscriptions)
        _withdraw(desk, one)
        _unsettle(desk, one, error)
    for one in lost:
        for asked in one.subscriptions:
            desk.effects.append(TellSubscription(asked.event.request_id, error))
        for work in one.letters:
            desk.effects.append(TellLetters(work.request_id, letters.failed(work.outcomes, error)))
        for answers in one.answers:
            answer(desk, _failed_answers(answers, error))
    for domain in list(desk.open.touched):
        if domain.waiting:
            # What was taken back must not come after what it precedes.
            recall_from(desk, domain, domain.waiting[0].envelope.sequence)
        let_go(domain)
        drain(desk, domain.mailbox, now)
        watch_expiry(desk, domain, now)


def _failed_answers(answers: Answers, error: ServiceError) -> Answers:
    outcomes = []
    for outcome in answers.outcomes:
        # A repeat of an id that was accepted earlier keeps its first outcome.
        kept = outcome.error is not None or answers.stream.sender.window.find(outcome.message_id)
        outcomes.append(outcome if kept else SendOutcome(outcome.message_id, 0, error))
    return Answers(answers.stream, outcomes)


def _unsettle(desk: Desk, lost: Tentative, error: ServiceError) -> None:
    back: dict[Domain, list[Item]] = {}
    unsettled: dict[Domain, list[int]] = {}
    for acks in lost.acks:
        _unack(desk, acks, error, back)
        _note_sequences(acks.items, unsettled)
    for release in lost.releases:
        _unrelease(release, back)
        _note_sequences(release.items, unsettled)
    for burial in lost.burials:
        item = burial.item
        item.advance(DeliveryInput.PERSIST_FAILED)
        unbury(burial)
        back.setdefault(item.domain, []).append(item)
        _note_sequences([item], unsettled)
        if burial.stream is not None:
            burial.stream.settling -= 1
            _refuse(desk, burial.stream, item.token, error)
            finish_if_done(desk, burial.stream)
    for domain, sequences in unsettled.items():
        domain.settled.take_back(sequences)
    for domain, items in back.items():
        put_back(domain, items)


def _unack(desk: Desk, acks: Acks, error: ServiceError, back: dict[Domain, list[Item]]) -> None:
    session = acks.session
    acks.stream.settling -= 1
    for item in acks.items:
        _refuse(desk, acks.stream, item.token, error)
        item.advance(DeliveryInput.PERSIST_FAILED)
        if session.ended:
            item.advance(DeliveryInput.RECALLED)
            item.domain.held -= 1
            back.setdefault(item.domain, []).append(item)
        else:
            session.extended[item.token] = item
    if not session.ended:
        watch_deadlines(desk, session, Instant(min(item.deadline for item in acks.items)))
    finish_if_done(desk, acks.stream)


def _unrelease(release: Release, back: dict[Domain, list[Item]]) -> None:
    domain, session = release.items[0].domain, release.session
    domain.blocked -= len(release.items)
    # Nothing went out, so that nothing of that stream's credit is used; another stream has its own.
    if session.stream is release.stream and domain.key.lane is Lane.EMERGENCY:
        session.emergency_credits += len(release.items)
    elif session.stream is release.stream:
        session.credits += len(release.items)
    for item in release.items:
        item.advance(DeliveryInput.PERSIST_FAILED)
    back.setdefault(domain, []).extend(release.items)


def _note_sequences(items: list[Item], unsettled: dict[Domain, list[int]]) -> None:
    for item in items:
        unsettled.setdefault(item.domain, []).append(item.envelope.sequence)


def _withdraw(desk: Desk, lost: Tentative) -> None:
    # The copies of a routed envelope share one id.
    routed = {(one.sender, one.message_id) for one in lost.routed}
    for sender, message_id in routed:
        _forget(desk, sender, message_id)
    for item in reversed(lost.accepted):
        item.advance(DeliveryInput.PERSIST_FAILED)
        item.domain.next_sequence -= 1
        discharge(desk, item.domain, [item])
        sender, message_id = item.domain.key.sender, item.envelope.draft.message_id
        if item not in lost.replayed and (sender, message_id) not in routed:
            _forget(desk, sender, message_id)


def _forget(desk: Desk, sender: str, message_id: str) -> None:
    window = desk.state.sender(sender).window
    before = window.bytes_used
    window.take_back(message_id)
    desk.state.dedup_bytes += window.bytes_used - before


def _refuse(desk: Desk, stream: Stream, token: int, error: ServiceError) -> None:
    if stream.stream_id in desk.state.streams:
        desk.refuse_settling(stream.stream_id, token, error)
