"""The lock table, case by case: who gets what, in which order, and what the others are told."""

from __future__ import annotations

import pytest

from services.common.core.errors import Reason, ServiceError
from services.common.core.fencing import FencingToken
from services.common.core.ids import AgentId, CollaborationId, InstanceId, ResourceName, TaskId
from services.common.core.instants import Instant
from services.scheduler.core.locking.queue import ForeignKey, InstanceOwner, LockId, LockRequest, TaskOwner
from services.scheduler.core.locking.table import Freed, LockOutcome, LockTable, Proposed, Refused
from services.scheduler.core.model import InstanceKey, LockMode, Priority, ResourceClaim, TaskKey

START = Instant(1_760_000_000_000)
STEP_MS = 60_000


def agent(name: str) -> InstanceKey:
    return InstanceKey(AgentId(name), InstanceId("0"))


class Bench:
    """A lock table with short words for it; `bridge` is exclusive and `~bridge` shared."""

    def __init__(self) -> None:
        self.table = LockTable(ageing_step_ms=STEP_MS)
        self.now = START
        self._revision = 100
        self._requests: dict[str, LockRequest] = {}

    def ask(
        self,
        lock_id: str,
        claims: str,
        owner: str | None = None,
        priority: Priority = Priority.NORMAL,
        *,
        may_wait: bool = True,
    ) -> list[LockOutcome]:
        parsed = tuple(
            ResourceClaim(
                ResourceName(claim.removeprefix("~")),
                LockMode.SHARED if claim.startswith("~") else LockMode.EXCLUSIVE,
            )
            for claim in claims.split()
        )
        request = LockRequest(LockId(lock_id), InstanceOwner(agent(owner or lock_id)), parsed, priority)
        self._requests[lock_id] = request
        return self.table.request(request, self.now, may_wait=may_wait)

    def confirm(self, lock_id: str) -> list[LockOutcome]:
        self._revision += 1
        holder = self._requests[lock_id].owner
        assert isinstance(holder, InstanceOwner)
        token = FencingToken(7, self._revision)
        return self.table.confirm(LockId(lock_id), token, holder.instance, self.now)

    def take(self, lock_id: str, claims: str, owner: str | None = None) -> None:
        assert granted(self.ask(lock_id, claims, owner)) == [lock_id]
        assert self.confirm(lock_id) == []

    def release(self, lock_id: str, *resources: str) -> list[LockOutcome]:
        return self.table.release(
            LockId(lock_id), [ResourceName(name) for name in resources] if resources else None
        )

    def waiting(self, resource: str) -> list[str | None]:
        return [view.lock_id for view in self.table.snapshot(ResourceName(resource)) if not view.held]


def granted(outcomes: list[LockOutcome]) -> list[str]:
    return [outcome.request.lock_id for outcome in outcomes if isinstance(outcome, Proposed)]


def refusal(outcomes: list[LockOutcome]) -> tuple[str, ServiceError]:
    (found,) = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
    assert found.error.reason is Reason.RESOURCE_HELD
    return found.request.lock_id, found.error


@pytest.fixture
def bench() -> Bench:
    return Bench()


class TestModes:
    def test_an_exclusive_claim_keeps_everybody_out_until_it_is_released(self, bench: Bench) -> None:
        bench.take("a", "bridge")
        assert bench.ask("b", "bridge") == []
        assert bench.ask("c", "~bridge") == []
        freed, *rest = bench.release("a")
        assert freed == Freed(LockId("a"), (ResourceName("bridge"),))
        assert granted(rest) == ["b"]

    def test_shared_claims_go_together(self, bench: Bench) -> None:
        bench.take("a", "~bridge")
        assert granted(bench.ask("b", "~bridge")) == ["b"]
        assert bench.ask("c", "bridge") == []
        bench.release("a")
        bench.confirm("b")
        assert granted(bench.release("b")) == ["c"]

    def test_what_waits_together_and_fits_is_granted_together(self, bench: Bench) -> None:
        bench.take("a", "bridge")
        for name in ("b", "c", "d"):
            bench.ask(name, "~bridge")
        assert granted(bench.release("a")) == ["b", "c", "d"]

    def test_several_resources_are_granted_all_or_none(self, bench: Bench) -> None:
        bench.take("a", "road")
        assert bench.ask("b", "bridge road") == []
        assert [view.held for view in bench.table.snapshot(ResourceName("bridge"))] == [False]
        assert granted(bench.release("a")) == ["b"]


