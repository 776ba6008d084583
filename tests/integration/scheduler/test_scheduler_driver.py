"""The driver on a store in memory: the order of its steps, faults in pairs, the loss of the lead."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from multiprocessing import resource_tracker
from typing import Any

import pytest
import pytest_asyncio

from services.common.clock import SystemClock
from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import AgentId, CollaborationId, InstanceId, RequestId, ResourceName, Skill
from services.common.election import Leadership
from services.common.metrics import Metrics
from services.common.testing.election import MemoryBallot
from services.common.testing.faults import Faults
from services.common.testing.outbox import MemoryOutbox
from services.scheduler.core.book import Book, Settings
from services.scheduler.core.course import Collaboration
from services.scheduler.core.effects import Accepted, AckResult, Assign, GrantLocks, RevokeLock, Welcome
from services.scheduler.core.events import (
    AgentsChanged,
    AgentView,
    CancelRequested,
    Event,
    ForeignLock,
    InstanceView,
    LockRequested,
    ReplyId,
    ResultReport,
    StreamId,
    Submitted,
    WorkFrame,
    WorkOpened,
)
from services.scheduler.core.model import (
    AttemptRef,
    CollaborationSpec,
    CollaborationState,
    InstanceKey,
    Payload,
    ResourceClaim,
    SchedulingPolicy,
    Submission,
    TaskSpec,
)
from services.scheduler.core.records import StoredLock
from services.scheduler.driver import PLENTY, Driver, DriverParts
from services.scheduler.inbox import Reply
from services.scheduler.metrics import SchedulerMetrics
from services.scheduler.planner import Planner
from services.scheduler.stores.memory import MemoryPlane, MemoryStore
from tests.conftest import Eventually
from tests.unit.scheduler.scheduler_stage import task

C1 = CollaborationId("c-r1")
BRIDGE = ResourceName("bridge")


class Port:
    """What an agent would read."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.error: ServiceError | None = None

    def send(self, item: Any) -> None:
        self.items.append(item)

    def end(self, error: ServiceError) -> None:
        self.error = error

    def of(self, kind: type[Any]) -> list[Any]:
        return [item for item in self.items if isinstance(item, kind)]


class Rig:
    """One ballot, one plane, one driver after another."""

    def __init__(self) -> None:
        self.ballot = MemoryBallot()
        self.plane = MemoryPlane(lambda leadership: self.ballot.holds(leadership.guard))
        self.faults = Faults()
        self.outbox = MemoryOutbox()
        self.outbox_faults = Faults()
        self.settings = Settings(reconnect_grace_ms=50, takeover_grace_ms=2_000)
        self.runs: list[tuple[Driver, asyncio.Task[None]]] = []
        self.leadership: Leadership | None = None
        #: None: nobody searches for better standing plans.
        self.planner: Planner | None = None

    async def lead(self) -> Driver:
        """Begin a leadership and return its driver, serving."""
        self.leadership = await self.ballot.candidate().campaign(b"x")
        parts = DriverParts(
            self.faults.around(MemoryStore(self.plane)),
            self.outbox_faults.around(self.outbox),
            SystemClock(),
            SchedulerMetrics(Metrics("scheduler")),
            self.settings,
            "one",
            planner=self.planner,
        )
        driver = Driver(self.leadership, parts)
        running = asyncio.create_task(driver.run(agents))
        self.runs.append((driver, running))
        await driver.serving.wait()
        return driver

    async def depose(self, *, told: bool = True) -> None:
        assert self.leadership is not None
        await self.ballot.remove(self.leadership.epoch, told=told)

    async def close(self) -> None:
        for gate in [*self.faults._held.values(), *self.outbox_faults._held.values()]:
            gate.set()
        for driver, running in self.runs:
            await self.ballot.remove(driver.leadership.epoch)
            driver.stop()
            with contextlib.suppress(Exception):
                await running
            driver.end(ServiceError(Reason.NOT_COORDINATOR, "over"))
        if self.planner is not None:
            await self.planner.close()


@pytest.fixture(scope="module", autouse=True)
def _tracker() -> None:
    # Python's own helper of spawned processes; it ends with this process.
    resource_tracker.ensure_running()


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    yield made
    await made.close()


