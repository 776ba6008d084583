"""Envelopes whose receivers the broker finds, step by step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.broker.core import effects as fx
from services.broker.core import events as ev
from services.broker.core.model import (
    AgentProfile,
    Chosen,
    Lane,
    Limits,
    Reach,
    Route,
    RoutedDraft,
    RouteKind,
    Subscription,
)
from services.broker.core.routing import candidates
from services.common.core.errors import Reason
from tests.unit.broker.broker_bench import Bench, draft, numbers, of, outcomes, tokens
from tests.unit.broker.broker_invariants import validate

NAMES = frozenset({"alpha", "beta", "gamma", "delta"})
ROADS = Route(RouteKind.TOPIC, "roads.closed")
PLANS = Route(RouteKind.SKILL, "plans")
TEAM = Route(RouteKind.COLLABORATION, "c-1")


def routed(message_id: str, route: Route, *, requires: bool = False, **fields: object) -> RoutedDraft:
    made = draft(message_id, "")._replace(**fields)  # type: ignore[arg-type]  # the fields of Draft
    return RoutedDraft(message_id, route, requires, made)


def profile(skills: str = "plans", reach: Reach = Reach.READY, slots: int = 4, used: int = 0) -> AgentProfile:
    return AgentProfile(frozenset(skills.split()), reach, slots, used)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(Limits(fanout_max=3, subscriptions_max_per_agent=3, memberships_max=2))
    made.step(ev.AgentsSeen(NAMES, complete=True))
    made.commit()
    yield made
    made.commit()
    validate(made.machine._desk)


def subscribe(bench: Bench, owner: str, pattern: str, *, wanted: bool = True, own: bool = True) -> object:
    """Return the error that the caller is told, or None."""
    asked = ev.SubscriptionAsked(bench.stream_ids, Subscription(owner, pattern), wanted, own)
    told = of([*bench.step(asked), *bench.commit()], fx.TellSubscription)
    assert len(told) == 1
    return None if told[0].error is None else told[0].error.reason


def load(bench: Bench, **profiles: AgentProfile) -> None:
    bench.step(ev.AgentsSeen(NAMES, complete=True, profiles=profiles))
    bench.commit()


def refusal(bench: Bench, stream: int, one: RoutedDraft) -> Reason | None:
    (outcome,) = outcomes(bench.send(stream, one))
    return None if outcome.error is None else outcome.error.reason


# -- topics


def test_every_subscriber_gets_a_copy_in_an_order_of_its_own(bench: Bench) -> None:
    for owner in ("beta", "gamma"):
        assert subscribe(bench, owner, "roads.*") is None
    sender, beta, gamma = bench.open("alpha", send_only=True), bench.receiver("beta"), bench.receiver("gamma")
    effects = bench.send(sender, draft("d-1", "beta"), routed("t-1", ROADS), draft("d-2", "gamma"))
    assert outcomes(effects)[1][1:] == (0, None, Chosen("", 2))
    got = {one.stream_id: numbers([one]) for one in of(effects, fx.Deliver)}
    assert got == {beta: [1, 2], gamma: [1, 2]}
    # The copies are told apart by nothing but their receiver.
    copies = [one.envelope for effect in of(effects, fx.Deliver) for one in effect.deliveries]
    assert len([one for one in copies if one.draft.message_id == "t-1"]) == 2
    assert all(one.draft.receiver == one.key.receiver for one in copies)


def test_who_is_away_finds_it_later_and_who_comes_later_does_not(bench: Bench) -> None:
    subscribe(bench, "beta", "roads.**")
    sender = bench.open("alpha", send_only=True)
    bench.send(sender, routed("t-1", ROADS))
    subscribe(bench, "gamma", "roads.**")
    bench.restart()
    assert bench.machine.state.topics.patterns("beta") == ["roads.**"]
    bench.step(ev.AgentsSeen(NAMES, complete=True))
    late = bench.receiver("gamma")
    assert bench.commit() == []
    bench.open("beta")
    effects = bench.step(ev.FrameReceived(bench.stream_ids, credits=10))
    assert numbers(effects) == [1]
    assert late


def test_a_topic_that_nobody_hears_is_accepted_unless_a_receiver_is_required(bench: Bench) -> None:
    sender = bench.open("alpha", send_only=True)
    effects = bench.send(sender, routed("t-1", ROADS))
    assert outcomes(effects)[0].chosen == Chosen("", 0)
    assert [one.message_id for one in of(effects, fx.NoteUnheard)[0].routed] == ["t-1"]
    assert refusal(bench, sender, routed("t-2", ROADS, requires=True)) is Reason.RECEIVER_NOT_FOUND
    # A repeat is answered as the first, though somebody listens now: also after a crash.
    subscribe(bench, "beta", "roads.closed")
    assert outcomes(bench.send(sender, routed("t-1", ROADS)))[0].chosen == Chosen("", 0)
    bench.restart()
    sender = bench.open("alpha", send_only=True)
    assert outcomes(bench.send(sender, routed("t-1", ROADS)))[0].chosen == Chosen("", 0)
    assert bench.machine.state.mailbox("beta").count == 0


def test_a_sender_gets_no_copy_of_its_own(bench: Bench) -> None:
    for owner in ("alpha", "beta"):
        subscribe(bench, owner, "**")
    sender = bench.receiver("alpha")
    assert outcomes(bench.send(sender, routed("t-1", ROADS)))[0].chosen == Chosen("", 1)
    assert bench.machine.state.mailbox("alpha").count == 0


def test_one_full_mailbox_refuses_all_copies() -> None:
    small = Bench(Limits(mailbox_count_max=2, domain_share_percent=100))
    for owner in ("beta", "gamma"):
        subscribe(small, owner, "roads.closed")
    sender = small.open("alpha", send_only=True)
    small.send(sender, draft("d-1", "gamma"), draft("d-2", "gamma"))
    (outcome,) = outcomes(small.send(sender, routed("t-1", ROADS)))
    assert outcome.error is not None
    assert (outcome.error.reason, outcome.error.metadata["receiver"]) == (Reason.MAILBOX_FULL, "gamma")
    assert small.machine.state.mailbox("beta").count == 0
    # An emergency has room of its own.
    assert refusal(small, sender, routed("t-2", ROADS, lane=Lane.EMERGENCY)) is None


def test_a_frame_with_a_full_disk_takes_every_copy_back(bench: Bench) -> None:
    for owner in ("beta", "gamma"):
        subscribe(bench, owner, "roads.closed")
    sender = bench.open("alpha", send_only=True)
    bench.step(ev.FrameReceived(sender, drafts=[draft("d-1"), routed("t-1", ROADS), draft("d-2")]))
    asked = ev.SubscriptionAsked(7, Subscription("delta", "roads.closed"), True, True)
    bench.step(asked)
    effects = bench.fail()
    assert [one.error is not None for one in outcomes(effects)] == [True, True, True]
    assert of(effects, fx.TellSubscription)[0].error is not None
    # Nothing of it is left: the same ids are accepted anew, from number 1, for those who are subscribed.
    again = outcomes(bench.send(sender, draft("d-1"), routed("t-1", ROADS), draft("d-2")))
    assert [(one.sequence, one.error) for one in again] == [(1, None), (0, None), (3, None)]
    assert again[1].chosen == Chosen("", 2)


def test_more_copies_than_may_be_are_refused(bench: Bench) -> None:
    for owner in ("beta", "gamma", "delta"):
        subscribe(bench, owner, "roads.closed")
    bench.step(ev.AgentsSeen(frozenset({"omega"}), complete=False))
    sender = bench.open("omega", send_only=True)
    assert refusal(bench, sender, routed("t-1", ROADS)) is None
    subscribe(bench, "alpha", "roads.closed")
    (outcome,) = outcomes(bench.send(sender, routed("t-2", ROADS)))
    assert outcome.error is not None
    assert outcome.error.metadata == {"limit": "fanout_max"}


def test_the_senders_quota_counts_every_copy() -> None:
    bench = Bench(Limits(sender_pending_max=3))
    for owner in ("beta", "gamma"):
        subscribe(bench, owner, "roads.closed")
    sender = bench.open("alpha", send_only=True)
    first, second = outcomes(bench.send(sender, routed("t-1", ROADS), routed("t-2", ROADS)))
    assert first.error is None
    assert second.error is not None
    assert second.error.metadata == {"limit": "sender_pending_max"}


def test_subscriptions_are_bounded_and_given_up(bench: Bench) -> None:
    for pattern in ("a", "b", "c"):
        assert subscribe(bench, "beta", pattern) is None
    assert subscribe(bench, "beta", "d") is Reason.QUOTA_EXCEEDED
    assert subscribe(bench, "beta", "c") is None
    assert subscribe(bench, "beta", "c", wanted=False) is None
    assert subscribe(bench, "beta", "c", wanted=False) is None
    assert subscribe(bench, "beta", "d") is None
    bench.restart()
    assert bench.machine.state.topics.patterns("beta") == ["a", "b", "d"]


def test_only_the_owner_can_subscribe_an_unknown_mailbox(bench: Bench) -> None:
    assert subscribe(bench, "nobody", "a", own=False) is Reason.AGENT_NOT_FOUND
    assert subscribe(bench, "operator/admin", "a") is None
    sender = bench.open("alpha", send_only=True)
    assert outcomes(bench.send(sender, routed("t-1", Route(RouteKind.TOPIC, "a"))))[0].chosen == Chosen("", 1)


def test_changes_of_one_batch_end_as_the_last_says(bench: Bench) -> None:
    on, off = (
        ev.SubscriptionAsked(number, Subscription("beta", "a"), wanted, True)
        for number, wanted in ((1, True), (2, False))
    )
    bench.step(on)
    bench.step(off)
    assert len(of(bench.commit(), fx.TellSubscription)) == 2
    assert bench.store.load_now(bench.now).subscriptions == frozenset()
    bench.step(off)
    bench.step(on)
    bench.commit()
    assert bench.store.load_now(bench.now).subscriptions == {Subscription("beta", "a")}


# -- skills


def test_the_least_loaded_is_chosen_and_what_waits_counts(bench: Bench) -> None:
    load(bench, beta=profile(used=1), gamma=profile(used=2), delta=profile(skills="roads"))
    sender = bench.open("alpha", send_only=True)
    chosen = [outcomes(bench.send(sender, routed(f"s-{number}", PLANS)))[0].chosen for number in range(1, 5)]
    assert [one.receiver for one in chosen if one] == ["beta", "beta", "gamma", "beta"]


def test_who_is_there_comes_before_who_is_idle(bench: Bench) -> None:
    load(
        bench,
        alpha=profile(),
        beta=profile(reach=Reach.AWAY, slots=0),
        gamma=profile(used=4),
        delta=profile(reach=Reach.UNSURE),
    )
    assert candidates(bench.machine.state, "plans", "alpha") == ["gamma", "delta", "beta"]
    # Known and offline is stored.
    load(bench, beta=profile(reach=Reach.AWAY, slots=0))
    sender = bench.open("alpha", send_only=True)
    (outcome,) = outcomes(bench.send(sender, routed("s-1", PLANS)))
    assert (outcome.sequence, outcome.chosen) == (1, Chosen("beta", 1))


def test_the_choice_is_made_once(bench: Bench) -> None:
    load(bench, beta=profile(), gamma=profile(used=1))
    sender = bench.open("alpha", send_only=True)
    bench.send(sender, routed("s-1", PLANS))
    load(bench, beta=profile(used=4), gamma=profile())
    for _ in range(2):
        (outcome,) = outcomes(bench.send(sender, routed("s-1", PLANS)))
        assert (outcome.sequence, outcome.chosen) == (1, Chosen("beta", 1))
        # Also after a crash, before the registry was heard again.
        bench.restart()
        sender = bench.open("alpha", send_only=True)
    assert refusal(bench, sender, routed("s-1", PLANS, fingerprint=b"otherone")) is Reason.REQUEST_ID_REUSED
    assert refusal(bench, sender, routed("s-2", PLANS)) is Reason.ROUTE_UNAVAILABLE


def test_a_skill_that_nobody_has_is_refused_at_once(bench: Bench) -> None:
    load(bench, alpha=profile(), beta=profile(skills="roads"))
    sender = bench.open("alpha", send_only=True)
    # The sender itself does not count.
    assert refusal(bench, sender, routed("s-1", PLANS)) is Reason.RECEIVER_NOT_FOUND
    load(bench, alpha=profile(), gamma=profile())
    assert refusal(bench, sender, routed("s-2", PLANS)) is None


def test_a_full_mailbox_is_passed_over() -> None:
    bench = Bench(Limits(mailbox_count_max=1, domain_share_percent=100))
    load(bench, beta=profile(slots=100), gamma=profile(slots=1, used=1))
    sender = bench.open("alpha", send_only=True)
    chosen = [outcomes(bench.send(sender, routed(f"s-{n}", PLANS)))[0] for n in range(3)]
    assert [one.chosen.receiver for one in chosen if one.chosen] == ["beta", "gamma"]
    assert chosen[2].error is not None
    assert chosen[2].error.reason is Reason.MAILBOX_FULL


# -- collaborations


def test_members_get_a_copy_and_others_are_kept_out(bench: Bench) -> None:
    members = frozenset({"alpha", "beta", "gamma", "operator/admin"})
    sender, stranger = bench.open("alpha", send_only=True), bench.open("delta", send_only=True)
    assert refusal(bench, sender, routed("c-0", TEAM)) is Reason.ROUTE_UNAVAILABLE
    bench.step(ev.MembersSeen("c-1", members))
    # The operator has no mailbox yet.
    assert outcomes(bench.send(sender, routed("c-1", TEAM)))[0].chosen == Chosen("", 2)
    assert refusal(bench, stranger, routed("c-2", TEAM)) is Reason.ACCESS_DENIED
    operator = bench.open("operator/admin", send_only=True)
    assert outcomes(bench.send(operator, routed("c-3", TEAM)))[0].chosen == Chosen("", 3)
    bench.step(ev.MembersSeen("c-1", None))
    assert refusal(bench, sender, routed("c-4", TEAM)) is Reason.COLLABORATION_NOT_FOUND


def test_members_of_few_collaborations_are_remembered(bench: Bench) -> None:
    for name in ("c-1", "c-2", "c-1", "c-3"):
        bench.step(ev.MembersSeen(name, frozenset({"alpha"})))
    assert list(bench.machine.state.memberships) == ["c-1", "c-3"]


def test_nothing_is_accepted_while_leaving(bench: Bench) -> None:
    subscribe(bench, "beta", "roads.closed")
    sender = bench.open("alpha", send_only=True)
    bench.step(ev.DrainBegan())
    assert refusal(bench, sender, routed("t-1", ROADS)) is Reason.SHUTTING_DOWN


def test_copies_are_settled_one_by_one(bench: Bench) -> None:
    for owner in ("beta", "gamma"):
        subscribe(bench, owner, "roads.closed")
    sender, beta = bench.open("alpha", send_only=True), bench.receiver("beta")
    effects = bench.send(sender, routed("t-1", ROADS))
    bench.step(ev.FrameReceived(beta, acks=tokens(effects)))
    bench.commit()
    bench.restart()
    assert bench.machine.state.mailbox("beta").count == 0
    assert bench.machine.state.mailbox("gamma").count == 1