class TestOrder:
    def test_first_come_first_served(self, bench: Bench) -> None:
        bench.take("a", "bridge")
        for name in ("b", "c"):
            bench.ask(name, "bridge")
        assert granted(bench.release("a")) == ["b"]
        bench.confirm("b")
        assert granted(bench.release("b")) == ["c"]

    def test_a_higher_class_goes_first(self, bench: Bench) -> None:
        bench.take("a", "bridge")
        bench.ask("low", "bridge", priority=Priority.LOW)
        bench.ask("normal", "bridge")
        bench.ask("emergency", "bridge", priority=Priority.EMERGENCY)
        assert bench.waiting("bridge") == ["emergency", "normal", "low"]

    def test_waiting_lifts_a_request_by_one_class_each_step(self, bench: Bench) -> None:
        bench.take("a", "bridge")
        bench.ask("low", "bridge", priority=Priority.LOW)
        bench.now = Instant(START + 3 * STEP_MS - 1)
        bench.ask("just in time", "bridge", priority=Priority.EMERGENCY)
        bench.now = Instant(START + 3 * STEP_MS)
        bench.ask("too late", "bridge", priority=Priority.EMERGENCY)
        assert bench.waiting("bridge") == ["just in time", "low", "too late"]

    def test_a_shared_claim_does_not_overtake_an_exclusive_one_that_waits(self, bench: Bench) -> None:
        bench.take("a", "~bridge")
        bench.ask("b", "bridge")
        assert bench.ask("c", "~bridge") == []

    def test_one_resource_does_not_overtake_several(self, bench: Bench) -> None:
        bench.take("a", "road")
        bench.ask("b", "bridge road")
        assert bench.ask("c", "bridge") == []
        assert granted(bench.release("a")) == ["b"]
        assert bench.ask("d", "tunnel road") == []

    def test_what_does_not_conflict_does_not_wait(self, bench: Bench) -> None:
        bench.take("a", "road")
        bench.ask("b", "~bridge road")
        assert granted(bench.ask("c", "~bridge")) == ["c"]

    def test_a_withdrawn_request_no_longer_stands_in_the_way(self, bench: Bench) -> None:
        bench.take("a", "road")
        bench.ask("b", "bridge road")
        bench.ask("c", "bridge")
        assert granted(bench.release("b")) == ["c"]

    def test_an_owner_may_pass_who_waits_for_it(self, bench: Bench) -> None:
        bench.take("a", "road", owner="x")
        bench.ask("b", "bridge road", owner="y")
        # Keeping the order, x would wait for y, who waits for x.
        assert granted(bench.ask("c", "bridge", owner="x")) == ["c"]
        bench.confirm("c")
        assert granted(bench.release("a")) == []
        assert granted(bench.release("c")) == ["b"]

    def test_an_owner_may_pass_who_waits_for_it_through_others(self, bench: Bench) -> None:
        bench.take("road", "road", owner="x")
        bench.take("tunnel", "tunnel", owner="y")
        bench.ask("y waits for x", "road", owner="y")
        bench.ask("z waits for y", "bridge tunnel", owner="z")
        assert granted(bench.ask("x passes z", "bridge", owner="x")) == ["x passes z"]

    def test_an_owner_may_pass_as_soon_as_somebody_waits_for_it(self, bench: Bench) -> None:
        bench.take("o1", "road", owner="o")
        bench.take("z1", "tunnel", owner="z")
        bench.ask("w", "bridge tunnel")
        assert bench.ask("o2", "bridge", owner="o") == []
        # Now w waits for z, and z for o.
        assert granted(bench.ask("z2", "road", owner="z")) == ["o2"]

    def test_an_owner_may_pass_as_soon_as_it_got_what_others_wait_for(self, bench: Bench) -> None:
        bench.take("z", "tunnel")
        bench.ask("w", "bridge tunnel ford")
        assert bench.ask("o1", "bridge", owner="o") == []
        # An emergency goes before w on the ford; from then on w waits for o.
        outcomes = bench.ask("o2", "ford", owner="o", priority=Priority.EMERGENCY)
        assert granted(outcomes) == ["o2", "o1"]


