"""Effects sorted into writes, and writes cut into transactions."""

from __future__ import annotations

from typing import Any

from muster.scheduler.v1 import task_pb2 as task_pb

from services.common.core.fencing import FencingToken
from services.common.core.ids import AgentId, CollaborationId, InstanceId, ResourceName, TaskId
from services.common.core.instants import Instant
from services.common.etcd.ops import TXN_OPERATIONS_MAX, Delete, Get, Put
from services.scheduler.batches import sort, split_written
from services.scheduler.core.effects import (
    Assign,
    DeleteLock,
    EndLease,
    Forget,
    GrantLocks,
    Publish,
    PutLock,
    SaveCollaboration,
    SaveTask,
)
from services.scheduler.core.events import PlacementDue, StreamId
from services.scheduler.core.model import (
    AttemptRef,
    CollaborationState,
    InstanceKey,
    LockMode,
    Payload,
    Priority,
    TaskKey,
    TaskSpec,
    TaskState,
)
from services.scheduler.core.records import (
    SMALL_BYTES_MAX,
    CollaborationRecord,
    StoredLock,
    TaskRecord,
    collaboration_record,
    spec_record,
    task_record,
)
from services.scheduler.store import Batch
from services.scheduler.stores.layout import Layout
from services.scheduler.stores.transactions import TXN_BYTES_MAX, Lane, cut
from services.scheduler.wire import records, specs
from tests.unit.scheduler.scheduler_stage import Stage, only, task

A = InstanceKey(AgentId("a"), InstanceId("0"))
LAYOUT = Layout("/muster")


def keys(lane: Lane) -> list[list[str]]:
    return [[operation.key for operation in transaction.operations] for transaction in lane]


def record(name: str, result: Payload | None = None) -> TaskRecord:
    return TaskRecord(
        TaskId(name), TaskState.READY, 1, 2, (), 0, 0, result, None, Instant(1), None, None, "r"
    )


def header(name: str) -> CollaborationRecord:
    return CollaborationRecord(CollaborationId(name), CollaborationState.ACTIVE, 2, None, "", None)


def lock(resource: str, attempt: AttemptRef | None = None, **more: Any) -> StoredLock:
    row = StoredLock(
        ResourceName(resource), "one", LockMode.EXCLUSIVE, A, attempt, True, Priority.NORMAL, Instant(1), 7
    )
    return row._replace(**more)


def batch(*names: str, tasks: int = 1) -> Batch:
    made = Batch()
    for name in names:
        collaboration_id = CollaborationId(name)
        made.collaborations[collaboration_id] = header(name)
        for number in range(tasks):
            made.tasks[TaskKey(collaboration_id, TaskId(f"t{number}"))] = record(f"t{number}")
    return made


def wired(task_id: str, description: str = "") -> TaskSpec:
    message = task_pb.TaskSpec(task_id=task_id, required_skills=["work"], description=description)
    return specs.task_spec(message, "tasks")


# Effects.


def test_each_subject_is_written_once_with_its_newest_value() -> None:
    stage = Stage()
    stage.agent("a", slots=1)
    effects = stage.state.handle(stage.submission(task("x"), task("y")), stage.now)
    effects += stage.state.handle(PlacementDue("p"), stage.now)
    found = sort(effects)
    assert [*found.batch.tasks] == [TaskKey(CollaborationId("c-r1"), TaskId("x"))]
    assert [*found.batch.specs] == [CollaborationId("c-r1")]
    [header_record] = found.batch.collaborations.values()
    assert header_record.state is CollaborationState.ACTIVE
    assert header_record.generation == 3
    assert len(only(found.sends, Publish)) == 3
    assert [type(send) for send in found.sends][-1] is Assign
    assert len(found.answers) == 1
    assert [entry.operation for entry in found.entries] == ["collaboration.submit", "task.assign"]


def test_nothing_is_written_about_what_is_forgotten_in_the_same_batch() -> None:
    stage = Stage()
    stage.agent("a", slots=2)
    effects = stage.state.handle(stage.submission(task("x")), stage.now)
    effects += stage.state.handle(stage.submission(task("x"), request_id="r2"), stage.now)
    effects += stage.state.handle(PlacementDue("p"), stage.now)
    effects.append(Forget(CollaborationId("c-r1")))
    found = sort(effects)
    [other] = found.batch.specs
    assert other == "c-r2"
    assert [*found.batch.collaborations] == [other]
    assert [*found.batch.tasks] == [TaskKey(other, TaskId("x"))]
    assert [*found.batch.forgotten] == ["c-r1"]


