"""The delivery table: every input in every state, and the ways through it."""

from __future__ import annotations

from itertools import product

import pytest

from services.broker.core.model import DomainKey, Draft, Envelope, Lane, Limits
from services.broker.core.state import Item, State, advance_all
from services.broker.core.table import TABLE, DeliveryInput, DeliveryState
from services.common.core.instants import Instant
from services.common.core.machine import InvalidTransitionError

FINAL = frozenset({DeliveryState.DONE, DeliveryState.DEAD, DeliveryState.WITHDRAWN})
# Nothing of what these states promise has been told to anybody.
UNTOLD = frozenset(
    {DeliveryState.ACCEPTING, DeliveryState.RELEASING, DeliveryState.ACKING, DeliveryState.BURYING}
)


def an_item(state: DeliveryState) -> Item:
    key = DomainKey("alpha", "beta", Lane.NORMAL)
    draft = Draft("m-1", "beta", Lane.NORMAL, True, 1_000, 3, b"12345678", b"")
    return Item(State(Limits(), 1).domain(key), Envelope(key, 1, Instant(0), draft), state)


@pytest.mark.parametrize(("state", "given"), list(product(DeliveryState, DeliveryInput)))
def test_every_input_in_every_state(state: DeliveryState, given: DeliveryInput) -> None:
    one, two = an_item(state), an_item(state)
    if TABLE.allows(state, given):
        target = TABLE.next("m-1", state, given)
        one.advance(given)
        advance_all([two], given)
        assert one.state is two.state is target
    else:
        with pytest.raises(InvalidTransitionError, match=f"{given.name} is not allowed in {state.name}"):
            one.advance(given)
        with pytest.raises(InvalidTransitionError):
            advance_all([two], given)
        assert one.state is two.state is state


def test_final_states_have_no_way_out_and_every_other_has() -> None:
    sources = {state for state, _, _ in TABLE.rows()}
    assert sources == set(DeliveryState) - FINAL


def test_every_state_is_reached_from_the_start() -> None:
    reached = {TABLE.start}
    while True:
        more = {target for state, _, target in TABLE.rows() if state in reached} - reached
        if not more:
            break
        reached |= more
    assert reached == set(DeliveryState)


@pytest.mark.parametrize("state", sorted(UNTOLD))
def test_what_waits_for_the_disk_only_hears_from_the_disk(state: DeliveryState) -> None:
    inputs = {given for source, given, _ in TABLE.rows() if source is state}
    assert inputs == {DeliveryInput.PERSISTED, DeliveryInput.PERSIST_FAILED}


def test_only_the_disk_ends_anything() -> None:
    ends = {given for _, given, target in TABLE.rows() if target in FINAL}
    assert ends == {DeliveryInput.PERSISTED, DeliveryInput.PERSIST_FAILED}
    withdrawn = [(state, given) for state, given, target in TABLE.rows() if target is DeliveryState.WITHDRAWN]
    assert withdrawn == [(DeliveryState.ACCEPTING, DeliveryInput.PERSIST_FAILED)]