class TestTwoSteps:
    def test_a_proposed_grant_occupies_its_resource(self, bench: Bench) -> None:
        assert granted(bench.ask("a", "bridge")) == ["a"]
        assert bench.ask("b", "bridge") == []

    def test_a_grant_that_was_rolled_back_takes_its_place_again(self, bench: Bench) -> None:
        bench.ask("a", "bridge")
        bench.ask("b", "bridge")
        bench.table.put_foreign(ForeignKey(ResourceName("bridge"), "foreign", 90))
        assert bench.table.roll_back(LockId("a")) == []
        assert bench.waiting("bridge") == ["a", "b"]
        assert granted(bench.table.remove_foreign(ResourceName("bridge"), "foreign")) == ["a"]

    def test_a_release_before_the_store_answered_waits_for_the_answer(self, bench: Bench) -> None:
        bench.ask("a", "bridge")
        bench.ask("b", "bridge")
        assert bench.release("a") == []
        freed, *rest = bench.confirm("a")
        assert freed == Freed(LockId("a"), (ResourceName("bridge"),))
        assert granted(rest) == ["b"]

    def test_a_released_grant_that_never_became_durable_leaves_nothing_behind(self, bench: Bench) -> None:
        bench.ask("a", "bridge")
        bench.ask("b", "bridge")
        bench.release("a")
        assert granted(bench.table.roll_back(LockId("a"))) == ["b"]

    def test_its_owner_may_ask_again_meanwhile(self, bench: Bench) -> None:
        bench.ask("a1", "bridge", owner="a")
        bench.release("a1")
        assert bench.ask("a2", "bridge", owner="a") == []
        assert granted(bench.confirm("a1")) == ["a2"]

    def test_only_a_proposed_grant_can_be_confirmed(self, bench: Bench) -> None:
        bench.take("a", "bridge")
        with pytest.raises(ValueError, match="a is HELD"):
            bench.confirm("a")
        with pytest.raises(ValueError, match="b is not here"):
            bench.table.roll_back(LockId("b"))


class TestEnding:
    def test_a_part_may_be_released(self, bench: Bench) -> None:
        bench.take("a", "bridge road")
        bench.ask("b", "bridge")
        bench.ask("c", "road")
        assert granted(bench.release("a", "road", "unknown")) == ["c"]
        assert granted(bench.release("a", "road")) == []
        assert granted(bench.release("a", "bridge")) == ["b"]
        assert bench.release("a") == []

    def test_what_is_not_there_is_passed_over(self, bench: Bench) -> None:
        assert bench.release("nobody") == []
        assert bench.table.give_up(LockId("nobody")) == []
        assert bench.table.remove_foreign(ResourceName("bridge"), "foreign") == []

    def test_all_of_an_owner_that_is_gone_ends(self, bench: Bench) -> None:
        bench.take("a1", "bridge", owner="a")
        bench.ask("a2", "road", owner="a")
        bench.take("b", "tunnel")
        bench.ask("a3", "tunnel", owner="a")
        for name in ("bridge", "road", "tunnel"):
            bench.ask(f"wants {name}", name)
        outcomes = bench.table.expire_owner(InstanceOwner(agent("a")))
        assert [outcome for outcome in outcomes if isinstance(outcome, Freed)] == [
            Freed(LockId("a1"), (ResourceName("bridge"),))
        ]
        assert granted(outcomes) == ["wants bridge"]
        # The second one is on its way into the store; the third one waited.
        assert granted(bench.confirm("a2")) == ["wants road"]
        assert granted(bench.release("b")) == ["wants tunnel"]

    def test_nothing_is_kept_of_what_has_ended(self, bench: Bench) -> None:
        bench.take("a", "bridge road")
        bench.table.renew(InstanceOwner(agent("a")), Instant(START + 1))
        bench.ask("b", "~bridge")
        bench.release("a")
        bench.confirm("b")
        bench.release("b")
        bench.table.renew(InstanceOwner(agent("a")), Instant(START + 1))
        assert repr(bench.table) == "<LockTable requests=0 resources=0>"
        assert bench.table.snapshot() == []