def test_of_a_small_collaboration_everything_is_written_whenever_any_of_it_changes() -> None:
    stage = Stage()
    stage.agent("a", slots=1)
    stage.submit(wired("x"))
    collaboration = stage.collaboration()
    for effect in (SaveTask(collaboration.tasks[TaskId("x")]), SaveCollaboration(collaboration)):
        found = sort([effect]).batch
        assert [len(some) for some in (found.specs, found.tasks, found.collaborations)] == [1, 1, 1]
    [[transaction]] = cut(found, LAYOUT, {}, set())
    [put] = transaction.operations
    assert put.key == "/muster/collaborations/c-r1"
    assert isinstance(put, Put)
    kept = records.decode_small(CollaborationId("c-r1"), put.value)
    assert kept is not None
    assert kept.spec == spec_record(collaboration)
    assert kept.record == collaboration_record(collaboration)
    assert kept.tasks == (task_record(collaboration.tasks[TaskId("x")]),)


def test_a_task_that_never_changed_has_no_record() -> None:
    stage = Stage()
    effects = stage.state.handle(stage.submission(wired("x")), stage.now)
    [[transaction]] = cut(sort(effects).batch, LAYOUT, {}, set())
    [put] = transaction.operations
    assert isinstance(put, Put)
    kept = records.decode_small(CollaborationId("c-r1"), put.value)
    assert kept is not None
    assert kept.tasks == ()


def test_what_is_large_or_has_several_tasks_is_written_in_parts() -> None:
    for tasks in ([wired("x"), wired("y")], [wired("x", "x" * SMALL_BYTES_MAX)]):
        stage = Stage()
        stage.agent("a", slots=1)
        stage.submit(*tasks)
        collaboration = stage.collaboration()
        found = sort([SaveTask(collaboration.tasks[TaskId("x")])]).batch
        assert [len(some) for some in (found.specs, found.tasks, found.collaborations)] == [0, 1, 0]


def test_an_empty_batch_says_so() -> None:
    assert Batch().empty
    assert not Batch(deleted_locks=[(ResourceName("r"), "c")]).empty
    assert sort([EndLease(A)]).batch.empty


def test_what_follows_from_durable_locks_goes_out_and_the_rest_waits_for_its_own_commit() -> None:
    grant = GrantLocks(StreamId(1), 1, (), Instant(1))
    undo = DeleteLock(ResourceName("bridge"), "one")
    assert split_written([undo, grant]) == ([grant], [undo])


# Transactions.


def test_small_collaborations_share_transactions_and_stay_whole() -> None:
    lanes = cut(batch(*(f"c{number}" for number in range(100)), tasks=2), LAYOUT, {}, set())
    assert [len(lane) for lane in lanes] == [1, 1, 1]
    for [transaction] in lanes:
        assert len(transaction.operations) <= TXN_OPERATIONS_MAX
        order = [operation.key for operation in transaction.operations]
        for position, key in enumerate(order):
            if key.startswith(LAYOUT.collaborations):
                name = key.rpartition("/")[2]
                below = [place for place, other in enumerate(order) if f"/tasks/{name}/" in other]
                assert len(below) == 2
                assert max(below) < position, "the collaboration itself comes last"


def test_a_large_collaboration_has_a_lane_of_its_own_with_its_record_last() -> None:
    lanes = cut(batch("big", tasks=400), LAYOUT, {}, set())
    [lane] = lanes
    assert len(lane) == 4
    assert keys(lane)[-1][-1] == "/muster/collaborations/big"


def test_a_transaction_is_bounded_by_its_bytes() -> None:
    made = batch("big", tasks=0)
    for number in range(40):
        key = TaskKey(CollaborationId("big"), TaskId(f"t{number}"))
        made.tasks[key] = record(f"t{number}", Payload("", bytes(65_000)))
    [lane] = cut(made, LAYOUT, {}, set())
    assert len(lane) == 3
    assert all(transaction.size_bytes <= TXN_BYTES_MAX for transaction in lane)


def test_specifications_come_before_tasks() -> None:
    stage = Stage()
    stage.submit(task("t0"), task("t1"))
    made = batch("c-r1")
    made.specs[CollaborationId("c-r1")] = spec_record(stage.collaboration())
    [[transaction]] = cut(made, LAYOUT, {}, set())
    assert [operation.key.removeprefix("/muster/") for operation in transaction.operations] == [
        "tasks/c-r1/spec/00000",
        "tasks/c-r1/state/t0",
        "collaborations/c-r1",
    ]


def test_an_attempt_shares_its_transaction_with_its_locks_and_deletions_come_first() -> None:
    made = batch("c1", "c2")
    ref = AttemptRef(CollaborationId("c1"), TaskId("t0"), FencingToken(7, 1))
    made.put_locks = [lock("bridge", ref), lock("road", ref), lock("boat", claim_id="two")]
    made.deleted_locks = [(ResourceName("bridge"), "before")]
    locking, others = cut(made, LAYOUT, {A: 99}, set())
    [transaction] = locking
    kinds = [type(operation) for operation in transaction.operations]
    assert kinds == [Delete, Put, Put, Put, Get, Get, Put, Put, Get]
    assert [transaction.operations[index].key for index, _ in transaction.locks] == [
        "/muster/locks/bridge/",
        "/muster/locks/road/",
        "/muster/locks/boat/",
    ]
    puts = [operation for operation in transaction.operations if isinstance(operation, Put)]
    assert [put.lease_id for put in puts if "/locks/" in put.key] == [99, 99, 99]
    assert keys(others) == [["/muster/tasks/c2/state/t0", "/muster/collaborations/c2"]]


