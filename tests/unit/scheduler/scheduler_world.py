"""A random world around the pure core: fleets, requesters, failures, other programs and changes of leader.

Agents here behave as the protocol says, except where an action says otherwise; what they saw is compared with
what the scheduler believes after every batch. Every choice is drawn from a `Chooser`, so that a seed or
Hypothesis decides the whole course.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol, TypeVar

from services.common.core.entries import EntryDraft
from services.common.core.errors import Reason
from services.common.core.fencing import FencingToken
from services.common.core.ids import CollaborationId, ResourceName
from services.common.core.instants import Instant
from services.scheduler.core.book import Settings
from services.scheduler.core.changes import Change
from services.scheduler.core.effects import (
    AckResult,
    AckSavepoint,
    Assign,
    CancelAttempt,
    CloseStream,
    Effect,
    GrantLocks,
    Probe,
    Publish,
    RefuseLocks,
    RevokeLock,
    SuspendAttempt,
)
from services.scheduler.core.events import (
    Event,
    ForeignLock,
    LockKeysChanged,
    LockReleased,
    LockRequested,
    PauseRequested,
    ReplyId,
    ResultReport,
    ResumeRequested,
    SavepointReport,
    StreamId,
    Suspended,
    WorkClosed,
    WorkFrame,
    WorkOpened,
)
from services.scheduler.core.model import (
    AttemptRef,
    AttemptState,
    LockMode,
    Payload,
    ResourceClaim,
    RetryPolicy,
    SchedulingPolicy,
    TaskKey,
    TaskSpec,
)
from tests.unit.scheduler.scheduler_agent_side import AgentSide, drop_lock, outcome_of, restart
from tests.unit.scheduler.scheduler_checks import (
    check_exclusive_locks,
    check_nothing_urgent_waits_in_vain,
    check_preemption,
    check_results_are_final,
    check_savepoints,
)
from tests.unit.scheduler.scheduler_stage import EMERGENCY, HIGH, LOW, NORMAL, Stage, gang, key, task

AGENTS = ("a", "b", "c")
SKILLS = ("dig", "fly", "see")
RESOURCES = ("bridge", "road", "boat")
ENDS = ("done", "done", "done", "done", "start", "start", "save", "transient", "permanent", "cancelled")
SETTINGS = Settings(
    reconnect_grace_ms=2_000,
    takeover_grace_ms=5_000,
    gone_grace_ms=1_000,
    probe_interval_ms=3_000,
    silence_ms_max=10_000,
    retention_ms=60_000,
    retained_max=3,
    open_collaboration_max=6,
    history_max=8,
    loss_max=30,
    ageing_ms=3_000,
    ageing_share=2,
    suspend_grace_ms=1_500,
    savepoint_interval_ms=200,
    # Everything may run twice, as soon as it takes a little longer than predicted.
    speculation_share=100.0,
    straggle_quantile=0.3,
)


T = TypeVar("T")


class Chooser(Protocol):
    """Where the choices come from."""

    def number(self, least: int, most: int) -> int: ...

    def one(self, options: Sequence[T]) -> T: ...

    def some(self, options: Sequence[T], least: int = 0, most: int = 2) -> list[T]: ...


class SeededChooser:
    """Choices from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def number(self, least: int, most: int) -> int:
        return self._random.randint(least, most)

    def one(self, options: Sequence[T]) -> T:
        return self._random.choice(options)

    def some(self, options: Sequence[T], least: int = 0, most: int = 2) -> list[T]:
        count = self._random.randint(least, min(most, len(options)))
        return self._random.sample(options, count)