class TestRefusals:
    def test_says_who_holds_it_and_until_when(self, bench: Bench) -> None:
        bench.take("a", "bridge")
        bench.table.renew(InstanceOwner(agent("a")), Instant(1_760_000_015_000))
        name, error = refusal(bench.ask("b", "bridge", may_wait=False))
        assert name == "b"
        assert error.metadata == {
            "resource": "bridge",
            "holder": "agent a/0",
            "until": "2025-10-09T08:53:35.000Z",
        }
        assert error.message == "bridge: held by agent a/0: ask again later, or wait longer"
        assert bench.waiting("bridge") == []

    def test_a_task_is_named_with_the_agent_that_acts_for_it(self, bench: Bench) -> None:
        key = TaskKey(CollaborationId("flood"), TaskId("evacuate"))
        request = LockRequest(
            LockId("t"), TaskOwner(key), (ResourceClaim(ResourceName("bridge")),), Priority.NORMAL
        )
        bench.table.request(request, bench.now)
        _, before = refusal(bench.ask("b", "bridge", may_wait=False))
        assert before.metadata["holder"] == "task flood/evacuate"
        bench.table.confirm(LockId("t"), FencingToken(7, 1), agent("e-agent"), bench.now)
        _, after = refusal(bench.ask("c", "bridge", may_wait=False))
        assert after.metadata["holder"] == "agent e-agent/0 for task flood/evacuate"

    def test_trying_once_succeeds_when_nothing_is_in_the_way(self, bench: Bench) -> None:
        assert granted(bench.ask("a", "bridge road", may_wait=False)) == ["a"]

    def test_trying_once_does_not_overtake(self, bench: Bench) -> None:
        bench.take("a", "road")
        bench.ask("b", "bridge road")
        _, error = refusal(bench.ask("c", "bridge", may_wait=False))
        assert error.metadata["holder"] == "agent b/0"
        assert "waits for it and comes first" in error.message

    def test_waiting_long_enough_ends_with_the_same_answer(self, bench: Bench) -> None:
        bench.take("a", "bridge")
        bench.ask("b", "bridge road")
        bench.ask("c", "road")
        outcomes = bench.table.give_up(LockId("b"))
        name, error = refusal(outcomes)
        assert (name, error.metadata["holder"]) == ("b", "agent a/0")
        assert granted(outcomes) == ["c"]
        assert bench.table.give_up(LockId("b")) == []
        assert bench.table.give_up(LockId("a")) == []

    def test_the_same_owner_twice_is_refused_at_once(self, bench: Bench) -> None:
        bench.take("a1", "bridge", owner="a")
        _, error = refusal(bench.ask("a2", "~bridge", owner="a"))
        assert "agent a/0 itself holds it: release that first" in error.message
        bench.take("b", "road")
        bench.ask("c1", "road", owner="c")
        _, error = refusal(bench.ask("c2", "road", owner="c"))
        assert "agent c/0 itself waits for it" in error.message

    def test_the_same_owner_may_share_with_itself(self, bench: Bench) -> None:
        bench.take("a1", "~bridge", owner="a")
        bench.ask("b", "bridge")
        assert granted(bench.ask("a2", "~bridge", owner="a")) == ["a2"]

    def test_an_id_in_use_is_a_mistake_of_the_caller(self, bench: Bench) -> None:
        bench.take("a", "bridge")
        with pytest.raises(ValueError, match="a is in use"):
            bench.ask("a", "road")