def test_a_lock_of_code_whose_attempt_does_not_change_is_written_too() -> None:
    ref = AttemptRef(CollaborationId("c1"), TaskId("t0"), FencingToken(7, 1))
    [[transaction]] = cut(Batch(put_locks=[lock("bridge", ref)]), LAYOUT, {A: 99}, set())
    assert [type(operation) for operation in transaction.operations] == [Put, Get]


def test_the_locks_of_a_small_collaborations_attempt_share_its_transaction() -> None:
    stage = Stage()
    stage.submit(wired("t0"))
    made = sort([SaveCollaboration(stage.collaboration())]).batch
    ref = AttemptRef(CollaborationId("c-r1"), TaskId("t0"), FencingToken(7, 1))
    made.put_locks = [lock("bridge", ref)]
    [[transaction]] = cut(made, LAYOUT, {A: 99}, set())
    assert [operation.key for operation in transaction.operations] == [
        "/muster/collaborations/c-r1",
        "/muster/locks/bridge/one",
        "/muster/locks/bridge/",
    ]


def test_many_locks_that_the_code_of_one_attempt_takes_are_cut_between_requests() -> None:
    made = batch("c1")
    ref = AttemptRef(CollaborationId("c1"), TaskId("t0"), FencingToken(7, 1))
    made.put_locks = [
        lock(f"r{number}", ref, claim_id=f"q{number // 2}", declared=False) for number in range(300)
    ]
    [lane] = cut(made, LAYOUT, {A: 1}, set())
    assert all(len(transaction.operations) <= TXN_OPERATIONS_MAX for transaction in lane)
    for transaction in lane:
        claims = [row.claim_id for _, row in transaction.locks]
        assert all(claims.count(claim) == 2 for claim in claims)
    assert sum(len(transaction.locks) for transaction in lane) == 300


def test_many_locks_are_cut_between_requests_only() -> None:
    made = batch(*(f"c{number}" for number in range(60)))
    for number in range(60):
        ref = AttemptRef(CollaborationId(f"c{number}"), TaskId("t0"), FencingToken(7, 1))
        made.put_locks += [lock(f"r{number}", ref), lock(f"s{number}", ref)]
    [lane] = cut(made, LAYOUT, {A: 1}, set())
    assert len(lane) > 1
    for transaction in lane:
        assert len(transaction.operations) <= TXN_OPERATIONS_MAX
        names = [operation.key for operation in transaction.operations]
        for _, row in transaction.locks:
            assert LAYOUT.lock(row.resource, row.claim_id) in names
            assert row.attempt is not None
            assert LAYOUT.task(*row.attempt.task_key) in names


def test_a_forgotten_collaborations_record_goes_first() -> None:
    c1, c2 = CollaborationId("c1"), CollaborationId("c2")
    [[transaction]] = cut(Batch(forgotten={c1: None, c2: None}), LAYOUT, {}, {c1})
    assert transaction.operations == [
        Delete("/muster/collaborations/c1"),
        Delete("/muster/tasks/c1/", prefix=True),
        # Of one that never had keys below its own nothing else is looked for.
        Delete("/muster/collaborations/c2"),
    ]


def test_who_has_keys_below_its_own_is_noted() -> None:
    spread = {CollaborationId("c0")}
    cut(batch("c1", tasks=2), LAYOUT, {}, spread)
    stage = Stage()
    small = stage.state.handle(stage.submission(wired("x"), request_id="small"), stage.now)
    large = stage.state.handle(stage.submission(wired("x"), wired("y"), request_id="large"), stage.now)
    cut(sort(small + large).batch, LAYOUT, {}, spread)
    assert spread == {"c0", "c1", "c-large"}


def test_keys_are_read_as_they_are_written() -> None:
    name = CollaborationId("c1")
    assert LAYOUT.parse_task(LAYOUT.spec(name, 3)) == ("c1", "spec", "00003")
    assert LAYOUT.parse_task(LAYOUT.task(name, TaskId("a.b"))) == ("c1", "state", "a.b")
    assert LAYOUT.parse_lock(LAYOUT.lock(ResourceName("bridge"), "x/y")) == ("bridge", "x/y")
    assert LAYOUT.parse_lock("/muster/locks/bridge") is None
    assert LAYOUT.parse_task("/muster/tasks/c1") is None


def test_a_lease_does_not_end_when_its_instance_came_back_in_the_same_batch() -> None:
    """Its new lock hangs on that lease; found by the simulation, seed 293."""
    other = InstanceKey(AgentId("b"), InstanceId("0"))
    found = sort([EndLease(A), EndLease(other), PutLock(lock("bridge"))])
    assert found.leases == [EndLease(other)]
    # It went after it had taken the lock: what is on its way is deleted, and the lease with it.
    assert sort([PutLock(lock("bridge")), EndLease(A)]).leases == [EndLease(A)]
