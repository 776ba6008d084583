"""Sessions of one replica: open, report, resume, fence, silence, farewell, bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.core.entries import Outcome
from services.common.core.errors import Reason
from services.common.core.ids import AgentId, InstanceId, Skill
from services.common.core.instants import Instant
from services.registry.core import events
from services.registry.core.model import AgentState, HelloFields, Limits, Load, SkillLevel
from tests.unit.registry.registry_world import START, Fault, Replica, World, working


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def replica(world: World) -> Replica:
    return world.add()


def operations(replica: Replica) -> list[str]:
    return [f"!{note.operation}" if note.reason else note.operation for note in replica.notes]


class TestOpening:
    def test_the_welcome_follows_the_commit(self, world: World, replica: Replica) -> None:
        link = replica.open()
        assert replica.links[link].waits
        assert world.shelf.records == {}
        replica.commit_next()
        welcome = replica.links[link].welcome
        assert welcome is not None
        assert (welcome.incarnation, welcome.resumed) == (1, False)
        _, record = world.shelf.records[AgentId("a-agent")]
        assert (record.generation, record.register_time) == (1, START)
        assert [(one.instance_id, one.incarnation, one.state) for one in record.instances] == [
            ("0", 1, AgentState.JOINING)
        ]
        _, held = world.shelf.presence[AgentId("a-agent")][InstanceId("0")]
        assert (held.incarnation, held.lease_id) == (1, replica.lease)
        assert replica.changed == ["a-agent"]
        assert operations(replica) == ["session.open"]

    def test_a_first_report_that_shows_work_makes_it_ready_at_once(
        self, world: World, replica: Replica
    ) -> None:
        replica.open(load=working(START))
        world.settle()
        assert replica.state() is AgentState.READY

    def test_a_bad_hello_is_refused_and_noted(self, replica: Replica) -> None:
        link = replica.open(fields=HelloFields(instance_id="!"))
        refusal = replica.links[link].refusal
        assert refusal is not None
        assert refusal.reason is Reason.INVALID_FIELD
        assert operations(replica) == ["!session.open"]
        assert (replica.notes[0].outcome, replica.notes[0].reason) == (Outcome.REFUSED, "INVALID_FIELD")
        assert replica.core.fleet.slots == {}

    def test_two_instances_of_one_agent_open_in_one_commit_after_the_first(
        self, world: World, replica: Replica
    ) -> None:
        for name in ("0", "1", "2"):
            replica.open(instance=name)
        assert len(replica.commits) == 1
        replica.commit_next()
        assert len(replica.commits) == 1
        replica.commit_next()
        world.settle()
        _, record = world.shelf.records[AgentId("a-agent")]
        assert record.generation == 2
        assert [one.instance_id for one in record.instances] == ["0", "1", "2"]

    def test_the_agents_skills_are_the_union_then_the_last_known(
        self, world: World, replica: Replica
    ) -> None:
        def open_with(instance: str, level: float, *names: str) -> None:
            skills = tuple(SkillLevel(Skill(name), level) for name in names)
            replica.open(fields=HelloFields(instance_id=instance, skills=skills))

        open_with("0", 0.5, "maps", "boats")
        open_with("1", 0.9, "maps")
        world.settle()
        record = replica.core.agent(AgentId("a-agent"), world.now)
        assert record is not None
        expected = (SkillLevel(Skill("boats"), 0.5), SkillLevel(Skill("maps"), 0.9))
        assert record.skills == expected
        world.advance(60_000)
        record = replica.core.agent(AgentId("a-agent"), world.now)
        assert record is not None
        assert {one.state for one in record.instances} == {AgentState.LOST}
        assert {skill.name for skill in record.skills} == {"boats", "maps"}
        assert list(replica.core.agents_after("", "boats")) == ["a-agent"]


class TestReports:
    def test_a_heartbeat_costs_no_commit(self, world: World, replica: Replica) -> None:
        link = replica.open(load=working(START, slots=8))
        world.settle()
        revision = world.shelf.revision
        for used in range(1, 8):
            world.advance(1_000)
            replica.beat(link, working(world.now, used=used, slots=8))
        assert world.shelf.revision == revision
        assert not replica.commits
        assert [ack.sequence_number for ack in replica.links[link].acks] == list(range(1, 8))
        assert replica.links[link].acks[-1].lease_expire_time == world.now + world.limits.lease_ttl_ms
        # Its report is seen at once all the same.
        assert replica.instance().load.slots_used == 7
        assert replica.instance().load_time == world.now

    def test_a_change_of_state_is_committed_before_it_is_published(
        self, world: World, replica: Replica
    ) -> None:
        link = replica.open()
        world.settle()
        replica.changed.clear()
        replica.beat(link, working(world.now))
        assert replica.state() is AgentState.JOINING
        assert replica.changed == []
        replica.commit_next()
        assert replica.state() is AgentState.READY
        assert replica.changed == ["a-agent"]

    def test_slots_make_it_busy_and_ready_again(self, world: World, replica: Replica) -> None:
        link = replica.open()
        world.settle()
        for used, state in [(0, AgentState.READY), (1, AgentState.BUSY), (0, AgentState.READY)]:
            replica.beat(link, working(world.now, used=used))
            world.settle()
            assert replica.state() is state

    def test_states_that_change_while_a_commit_is_on_its_way_become_one_more(
        self, world: World, replica: Replica
    ) -> None:
        link = replica.open()
        world.settle()
        replica.beat(link, working(world.now))
        for used in (1, 0, 1):
            replica.beat(link, working(world.now, used=used))
        assert len(replica.commits) == 1
        generation = world.shelf.records[AgentId("a-agent")][1].generation
        world.settle()
        assert replica.state() is AgentState.BUSY
        assert world.shelf.records[AgentId("a-agent")][1].generation == generation + 2

    def test_an_agent_whose_probes_stop_is_not_ready_although_it_reports(
        self, world: World, replica: Replica
    ) -> None:
        link = replica.open()
        world.settle()
        last_probe = world.now
        replica.beat(link, working(last_probe))
        for _ in range(6):
            world.advance(2_000)
            replica.beat(link, working(last_probe))
            world.settle()
        assert replica.state() is AgentState.JOINING

    def test_an_agent_at_a_deposed_coordinator_is_not_ready(self, world: World, replica: Replica) -> None:
        link = replica.open()
        world.settle()
        replica.beat(link, working(world.now, epoch=5))
        replica.step(events.CoordinatorSeen("election", 9))
        replica.beat(link, working(world.now, epoch=5))
        world.settle()
        assert replica.state() is AgentState.JOINING
        replica.beat(link, working(world.now, epoch=9))
        world.settle()
        assert replica.state() is AgentState.READY

    def test_misnumbered_heartbeats_end_the_link_not_the_session(
        self, world: World, replica: Replica
    ) -> None:
        link = replica.open()
        world.settle()
        replica.step(events.HeartbeatReceived("beat", link, 2, Load()))
        ended = replica.links[link].ended
        assert ended is not None
        assert ended.error is not None
        assert ended.error.reason is Reason.MALFORMED_FRAME
        assert replica.core.session_count == 1

    def test_a_bad_report_ends_the_link_and_names_the_field(self, world: World, replica: Replica) -> None:
        link = replica.open()
        world.settle()
        replica.beat(link, Load(cpu_ratio=7.0))
        ended = replica.links[link].ended
        assert ended is not None
        assert ended.error is not None
        assert [one.field for one in ended.error.violations] == ["heartbeat.load.cpu_ratio"]

    def test_a_flood_of_heartbeats_is_stopped(self, world: World, replica: Replica) -> None:
        link = replica.open()
        world.settle()
        while replica.links[link].open:
            replica.beat(link)
        ended = replica.links[link].ended
        assert ended is not None
        assert ended.error is not None
        assert ended.error.reason is Reason.QUOTA_EXCEEDED
        assert len(replica.links[link].acks) <= 22


class TestSilence:
    def test_late_then_lost(self, world: World, replica: Replica) -> None:
        link = replica.open(load=working(START))
        world.settle()
        world.advance(world.limits.suspect_after_ms - 1)
        assert replica.state() is AgentState.READY
        world.advance(1)
        assert replica.state() is AgentState.SUSPECT
        world.advance(world.limits.lease_ttl_ms - world.limits.suspect_after_ms)
        assert replica.state() is AgentState.LOST
        ended = replica.links[link].ended
        assert ended is not None
        assert ended.error is not None
        assert ended.error.reason is Reason.PEER_SILENT
        assert world.shelf.presence[AgentId("a-agent")] == {}
        assert operations(replica) == ["session.open", "session.lost"]

    def test_a_late_heartbeat_clears_the_suspicion(self, world: World, replica: Replica) -> None:
        link = replica.open(load=working(START))
        world.settle()
        world.advance(9_999)
        assert replica.state() is AgentState.SUSPECT
        replica.beat(link, working(world.now))
        world.settle()
        assert replica.state() is AgentState.READY
        world.advance(9_999)
        assert replica.state() is AgentState.SUSPECT

    def test_a_cleared_suspicion_comes_back_as_early_as_a_first_one(self) -> None:
        world = World(Limits(suspect_after_ms=2_000))
        replica = world.add()
        link = replica.open(load=working(START))
        world.settle()
        world.advance(2_500)
        assert replica.state() is AgentState.SUSPECT
        replica.beat(link, working(world.now))
        world.settle()
        world.advance(1_999)
        assert replica.state() is AgentState.READY
        world.advance(1)
        assert replica.state() is AgentState.SUSPECT

    def test_a_cut_link_does_not_end_the_session(self, world: World, replica: Replica) -> None:
        link = replica.open(load=working(START))
        world.settle()
        replica.cut(link)
        world.advance(1_000)
        assert replica.state() is AgentState.READY

    def test_a_replica_that_was_stopped_loses_nobody(self, world: World, replica: Replica) -> None:
        replica.open(load=working(START))
        world.settle()
        # No tick for a minute, then one: the heartbeats of that minute still wait in the socket.
        world.now = Instant(world.now + 60_000)
        replica.tick()
        world.settle()
        assert replica.state() is AgentState.READY
        world.advance(world.limits.suspect_after_ms)
        assert replica.state() is AgentState.SUSPECT

    def test_a_lost_instance_that_comes_back_is_a_new_incarnation(
        self, world: World, replica: Replica
    ) -> None:
        link = replica.open()
        world.settle()
        welcome = replica.links[link].welcome
        assert welcome is not None
        world.advance(60_000)
        again = replica.open(resume=welcome.session_id)
        world.settle()
        welcome = replica.links[again].welcome
        assert welcome is not None
        assert (welcome.incarnation, welcome.resumed) == (2, False)
        assert "session.fenced" not in operations(replica)

    def test_what_ended_is_shown_for_the_retention_window_and_its_number_never_comes_again(
        self, world: World, replica: Replica
    ) -> None:
        replica.open(instance="old")
        world.settle()
        world.advance(60_000)
        assert replica.state(instance="old") is AgentState.LOST
        world.advance(world.limits.ended_retention_ms)
        record = replica.core.agent(AgentId("a-agent"), world.now)
        assert record is not None
        assert record.instances == ()
        # The next write forgets it for good.
        replica.open(instance="new")
        world.settle()
        assert set(world.shelf.incarnations) == {("a-agent", "new")}
        replica.open(instance="old")
        world.settle()
        assert replica.instance(instance="old").incarnation > 1


class TestResume:
    def test_it_keeps_the_incarnation_and_the_state(self, world: World, replica: Replica) -> None:
        link = replica.open(load=working(START))
        world.settle()
        first = replica.links[link].welcome
        assert first is not None
        replica.cut(link)
        world.advance(1_000)
        again = replica.open(resume=first.session_id, load=working(world.now))
        world.settle()
        second = replica.links[again].welcome
        assert second is not None
        assert (second.session_id, second.incarnation, second.resumed) == (first.session_id, 1, True)
        assert replica.state() is AgentState.READY
        assert replica.instance().reconnects == 1
        assert operations(replica) == ["session.open", "session.resume"]

    def test_opens_of_one_instance_that_wait_together_are_committed_one_by_one(
        self, world: World, replica: Replica
    ) -> None:
        links = [replica.open() for _ in range(4)]
        world.settle()
        welcomes = [replica.links[link].welcome for link in links]
        assert [welcome.incarnation for welcome in welcomes if welcome is not None] == [1, 2, 3, 4]
        assert [replica.links[link].open for link in links] == [False, False, False, True]

    def test_not_of_a_session_that_was_lost_while_the_store_was_away(
        self, world: World, replica: Replica
    ) -> None:
        link = replica.open()
        world.settle()
        first = replica.links[link].welcome
        assert first is not None
        replica.lose_lease()
        world.advance(30_000)
        again = replica.open(resume=first.session_id)
        replica.grant()
        world.settle()
        second = replica.links[again].welcome
        assert second is not None
        assert (second.incarnation, second.resumed) == (2, False)
        assert operations(replica) == ["session.open", "session.lost", "session.open"]

    def test_it_takes_over_from_a_half_open_link(self, world: World, replica: Replica) -> None:
        link = replica.open()
        world.settle()
        first = replica.links[link].welcome
        assert first is not None
        again = replica.open(resume=first.session_id)
        world.settle()
        ended = replica.links[link].ended
        assert ended is not None
        assert ended.error is not None
        assert ended.error.reason is Reason.PEER_SILENT
        replica.beat(again)
        assert len(replica.links[again].acks) == 1

    def test_with_a_foreign_session_id_it_is_a_new_incarnation(self, world: World, replica: Replica) -> None:
        link = replica.open()
        world.settle()
        again = replica.open(resume="1.aaaaaaaaaaaaaaaaaaaaaaaa")
        world.settle()
        welcome = replica.links[again].welcome
        assert welcome is not None
        assert (welcome.incarnation, welcome.resumed) == (2, False)
        ended = replica.links[link].ended
        assert ended is not None
        assert ended.error is not None
        assert ended.error.reason is Reason.INCARNATION_FENCED
        assert ended.error.metadata == {"incarnation": "2"}
        assert operations(replica) == ["session.open", "session.fenced", "session.open"]

    def test_a_draining_agent_that_resumes_still_drains(self, world: World, replica: Replica) -> None:
        link = replica.open(load=working(START))
        world.settle()
        welcome = replica.links[link].welcome
        assert welcome is not None
        replica.step(events.DrainRequested("drain", link))
        world.settle()
        assert replica.state() is AgentState.DRAINING
        replica.beat(link, working(world.now))
        replica.cut(link)
        world.advance(6_000)
        assert replica.state() is AgentState.SUSPECT
        replica.open(resume=welcome.session_id, load=working(world.now))
        world.settle()
        assert replica.state() is AgentState.DRAINING


class TestFarewell:
    def test_it_is_committed_then_the_link_is_closed(self, world: World, replica: Replica) -> None:
        link = replica.open()
        world.settle()
        replica.step(events.FarewellReceived("bye", link))
        assert replica.links[link].ended is None
        world.settle()
        ended = replica.links[link].ended
        assert ended is not None
        assert ended.error is None
        assert replica.state() is AgentState.OFFLINE
        assert replica.instance().lease_expire_time == world.now
        assert world.shelf.presence[AgentId("a-agent")] == {}
        assert operations(replica) == ["session.open", "session.close"]
        assert replica.core.session_count == 0

    def test_frames_after_it_change_nothing(self, world: World, replica: Replica) -> None:
        link = replica.open()
        world.settle()
        replica.step(events.FarewellReceived("bye", link))
        replica.beat(link)
        replica.step(events.DrainRequested("drain", link))
        replica.step(events.FarewellReceived("bye", link))
        world.settle()
        assert replica.state() is AgentState.OFFLINE


class TestStoreFaults:
    def test_an_open_whose_commit_has_no_answer_fails_and_the_agent_is_read_again(
        self, world: World, replica: Replica
    ) -> None:
        link = replica.open()
        replica.commit_next(Fault.NOT_PERSISTED)
        refusal = replica.links[link].refusal
        assert refusal is not None
        assert refusal.reason is Reason.STORE_UNAVAILABLE
        assert not refusal.row.definite
        world.settle()
        assert replica.core.fleet.slots == {}

    def test_a_session_nobody_was_told_of_is_lost_unless_the_agent_comes_again(
        self, world: World, replica: Replica
    ) -> None:
        replica.open()
        replica.commit_next(Fault.PERSISTED)
        world.settle()
        assert replica.state() is AgentState.JOINING
        world.advance(30_000)
        assert replica.state() is AgentState.LOST
        assert world.shelf.presence[AgentId("a-agent")] == {}

    @pytest.mark.parametrize("fault", Fault)
    def test_a_state_is_committed_in_the_end(self, world: World, replica: Replica, fault: Fault) -> None:
        link = replica.open()
        world.settle()
        replica.beat(link, working(world.now))
        replica.commit_next(fault)
        assert not replica.commits
        world.settle()
        assert replica.state() is AgentState.READY
        assert replica.links[link].open

    def test_what_is_wanted_waits_for_a_lease(self, world: World, replica: Replica) -> None:
        link = replica.open()
        world.settle()
        replica.lose_lease()
        replica.beat(link, working(world.now))
        waiting = replica.open("b-agent")
        world.settle()
        assert replica.links[waiting].waits
        replica.grant()
        world.settle()
        assert replica.links[waiting].open
        assert replica.state() is AgentState.READY
        held = world.shelf.presence[AgentId("a-agent")][InstanceId("0")][1]
        assert held.lease_id == replica.lease

    def test_a_resume_that_the_store_can_not_confirm_keeps_the_session_alive(
        self, world: World, replica: Replica
    ) -> None:
        link = replica.open()
        world.settle()
        welcome = replica.links[link].welcome
        assert welcome is not None
        replica.lose_lease()
        for _ in range(10):
            replica.cut(link)
            link = replica.open(resume=welcome.session_id)
            world.advance(4_000, settle=False)
        replica.grant()
        world.settle()
        last = replica.links[link].welcome
        assert last is not None
        assert (last.incarnation, last.resumed) == (1, True)

    def test_a_link_cut_while_its_open_is_on_its_way_leaves_a_session_to_time_out(
        self, world: World, replica: Replica
    ) -> None:
        link = replica.open()
        replica.cut(link)
        world.settle()
        assert replica.links[link].welcome is None
        assert replica.state() is AgentState.JOINING
        world.advance(30_000)
        assert replica.state() is AgentState.LOST


class TestBounds:
    def refusal(self, replica: Replica, agent: str, instance: str = "0") -> str:
        link = replica.open(agent, instance)
        refusal = replica.links[link].refusal
        assert refusal is not None
        assert refusal.reason is Reason.QUOTA_EXCEEDED
        assert refusal.retry_after_ms is not None
        return refusal.metadata["limit"]

    def test_sessions(self) -> None:
        world = World(replace(Limits(), sessions_max=1))
        replica = world.add()
        link = replica.open("a")
        world.settle()
        assert self.refusal(replica, "b") == "sessions_max"
        # Replacing one's own session needs no room.
        replica.open("a")
        world.settle()
        assert not replica.links[link].open

    def test_agents(self) -> None:
        world = World(replace(Limits(), agents_max=1))
        replica = world.add()
        replica.open("a")
        assert self.refusal(replica, "b") == "agents_max"

    def test_live_instances(self) -> None:
        world = World(replace(Limits(), instances_live_max=2))
        replica = world.add()
        replica.open("a", "0")
        replica.open("a", "1")
        world.settle()
        assert self.refusal(replica, "a", "2") == "instances_live_max"

    def test_opens_that_wait(self) -> None:
        world = World(replace(Limits(), instances_live_max=2))
        replica = world.add()
        for _ in range(3):
            replica.open("a")
        assert self.refusal(replica, "a") == "instances_live_max"

    def test_ended_instances(self) -> None:
        world = World(replace(Limits(), instances_ended_max=2))
        replica = world.add()
        for name in "abcde":
            link = replica.open("x", name)
            world.settle()
            replica.step(events.FarewellReceived("bye", link))
            world.settle()
            world.advance(1_000)
        _, record = world.shelf.records[AgentId("x")]
        assert [one.instance_id for one in record.instances] == ["d", "e"]
        assert set(world.shelf.incarnations) == {("x", "d"), ("x", "e")}


def test_beating_sessions_need_one_heap_entry_and_one_commit_each() -> None:
    world = World()
    replica = world.add()
    links = [replica.open(f"agent-{n}") for n in range(50)]
    world.settle()
    fleet = replica.core.fleet
    for _ in range(100):
        world.advance(1_000)
        for link in links:
            replica.beat(link)
    assert len(fleet.deadlines) == 50
    assert len(fleet.deadlines._heap) <= 2 * 50 + 64
    assert len(world.shelf.history) == 50