class TestDeadlock:
    def test_a_circle_is_named_and_the_youngest_is_refused(self, bench: Bench) -> None:
        bench.take("a1", "bridge", owner="a")
        bench.take("b1", "road", owner="b")
        assert bench.ask("a2", "road", owner="a") == []
        name, error = refusal(bench.ask("b2", "bridge", owner="b"))
        assert name == "b2"
        assert error.metadata["cycle"] == "agent b/0 -> agent a/0 -> agent b/0"
        assert error.metadata["resource"] == "bridge"
        assert error.metadata["holder"] == "agent a/0"
        assert bench.waiting("road") == ["a2"]

    def test_the_lowest_class_is_refused_even_when_it_is_older(self, bench: Bench) -> None:
        bench.take("a1", "bridge", owner="a")
        bench.take("b1", "road", owner="b")
        bench.ask("a2", "road", owner="a", priority=Priority.LOW)
        name, error = refusal(bench.ask("b2", "bridge", owner="b"))
        assert name == "a2"
        assert error.metadata["cycle"] == "agent a/0 -> agent b/0 -> agent a/0"
        assert bench.waiting("bridge") == ["b2"]

    def test_refusing_a_victim_may_let_others_go(self, bench: Bench) -> None:
        bench.take("a1", "bridge", owner="a")
        bench.take("b1", "road", owner="b")
        bench.ask("a2", "tunnel road", owner="a", priority=Priority.LOW)
        bench.ask("c", "tunnel", owner="c", priority=Priority.LOW)
        assert granted(bench.ask("b2", "bridge", owner="b")) == ["c"]

    def test_two_that_share_and_both_want_it_alone(self, bench: Bench) -> None:
        bench.take("a1", "~bridge", owner="a")
        bench.take("b1", "~bridge", owner="b")
        _, error = refusal(bench.ask("a2", "bridge", owner="a"))
        assert "itself holds it" in error.message

    def test_one_request_may_close_several_circles(self, bench: Bench) -> None:
        bench.take("a1", "bridge", owner="a")
        for name in ("b", "c"):
            bench.take(f"{name}1", "~road", owner=name)
            bench.ask(f"{name}2", "bridge", owner=name, priority=Priority.LOW)
        outcomes = bench.ask("a2", "road", owner="a")
        assert {outcome.request.lock_id for outcome in outcomes if isinstance(outcome, Refused)} == {
            "b2",
            "c2",
        }
        assert bench.waiting("road") == ["a2"]

    def test_a_chain_of_thousands_is_no_deadlock_until_it_closes(self, bench: Bench) -> None:
        count = 2_000
        for n in range(count):
            bench.take(f"holds {n}", f"r{n}", owner=f"o{n}")
        for n in range(count - 1):
            assert bench.ask(f"wants {n}", f"r{n + 1}", owner=f"o{n}") == []
        _, error = refusal(bench.ask("closes", "r0", owner=f"o{count - 1}"))
        assert error.metadata["cycle"].endswith(f"-> (1990 more) -> agent o{count - 1}/0")

    def test_a_grant_that_would_close_a_circle_is_put_off(self, bench: Bench) -> None:
        bench.take("w1", "road", owner="w")
        bench.take("h", "tunnel", owner="h")
        bench.take("z", "ford", owner="z")
        bench.ask("o1", "bridge tunnel", owner="o")
        bench.ask("o2", "road", owner="o")
        bench.ask("w2", "bridge ford", owner="w")
        # o1 could go now. But then w would wait for o, who waits for w.
        assert granted(bench.release("h")) == []
        _, error = refusal(bench.table.give_up(LockId("o1")))
        assert error.metadata["holder"] == "agent w/0"
        bench.ask("o3", "bridge tunnel", owner="o")
        assert granted(bench.release("z")) == ["w2"]
        bench.confirm("w2")
        assert granted(bench.release("w1")) == ["o2"]
        assert granted(bench.release("w2")) == ["o3"]

    def test_a_grant_that_was_put_off_goes_when_the_circle_has_opened(self, bench: Bench) -> None:
        bench.take("w1", "road", owner="w")
        bench.take("h", "tunnel", owner="h")
        bench.take("z", "ford", owner="z")
        bench.ask("o1", "bridge tunnel", owner="o")
        bench.ask("o2", "road", owner="o")
        bench.ask("w2", "bridge ford", owner="w")
        bench.release("h")
        assert granted(bench.release("w1")) == ["o2", "o1"]

    def test_what_nobody_wants_any_more_is_no_part_of_a_circle(self, bench: Bench) -> None:
        bench.ask("a1", "bridge", owner="a")
        bench.take("b1", "road", owner="b")
        bench.release("a1")
        assert bench.ask("a2", "road", owner="a") == []
        assert bench.ask("b2", "bridge", owner="b") == []
        assert granted(bench.confirm("a1")) == ["b2"]

    def test_a_grant_that_was_put_off_goes_when_its_owner_gives_the_other_wish_up(self, bench: Bench) -> None:
        bench.take("w1", "road", owner="w")
        bench.take("h", "tunnel", owner="h")
        bench.take("z", "ford", owner="z")
        bench.ask("o1", "bridge tunnel", owner="o")
        bench.ask("o2", "road", owner="o")
        bench.ask("w2", "bridge ford", owner="w")
        bench.release("h")
        assert granted(bench.release("o2")) == ["o1"]

    def test_a_grant_that_was_put_off_goes_when_the_one_in_flight_is_wanted_no_more(
        self, bench: Bench
    ) -> None:
        bench.ask("w1", "road", owner="w")
        bench.take("h", "tunnel", owner="h")
        bench.take("z", "ford", owner="z")
        bench.ask("o1", "bridge tunnel", owner="o")
        bench.ask("o2", "road", owner="o")
        bench.ask("w2", "bridge ford", owner="w")
        bench.release("h")
        # w1 is on its way into the store and will end whatever w does: o no longer waits for w.
        assert granted(bench.release("w1")) == ["o1"]


