"""The smaller cores: retry, session, delivery queue, watch cursor, vocabulary."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_client.core.delivery_queue import DeliveryQueue, Waiting
from agent_client.core.records import AttemptRef, Fault, FencingToken, Payload
from agent_client.core.retry import (
    HEALTHY_AFTER_MS,
    Again,
    BackoffPolicy,
    GiveUp,
    Reconnect,
    may_repeat,
)
from agent_client.core.session import HURRIED_INTERVAL_MS, SessionCore, SessionWelcome
from agent_client.core.vocabulary import MessageType, Priority
from agent_client.core.watch import WatchCursor

AWAY = Fault("UNAVAILABLE", definite=False, retryable=True)


# Retry.


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_delays_stay_within_the_full_jitter_bound(failures: int, jitter: float) -> None:
    delay_ms = BackoffPolicy(base_ms=50, max_ms=2_000).delay_ms(failures, jitter)
    assert 0 <= delay_ms <= min(2_000, 50 * 2 ** min(failures, 6)) * jitter


def test_delays_double_up_to_their_bound() -> None:
    policy = BackoffPolicy(base_ms=50, max_ms=2_000)
    assert [policy.delay_ms(n, 1.0) for n in (0, 1, 2, 3, 6, 7, 99)] == [0, 50, 100, 200, 1600, 2000, 2000]


@pytest.mark.parametrize(
    ("definite", "retryable", "idempotent", "again"),
    [
        (True, True, False, True),
        (True, False, True, False),
        (False, True, False, False),
        (False, True, True, True),
        (False, False, True, False),
    ],
)
def test_only_what_is_safe_is_repeated(
    definite: bool, retryable: bool, idempotent: bool, again: bool
) -> None:
    fault = Fault("X", definite=definite, retryable=retryable)
    assert may_repeat(fault, idempotent=idempotent) is again


def test_an_absent_peer_is_tried_for_ever() -> None:
    reconnect = Reconnect()
    decisions = [reconnect.ended(AWAY, now, 1.0) for now in range(1_000)]
    assert all(isinstance(decision, Again) for decision in decisions)
    assert decisions[-1] == Again(2_000)


def test_a_healthy_link_starts_from_the_shortest_delay_and_a_flapping_one_does_not() -> None:
    reconnect = Reconnect()
    for _ in range(5):
        reconnect.welcomed(0)
        reconnect.ended(AWAY, 10, 1.0)
    assert reconnect.failures == 5
    reconnect.welcomed(100)
    assert reconnect.ended(AWAY, 100 + HEALTHY_AFTER_MS, 1.0) == Again(50)


def test_a_named_leader_is_followed_at_once_but_not_twice_in_a_row() -> None:
    reconnect = Reconnect()
    standby = Fault("NOT_COORDINATOR", definite=True, coordinator="127.0.0.1:9")
    assert reconnect.ended(standby, 0, 1.0) == Again(0, "127.0.0.1:9")
    assert reconnect.ended(standby, 0, 1.0) == Again(100)
    assert reconnect.ended(standby, 0, 1.0) == Again(0, "127.0.0.1:9")
    reconnect.welcomed(0)
    assert reconnect.ended(standby, 0, 1.0) == Again(0, "127.0.0.1:9")


def test_the_services_wish_to_wait_is_respected() -> None:
    busy = Fault("QUOTA_EXCEEDED", definite=True, retry_after_ms=7_000)
    assert Reconnect().ended(busy, 0, 0.5) == Again(7_000)


def test_giving_up() -> None:
    denied = Fault("ACCESS_DENIED", definite=True, retryable=False)
    assert Reconnect().ended(denied, 0, 1.0) == GiveUp(denied)
    known = Reconnect()
    known.welcomed(0)
    assert isinstance(known.ended(denied, 9_000, 1.0), Again), "the policy may be changed back"
    for fault in (Fault("UNSUPPORTED_VERSION"), Fault("IDENTITY_MISMATCH")):
        assert known.ended(fault, 0, 1.0) == GiveUp(fault)
    fenced = Fault("INCARNATION_FENCED", definite=True, retryable=False)
    assert isinstance(known.ended(fenced, 0, 1.0), Again)
    assert Reconnect(also_fatal=frozenset({"INCARNATION_FENCED"})).ended(fenced, 0, 1.0) == GiveUp(fenced)
    assert "ever_welcomed=True" in repr(known)


# Session.


def welcomed(interval_ms: int = 1_000, ttl_ms: int = 6_000) -> SessionCore:
    core = SessionCore()
    core.welcomed(SessionWelcome("s1", 4, ttl_ms, interval_ms, resumed=False), now=0)
    return core


def test_heartbeats_go_out_at_the_interval() -> None:
    core = welcomed()
    assert (core.incarnation, core.resume_session_id) == (4, "s1")
    assert core.beat_due_at() == 1_000
    assert core.beat(1_000).sequence_number == 1
    assert core.beat_due_at() == 2_000
    assert core.beat(2_100).sequence_number == 2
    assert core.beat_due_at() == 3_100


@pytest.mark.parametrize(("interval_ms", "ttl_ms", "due"), [(0, 6_000, 2_000), (9_000, 6_000, 2_000)])
def test_an_interval_that_would_lose_the_lease_is_not_taken(interval_ms: int, ttl_ms: int, due: int) -> None:
    assert welcomed(interval_ms, ttl_ms).beat_due_at() == due


def test_a_change_is_said_soon_but_changes_do_not_flood() -> None:
    core = welcomed()
    core.hurry()
    assert core.beat_due_at() <= 0
    core.beat(5)
    assert core.beat_due_at() == 1_005
    core.hurry()
    assert core.beat_due_at() == 5 + HURRIED_INTERVAL_MS


def test_silence_is_counted_from_the_last_word() -> None:
    core = welcomed()
    assert core.silent_at() == 6_000
    core.beat(1_000)
    assert core.silent_at() == 6_000
    core.acked(1_400, round_trip_us=350)
    assert core.silent_at() == 7_400
    assert core.round_trip_us == 350
    core.acked(1_500)
    assert core.beat(2_000).round_trip_us == 350
    assert repr(core) == "SessionCore(incarnation=4, beats=2)"


def test_a_new_link_counts_anew_and_keeps_the_session() -> None:
    core = welcomed()
    core.beat(1_000)
    core.welcomed(SessionWelcome("s1", 4, 6_000, 1_000, resumed=True), now=50_000)
    assert core.beat(51_000).sequence_number == 1
    assert core.silent_at() == 56_000


# Delivery queue.


def waiting(name: str, sender: str = "a", *, emergency: bool = False) -> Waiting:
    return Waiting((sender, name), (sender, "EMERGENCY" if emergency else "NORMAL"), emergency)


def test_arrival_counts_except_for_emergencies() -> None:
    queue = DeliveryQueue(serial=False)
    queue.put(waiting("1"))
    queue.put(waiting("2", "b"))
    queue.put(waiting("3", emergency=True))
    assert len(queue) == 3
    assert [one.key[1] for one in (queue.take(), queue.take(), queue.take()) if one] == ["3", "1", "2"]
    assert queue.take() is None


def test_a_line_gives_all_of_a_domain_in_order() -> None:
    queue = DeliveryQueue(serial=False)
    for name in "123":
        queue.put(waiting(name))
    assert [one.key[1] for one in (queue.take(), queue.take(), queue.take()) if one] == ["1", "2", "3"]


def test_a_serial_line_gives_one_of_each_domain() -> None:
    queue = DeliveryQueue(serial=True)
    for name, sender in (("1", "a"), ("2", "a"), ("3", "b")):
        queue.put(waiting(name, sender))
    first, second = queue.take(), queue.take()
    assert first is not None
    assert second is not None
    assert (first.key, second.key) == (("a", "1"), ("b", "3"))
    assert queue.take() is None
    queue.settled(first.domain)
    assert queue.take() == waiting("2")


def test_a_nacked_domain_pauses_until_every_nack_is_confirmed() -> None:
    queue = DeliveryQueue(serial=False)
    for name in ("1", "2"):
        queue.put(waiting(name))
    queue.put(waiting("3", "b"))
    for _ in range(2):
        queue.nacked(("a", "NORMAL"))
    assert queue.take() == waiting("3", "b")
    assert queue.take() is None
    assert queue.recalled(("a", "1"), ("a", "NORMAL"))
    assert not queue.recalled(("a", "1"), ("a", "NORMAL"))
    queue.nack_confirmed(("a", "NORMAL"))
    assert queue.take() is None
    queue.nack_confirmed(("a", "NORMAL"))
    assert queue.take() == waiting("2")
    assert repr(queue) == "DeliveryQueue(0 waiting, 0 paused, 0 busy)"


class NaiveQueue:
    """What the queue promises, by looking through everything each time."""

    def __init__(self, serial: bool) -> None:
        self.serial, self.line = serial, list[Waiting]()
        self.busy, self.paused = set[tuple[str, str]](), list[tuple[str, str]]()

    def take(self) -> Waiting | None:
        for one in sorted(self.line, key=lambda one: not one.emergency):
            if one.domain not in self.busy and one.domain not in self.paused:
                self.line.remove(one)
                if self.serial:
                    self.busy.add(one.domain)
                return one
        return None


@given(
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from([*["put", "take", "settle"] * 3, "nack", "confirm", "confirm", "recall"]),
            st.sampled_from("ab"),
            st.sampled_from([False, False, True]),
        ),
        min_size=20,
        max_size=80,
    ),
)
@settings(max_examples=300)
def test_the_queue_does_what_looking_through_everything_would_do(
    serial: bool, steps: list[tuple[str, str, bool]]
) -> None:
    queue, naive = DeliveryQueue(serial=serial), NaiveQueue(serial)
    for number, (step, sender, emergency) in enumerate(steps):
        one = waiting(str(number), sender, emergency=emergency)
        if step == "put":
            queue.put(one)
            naive.line.append(one)
        elif step == "take":
            assert queue.take() == naive.take()
        elif step == "settle":
            queue.settled(one.domain)
            naive.busy.discard(one.domain)
        elif step == "nack":
            queue.nacked(one.domain)
            naive.paused.append(one.domain)
        elif step == "confirm" and one.domain in naive.paused:
            queue.nack_confirmed(one.domain)
            naive.paused.remove(one.domain)
        elif step == "recall" and naive.line:
            gone = naive.line.pop()
            assert queue.recalled(gone.key, gone.domain)
        assert len(queue) == len(naive.line)


# Watch cursor.


def test_a_watch_resumes_after_the_last_change() -> None:
    cursor = WatchCursor(7)
    assert cursor.resume_from == 7
    cursor.opened()
    cursor.seen(8)
    cursor.seen(9)
    assert cursor.resume_from == 9


def test_a_broken_snapshot_is_begun_again() -> None:
    cursor = WatchCursor()
    assert cursor.resume_from == 0
    cursor.opened()
    cursor.seen(5)
    cursor.seen(5)
    assert (cursor.resume_from, cursor.in_snapshot) == (0, True)
    cursor.opened()
    cursor.seen(5)
    cursor.seen(6)
    assert (cursor.resume_from, cursor.in_snapshot) == (6, False)


def test_a_gap_leads_to_a_snapshot() -> None:
    cursor = WatchCursor(3)
    cursor.opened()
    cursor.gap()
    assert cursor.resume_from == 0
    cursor.seen(20)
    assert cursor.resume_from == 0
    cursor.seen(21)
    assert cursor.resume_from == 21
    assert repr(cursor) == "WatchCursor(resume_from=21)"


# Words.


def test_words_are_read_in_any_case() -> None:
    assert MessageType("status_update") is MessageType.STATUS_UPDATE
    assert MessageType("Status-Update") is MessageType.STATUS_UPDATE
    assert Priority("emergency") is Priority.EMERGENCY
    for words in (MessageType, Priority):
        with pytest.raises(ValueError, match="gossip"):
            words("gossip")


def test_records_print_what_matters_and_no_content() -> None:
    token = FencingToken(3, 14)
    assert str(token) == "3.14"
    assert FencingToken(2, 99) < token
    assert str(AttemptRef("c1", "t", token)) == "c1/t#14"
    assert repr(Payload("text/plain", b"secret")) == "Payload('text/plain', 6 bytes)"
