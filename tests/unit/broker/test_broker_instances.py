"""Envelopes for one exact instance of an agent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.broker.core import effects as fx
from services.broker.core import events as ev
from services.broker.core.addresses import instance_of, is_instance, owner_of
from services.broker.core.model import StoredDeadLetter
from services.common.core.errors import Reason
from tests.unit.broker.broker_bench import Bench, draft, numbers, of, outcomes, tokens
from tests.unit.broker.broker_invariants import validate


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.commit()
    validate(made.machine._desk)


def to_whom(effects: list[fx.Effect]) -> dict[int, list[int]]:
    return {one.stream_id: numbers([one]) for one in of(effects, fx.Deliver)}


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("field-1#north", True),
        ("operator/admin#cli", True),
        ("field-1#0", True),
        ("field-1#", False),
        ("#0", False),
        ("field-1#a#b", False),
        ("field-1#a b", False),
        ("skill/plans#0", False),
        ("field-1", False),
        ("field-1#" + "a" * 65, False),
    ],
)
def test_which_texts_name_one_instance(text: str, good: bool) -> None:
    assert is_instance(text) is good
    if good:
        assert f"{owner_of(text)}#{instance_of(text)}" == text


def test_only_the_instance_that_is_meant_gets_it(bench: Bench) -> None:
    sender = bench.open("alpha", send_only=True)
    north, south = bench.receiver(instance="north"), bench.receiver(instance="south")
    effects = bench.send(sender, draft("m-1", "beta#south"), draft("m-2", "beta#south"))
    assert to_whom(effects) == {south: [1, 2]}
    effects = bench.send(sender, *(draft(f"n-{number}", "beta") for number in range(4)))
    # What is for any goes to the least loaded one, under numbers of its own.
    assert to_whom(effects) == {north: [1, 2, 3, 4]}


def test_an_instance_that_was_never_here_is_refused_and_one_that_is_away_is_waited_for(bench: Bench) -> None:
    sender = bench.open("alpha", send_only=True)
    bench.receiver(instance="north")
    errors = [
        outcomes(bench.send(sender, draft(f"m-{number}", address)))[0].error
        for number, address in enumerate(["beta#south", "nobody#north", "alpha#send"])
    ]
    assert [error and error.reason for error in errors] == [
        Reason.RECEIVER_NOT_FOUND,
        Reason.AGENT_NOT_FOUND,
        Reason.RECEIVER_NOT_FOUND,
    ]
    bench.step(ev.StreamClosed(bench.stream_ids))
    assert outcomes(bench.send(sender, draft("m-9", "beta#north")))[0].sequence == 1
    # Also after a crash, and whoever else is there does not get it.
    bench.restart()
    other = bench.receiver(instance="south")
    assert to_whom(bench.commit()) == {}
    bench.open("beta", instance="north", incarnation=2)
    effects = bench.step(ev.FrameReceived(bench.stream_ids, credits=10))
    assert to_whom(effects) == {bench.stream_ids: [1]}
    assert other


def test_who_is_away_does_not_hold_up_what_is_for_any(bench: Bench) -> None:
    sender = bench.open("alpha", send_only=True)
    bench.receiver(instance="north")
    bench.step(ev.StreamLeaving(bench.stream_ids))
    south = bench.receiver(instance="south")
    effects = bench.send(sender, draft("m-1", "beta#north"), draft("m-2", "beta"), draft("m-3", "beta#south"))
    assert sorted(to_whom(effects)[south]) == [1, 1]


def test_what_its_last_incarnation_held_comes_to_the_next(bench: Bench) -> None:
    sender = bench.open("alpha", send_only=True)
    bench.receiver(instance="north")
    other = bench.receiver(instance="south")
    first, second = draft("m-1", "beta#north"), draft("m-2", "beta#north")
    given = bench.send(sender, first, second)
    assert len(tokens(given)) == 2
    again = bench.receiver(instance="north", incarnation=2)
    effects = bench.pass_time(1_000)
    assert to_whom(effects) == {again: [1, 2]}
    assert other not in to_whom(effects)
    bench.step(ev.FrameReceived(again, acks=tokens(effects)))
    bench.commit()
    assert not any(domain.waiting for domain in bench.machine.state.domains.values())


def test_a_gap_is_explained_to_its_instance_only(bench: Bench) -> None:
    sender = bench.open("alpha", send_only=True)
    north, south = bench.receiver(instance="north"), bench.receiver(instance="south")
    (token,) = tokens(bench.send(sender, draft("m-1", "beta#north")))
    bench.step(ev.FrameReceived(north, settlings=[ev.Reject(token, "no")]))
    told = of(bench.commit(), fx.TellTombstones)
    assert [(one.stream_id, one.key.receiver) for one in told] == [(north, "beta#north")]
    # Its successor is told too, and nobody else.
    bench.step(ev.StreamClosed(south))
    for instance, stones in (("south", 0), ("north", 1)):
        bench.stream_ids += 1
        hello = ev.StreamOpened(bench.stream_ids, "agent/beta", "beta", instance, 2, send_only=False)
        assert len(of(bench.step(hello), fx.TellTombstones)) == stones


def test_a_dead_letter_of_an_instance_goes_to_it_again(bench: Bench) -> None:
    sender = bench.open("alpha", send_only=True)
    north = bench.receiver(instance="north")
    (token,) = tokens(bench.send(sender, draft("m-1", "beta#north")))
    bench.step(ev.FrameReceived(north, settlings=[ev.Reject(token, "no")]))
    bench.commit()
    assert bench.machine.state.addresses("beta") == {"beta", "beta#north"}
    (stored,) = bench.store.dead_letters
    assert isinstance(stored, StoredDeadLetter)
    bench.step(ev.ReplayAsked(1, [stored]))
    assert to_whom(bench.commit()) == {north: [2]}