class World:
    """The core with everything around it. `act` does one random thing; every check raises AssertionError."""

    def __init__(self, choose: Chooser, *, crowded: bool = False) -> None:
        self.choose = choose
        #: Few slots, one skill, and classes far apart: much has to make room.
        self.crowded = crowded
        self.stage = Stage(SETTINGS)
        self.agents = {name: AgentSide(name) for name in AGENTS}
        self.submissions = 0
        self.streams = 100
        #: The one result of each task that an agent was told is committed.
        self.committed: dict[TaskKey, bytes] = {}
        #: The newest savepoint of each task that an agent was told is durable, by the attempt's token.
        self.saved: dict[TaskKey, tuple[FencingToken, bytes]] = {}
        self.saves = 0
        self.generations: dict[str, int] = {}
        self.foreign_revision = 1
        self.story: list[str] = []
        #: The next batch's commit is cut short.
        self.tear = False
        for name in AGENTS:
            self.take(self.stage.know(name, "dig", "see"))

    def act(self) -> None:
        """Do one random thing, and check what must hold after it."""
        action = self.choose.one(ACTIONS)
        self.story.append(action.__name__)
        action(self)
        check_results_are_final(self.stage, self.committed)
        check_exclusive_locks(self.stage)
        check_savepoints(self.stage, self.saved)
        check_nothing_urgent_waits_in_vain(self.stage)

    # What comes back.

    def run_batch(self, *events: Event) -> None:
        if self.tear:
            self.tear = False
            self.stage.torn_batch(lambda _: self.choose.number(0, 6), *events)
            self.take_over()
        else:
            self.take(self.stage.batch(*events))

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Publish(Change(collaboration_id, generation)):
                    before = self.generations.get(collaboration_id)
                    # T6: one event for each generation, none left out.
                    assert before is None or generation == before + 1, (collaboration_id, before, generation)
                    self.generations[collaboration_id] = generation
                case CloseStream(stream):
                    if (agent := self.at(stream)) is not None:
                        self.cut(agent, SETTINGS.reconnect_grace_ms)
                case EntryDraft(operation="task.preempt"):
                    check_preemption(self.stage, effect)
                case (
                    Assign()
                    | CancelAttempt()
                    | SuspendAttempt()
                    | AckSavepoint()
                    | AckResult()
                    | Probe()
                    | GrantLocks()
                    | RefuseLocks()
                ):
                    if (agent := self.at(effect.stream)) is not None:
                        self.tell(agent, effect)
                case RevokeLock(stream, lock):
                    if (agent := self.at(stream)) is not None:
                        drop_lock(agent, lock)
                case _:
                    pass

    def at(self, stream: StreamId) -> AgentSide | None:
        return next((agent for agent in self.agents.values() if agent.stream == stream), None)

    def tell(
        self,
        agent: AgentSide,
        effect: Assign
        | CancelAttempt
        | SuspendAttempt
        | AckSavepoint
        | AckResult
        | Probe
        | GrantLocks
        | RefuseLocks,
    ) -> None:
        match effect:
            case Assign():
                self.take_assignment(agent, effect)
            case CancelAttempt(_, ref):
                agent.held.pop(ref, None)
            case SuspendAttempt(_, ref, _, grace_ms):
                # It gives a slot, and whoever asked means it.
                agent.credits += 1
                if ref in agent.held:
                    agent.suspending[ref] = self.stage.now + grace_ms
            case AckSavepoint(_, ref, error):
                data = agent.saving.pop(ref, None)
                if data is not None and error is None:
                    self.saved[ref.task_key] = (ref.token, data)
            case AckResult(_, ref, error):
                self.take_ack(agent, ref, None if error is None else error.reason)
            case Probe(_, nonce):
                agent.probe = nonce
            case GrantLocks(_, number, locks):
                if agent.waiting.pop(number, None) is not None:
                    agent.locks[number] = locks
            case RefuseLocks(_, number):
                agent.waiting.pop(number, None)

    def take_assignment(self, agent: AgentSide, effect: Assign) -> None:
        ref = effect.task.ref(effect.attempt)
        agent.credits -= 1
        assert agent.credits >= 0, f"{agent.name} got more than it granted"
        assert not agent.drained, f"{agent.name} drains"
        point = effect.task.savepoint
        known = self.saved.get(ref.task_key)
        # What an agent was told is durable is never lost; a newer one may have been on its way.
        assert known is None or (point is not None and int(point.payload.data) >= int(known[1])), ref
        claims = {claim.resource for claim in effect.task.spec.resources}
        assert {lock.resource for lock in effect.locks} == claims
        assert effect.task.key not in self.committed, f"{ref} was done before"
        lost = {attempt.token for attempt in effect.task.attempts if attempt.state is AttemptState.LOST}
        for other in self.agents.values():
            # Nobody is given what another one runs who is, or may yet come, back.
            running = {held for held in other.held if held.task_key == ref.task_key and held.token in lost}
            if other.stream is None:
                running &= other.safe if self.stage.now < other.safe_until else frozenset()
            assert not running, f"{ref} still runs at {other.name}: {running}"
        agent.held[ref] = effect
        agent.past.append(ref)

    def take_ack(self, agent: AgentSide, ref: AttemptRef, reason: Reason | None) -> None:
        report = agent.unacked.pop(ref, None)
        agent.saving.pop(ref, None)
        if report is None or reason is not None:
            return
        if isinstance(report.outcome, Suspended) and report.outcome.savepoint is not None:
            before = self.saved.get(ref.task_key)
            if before is None or int(before[1]) <= int(report.outcome.savepoint.data):
                self.saved[ref.task_key] = (ref.token, report.outcome.savepoint.data)
        if isinstance(report.outcome, Payload):
            # T3: exactly one result.
            assert self.committed.setdefault(ref.task_key, report.outcome.data) == report.outcome.data

    def cut(self, agent: AgentSide, grace_ms: int) -> None:
        agent.stream = None
        agent.credits = 0
        agent.drained = False
        agent.probe = 0
        agent.waiting.clear()
        agent.suspending.clear()
        agent.saving.clear()
        view = self.stage.agents[agent.name].instances[0]
        agent.safe_until = 0 if view.gone else self.stage.now + grace_ms
        agent.safe = frozenset(ref for ref in agent.held if self.is_current(ref))

    def is_current(self, ref: AttemptRef) -> bool:
        found = self.stage.state.book.task(ref)
        attempt = None if found is None else found.find(ref.token)
        return attempt is not None and attempt.open

    # Agents.

    def agent(self) -> AgentSide:
        return self.choose.one([*self.agents.values()])

    def linked(self) -> AgentSide | None:
        linked = [agent for agent in self.agents.values() if agent.stream is not None]
        return self.choose.one(linked) if linked else None

    def registry_tells_of_skills(self) -> None:
        agent = self.agent()
        skills = ["dig"] if self.crowded else self.choose.some(SKILLS, 1, 3)
        level = self.choose.one([0.5, 1.0])
        self.take(self.stage.know(agent.name, *skills, level=level, incarnation=agent.incarnation))

    def agent_links(self) -> None:
        self.link(self.agent())

    def lost_agents_link(self) -> None:
        for agent in self.agents.values():
            if agent.stream is None:
                self.link(agent)

    def agent_restarts(self) -> None:
        agent = self.agent()
        restart(agent)
        self.link(agent)

    def link(self, agent: AgentSide) -> None:
        if agent.stream is not None:
            self.cut(agent, 0)
        self.streams += 1
        agent.stream = StreamId(self.streams)
        held_locks = tuple(lock for locks in agent.locks.values() for lock in locks)
        for assignment in agent.held.values():
            held_locks += assignment.locks
        held = (*agent.held, *agent.unacked)
        hello = WorkOpened(
            "hello", agent.stream, key(agent.name), agent.incarnation, held, held_locks, agent.name != "c"
        )
        agent.credits = slots = 1 if self.crowded else self.choose.number(1, 3)
        again = tuple(agent.unacked.values())
        self.run_batch(hello, WorkFrame("frame", agent.stream, 0.5, credits=slots, results=again))

    def agent_loses_its_link(self) -> None:
        if (agent := self.linked()) is not None and agent.stream is not None:
            stream = agent.stream
            self.cut(agent, SETTINGS.reconnect_grace_ms)
            self.run_batch(WorkClosed("gone", stream))

    def registry_reports_the_end(self) -> None:
        agent = self.agent()
        agent.safe_until = min(agent.safe_until, self.stage.now)
        newer = self.choose.one([True, False])
        if newer and agent.stream is None:
            restart(agent)
        self.take(self.stage.know(agent.name, "dig", incarnation=agent.incarnation, gone=not newer))

    def agent_reports(self) -> None:
        agent = self.linked()
        if agent is None or agent.stream is None:
            return
        results: list[ResultReport] = []
        started: list[AttemptRef] = []
        savepoints: list[SavepointReport] = []
        for ref in self.choose.some([*agent.held], 0, 3):
            end = self.choose.one(ENDS)
            if end == "start":
                started.append(ref)
                continue
            if end in {"done", "permanent", "cancelled"} and self.crowded and self.choose.number(0, 2):
                continue
            if end == "save":
                if ref not in agent.saving:
                    self.saves += 1
                    agent.saving[ref] = str(self.saves).encode()
                    savepoints.append(SavepointReport(ref, Payload("", agent.saving[ref])))
                continue
            report = ResultReport(ref, outcome_of(end, ref))
            agent.held.pop(ref)
            agent.unacked[ref] = report
            results.append(report)
        if agent.past and self.choose.number(0, 4) == 0:
            old = self.choose.one(agent.past)
            if old not in agent.held and old not in agent.unacked:
                results.append(ResultReport(old, Payload("", b"stale")))
        more = min(self.choose.number(0, 2), 3 - min(3, agent.credits + len(agent.held)))
        agent.drained = agent.drained or self.choose.number(0, 30) == 0
        agent.credits = 0 if agent.drained else agent.credits + more
        frame = WorkFrame(
            "frame",
            agent.stream,
            0.3,
            credits=more,
            started=tuple(started),
            results=tuple(results),
            probe_nonce=agent.probe,
            drain=agent.drained,
            savepoints=tuple(savepoints),
        )
        self.run_batch(frame)

    def agent_suspends(self) -> None:
        """An agent heeds the requests to make room: with a savepoint, without one, or too late."""
        agent = self.linked()
        if agent is None or agent.stream is None:
            return
        results: list[ResultReport] = []
        for ref in [*agent.suspending]:
            del agent.suspending[ref]
            if ref not in agent.held:
                continue
            end = self.choose.one(("saves", "saves", "stops", "done", "cancelled", "deaf"))
            if end == "deaf":
                continue
            agent.held.pop(ref)
            point = None
            if end == "saves":
                self.saves += 1
                point = Payload("", str(self.saves).encode())
            outcome = outcome_of(end, ref) if end in {"done", "cancelled"} else Suspended(point)
            agent.unacked[ref] = ResultReport(ref, outcome)
            results.append(agent.unacked[ref])
        self.run_batch(WorkFrame("suspended", agent.stream, 0.4, results=tuple(results)))

    def agent_locks(self) -> None:
        agent = self.linked()
        if agent is None or agent.stream is None:
            return
        agent.requests += 1
        mode = self.choose.one([*LockMode])
        names = self.choose.some(RESOURCES, 1, 2)
        claims = tuple(ResourceClaim(ResourceName(each), mode) for each in names)
        agent.waiting[agent.requests] = claims
        ref = self.choose.one([*agent.held]) if agent.held and self.choose.number(0, 1) else None
        asked = LockRequested(agent.requests, claims, self.choose.one([None, 0, 700]), ref)
        self.run_batch(WorkFrame("lock", agent.stream, 0.1, lock_requests=(asked,)))

    def agent_unlocks(self) -> None:
        agent = self.linked()
        if agent is None or agent.stream is None:
            return
        if agent.waiting and self.choose.number(0, 1):
            number = next(iter(agent.waiting))
            del agent.waiting[number]
            released = LockReleased(number)
        elif agent.locks:
            number = next(iter(agent.locks))
            released = LockReleased(0, agent.locks.pop(number))
        else:
            return
        self.run_batch(WorkFrame("unlock", agent.stream, 0.1, lock_releases=(released,)))

    # Others.

    def foreign_program_locks(self) -> None:
        resource = self.choose.one(RESOURCES)
        if resource not in self.stage.foreign:
            self.foreign_revision += 1
            name = f"foreign-{self.foreign_revision}"
            # Met by the next grant of this resource, before or after the watch tells.
            self.stage.foreign[resource] = ForeignLock(ResourceName(resource), name, self.foreign_revision)

    def watch_tells_of_foreign_programs(self) -> None:
        self.run_batch(LockKeysChanged("watch", 0.2, foreign=tuple(self.stage.foreign.values())))

    def foreign_programs_unlock(self) -> None:
        gone = tuple((each.resource, each.claim_id) for each in self.stage.foreign.values())
        self.stage.foreign.clear()
        self.run_batch(LockKeysChanged("watch", 0.2, deleted=gone))

    def somebody_deletes_a_key(self) -> None:
        if self.stage.store.locks:
            gone = self.choose.one(sorted(self.stage.store.locks))
            del self.stage.store.locks[gone]
            self.run_batch(LockKeysChanged("watch", 0.2, deleted=(gone,)))

    def requester_submits(self) -> None:
        self.submissions += 1
        tasks: list[TaskSpec] = []
        for number in range(self.choose.number(1, 5)):
            earlier = [f"t{each}" for each in range(number)]
            locks = self.choose.some(RESOURCES) if self.choose.number(0, 2) == 0 else []
            tasks.append(
                task(
                    f"t{number}",
                    *self.choose.some(earlier),
                    skills=["dig"] if self.crowded else self.choose.some(SKILLS, 1, 2),
                    priority=self.choose.one(
                        [LOW, LOW, LOW, EMERGENCY] if self.crowded else [None, LOW, NORMAL, HIGH, EMERGENCY]
                    ),
                    estimated_duration_ms=self.choose.one([1, 1_000]),
                    locks=locks,
                    retry=RetryPolicy(self.choose.number(1, 3), 200, 1_000),
                    attempt_timeout_ms=self.choose.one([4_000, 600_000, 600_000]),
                    required_agents=tuple(self.choose.some(AGENTS, 0, 1)) if number == 1 else (),
                    deadline=Instant(self.stage.now + 20_000) if self.choose.number(0, 9) == 0 else None,
                )
            )
        if self.choose.number(0, 4) == 0:
            wanted = {"skills": self.choose.some(SKILLS, 1, 1), "retry": RetryPolicy(2, 200, 1_000)}
            tasks += gang("g", size=self.choose.number(2, 3), locks=self.choose.some(RESOURCES), **wanted)
        self.run_batch(
            self.stage.submission(
                *tasks,
                request_id=f"r{self.submissions}",
                requester=self.choose.one(["operator/admin", "agent/x", "agent/y"]),
                policy=self.choose.one([None, *SchedulingPolicy]),
            )
        )

    def requester_cancels(self) -> None:
        if self.submissions:
            self.take(self.stage.cancel(f"r{self.choose.number(1, self.submissions)}"))

    def requester_pauses(self) -> None:
        if self.submissions:
            name = CollaborationId(f"c-r{self.choose.number(1, self.submissions)}")
            if self.choose.number(0, 2):
                self.run_batch(ResumeRequested("resume", name, "operator/admin", "", ReplyId(0)))
            else:
                suspend = bool(self.choose.number(0, 1))
                self.run_batch(PauseRequested("pause", name, "operator/admin", "", suspend, ReplyId(0)))

    def time_passes(self) -> None:
        for effects in self.stage.ticks(self.choose.one([1, 300, 300, 2_000, 6_000, 30_000])):
            self.take(effects)

    def leader_changes(self) -> None:
        before = {
            collaboration_id: (collaboration.state, collaboration.generation, list(collaboration.succeeded))
            for collaboration_id, collaboration in self.stage.state.book.collaborations.items()
        }
        running = [ref for agent in self.agents.values() for ref in agent.held if self.is_current(ref)]
        self.take_over()
        assert all(self.is_current(ref) for ref in running), "the new leader gave up what still runs"
        for collaboration_id, (state, generation, succeeded) in before.items():
            after = self.stage.state.book.collaborations[CollaborationId(collaboration_id)]
            assert after.state is state, (after, state)
            assert after.generation >= generation, (after, generation)
            assert after.succeeded == succeeded

    def leader_dies_while_it_commits(self) -> None:
        self.tear = True

    def take_over(self) -> None:
        # Watchers of a leader that died have seen nothing of a batch that it did not finish.
        self.generations.clear()
        effects = self.stage.take_over()
        for agent in self.agents.values():
            self.cut(agent, SETTINGS.takeover_grace_ms)
        self.take(effects)

    # What must hold.


#: What can happen, as often as it is named.
ACTIONS: tuple[Callable[[World], None], ...] = (
    *[World.agent_reports] * 14,
    *[World.agent_suspends] * 4,
    *[World.requester_submits] * 4,
    *[World.lost_agents_link] * 4,
    *[World.time_passes] * 4,
    *[World.agent_locks] * 3,
    *[World.agent_unlocks] * 3,
    World.agent_links,
    World.agent_restarts,
    World.agent_loses_its_link,
    World.registry_tells_of_skills,
    World.registry_reports_the_end,
    World.foreign_program_locks,
    World.watch_tells_of_foreign_programs,
    *[World.foreign_programs_unlock] * 2,
    World.somebody_deletes_a_key,
    World.requester_cancels,
    World.requester_pauses,
    World.leader_changes,
    World.leader_dies_while_it_commits,
)
