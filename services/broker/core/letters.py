"""Dead letters that somebody sends once more, or forgets.

A replayed envelope is a new one of the same sender with the same content: it gets the next number of its
order domain and its whole ttl again. Its message_id stays in the dedupe window as it was, so that a late
repeat by the sender still gets the first outcome.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.broker.core import flow
from services.broker.core.desk import Desk, LettersWork
from services.broker.core.events import DropAsked, ReplayAsked
from services.broker.core.model import Envelope, LetterOutcome, StoredDeadLetter
from services.broker.core.refusals import over_limit, unknown
from services.broker.core.state import Item
from services.broker.core.table import DeliveryState
from services.common.core.errors import ServiceError
from services.common.core.instants import Instant


def replay(desk: Desk, event: ReplayAsked, now: Instant) -> None:
    """Number dead letters anew; told when that, and that they are dead no longer, is durable."""
    outcomes = [_replay_one(desk, stored, now) for stored in event.letters]
    gone = [outcome.number for outcome in outcomes if outcome.error is None]
    desk.open.letters.append(LettersWork(event.request_id, outcomes, gone))


def drop(desk: Desk, event: DropAsked) -> None:
    """Forget dead letters; told when that is durable."""
    outcomes = [LetterOutcome(number, 0, None) for number in event.numbers]
    desk.open.letters.append(LettersWork(event.request_id, outcomes, list(event.numbers)))


def failed(outcomes: Sequence[LetterOutcome], error: ServiceError) -> list[LetterOutcome]:
    """Return what is told when the commit failed."""
    return [LetterOutcome(one.number, 0, one.error or error) for one in outcomes]


def _replay_one(desk: Desk, stored: StoredDeadLetter, now: Instant) -> LetterOutcome:
    number, letter = stored
    key, _, _, draft = letter.envelope
    error = unknown(desk.state, key.receiver)
    if error is not None:
        return LetterOutcome(number, 0, error)
    domain = desk.state.domain(key)
    limit = flow.limit_met(desk.state, domain, len(draft.body))
    if limit is not None:
        return LetterOutcome(number, 0, over_limit(limit, domain, now))
    sequence = domain.next_sequence
    domain.next_sequence += 1
    item = Item(domain, Envelope(key, sequence, now, draft), DeliveryState.ACCEPTING)
    flow.charge(desk.state, domain, 1, len(draft.body))
    desk.open.accepted.append(item)
    desk.open.replayed[item] = None
    desk.open.touched[domain] = None
    return LetterOutcome(number, sequence, None)
