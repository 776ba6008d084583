"""One sender cannot fill another's way (R8): bounds in turns and envelopes, not in seconds."""

from __future__ import annotations

import pytest

from services.broker.core import effects as fx
from services.broker.core import events as ev
from services.broker.core.handover import TURN
from services.broker.core.model import Lane, Limits
from services.common.core.errors import Reason
from tests.unit.broker.broker_bench import Bench, draft, numbers, of, outcomes

FLOOD = 1_500
FRAME = 500


def flooded(limits: Limits | None = None) -> tuple[Bench, int]:
    """Return a bench with a flood of gamma's in beta's mailbox, and gamma's stream."""
    bench = Bench(limits)
    gamma = bench.open("gamma", send_only=True)
    for first in range(0, FLOOD, FRAME):
        bench.send(gamma, *(draft(f"flood-{first + number}") for number in range(FRAME)))
    return bench, gamma


def senders(effects: list[fx.Effect]) -> list[str]:
    return [one.envelope.key.sender for effect in of(effects, fx.Deliver) for one in effect.deliveries]


@pytest.mark.parametrize("window", [1, 64, 200])
def test_behind_a_flood_an_envelope_waits_for_one_turn(window: int) -> None:
    bench, gamma = flooded()
    alpha = bench.open("alpha", send_only=True)
    beta = bench.open("beta")
    order = senders(bench.step(ev.FrameReceived(beta, credits=window)))
    waits: list[int] = []
    for number in range(8):
        bench.send(alpha, draft(f"m-{number}"))
        since = len(order)
        # The flood does not stop, and beta takes as much as it has done.
        bench.send(gamma, *(draft(f"more-{number}-{one}") for one in range(window)))
        while "alpha" not in order[since:]:
            order += senders(bench.step(ev.FrameReceived(beta, credits=window)))
        waits.append(order[since:].index("alpha"))
    # What was handed over before it came is not counted: beta had asked for that.
    assert max(waits) <= TURN, waits


def test_many_who_flood_cost_two_turns_each() -> None:
    bench = Bench(Limits(domains_max=1_000))
    names = frozenset(f"flood-{number}" for number in range(20))
    bench.step(ev.AgentsSeen(names, complete=False))
    for name in names:
        stream = bench.open(name, send_only=True)
        bench.send(stream, *(draft(f"m-{number}") for number in range(200)))
    alpha, beta = bench.open("alpha", send_only=True), bench.open("beta")
    bench.send(alpha, draft("m-1"))
    order: list[str] = []
    while "alpha" not in order:
        order += senders(bench.step(ev.FrameReceived(beta, credits=100)))
    # Two: a domain that the session holds already and one that is free take turns.
    assert order.index("alpha") <= 2 * TURN * len(names)


def test_who_fills_a_mailbox_leaves_room_for_others() -> None:
    bench, gamma = flooded(Limits(mailbox_count_max=FLOOD * 2))
    (refused,) = outcomes(bench.send(gamma, draft("one-more")))
    assert refused.error is not None
    assert refused.error.reason is Reason.MAILBOX_FULL
    assert refused.error.row.code == "RESOURCE_EXHAUSTED"
    assert refused.error.retry_after_ms
    alpha = bench.open("alpha", send_only=True)
    answers = outcomes(bench.send(alpha, *(draft(f"m-{number}") for number in range(FRAME))))
    assert [one.error for one in answers] == [None] * FRAME


def test_a_receiver_that_does_not_ack_stops_its_own_mailbox_only() -> None:
    bench, gamma = flooded()
    bench.receiver(credits_=100)
    # Nothing more for beta, which has used up its credit; alpha's mailbox goes on.
    assert numbers(bench.send(gamma, draft("still-waits"))) == []
    bench.receiver("alpha")
    assert numbers(bench.send(gamma, draft("for-alpha", "alpha"))) == [1]
    assert numbers(bench.send(gamma, draft("urgent", lane=Lane.EMERGENCY))) == [1]
