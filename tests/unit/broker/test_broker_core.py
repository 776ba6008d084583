"""The core step by step: what a sender and a receiver get, one frame at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.broker.core import effects as fx
from services.broker.core import events as ev
from services.broker.core.machine import Machine
from services.broker.core.model import (
    DeadReason,
    Lane,
    Limits,
    Recovered,
    SendOutcome,
    StoredDeadLetter,
)
from services.broker.core.views import view_mailbox
from services.common.core.errors import Reason
from services.common.core.instants import Instant
from tests.unit.broker.broker_bench import DISK_FULL, NOW, Bench, draft, numbers, of, outcomes, tokens
from tests.unit.broker.broker_invariants import validate


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.commit()
    validate(made.machine._desk)


def test_a_short_ttl_behind_a_long_one_is_not_forgotten(bench: Bench) -> None:
    alpha = bench.open("alpha", send_only=True)
    beta = bench.receiver(credits_=1)
    # The first one's expiry is watched; it is gone long before, and the next one expires much earlier.
    bench.send(alpha, draft("long", ttl_ms=3_600_000))
    bench.send(alpha, draft("longer", ttl_ms=7_200_000), draft("short", ttl_ms=1_000))
    bench.pass_time(2_500)
    told = of(bench.commit(), fx.TellTombstones)
    assert [(stone.sequence, stone.reason) for one in told for stone in one.tombstones] == [
        (3, DeadReason.EXPIRED)
    ]
    assert beta


def test_nothing_is_answered_or_delivered_before_the_disk(bench: Bench) -> None:
    alpha = bench.open("alpha", send_only=True)
    bench.receiver()
    bench.commit()
    effects = bench.step(ev.FrameReceived(alpha, drafts=[draft("m-1")]))
    effects += bench.step(ev.StoreReady())
    assert [type(effect) for effect in effects] == [fx.Commit]
    done = bench.step(ev.Persisted(1))
    assert outcomes(done) == [SendOutcome("m-1", 1, None)]
    assert numbers(done) == [1]


def test_while_one_commit_is_under_way_the_next_gathers(bench: Bench) -> None:
    alpha = bench.open("alpha", send_only=True)
    bench.commit()
    bench.step(ev.FrameReceived(alpha, drafts=[draft("m-1")]))
    (first,) = of(bench.step(ev.StoreReady()), fx.Commit)
    for number in (2, 3):
        bench.step(ev.FrameReceived(alpha, drafts=[draft(f"m-{number}")]))
        assert bench.step(ev.StoreReady()) == []
    bench.store.commit_now(first.batch)
    assert len(outcomes(bench.step(ev.Persisted(first.batch.number)))) == 1
    (second,) = of(bench.step(ev.StoreReady()), fx.Commit)
    assert [one.sequence for one in second.batch.envelopes] == [2, 3]
    bench.store.commit_now(second.batch)
    bench.step(ev.Persisted(second.batch.number))


def test_a_failed_commit_takes_back_what_gathered_behind_it(bench: Bench) -> None:
    alpha = bench.open("alpha", send_only=True)
    bench.commit()
    bench.step(ev.FrameReceived(alpha, drafts=[draft("m-1")]))
    (cut,) = of(bench.step(ev.StoreReady()), fx.Commit)
    bench.step(ev.FrameReceived(alpha, drafts=[draft("m-2")]))
    failed = outcomes(bench.step(ev.PersistFailed(cut.batch.number, DISK_FULL)))
    assert [(one.message_id, one.sequence, one.error) for one in failed] == [
        ("m-1", 0, DISK_FULL),
        ("m-2", 0, DISK_FULL),
    ]
    # The numbers are free again: no gap.
    again = outcomes(bench.send(alpha, draft("m-2"), draft("m-1")))
    assert [one.sequence for one in again] == [1, 2]


def test_a_repeat_of_what_is_durable_keeps_its_outcome_through_a_failed_commit(bench: Bench) -> None:
    alpha = bench.open("alpha", send_only=True)
    bench.send(alpha, draft("m-1"))
    bench.step(ev.FrameReceived(alpha, drafts=[draft("m-1"), draft("m-2")]))
    first, second = outcomes(bench.fail())
    assert (first.sequence, first.error, second.error) == (1, None, DISK_FULL)


def test_acks_that_could_not_be_kept_hold_their_deliveries(bench: Bench) -> None:
    alpha, beta = bench.open("alpha", send_only=True), bench.receiver()
    held = tokens(bench.send(alpha, draft("m-1"), draft("m-2"), draft("m-3")))
    bench.step(ev.FrameReceived(beta, acks=held, settlings=[]))
    refused = of(bench.fail(), fx.RefuseSettling)
    assert [(one.tokens, one.error) for one in refused] == [(held, DISK_FULL)]
    bench.step(ev.FrameReceived(beta, acks=held[:1], settlings=[ev.Reject(held[1], "no")]))
    confirmed = [token for effect in of(bench.commit(), fx.ConfirmSettled) for token in effect.tokens]
    assert sorted(confirmed) == sorted(held[:2])


def test_a_rejected_one_that_could_not_be_buried_comes_again_in_order(bench: Bench) -> None:
    alpha, beta = bench.open("alpha", send_only=True), bench.receiver()
    held = tokens(bench.send(alpha, draft("m-1"), draft("m-2")))
    bench.step(ev.FrameReceived(beta, settlings=[ev.Reject(held[0], "no")]))
    effects = bench.fail()
    assert numbers(effects) == [1, 2]
    assert [list(one.tokens) for one in of(effects, fx.Recall)] == [[held[1]]]


def test_a_retry_waits_with_its_own_domain_only(bench: Bench) -> None:
    alpha, gamma = bench.open("alpha", send_only=True), bench.open("gamma", send_only=True)
    beta = bench.receiver()
    first, _ = tokens(bench.send(alpha, draft("m-1"), draft("m-2")))
    bench.step(ev.FrameReceived(beta, settlings=[ev.Nack(first, None)]))
    bench.commit()
    # Another sender, and another lane of the same sender, go on; the same lane waits.
    assert numbers(bench.send(gamma, draft("g-1"))) == [1]
    assert numbers(bench.send(alpha, draft("h-1", lane=Lane.HIGH))) == [1]
    assert numbers(bench.send(alpha, draft("m-3"))) == []
    assert numbers(bench.pass_time(99)) == []
    assert numbers(bench.pass_time(1)) == [1, 2, 3]


def test_the_backoff_doubles_and_ends(bench: Bench) -> None:
    alpha, beta = bench.open("alpha", send_only=True), bench.receiver()
    (token,) = tokens(bench.send(alpha, draft("m-1", retry_max=2)))
    for delay_ms in (100, 200):
        bench.step(ev.FrameReceived(beta, settlings=[ev.Nack(token, None)]))
        bench.commit()
        assert tokens(bench.pass_time(delay_ms - 1)) == []
        (token,) = tokens(bench.pass_time(1))
    bench.step(ev.FrameReceived(beta, settlings=[ev.Nack(token, None)]))
    effects = bench.commit()
    (note,) = of(effects, fx.NoteDead)
    assert note.dead_letters[0].reason is DeadReason.DELIVERIES_EXHAUSTED
    assert note.dead_letters[0].delivery_count == 3
    (told,) = of(effects, fx.TellTombstones)
    assert told.tombstones[0].sequence == 1


def test_failures_are_counted_across_a_restart(bench: Bench) -> None:
    alpha, beta = bench.open("alpha", send_only=True), bench.receiver()
    (token,) = tokens(bench.send(alpha, draft("m-1", retry_max=1)))
    bench.step(ev.FrameReceived(beta, settlings=[ev.Nack(token, None)]))
    bench.commit()
    bench.restart()
    beta = bench.open("beta")
    effects = bench.step(ev.FrameReceived(beta, credits=5))
    (delivery,) = of(effects, fx.Deliver)[0].deliveries
    assert delivery.number == 2
    bench.step(ev.FrameReceived(beta, settlings=[ev.Nack(delivery.token, None)]))
    assert of(bench.commit(), fx.NoteDead)


def test_tokens_of_an_earlier_life_are_void(bench: Bench) -> None:
    alpha, beta = bench.open("alpha", send_only=True), bench.receiver()
    (old,) = tokens(bench.send(alpha, draft("m-1")))
    bench.restart()
    beta = bench.open("beta")
    (new,) = tokens(bench.step(ev.FrameReceived(beta, credits=5)))
    assert new > old
    (refused,) = of(bench.step(ev.FrameReceived(beta, acks=[old])), fx.RefuseSettling)
    assert refused.error.reason is Reason.STALE_ACK_TOKEN


def test_a_vanished_receiver_costs_the_oldest_delivery_one_try(bench: Bench) -> None:
    alpha, beta = bench.open("alpha", send_only=True), bench.receiver()
    bench.send(alpha, draft("m-1"), draft("m-2"))
    bench.step(ev.StreamClosed(beta))
    bench.pass_time(bench.limits.resume_window_ms)
    bench.commit()
    beta = bench.open("beta", incarnation=2)
    effects = bench.step(ev.FrameReceived(beta, credits=5)) + bench.pass_time(100)
    first, second = of(effects, fx.Deliver)[0].deliveries
    machine_items = bench.machine.state.mailboxes["beta"].sessions["0"].outstanding
    assert (first.number, second.number) == (2, 2)
    assert [item.failures for item in machine_items.values()] == [1, 0]


def test_an_extended_delivery_stays(bench: Bench) -> None:
    alpha, beta = bench.open("alpha", send_only=True), bench.receiver()
    first, second = tokens(bench.send(alpha, draft("m-1"), draft("h-1", lane=Lane.HIGH)))
    bench.step(ev.FrameReceived(beta, settlings=[ev.Extend(first, 3_600_000)]))
    effects = bench.pass_time(bench.limits.ack_deadline_ms)
    assert [list(one.tokens) for one in of(effects, fx.Recall)] == [[second]]
    bench.step(ev.FrameReceived(beta, acks=[first]))
    assert of(bench.commit(), fx.ConfirmSettled)


def test_many_extensions_arm_few_timers(bench: Bench) -> None:
    alpha, beta = bench.open("alpha", send_only=True), bench.receiver()
    (token,) = tokens(bench.send(alpha, draft("m-1")))
    before = len(bench.machine._desk.timers)
    for _ in range(500):
        bench.step(ev.FrameReceived(beta, settlings=[ev.Extend(token, 60_000)]))
    assert len(bench.machine._desk.timers) <= before + 1


def test_expired_envelopes_are_found_though_nobody_asks(bench: Bench) -> None:
    alpha = bench.open("alpha", send_only=True)
    bench.send(alpha, draft("m-1", ttl_ms=1_000), draft("m-2", ttl_ms=50_000), draft("m-3", ttl_ms=1_000))
    bench.pass_time(1_000)
    (note,) = of(bench.commit(), fx.NoteDead)
    assert [letter.envelope.sequence for letter in note.dead_letters] == [1, 3]
    beta = bench.open("beta")
    assert numbers(bench.step(ev.FrameReceived(beta, credits=5))) == [2]


def test_a_receiver_that_comes_later_is_told_of_gaps_until_it_has_passed_them(bench: Bench) -> None:
    alpha = bench.open("alpha", send_only=True)
    bench.send(alpha, draft("m-1", ttl_ms=1_000), draft("m-2"))
    bench.pass_time(1_000)
    bench.commit()
    for incarnation in (1, 2):
        bench.stream_ids += 1
        opened = bench.step(
            ev.StreamOpened(bench.stream_ids, "agent/beta", "beta", "0", incarnation, send_only=False)
        )
        (told,) = of(opened, fx.TellTombstones)
        assert [(one.sequence, one.message_id) for one in told.tombstones] == [(1, "m-1")]
    (token,) = tokens(bench.step(ev.FrameReceived(bench.stream_ids, credits=5)))
    bench.step(ev.FrameReceived(bench.stream_ids, acks=[token]))
    bench.commit()
    bench.stream_ids += 1
    opened = bench.step(ev.StreamOpened(bench.stream_ids, "agent/beta", "beta", "0", 3, send_only=False))
    assert of(opened, fx.TellTombstones) == []


def test_tombstones_are_bounded_and_still_explain_everything() -> None:
    bench = Bench(Limits(tombstones_max_per_domain=3))
    alpha = bench.open("alpha", send_only=True)
    bench.send(alpha, *(draft(f"m-{number}", ttl_ms=1_000) for number in range(1, 11)))
    bench.pass_time(1_000)
    bench.commit()
    bench.stream_ids += 1
    opened = bench.step(ev.StreamOpened(bench.stream_ids, "agent/beta", "beta", "0", 1, send_only=False))
    (told,) = of(opened, fx.TellTombstones)
    assert len(told.tombstones) <= 3
    explained = [number for one in told.tombstones for number in range(one.first_sequence, one.sequence + 1)]
    assert explained == list(range(1, 11))


def test_a_sender_that_floods_does_not_stand_in_anothers_way(bench: Bench) -> None:
    alpha, gamma = bench.open("alpha", send_only=True), bench.open("gamma", send_only=True)
    bench.send(alpha, *(draft(f"m-{number}") for number in range(500)))
    bench.send(gamma, draft("g-1"))
    beta = bench.open("beta")
    effects = bench.step(ev.FrameReceived(beta, credits=130))
    senders = [one.envelope.key.sender for one in of(effects, fx.Deliver)[0].deliveries]
    assert "gamma" in senders[:70]


def test_a_stream_pays_for_what_it_gets(bench: Bench) -> None:
    alpha, beta = bench.open("alpha", send_only=True), bench.open("beta")
    bench.send(alpha, *(draft(f"m-{number}") for number in range(10)))
    assert numbers(bench.step(ev.FrameReceived(beta, credits=3))) == [1, 2, 3]
    assert numbers(bench.step(ev.FrameReceived(beta, emergency_credits=50))) == []
    assert numbers(bench.step(ev.FrameReceived(beta, credits=1))) == [4]


def test_a_reader_that_does_not_read_gets_no_more() -> None:
    bench = Bench(Limits(unflushed_bytes_max=500))
    alpha, beta = bench.open("alpha", send_only=True), bench.receiver(credits_=1_000)
    effects = bench.send(alpha, *(draft(f"m-{number}") for number in range(200)))
    handed = numbers(effects)
    assert len(handed) == 64
    (deliver,) = of(effects, fx.Deliver)
    assert numbers(bench.step(ev.Flushed(beta, deliver.weight)))[0] == 65


def test_agents_that_the_registry_forgot_are_unknown_unless_they_are_here(bench: Bench) -> None:
    alpha = bench.open("alpha", send_only=True)
    bench.receiver("beta")
    bench.step(ev.AgentsSeen(frozenset({"alpha"}), complete=True))
    refused, taken = outcomes(bench.send(alpha, draft("m-1", "gamma"), draft("m-2", "beta")))
    assert refused.error is not None
    assert refused.error.reason is Reason.AGENT_NOT_FOUND
    assert taken.error is None
    bench.restart()
    assert bench.machine.state.known == {"alpha", "beta"}


def test_a_leaving_stream_is_finished_when_it_has_its_answers(bench: Bench) -> None:
    alpha, beta = bench.open("alpha", send_only=True), bench.receiver()
    held = tokens(bench.send(alpha, draft("m-1"), draft("m-2")))
    bench.step(ev.FrameReceived(beta, acks=held[:1]))
    assert of(bench.step(ev.StreamLeaving(beta)), fx.Finish) == []
    effects = bench.commit()
    kinds = [type(effect) for effect in effects if isinstance(effect, fx.ConfirmSettled | fx.Finish)]
    assert kinds == [fx.ConfirmSettled, fx.Finish]
    assert of(bench.step(ev.StreamLeaving(alpha)), fx.Finish)


def test_a_draining_broker_takes_nothing_new(bench: Bench) -> None:
    alpha = bench.open("alpha", send_only=True)
    bench.step(ev.DrainBegan())
    (refused,) = outcomes(bench.send(alpha, draft("m-1")))
    assert refused.error is not None
    assert refused.error.reason is Reason.SHUTTING_DOWN


def test_idle_windows_are_forgotten(bench: Bench) -> None:
    alpha = bench.open("alpha", send_only=True)
    bench.send(alpha, draft("m-1"))
    assert bench.machine.state.dedup_bytes > 0
    bench.pass_time(bench.limits.retry_horizon_ms + 20_000)
    assert bench.machine.state.dedup_bytes == 0


def test_a_view_counts_what_is_there(bench: Bench) -> None:
    alpha = bench.open("alpha", send_only=True)
    bench.receiver(credits_=2)
    bench.send(alpha, *(draft(f"m-{number}") for number in range(5)), draft("e", lane=Lane.EMERGENCY))
    view = view_mailbox(bench.machine.state, "beta")
    assert view.lanes[Lane.NORMAL][:2] == (3, 2)
    assert view.lanes[Lane.EMERGENCY][:2] == (0, 1)
    assert view.lanes[Lane.NORMAL].oldest_accepted_at == NOW
    assert view.stream_count == 1
    nothing = view_mailbox(bench.machine.state, "nobody")
    assert (nothing.stream_count, {depth[:2] for depth in nothing.lanes.values()}) == (0, {(0, 0)})


def test_a_new_core_on_an_empty_disk_is_empty() -> None:
    machine = Machine(Recovered(1), Limits(), NOW)
    assert machine.next_due() is None
    assert not machine.has_work
    assert machine.step(ev.Ticked(), NOW) == []


def buried(bench: Bench, *ids: str) -> list[StoredDeadLetter]:
    """Let envelopes of alpha become dead letters."""
    alpha, beta = bench.open("alpha", send_only=True), bench.receiver(instance="burier")
    held = tokens(bench.send(alpha, *(draft(one) for one in ids)))
    bench.step(ev.FrameReceived(beta, settlings=[ev.Reject(token, "no") for token in held]))
    bench.commit()
    return list(bench.store.dead_letters)


def test_a_replayed_dead_letter_is_a_new_envelope_of_its_sender(bench: Bench) -> None:
    letters = buried(bench, "m-1", "m-2")
    bench.now = Instant(bench.now + 50_000)
    assert bench.step(ev.ReplayAsked(7, letters[:1])) == []
    effects = bench.commit()
    (told,) = of(effects, fx.TellLetters)
    assert (told.request_id, [(one.number, one.sequence, one.error) for one in told.outcomes]) == (
        7,
        [(letters[0].number, 3, None)],
    )
    (again,) = of(effects, fx.Deliver)[0].deliveries
    assert (again.envelope.sequence, again.envelope.draft.message_id, again.number) == (3, "m-1", 1)
    # Its whole ttl begins again, and nobody is noted as having sent it.
    assert again.envelope.accepted_at == bench.now
    assert of(effects, fx.NoteAccepted) == []
    assert bench.store.dead_letters == letters[1:]
    # A late repeat of its sender is still answered as at first.
    alpha = bench.open("alpha", send_only=True)
    (repeat,) = outcomes(bench.send(alpha, draft("m-1")))
    assert repeat.sequence == 1


def test_a_replay_that_could_not_be_kept_changed_nothing(bench: Bench) -> None:
    letters = buried(bench, "m-1")
    bench.step(ev.ReplayAsked(1, letters))
    (told,) = of(bench.fail(), fx.TellLetters)
    assert told.outcomes[0].error is DISK_FULL
    assert bench.store.dead_letters == letters
    alpha = bench.open("alpha", send_only=True)
    (fresh,) = outcomes(bench.send(alpha, draft("m-9")))
    assert fresh.sequence == 2


def test_a_replay_to_somebody_unknown_is_refused(bench: Bench) -> None:
    letters = buried(bench, "m-1")
    for stream in list(bench.machine.state.streams):
        bench.step(ev.StreamLeaving(stream))
    bench.step(ev.AgentsSeen(frozenset({"alpha"}), complete=True))
    bench.step(ev.ReplayAsked(1, letters))
    (told,) = of(bench.commit(), fx.TellLetters)
    assert told.outcomes[0].error is not None
    assert told.outcomes[0].error.reason is Reason.AGENT_NOT_FOUND
    assert bench.store.dead_letters == letters


def test_dropped_dead_letters_are_gone(bench: Bench) -> None:
    letters = buried(bench, "m-1", "m-2")
    bench.step(ev.DropAsked(2, [letters[1].number]))
    (told,) = of(bench.commit(), fx.TellLetters)
    assert told.outcomes[0].error is None
    assert bench.store.dead_letters == letters[:1]
