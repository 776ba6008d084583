"""What the lock core decides: asks, drops, losses."""

from __future__ import annotations

import pytest

from agent_client.core.locks import LockAsk, LockCore, LockDrop
from agent_client.core.records import AttemptRef, Claim, FencingToken, HeldLock

CLAIMS = (Claim("bridge"), Claim("road", shared=True))
HELD = (HeldLock("bridge", FencingToken(1, 5)), HeldLock("road", FencingToken(1, 5)))
ATTEMPT = AttemptRef("c", "t", FencingToken(1, 1))


@pytest.fixture
def core() -> LockCore:
    made = LockCore()
    made.opened()
    return made


def want(core: LockCore, handle: int = 1, wait_ms: int | None = None, now: int = 0) -> None:
    core.wanted(handle, CLAIMS, wait_ms=wait_ms, attempt=ATTEMPT, now=now)


def test_a_wish_is_asked_once_with_the_time_that_is_left(core: LockCore) -> None:
    want(core, wait_ms=100, now=10)
    assert core.take(40) == ([LockAsk(1, CLAIMS, 70, ATTEMPT)], [])
    assert core.take(50) == ([], [])


@pytest.mark.parametrize(("wait_ms", "asked_ms"), [(None, None), (0, 0), (5, 0)])
def test_the_wait_never_becomes_negative(core: LockCore, wait_ms: int | None, asked_ms: int | None) -> None:
    want(core, wait_ms=wait_ms)
    ((ask,), _) = core.take(50)
    assert ask.wait_ms == asked_ms


def test_a_release_names_what_was_held_and_a_withdrawal_nothing(core: LockCore) -> None:
    want(core, 1)
    want(core, 2)
    core.take(0)
    assert core.granted(1, HELD)
    core.released(1)
    core.released(2)
    core.released(3)
    assert core.take(0) == ([], [LockDrop(1, HELD), LockDrop(2, ())])
    assert core.held() == ()


def test_a_wish_that_was_never_asked_is_withdrawn_without_a_word(core: LockCore) -> None:
    want(core)
    core.released(1)
    assert core.take(0) == ([], [])


def test_a_grant_that_nobody_waits_for_is_given_back(core: LockCore) -> None:
    want(core)
    core.take(0)
    core.released(1)
    core.take(0)
    assert not core.granted(1, HELD)
    assert core.take(0) == ([], [LockDrop(1, HELD)])


def test_a_refusal_ends_the_wish(core: LockCore) -> None:
    want(core)
    core.take(0)
    assert core.refused(1)
    assert not core.refused(1)
    core.closed()
    core.opened()
    assert core.take(0) == ([], [])


def test_a_revocation_gives_the_rest_of_the_wish_back(core: LockCore) -> None:
    want(core)
    core.take(0)
    core.granted(1, HELD)
    assert core.revoked(HeldLock("bridge", FencingToken(1, 4))) is None
    assert core.revoked(HELD[0]) == 1
    assert core.take(0) == ([], [LockDrop(1, HELD[1:])])
    core.released(1)
    assert core.take(0) == ([], [])


def test_a_new_stream_is_asked_for_what_waits_and_told_what_is_held(core: LockCore) -> None:
    want(core, 1)
    want(core, 2)
    core.take(0)
    core.granted(1, HELD)
    core.closed()
    want(core, 3)
    core.released(1)
    want(core, 4)
    core.granted(4, HELD)
    assert core.held() == HELD
    core.opened()
    asks, drops = core.take(0)
    assert [ask.handle for ask in asks] == [2, 3]
    assert drops == []


def test_wishes_give_up_only_where_nobody_else_watches_the_time(core: LockCore) -> None:
    want(core, 1, wait_ms=10)
    want(core, 2, wait_ms=None)
    want(core, 3, wait_ms=10)
    core.take(0)
    core.granted(3, HELD)
    assert core.overdue(50) == []
    assert core.overdue_at() is None
    core.closed()
    assert core.overdue_at() == 10
    assert core.overdue(9) == []
    assert core.overdue(10) == [1]
    assert core.overdue(50) == []
    assert core.overdue_at() is None


def test_an_attempts_end_orphans_its_wishes(core: LockCore) -> None:
    want(core, 1)
    core.wanted(2, CLAIMS, wait_ms=None, attempt=None, now=0)
    core.attempt_ended(ATTEMPT)
    assert core.take_orphans() == [1]
    assert core.take_orphans() == []
    asks, _ = core.take(0)
    assert [ask.handle for ask in asks] == [2]
    assert repr(core) == "LockCore(held=0, waiting=1)"
