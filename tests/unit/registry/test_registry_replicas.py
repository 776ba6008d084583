"""Several replicas around one store: fencing, taking over, adopting, and random histories."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from services.common.core.errors import Reason
from services.common.core.ids import AgentId, InstanceId
from services.common.core.instants import Instant
from services.registry.core import events
from services.registry.core.model import AgentState, LinkId
from tests.unit.registry.registry_world import START, Fault, Replica, World, working


@pytest.fixture
def world() -> World:
    return World()


def session_id(replica: Replica, link: LinkId) -> str:
    welcome = replica.links[link].welcome
    assert welcome is not None
    return welcome.session_id


def ended_with(replica: Replica, link: LinkId) -> Reason | None:
    ended = replica.links[link].ended
    return ended.error.reason if ended is not None and ended.error is not None else None


class TestFencing:
    def test_a_newer_incarnation_elsewhere_ends_the_older_one_here(self, world: World) -> None:
        here, there = world.add(), world.add()
        older = here.open()
        world.settle()
        newer = there.open()
        world.settle()
        assert ended_with(here, older) is Reason.INCARNATION_FENCED
        assert there.links[newer].open
        assert there.instance().incarnation == here.instance().incarnation == 2
        # It is noted once, by the replica whose commit did it.
        assert [n.operation for r in (here, there) for n in r.notes].count("session.fenced") == 1

    def test_two_replicas_that_open_at_once_give_two_incarnations_and_one_survives(
        self, world: World
    ) -> None:
        here, there = world.add(), world.add()
        a, b = here.open(), there.open()
        world.settle()
        incarnations = {here.links[a].welcome.incarnation, there.links[b].welcome.incarnation}  # type: ignore[union-attr]
        assert incarnations == {1, 2}
        assert sorted([here.links[a].open, there.links[b].open]) == [False, True]

    def test_a_state_of_a_fenced_session_is_not_written_over_the_newer_one(self, world: World) -> None:
        here, there = world.add(), world.add()
        older = here.open()
        world.settle()
        there.open()
        there.commit_next()
        # The watch is slow: this replica still believes in its session.
        here.beat(older, working(world.now))
        world.settle()
        assert ended_with(here, older) is Reason.INCARNATION_FENCED
        assert here.instance().incarnation == 2
        assert here.state() is AgentState.JOINING


class TestTakingOver:
    def test_a_session_resumes_at_another_replica_while_its_old_link_hangs(self, world: World) -> None:
        here, there = world.add(), world.add()
        old = here.open(load=working(START))
        world.settle()
        new = there.open(resume=session_id(here, old), load=working(START))
        world.settle()
        welcome = there.links[new].welcome
        assert welcome is not None
        assert (welcome.incarnation, welcome.resumed) == (1, True)
        assert ended_with(here, old) is Reason.PEER_SILENT
        assert here.core.session_count == 0
        assert there.state() is AgentState.READY

    def test_a_killed_registry_that_restarts_finds_its_sessions_again(self, world: World) -> None:
        first = world.add()
        link = first.open(load=working(START))
        world.settle()
        resume = session_id(first, link)
        # Its lease outlives it for a while.
        world.kill(first, lease_ends=False)
        world.now = Instant(world.now + 1_000)
        second = world.add()
        again = second.open(resume=resume, load=working(world.now))
        world.settle()
        welcome = second.links[again].welcome
        assert welcome is not None
        assert (welcome.incarnation, welcome.resumed) == (1, True)
        assert first.lease is not None
        world.shelf.end_lease(first.lease)
        world.settle()
        world.advance(4_000)
        assert second.state() is AgentState.READY
        assert second.links[again].open

    def test_an_agent_that_died_with_its_registry_is_lost_in_the_end(self, world: World) -> None:
        first = world.add()
        first.open(load=working(START))
        world.settle()
        world.kill(first, lease_ends=False)
        second = world.add()
        # As long as the dead replica's lease lives, it might live too.
        world.advance(60_000)
        assert second.state() is AgentState.READY
        assert first.lease is not None
        world.shelf.end_lease(first.lease)
        world.settle()
        world.advance(world.limits.suspect_after_ms + 1_000)
        assert second.state() is AgentState.SUSPECT
        world.advance(world.limits.lease_ttl_ms)
        assert second.state() is AgentState.LOST

    def test_all_replicas_watch_over_the_sessions_of_a_dead_one_and_one_declares_them_lost(
        self, world: World
    ) -> None:
        first, *others = (world.add() for _ in range(3))
        for n in range(20):
            first.open(f"agent-{n:02}")
        world.settle()
        world.kill(first)
        world.settle()
        world.advance(30_000)
        lost = [
            note.subject for replica in others for note in replica.notes if note.operation == "session.lost"
        ]
        assert sorted(lost) == [f"agent/agent-{n:02}/0" for n in range(20)]
        assert {len(replica.notes) > 0 for replica in others} == {True}, "one replica did it all"

    def test_a_replica_that_lost_its_lease_gets_its_presence_back_before_others_judge(
        self, world: World
    ) -> None:
        here, there = world.add(), world.add()
        link = here.open(load=working(START))
        world.settle()
        here.lose_lease()
        world.settle()
        assert there.core.session_count == 1
        world.advance(2_000)
        here.grant()
        world.settle()
        assert there.core.session_count == 0
        for _ in range(20):
            here.beat(link, working(world.now))
            world.advance(2_000)
        assert there.state() is AgentState.READY
        assert there.notes == []

    def test_a_verdict_on_an_adopted_session_fails_when_its_presence_is_back(self, world: World) -> None:
        here, there = world.add(), world.add()
        link = here.open(load=working(START))
        world.settle()
        here.lose_lease()
        while there.seen < len(world.shelf.history):
            there.observe_next()
        here.grant()
        here.commit_next()
        # The other one has not seen it yet and drafts its verdict.
        world.now = Instant(world.now + 6_000)
        there.tick()
        world.now = Instant(world.now + 1_000)
        for _ in range(2):
            there.commit_next()
            world.now = Instant(max(world.now, there.core.next_deadline()))
            there.tick()
        world.settle()
        assert here.links[link].open
        assert here.state() is not AgentState.LOST

    def test_a_session_that_others_declared_lost_is_ended_here(self, world: World) -> None:
        here, there = world.add(), world.add()
        link = here.open()
        world.settle()
        here.lose_lease()
        while there.seen < len(world.shelf.history):
            there.observe_next()
        for _ in range(20):
            world.now = Instant(world.now + 1_000)
            there.tick()
            while there.commits:
                there.commit_next()
        here.grant()
        world.settle()
        assert ended_with(here, link) is Reason.PEER_SILENT
        assert here.state() is AgentState.LOST


def test_a_gap_in_what_is_observed_is_closed_by_loading_again(world: World) -> None:
    here, there = world.add(), world.add()
    old = here.open("a")
    here.open("b")
    world.settle()
    there.open("a")
    while there.commits:
        there.commit_next()
    here.lose_lease()
    # The history that `here` has not seen is compacted away.
    snapshot = world.shelf.everything()
    here.seen = len(world.shelf.history)
    here.step(events.Loaded("load", snapshot.revision, snapshot.agents))
    here.grant()
    world.settle()
    assert ended_with(here, old) is Reason.INCARNATION_FENCED
    assert here.core.fleet.slots[AgentId("b")].presence[InstanceId("0")][1] is not None


def test_what_went_away_in_a_gap_is_noticed(world: World) -> None:
    here, there = world.add(), world.add()
    there.open("a")
    there.open("b")
    world.settle()
    assert here.core.session_count == 0
    world.kill(there)
    del world.shelf.records[AgentId("b")]
    snapshot = world.shelf.everything()
    here.seen = len(world.shelf.history)
    here.step(events.Loaded("load", snapshot.revision, snapshot.agents))
    assert here.core.session_count == 1, "the session of the dead replica is timed here now"
    assert here.core.agent(AgentId("b"), world.now) is None


def test_what_is_observed_late_does_not_undo_what_is_known(world: World) -> None:
    here, there = world.add(), world.add()
    link = here.open()
    world.settle()
    here.lose_lease()
    here.grant()
    here.commit_next()
    # The other one reads the agent (its own change conflicts) before it hears of the lost lease.
    there.open(instance="1")
    here.beat(link, working(world.now))
    here.commit_next()
    while there.commits:
        there.commit_next()
    while there.seen < len(world.shelf.history):
        there.observe_next()
        assert there.core.session_count == 1, "a session was adopted although its holder is there"


def test_instances_under_ever_new_names_are_forgotten_everywhere(world: World) -> None:
    here, there = world.add(), world.add()
    for number in range(100):
        link = here.open(instance=f"pod-{number}")
        world.settle()
        here.step(events.FarewellReceived("bye", link))
        world.settle()
        world.advance(1_000)
    kept = world.limits.instances_ended_max
    for replica in (here, there):
        slot = replica.core.fleet.slots[AgentId("a-agent")]
        assert slot.record is not None
        assert len(slot.record.instances) == kept
        assert len(slot.presence) <= kept
    assert len(world.shelf.incarnations) == kept


def test_a_newer_change_that_is_heard_of_before_ones_own_answer_counts(world: World) -> None:
    here, there = world.add(), world.add()
    older = here.open()
    here.apply_next()
    there.observe_next()
    newer = there.open()
    there.commit_next()
    while here.seen < len(world.shelf.history):
        here.observe_next()
    here.answer_next()
    assert ended_with(here, older) is Reason.INCARNATION_FENCED
    assert there.links[newer].open
    assert here.instance().incarnation == 2


def test_a_record_that_somebody_deleted_ends_its_sessions(world: World) -> None:
    here = world.add()
    link = here.open("a")
    world.settle()
    here.step(events.Observed("watch", (events.RecordSeen(AgentId("a"), world.shelf.revision + 1, None),)))
    assert ended_with(here, link) is Reason.PEER_SILENT
    assert here.core.agent(AgentId("a"), world.now) is None


AGENTS = st.sampled_from(["a", "b"])
INSTANCES = st.sampled_from(["0", "1"])
PICK = st.integers(0, 2**16)


class Histories(RuleBasedStateMachine):
    """Any interleaving of agents, replicas, time, deliveries and faults.

    Every step checks the core's invariants, every commit the records'; at the end of each history
    everything is delivered, and the promises must hold.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        for _ in range(2):
            self.world.add()

    def pick(self, number: int) -> Replica:
        return self.world.replicas[number % len(self.world.replicas)]

    def pick_link(self, number: int) -> tuple[Replica, LinkId] | None:
        links = [(r, k) for r in self.world.replicas for k, link in r.links.items() if link.open]
        return links[number % len(links)] if links else None

    @rule(number=PICK, agent=AGENTS, instance=INSTANCES, works=st.booleans())
    def open(self, number: int, agent: str, instance: str, works: bool) -> None:
        load = {"load": working(self.world.now)} if works else {}
        self.pick(number).open(agent, instance, **load)  # type: ignore[arg-type]

    @rule(number=PICK, agent=AGENTS, instance=INSTANCES)
    def resume(self, number: int, agent: str, instance: str) -> None:
        welcomes = [
            link.welcome
            for replica in self.world.replicas
            for link in replica.links.values()
            if (link.agent_id, link.instance_id) == (agent, instance) and link.welcome is not None
        ]
        if welcomes:
            known = welcomes[number % len(welcomes)].session_id
            self.pick(number).open(agent, instance, resume=known)

    @rule(number=PICK, used=st.integers(0, 1), works=st.booleans())
    def beat(self, number: int, used: int, works: bool) -> None:
        if found := self.pick_link(number):
            replica, link = found
            if works:
                replica.beat(link, working(self.world.now, used=used))
            else:
                replica.beat(link)

    @rule(number=PICK, what=st.sampled_from(["cut", "drain", "farewell"]))
    def leave(self, number: int, what: str) -> None:
        if found := self.pick_link(number):
            replica, link = found
            if what == "cut":
                replica.cut(link)
            elif what == "drain":
                replica.step(events.DrainRequested("drain", link))
            else:
                replica.step(events.FarewellReceived("bye", link))

    @rule(number=PICK, fault=st.sampled_from([None, None, None, *Fault]))
    def commit(self, number: int, fault: Fault | None) -> None:
        if (replica := self.pick(number)).commits:
            replica.apply_next(fault)

    @rule(number=PICK)
    def answer(self, number: int) -> None:
        if (replica := self.pick(number)).answers:
            replica.answer_next()

    @rule(number=PICK)
    def reload(self, number: int) -> None:
        if (replica := self.pick(number)).reloads:
            replica.reload_next()

    @rule(number=PICK)
    def observe(self, number: int) -> None:
        if (replica := self.pick(number)).seen < len(self.world.shelf.history):
            replica.observe_next()

    @rule(ms=st.sampled_from([10, 1_000, 2_500, 6_000]), pause=st.booleans())
    def time(self, ms: int, pause: bool) -> None:
        if pause:
            self.world.now = Instant(self.world.now + ms)
            for replica in self.world.replicas:
                replica.tick()
        else:
            self.world.advance(ms, settle=False)

    @rule(number=PICK)
    def toggle_lease(self, number: int) -> None:
        replica = self.pick(number)
        if replica.lease is None:
            replica.grant()
        else:
            replica.lose_lease()

    @rule(number=PICK)
    def load(self, number: int) -> None:
        replica = self.pick(number)
        snapshot = self.world.shelf.everything()
        replica.seen = len(self.world.shelf.history)
        replica.step(events.Loaded("load", snapshot.revision, snapshot.agents))

    @precondition(lambda self: len(self.world.replicas) < 3)
    @rule()
    def start_replica(self) -> None:
        self.world.add()

    @precondition(lambda self: len(self.world.replicas) > 1)
    @rule(number=PICK, lease_ends=st.booleans())
    def kill_replica(self, number: int, lease_ends: bool) -> None:
        self.world.kill(self.pick(number), lease_ends=lease_ends)

    @invariant()
    def one_link_of_an_incarnation_in_one_replica(self) -> None:
        for replica in self.world.replicas:
            live = [(link.agent_id, link.instance_id) for link in replica.links.values() if link.open]
            assert len(live) == len(set(live))

    def teardown(self) -> None:
        world = self.world
        for replica in world.replicas:
            if replica.lease is None:
                replica.grant()
        for lease in world.shelf.leases - {replica.lease for replica in world.replicas}:
            world.shelf.end_lease(lease)
        world.settle()
        # P3: one live incarnation per instance, across replicas; each replica tells the same.
        owners: dict[tuple[str, str], int] = {}
        for replica in world.replicas:
            for link in replica.links.values():
                assert not link.waits, "a hello without an answer"
                if link.open:
                    assert (link.agent_id, link.instance_id) not in owners, "two live links of one instance"
                    assert link.welcome is not None
                    owners[link.agent_id, link.instance_id] = link.welcome.incarnation
        for replica in world.replicas:
            for (agent, instance), incarnation in owners.items():
                shown = replica.instance(agent, instance)
                assert shown.incarnation == incarnation
                assert shown.state.live
            assert set(replica.core.agents_after("", "")) == set(world.shelf.records)
        # Without heartbeats everybody is lost, everywhere, and nothing is left.
        world.advance(60_000)
        for _, record in world.shelf.records.values():
            assert all(not one.state.live for one in record.instances)
        assert all(not presence for presence in world.shelf.presence.values())
        for replica in world.replicas:
            assert replica.core.session_count == replica.core.link_count == 0
            assert not replica.core.fleet.opens


def test_random_histories_keep_every_promise() -> None:
    run_state_machine_as_test(Histories, settings=settings(max_examples=60, stateful_step_count=50))


@pytest.mark.nightly
def test_many_random_histories_keep_every_promise() -> None:
    run_state_machine_as_test(Histories, settings=settings(max_examples=20_000, stateful_step_count=80))


@given(st.lists(st.sampled_from(["here", "there"]), min_size=1, max_size=8))
def test_incarnations_grow_wherever_the_agent_opens(places: list[str]) -> None:
    world = World()
    replicas = {"here": world.add(), "there": world.add()}
    given_out = []
    for place in places:
        link = replicas[place].open()
        world.settle()
        welcome = replicas[place].links[link].welcome
        assert welcome is not None
        given_out.append(welcome.incarnation)
    assert given_out == list(range(1, len(places) + 1))
