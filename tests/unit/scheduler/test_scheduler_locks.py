"""Locks as tasks declare them and as agents' code asks for them."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.core.errors import Reason
from services.common.core.fencing import FencingToken
from services.common.core.ids import ResourceName
from services.scheduler.core.book import Settings
from services.scheduler.core.effects import (
    Assign,
    CancelAttempt,
    DeleteLock,
    GrantLocks,
    PutLock,
    RefuseLocks,
    RevokeLock,
)
from services.scheduler.core.events import (
    ForeignLock,
    HeldLock,
    LockKeysChanged,
    LockReleased,
    LockRequested,
    StreamId,
    WorkFrame,
    WorkOpened,
)
from services.scheduler.core.model import AttemptState, LockMode, ResourceClaim, TaskState
from services.scheduler.core.queries import waiting_for
from tests.unit.scheduler.scheduler_stage import HIGH, Stage, assigned, key, only, task, token

BRIDGE, ROAD = ResourceName("bridge"), ResourceName("road")


def ask(number: int, *names: str, **more: Any) -> LockRequested:
    mode = more.pop("mode", LockMode.EXCLUSIVE)
    return LockRequested(number, tuple(ResourceClaim(ResourceName(name), mode) for name in names), **more)


def lock(stage: Stage, stream: StreamId, request: LockRequested) -> list[Any]:
    return [*stage.frame(stream, lock_requests=(request,))]


def foreign(name: str = "bridge", revision: int = 1) -> ForeignLock:
    return ForeignLock(ResourceName(name), "694d", revision)


# Declared by tasks.


def test_an_attempt_and_its_locks_are_one_commit_and_go_out_with_the_token() -> None:
    stage = Stage()
    stage.agent("a")
    effects = stage.submit(task("t", locks=("bridge", "road")))
    puts = only(effects, PutLock)
    assert {put.lock.resource for put in puts} == {BRIDGE, ROAD}
    assert {put.lock.attempt for put in puts} == {stage.ref("t")}
    [assign] = only(effects, Assign)
    granted = FencingToken(7, stage.store.locks[BRIDGE, puts[0].lock.claim_id].revision)
    assert assign.locks == (HeldLock(BRIDGE, granted), HeldLock(ROAD, granted))
    assert effects.index(puts[0]) < effects.index(assign)


def test_a_task_whose_lock_is_held_waits_and_its_agent_does_other_work() -> None:
    stage = Stage()
    stream = stage.agent("a", slots=2)
    effects = stage.submit(task("x", locks=("bridge",)), task("y", locks=("bridge",)), task("z"))
    assert assigned(effects) == ["z", "x"]
    assert waiting_for(stage.state.book, stage.task("y")).startswith("locks: bridge held by agent a/0")
    assert stage.task("y").attempts == ()
    effects = stage.finish(stream, "x")
    assert assigned(effects) == ["y"]
    assert [gone.resource for gone in only(effects, DeleteLock)] == [BRIDGE]


def test_no_lock_is_kept_for_a_task_without_an_agent() -> None:
    stage = Stage()
    a = stage.agent("a", slots=1)
    b = stage.agent("b", "other", slots=1)
    stage.submit(task("x", locks=("bridge",)))
    # It had an agent when it began to wait for the bridge; when the bridge is free that agent is not.
    stage.frame(a, credits=1)
    stage.submit(task("y", locks=("bridge",)), request_id="r2")
    stage.submit(task("z"), request_id="r3")
    stage.submit(task("w", skill="other", locks=("bridge",)), request_id="r4")
    effects = stage.finish(a, "x", slots=0)
    assert assigned(effects) == ["w"]
    assert stage.task("y", "r2").lock_id is None
    stage.finish(b, "w", request_id="r4")
    assert assigned(stage.frame(a, credits=1)) == ["y"]


def test_shared_claims_hold_together_and_exclusive_ones_wait_for_all_of_them() -> None:
    stage = Stage()
    stream = stage.agent("a", slots=4)
    shared = (ResourceClaim(BRIDGE, LockMode.SHARED),)
    effects = stage.submit(
        task("r1", resources=shared), task("r2", resources=shared), task("w", locks=("bridge",))
    )
    assert assigned(effects) == ["r1", "r2"]
    assert assigned(stage.finish(stream, "r1")) == []
    assert assigned(stage.finish(stream, "r2")) == ["w"]


def test_the_more_urgent_task_gets_the_lock_first() -> None:
    stage = Stage()
    stream = stage.agent("a", slots=4)
    stage.submit(task("x", locks=("bridge",)))
    stage.submit(
        task("plain", locks=("bridge",)), task("urgent", locks=("bridge",), priority=HIGH), request_id="r2"
    )
    assert assigned(stage.finish(stream, "x")) == ["urgent"]


def test_a_cancelled_task_waits_no_longer() -> None:
    stage = Stage()
    stream = stage.agent("a", slots=3)
    stage.submit(task("x", locks=("bridge",)))
    stage.submit(task("y", locks=("bridge",)), request_id="r2")
    stage.submit(task("z", locks=("bridge",)), request_id="r3")
    stage.cancel("r2")
    assert assigned(stage.finish(stream, "x")) == ["z"]


def test_a_declared_lock_that_is_lost_ends_the_attempt() -> None:
    stage = Stage()
    stage.agent("a", slots=2)
    stage.submit(task("t", locks=("bridge",)))
    claim = stage.task("t").lock_id
    assert claim is not None
    first = stage.ref("t")
    effects = stage.batch(LockKeysChanged("watch", 0.0, deleted=((BRIDGE, claim),)))
    assert [stop.attempt for stop in only(effects, CancelAttempt)] == [first]
    assert only(effects, RevokeLock)
    failure = stage.task("t").attempts[0].failure
    assert failure is not None
    assert failure.reason == "LOCK_LOST"
    assert stage.task("t").state in (TaskState.READY, TaskState.ASSIGNED)


def test_another_programs_older_key_undoes_the_placement() -> None:
    stage = Stage()
    stage.agent("a")
    stage.foreign["bridge"] = foreign()
    effects = stage.submit(task("t", locks=("bridge",)))
    assert assigned(effects) == []
    assert stage.task("t").attempts[0].state is AttemptState.CANCELLED
    assert waiting_for(stage.state.book, stage.task("t")) == "locks: bridge held by 694d"
    assert not stage.store.locks
    del stage.foreign["bridge"]
    effects = stage.batch(LockKeysChanged("watch", 0.0, deleted=((BRIDGE, "694d"),)))
    assert assigned(effects) == ["t"]
    assert stage.task("t").attempt_count == 2
    assert stage.task("t").failure_count == 0


def test_another_programs_key_keeps_tasks_waiting() -> None:
    stage = Stage()
    stage.agent("a")
    stage.batch(LockKeysChanged("watch", 0.0, foreign=(foreign(),)))
    assert assigned(stage.submit(task("t", locks=("bridge",)))) == []
    assert stage.task("t").attempts == ()


# Asked for by code.


def test_code_gets_locks_with_their_token_and_gives_them_back() -> None:
    stage = Stage()
    stream = stage.agent("a")
    effects = lock(stage, stream, ask(1, "bridge", "road"))
    [grant] = only(effects, GrantLocks)
    assert grant.lock_request_id == 1
    assert grant.until == stage.now + 15_000 + 2_000
    assert [each.resource for each in grant.locks] == [BRIDGE, ROAD]
    effects = stage.frame(stream, lock_releases=(LockReleased(1, grant.locks[:1]),))
    assert [gone.resource for gone in only(effects, DeleteLock)] == [BRIDGE]
    effects = stage.frame(stream, lock_releases=(LockReleased(1, grant.locks), LockReleased(1)))
    assert [gone.resource for gone in only(effects, DeleteLock)] == [ROAD]
    assert not stage.state.book.lock_uses


def test_a_held_lock_is_waited_for_refused_at_once_or_after_a_while() -> None:
    stage = Stage()
    a, b = stage.agent("a"), stage.agent("b")
    lock(stage, a, ask(1, "bridge"))
    [refused] = only(lock(stage, b, ask(1, "bridge", wait_ms_max=0)), RefuseLocks)
    assert refused.error.reason is Reason.RESOURCE_HELD
    assert refused.error.metadata["holder"] == "agent a/0"
    assert refused.error.metadata["until"]
    assert not only(lock(stage, b, ask(2, "bridge", wait_ms_max=500)), RefuseLocks)
    [refused] = only(stage.pass_time(500), RefuseLocks)
    assert refused.lock_request_id == 2
    lock(stage, b, ask(3, "bridge"))
    [grant] = only(stage.frame(a, lock_releases=(LockReleased(1),)), GrantLocks)
    assert (grant.stream, grant.lock_request_id) == (b, 3)


def test_a_waiting_request_can_be_withdrawn() -> None:
    stage = Stage()
    a, b = stage.agent("a"), stage.agent("b")
    lock(stage, a, ask(1, "bridge"))
    lock(stage, b, ask(1, "bridge"))
    stage.frame(b, lock_releases=(LockReleased(1),))
    assert not only(stage.frame(a, lock_releases=(LockReleased(1),)), GrantLocks)


def test_locks_taken_for_an_attempt_end_with_it() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("t"))
    lock(stage, stream, ask(1, "bridge", attempt=stage.ref("t")))
    effects = stage.finish(stream, "t")
    assert [gone.resource for gone in only(effects, DeleteLock)] == [BRIDGE]
    assert not only(effects, RevokeLock)
    assert not stage.state.book.lock_uses


def test_locks_of_a_cancelled_attempt_are_revoked() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("t"))
    lock(stage, stream, ask(1, "bridge", attempt=stage.ref("t")))
    effects = stage.cancel()
    assert [gone.lock.resource for gone in only(effects, RevokeLock)] == [BRIDGE]


@pytest.mark.parametrize("what", ["attempt", "nothing", "name", "number"])
def test_requests_that_make_no_sense_are_refused(what: str) -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.submit(task("t"))
    lock(stage, stream, ask(7, "dam"))
    requests = {
        "attempt": (ask(1, "bridge", attempt=token(stage.ref("t"), number=4)), Reason.STALE_FENCING_TOKEN),
        "nothing": (ask(1), Reason.INVALID_FIELD),
        "name": (ask(1, "no/slash"), Reason.INVALID_FIELD),
        "number": (ask(7, "bridge"), Reason.INVALID_FIELD),
    }
    request, reason = requests[what]
    [refused] = only(lock(stage, stream, request), RefuseLocks)
    assert refused.error.reason is reason


def test_one_instance_cannot_ask_without_end() -> None:
    stage = Stage(Settings(lock_request_max=2))
    stream = stage.agent("a")
    for number in (1, 2):
        lock(stage, stream, ask(number, f"r{number}"))
    [refused] = only(lock(stage, stream, ask(3, "r3")), RefuseLocks)
    assert refused.error.reason is Reason.QUOTA_EXCEEDED


def test_a_deadlock_is_broken_and_the_circle_named() -> None:
    stage = Stage()
    a, b = stage.agent("a"), stage.agent("b")
    lock(stage, a, ask(1, "bridge"))
    lock(stage, b, ask(1, "road"))
    lock(stage, a, ask(2, "road"))
    [refused] = only(lock(stage, b, ask(2, "bridge")), RefuseLocks)
    assert (refused.stream, refused.lock_request_id) == (b, 2)
    assert "agent b/0 -> agent a/0 -> agent b/0" in refused.error.metadata["cycle"]


def test_a_lock_that_is_released_while_its_key_is_written_ends_with_the_next_commit() -> None:
    stage = Stage()
    stream = stage.agent("a")
    request = WorkFrame("f", stream, 0.0, lock_requests=(ask(1, "bridge"),))
    release = WorkFrame("f", stream, 0.0, lock_releases=(LockReleased(1),))
    effects = stage.batch(request, release)
    assert not only(effects, GrantLocks)
    assert not stage.store.locks
    assert not stage.state.book.lock_uses


def test_a_broken_link_withdraws_what_waits_and_keeps_what_is_held_until_its_grace_ends() -> None:
    stage = Stage()
    a, b = stage.agent("a"), stage.agent("b")
    lock(stage, a, ask(1, "bridge"))
    lock(stage, b, ask(1, "road"))
    lock(stage, a, ask(2, "road"))
    stage.unlink(a)
    lock(stage, b, ask(2, "bridge"))
    assert not only(stage.frame(b, lock_releases=(LockReleased(1),)), GrantLocks)
    effects = stage.pass_time(2_000)
    assert [grant.lock_request_id for grant in only(effects, GrantLocks)] == [2]


def test_an_agent_that_comes_back_keeps_the_locks_that_it_names() -> None:
    stage = Stage()
    stream = stage.agent("a")
    [kept] = only(lock(stage, stream, ask(1, "bridge")), GrantLocks)
    [unheard] = only(lock(stage, stream, ask(2, "road")), GrantLocks)
    ended = HeldLock(ResourceName("dam"), FencingToken(7, 3))
    stage.unlink(stream)
    effects = stage.batch(WorkOpened("hello", StreamId(9), key("a"), 1, (), (*kept.locks, ended)))
    assert [gone.lock for gone in only(effects, RevokeLock)] == [ended]
    assert [gone.resource for gone in only(effects, DeleteLock)] == [ROAD]
    assert [use.held_locks for use in stage.state.book.lock_uses.values()] == [kept.locks]
    assert unheard.locks[0].resource == ROAD


def test_a_key_that_is_gone_is_a_lock_that_is_lost() -> None:
    stage = Stage()
    stream = stage.agent("a")
    lock(stage, stream, ask(1, "bridge", "road"))
    [use] = stage.state.book.lock_uses.values()
    effects = stage.batch(LockKeysChanged("watch", 0.0, deleted=((BRIDGE, use.request.lock_id),)))
    assert [gone.lock.resource for gone in only(effects, RevokeLock)] == [BRIDGE]
    assert [each.resource for each in use.held_locks] == [ROAD]
    again = stage.batch(LockKeysChanged("watch", 0.0, deleted=((BRIDGE, use.request.lock_id),)))
    assert not only(again, RevokeLock)


def test_code_that_is_beaten_by_an_older_key_takes_its_place_again() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.foreign["bridge"] = foreign()
    effects = lock(stage, stream, ask(1, "bridge"))
    assert not only(effects, GrantLocks)
    assert not stage.store.locks
    del stage.foreign["bridge"]
    effects = stage.batch(LockKeysChanged("watch", 0.0, deleted=((BRIDGE, "694d"),)))
    assert [grant.lock_request_id for grant in only(effects, GrantLocks)] == [1]


def test_code_that_tried_once_and_was_beaten_is_refused() -> None:
    stage = Stage()
    stream = stage.agent("a")
    stage.foreign["bridge"] = foreign()
    [refused] = only(lock(stage, stream, ask(1, "bridge", wait_ms_max=0)), RefuseLocks)
    assert refused.error.metadata["holder"] == "694d"