def agents() -> AgentsChanged:
    skills = ((Skill("work"), 1.0),)
    view = InstanceView(InstanceId("0"), 1, gone=False, skills=skills)
    return AgentsChanged(
        "agents", 0.0, (AgentView(AgentId("a"), frozenset({Skill("work")}), (view,)),), snapshot=True
    )


def submit(driver: Driver, *tasks: TaskSpec, request_id: str = "r1") -> asyncio.Future[Reply]:
    submission = Submission(
        "operator/admin", RequestId(request_id), CollaborationSpec(tasks or (task("t"),)), b"hash"
    )
    return ask(
        driver,
        lambda reply: Submitted(request_id, submission, CollaborationId(f"c-{request_id}"), reply),
    )


def ask(driver: Driver, make: Callable[[ReplyId], Event]) -> asyncio.Future[Reply]:
    answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    driver.request(make, answer.set_result)
    return answer


def link(
    driver: Driver, slots: int = 1, held: tuple[AttemptRef, ...] = (), port: Port | None = None
) -> tuple[Port, StreamId]:
    port = port or Port()
    stream = driver.open_port(port)
    driver.put(WorkOpened("hello", stream, InstanceKey(AgentId("a"), InstanceId("0")), 1, held))
    driver.put(WorkFrame("frame", stream, 0.0, credits=slots))
    return port, stream


async def test_answers_and_assignments_follow_the_commit(rig: Rig, eventually: Eventually) -> None:
    driver = await rig.lead()
    port, _ = link(driver)
    await eventually(lambda: port.of(Welcome))
    gate = rig.faults.hold("commit")
    answer = submit(driver)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not answer.done()
    assert not port.of(Assign)
    assert not rig.plane.collaborations
    gate.set()
    assert isinstance(await answer, Accepted)
    assert len(port.of(Assign)) == 1
    assert rig.plane.collaborations[C1].state is CollaborationState.ACTIVE