class TestForeignKeys:
    def test_keep_everybody_out(self, bench: Bench) -> None:
        bench.table.put_foreign(ForeignKey(ResourceName("bridge"), "/muster/locks/bridge/6c", 90))
        assert bench.ask("a", "~bridge") == []
        _, error = refusal(bench.ask("b", "bridge", may_wait=False))
        assert error.metadata == {"resource": "bridge", "holder": "/muster/locks/bridge/6c", "until": ""}
        removed = bench.table.remove_foreign(ResourceName("bridge"), "/muster/locks/bridge/6c")
        assert granted(removed) == ["a"]

    def test_one_that_came_later_waits_but_goes_before_our_next(self, bench: Bench) -> None:
        bench.take("a", "~bridge")
        bench.table.put_foreign(ForeignKey(ResourceName("bridge"), "foreign", 10_000))
        assert [(view.holder, view.held) for view in bench.table.snapshot()] == [
            ("agent a/0", True),
            ("foreign", False),
        ]
        assert bench.ask("b", "~bridge") == []
        assert granted(bench.release("a")) == []
        assert [(view.holder, view.held) for view in bench.table.snapshot()] == [
            ("foreign", True),
            ("agent b/0", False),
        ]

    def test_only_the_oldest_of_several_holds(self, bench: Bench) -> None:
        bench.table.put_foreign(ForeignKey(ResourceName("bridge"), "second", 91))
        bench.table.put_foreign(ForeignKey(ResourceName("bridge"), "first", 90))
        assert [(view.holder, view.held) for view in bench.table.snapshot()] == [
            ("first", True),
            ("second", False),
        ]


class TestReading:
    def test_shows_holders_then_waiters_with_since_and_until(self, bench: Bench) -> None:
        bench.take("a", "~bridge")
        bench.table.renew(InstanceOwner(agent("a")), Instant(START + 9_000))
        bench.now = Instant(START + 5)
        bench.ask("b", "bridge")
        held, waits = bench.table.snapshot(ResourceName("bridge"))
        assert (held.mode, held.held, held.since, held.until) == (
            LockMode.SHARED,
            True,
            START,
            START + 9_000,
        )
        assert (held.token, held.agent) == (FencingToken(7, 101), agent("a"))
        assert (waits.mode, waits.held, waits.since, waits.until) == (
            LockMode.EXCLUSIVE,
            False,
            START + 5,
            None,
        )
        assert bench.table.snapshot(ResourceName("elsewhere")) == []

    def test_a_grant_is_found_by_its_token(self, bench: Bench) -> None:
        bench.take("a", "bridge")
        found = bench.table.find(ResourceName("bridge"), FencingToken(7, 101))
        assert found is not None
        assert found.lock_id == "a"
        assert bench.table.find(ResourceName("bridge"), FencingToken(7, 102)) is None
        assert bench.table.find(ResourceName("elsewhere"), FencingToken(7, 101)) is None

    def test_a_new_leader_takes_over_what_is_durable(self, bench: Bench) -> None:
        claims = (ResourceClaim(ResourceName("bridge")),)
        request = LockRequest(LockId("a"), InstanceOwner(agent("a")), claims, Priority.NORMAL)
        bench.table.restore(request, FencingToken(6, 40), agent("a"), START)
        assert bench.ask("b", "bridge") == []
        twice = LockRequest(LockId("c"), InstanceOwner(agent("c")), claims, Priority.NORMAL)
        with pytest.raises(ValueError, match="bridge: c and a both hold it"):
            bench.table.restore(twice, FencingToken(6, 41), agent("c"), START)
        assert granted(bench.release("a")) == ["b"]
