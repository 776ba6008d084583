"""What the outbox decides: what to send now, in which order, what an answer means."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent_client.core.outbox import (
    FRAME_BYTES_MAX,
    FRAME_SENDS_MAX,
    Answer,
    OutboxCore,
    SendOutcome,
)
from agent_client.core.records import Fault

DEFINITE = Fault("MAILBOX_FULL", definite=True, retryable=True)
INDEFINITE = Fault("STORE_UNAVAILABLE", definite=False, retryable=True)
DEFECT = Fault("INTERNAL", definite=False, retryable=False)


def filled(count: int, credits_granted: int = 10_000) -> OutboxCore:
    core = OutboxCore()
    core.credited(credits_granted)
    for number in range(count):
        core.add(str(number), 10)
    return core


def test_credits_bound_what_is_unanswered() -> None:
    core = filled(5, credits_granted=2)
    assert core.take() == ["0", "1"]
    assert core.take() == []
    core.credited(1)
    assert core.take() == ["2"]
    assert len(core) == 5


def test_answers_settle_once_whatever_the_order() -> None:
    core = filled(2)
    core.take()
    assert core.answered(SendOutcome("1", 2)) is Answer.SETTLED
    assert core.answered(SendOutcome("1", 2)) is Answer.UNKNOWN
    assert core.answered(SendOutcome("0", fault=DEFINITE)) is Answer.SETTLED
    assert len(core) == 0


def test_an_indefinite_answer_keeps_the_envelope_for_the_next_stream() -> None:
    core = filled(3)
    core.take()
    core.answered(SendOutcome("0"))
    assert core.answered(SendOutcome("1", fault=INDEFINITE)) is Answer.INDEFINITE
    core.add("3", 10)
    core.closed()
    assert core.take() == []
    assert len(core) == 3
    assert core.answered(SendOutcome("1")) is Answer.UNKNOWN, "the old stream has nothing to say any more"
    core.credited(10)
    assert core.take() == ["1", "2", "3"]
    assert core.answered(SendOutcome("2", fault=DEFECT)) is Answer.SETTLED


def test_frames_are_bounded_by_count_and_bytes() -> None:
    core = filled(FRAME_SENDS_MAX + 1)
    assert len(core.take()) == FRAME_SENDS_MAX
    assert len(core.take()) == 1
    for number in range(40):
        core.add(f"large{number}", 65_536)
    assert len(core.take()) == FRAME_BYTES_MAX // 65_536


def test_the_outbox_is_bounded() -> None:
    core = OutboxCore(waiting_max=2)
    full = []
    for step in (
        lambda: core.add("a", 1),
        lambda: core.add("b", 1),
        lambda: core.credited(5),
        core.take,
        lambda: core.answered(SendOutcome("a")),
    ):
        step()
        full.append(core.full)
    assert full == [False, True, True, True, False]


@given(st.lists(st.sampled_from(["add", "take", "answer", "break"]), max_size=60), st.integers(1, 5))
def test_the_broker_sees_each_envelope_for_the_first_time_in_order(steps: list[str], credit: int) -> None:
    core = OutboxCore()
    core.credited(credit)
    first_seen: list[str] = []
    under_way: list[str] = []
    added = 0
    for step in steps:
        if step == "add":
            core.add(str(added), 1)
            added += 1
        elif step == "take":
            taken = core.take()
            under_way += taken
            first_seen += [message_id for message_id in taken if message_id not in first_seen]
        elif step == "answer" and under_way:
            assert core.answered(SendOutcome(under_way.pop(0))) is Answer.SETTLED
            core.credited(1)
        elif step == "break":
            core.closed()
            under_way = []
            core.credited(credit)
    assert first_seen == [str(number) for number in range(len(first_seen))]