class Teller(Port):
    """An agent's port and a watcher in one, which notes who was told in which order."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def send(self, item: Any) -> None:
        super().send(item)
        self.told.append(type(item).__name__)

    def wants(self, _change: object) -> bool:
        return True

    def offer(self, _event: bytes) -> None:
        self.told.append("watcher")


async def test_an_agent_with_work_is_told_before_watchers_and_they_before_acks(
    rig: Rig, eventually: Eventually
) -> None:
    driver = await rig.lead()
    teller = Teller()
    driver.hub.watch_all_of(teller, "operator/admin")
    port, stream = link(driver, port=teller)
    await eventually(lambda: port.of(Welcome))
    teller.told.clear()
    await submit(driver)
    await eventually(lambda: "watcher" in teller.told)
    assert teller.told.index("Assign") < teller.told.index("watcher")
    teller.told.clear()
    [assign] = port.of(Assign)
    ref = assign.task.ref(assign.attempt)
    driver.put(WorkFrame("f", stream, 0.0, results=(ResultReport(ref, Payload("", b"x")),)))
    await eventually(lambda: "AckResult" in teller.told)
    assert teller.told[0] == "watcher"


async def test_answers_follow_the_audit_record_too(rig: Rig) -> None:
    driver = await rig.lead()
    gate = rig.outbox_faults.hold("record")
    answer = submit(driver)
    for _ in range(20):
        await asyncio.sleep(0)
    assert C1 in rig.plane.collaborations
    assert not answer.done()
    gate.set()
    await answer
    assert "collaboration.submit" in rig.outbox.operations()


async def test_what_waits_while_a_commit_is_on_its_way_shares_the_next(rig: Rig) -> None:
    driver = await rig.lead()
    gate = rig.faults.hold("commit")
    first = submit(driver, request_id="r0")
    for _ in range(10):
        await asyncio.sleep(0)
    rest = [submit(driver, request_id=f"r{number}") for number in range(1, 50)]
    before = rig.faults.calls["commit"]
    gate.set()
    await asyncio.gather(first, *rest)
    assert rig.faults.calls["commit"] == before + 1


async def turns(count: int = 30) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_much_that_waits_is_decided_about_meanwhile_and_written_and_told_afterwards(rig: Rig) -> None:
    driver = await rig.lead()
    gate = rig.faults.hold("commit")
    told: list[str] = []
    first = submit(driver, request_id="r0")
    first.add_done_callback(lambda _: told.append("r0"))
    await turns()
    rest = [submit(driver, request_id=f"r{number}") for number in range(1, PLENTY + 1)]
    for number, answer in enumerate(rest, 1):
        answer.add_done_callback(lambda _, number=number: told.append(f"r{number}"))  # type: ignore[misc]
    question = asyncio.create_task(driver.query(lambda book: len(book.collaborations)))
    await turns()
    before = rig.faults.calls["commit"]
    assert driver._state.book.open_collaboration_count == PLENTY + 1
    assert not rig.plane.collaborations
    assert not told
    late = submit(driver, request_id="late")
    await turns()
    assert driver._state.book.open_collaboration_count == PLENTY + 1, "no more than one batch in advance"
    gate.set()
    assert await question >= PLENTY
    await asyncio.gather(first, late, *rest)
    assert told == [f"r{number}" for number in range(PLENTY + 1)]
    assert len(rig.plane.collaborations) == PLENTY + 2
    assert rig.faults.calls["commit"] == before + 2
    entries = [entry for entry in rig.outbox.entries if entry.operation == "collaboration.submit"]
    assert [entry.operation_count for entry in entries] == [1, PLENTY, 1]


async def test_what_was_decided_in_advance_is_gone_with_the_lead(rig: Rig) -> None:
    driver = await rig.lead()
    gate = rig.faults.hold("commit")
    answers = [submit(driver, request_id="r0")]
    await turns()
    answers += [submit(driver, request_id=f"r{number}") for number in range(1, PLENTY + 1)]
    question = asyncio.create_task(driver.query(lambda book: len(book.collaborations)))
    await turns()
    await rig.depose(told=False)
    gate.set()
    await rig.runs[0][1]
    driver.end(ServiceError(Reason.NOT_COORDINATOR, "over"))
    assert not rig.plane.collaborations
    assert all(isinstance(answer, ServiceError) for answer in await asyncio.gather(*answers))
    with pytest.raises(ServiceError):
        await question


async def test_nothing_is_decided_while_new_locks_are_on_their_way(rig: Rig, eventually: Eventually) -> None:
    driver = await rig.lead()
    port, stream = link(driver)
    await eventually(lambda: port.of(Welcome))
    gate = rig.faults.hold("commit")
    asked = LockRequested(1, (ResourceClaim(BRIDGE),), None, None)
    driver.put(WorkFrame("f", stream, 0.0, lock_requests=(asked,)))
    await turns()
    answers = [submit(driver, request_id=f"r{number}") for number in range(2 * PLENTY)]
    await turns()
    assert not driver._state.book.collaborations
    gate.set()
    await asyncio.gather(*answers)
    assert port.of(GrantLocks)


@pytest.mark.parametrize("persists", [False, True])
async def test_a_commit_that_fails_either_way_is_repeated_and_happens_once(
    rig: Rig, persists: bool, eventually: Eventually
) -> None:
    driver = await rig.lead()
    port, stream = link(driver)
    await eventually(lambda: port.of(Welcome))
    fail = rig.faults.fail_after if persists else rig.faults.fail_before
    fail("commit", times=2)
    accepted = await submit(driver)
    assert isinstance(accepted, Accepted)
    [assign] = port.of(Assign)
    fail("commit")
    ref = assign.task.ref(assign.attempt)
    driver.put(WorkFrame("f", stream, 0.0, results=(ResultReport(ref, Payload("", b"x")),)))
    await eventually(lambda: port.of(AckResult))
    assert port.of(AckResult)[0].error is None
    assert rig.plane.collaborations[C1].state is CollaborationState.COMPLETED
    assert rig.plane.collaborations[C1].generation == 5


@pytest.mark.parametrize("persists", [False, True])
async def test_a_leader_lost_in_a_failed_commit_tells_nobody_and_the_next_one_knows(
    rig: Rig, persists: bool, eventually: Eventually
) -> None:
    driver = await rig.lead()
    port, _ = link(driver)
    await eventually(lambda: port.of(Welcome))
    fail = rig.faults.fail_after if persists else rig.faults.fail_before
    fail("commit", times=1_000)
    answer = submit(driver)
    await eventually(lambda: rig.faults.calls.get("commit", 0) > 3)
    await rig.depose()
    await rig.runs[0][1]
    assert not port.of(Assign)
    driver.end(ServiceError(Reason.NOT_COORDINATOR, "over", metadata={"coordinator": "x:1"}))
    error = await answer
    assert isinstance(error, ServiceError)
    assert error.reason is Reason.STORE_UNAVAILABLE, "whether it happened is not known"
    assert port.error is not None
    rig.faults = Faults()
    again = await submit(await rig.lead())
    assert isinstance(again, Accepted)
    assert again.already_accepted is persists


async def test_a_stale_leader_writes_and_says_nothing(rig: Rig, eventually: Eventually) -> None:
    """A leader that was stopped past its lease wakes in the belief that it leads."""
    driver = await rig.lead()
    port, _ = link(driver)
    await eventually(lambda: port.of(Welcome))
    await rig.depose(told=False)
    answer = submit(driver)
    await rig.runs[0][1]
    assert not rig.plane.collaborations
    assert not port.of(Assign)
    driver.end(ServiceError(Reason.NOT_COORDINATOR, "over"))
    assert isinstance(await answer, ServiceError)


async def test_what_was_not_begun_is_refused_for_certain(rig: Rig) -> None:
    driver = await rig.lead()
    await rig.depose()
    await rig.runs[0][1]
    driver._events.clear()
    answers = [submit(driver) for _ in range(2)]
    driver.end(ServiceError(Reason.NOT_COORDINATOR, "over"))
    for answer in answers:
        error = await answer
        assert isinstance(error, ServiceError)
        assert error.row.definite
    with pytest.raises(ServiceError):
        await driver.query(lambda book: len(book.collaborations))


async def test_the_next_leader_goes_on_where_the_last_one_was(rig: Rig, eventually: Eventually) -> None:
    driver = await rig.lead()
    port, _ = link(driver)
    await submit(driver, task("x"), task("y", "x"))
    await eventually(lambda: port.of(Assign))
    [assign] = port.of(Assign)
    ref = assign.task.ref(assign.attempt)
    await rig.depose()
    await rig.runs[0][1]
    driver = await rig.lead()
    port, stream = link(driver, held=(ref,))
    driver.put(WorkFrame("f", stream, 0.0, results=(ResultReport(ref, Payload("", b"x")),)))
    await eventually(lambda: port.of(Assign))
    [following] = port.of(Assign)
    assert following.task.key.task_id == "y"
    assert following.attempt.token.epoch == driver.leadership.epoch > ref.token.epoch


async def test_queries_see_what_came_before_and_only_what_is_durable(rig: Rig) -> None:
    driver = await rig.lead()
    gate = rig.faults.hold("commit")
    submit(driver)
    counted = asyncio.create_task(driver.query(lambda book: len(book.collaborations)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not counted.done()
    gate.set()
    assert await counted == 1


async def test_a_query_that_fails_fails_alone(rig: Rig) -> None:
    driver = await rig.lead()

    def broken(book: Book) -> int:
        return 1 // len(book.collaborations)

    with pytest.raises(ServiceError) as raised:
        await driver.query(broken)
    assert raised.value.reason is Reason.INTERNAL
    assert await driver.query(lambda book: book.epoch) == driver.leadership.epoch


async def test_timers_ring_without_events(rig: Rig, eventually: Eventually) -> None:
    driver = await rig.lead()
    port, _ = link(driver)
    await submit(driver, task("t", attempt_timeout_ms=30))
    await eventually(lambda: len(port.of(Assign)) == 1)

    def failed(book: Book) -> int:
        return book.collaborations[C1].tasks[task("t").task_id].failure_count

    async def timed_out() -> bool:
        return await driver.query(failed) == 1

    await eventually(timed_out)


async def test_a_lock_is_told_with_its_token_and_revoked_when_its_key_is_gone(
    rig: Rig, eventually: Eventually
) -> None:
    driver = await rig.lead()
    port, stream = link(driver)
    asked = LockRequested(1, (ResourceClaim(BRIDGE),))
    driver.put(WorkFrame("f", stream, 0.0, lock_requests=(asked,)))
    await eventually(lambda: port.of(GrantLocks))
    [grant] = port.of(GrantLocks)
    [key] = rig.plane.locks
    stored = rig.plane.locks[key]
    assert isinstance(stored, StoredLock)
    assert grant.locks[0].token.number == stored.revision
    assert "lock.grant" in rig.outbox.operations()
    rig.plane.expire(InstanceKey(AgentId("a"), InstanceId("0")))
    await eventually(lambda: port.of(RevokeLock))


async def test_a_beaten_lock_is_undone_with_the_next_commit(rig: Rig, eventually: Eventually) -> None:
    driver = await rig.lead()
    port, stream = link(driver)
    # Not told by the watch yet: the commit itself meets it.
    foreign = ForeignLock(BRIDGE, "694d", 0)
    rig.plane.locks[BRIDGE, "694d"] = foreign
    asked = LockRequested(1, (ResourceClaim(BRIDGE),))
    driver.put(WorkFrame("f", stream, 0.0, lock_requests=(asked,)))
    await driver.query(lambda book: None)
    await eventually(lambda: [*rig.plane.locks.values()] == [foreign])
    assert rig.faults.calls["commit"] == 2
    assert not port.of(GrantLocks)


async def test_a_crashed_helper_ends_the_leadership(rig: Rig) -> None:
    rig.faults.fail_before("keep_leases", error=lambda: RuntimeError("planned"))
    driver = await rig.lead()
    submit(driver)
    with pytest.raises(RuntimeError, match="planned"):
        await rig.runs[0][1]
    assert driver.ended.is_set()


async def test_a_commit_that_can_never_succeed_ends_the_leadership(rig: Rig) -> None:
    driver = await rig.lead()
    refusal = ServiceError(Reason.INTERNAL, "etcd: duplicate key given in txn request")
    rig.faults.fail_before("commit", error=lambda: refusal)
    submit(driver)
    with pytest.raises(ServiceError, match="duplicate key"):
        await rig.runs[0][1]


async def test_the_queue_tells_streams_to_wait(rig: Rig) -> None:
    driver = await rig.lead()
    gate = rig.faults.hold("commit")
    submit(driver)
    for _ in range(10):
        await asyncio.sleep(0)
    limits = driver._parts.limits
    # One batch is decided about while the commit before is on its way, the next waits.
    for number in range(limits.batch_events_max + limits.queue_max + 10):
        driver.put(WorkFrame("f", StreamId(number), 0.0))
    waiting = asyncio.create_task(driver.wait_room())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    gate.set()
    await waiting


async def test_a_cancelled_collaboration_is_answered_as_it_is(rig: Rig) -> None:
    driver = await rig.lead()
    await submit(driver)
    reply = await ask(driver, lambda reply: CancelRequested("c", C1, "operator/admin", "enough", reply))
    assert isinstance(reply, Collaboration)
    assert reply.state is CollaborationState.CANCELLED


async def test_a_standing_plan_is_searched_for_beside_the_loop_and_judged_when_it_is_back(
    rig: Rig, eventually: Eventually
) -> None:
    rig.planner = Planner()
    rig.settings = Settings(plan_budget_ms=20)
    driver = await rig.lead()
    link(driver, slots=1)
    tasks = tuple(task(f"t{number}") for number in range(6))
    spec = CollaborationSpec(tasks, policy=SchedulingPolicy.PREDICTIVE)
    submission = Submission("operator/admin", RequestId("r1"), spec, b"hash")
    await ask(driver, lambda reply: Submitted("r1", submission, C1, reply))

    def count(outcome: str) -> float:
        return float(driver.metrics.plans.labels(outcome)._value.get())

    # On one agent no order is better than another: what comes back is refused, and the loop goes on.
    await eventually(lambda: count("refused") == 1)
    assert count("asked") >= 1
    assert count("adopted") == count("failed") == 0
    assert driver.serving.is_set()
    assert not driver.ended.is_set()
