"""The core's own arithmetic: settled numbers, lane shares, the dedupe window, quotas."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.broker.core import dedup, flow
from services.broker.core.dedup import DedupWindow
from services.broker.core.lanes import LaneShares
from services.broker.core.model import DomainKey, Lane, Limits
from services.broker.core.settled import SettledSet
from services.broker.core.state import State
from services.common.core.instants import Instant

# -- settled numbers


@given(st.permutations(range(1, 40)), st.data())
def test_a_settled_set_is_a_set(order: list[int], data: st.DataObject) -> None:
    settled, reference = SettledSet(), set[int]()
    for number in order:
        settled.add(number)
        reference.add(number)
        if data.draw(st.integers(0, 9)) == 0:
            gone = set(data.draw(st.lists(st.sampled_from(sorted(reference)), max_size=5)))
            settled.take_back(gone)
            reference -= gone
        assert {one for one in range(1, 41) if one in settled} == reference
        assert settled.cursor + 1 not in settled.above
    for number in set(range(1, 40)) - reference:
        settled.add(number)
    assert (settled.cursor, settled.above) == (39, set())


# -- lanes


def serve(shares: LaneShares, waiting: set[Lane], count: int) -> list[Lane]:
    served: list[Lane] = []
    while len(served) < count:
        lane, allowance = shares.choose(waiting)
        assert allowance >= 1
        run = min(allowance, count - len(served), 7)
        shares.charge(lane, run, waiting)
        served += [lane] * run
    return served


def test_higher_lanes_go_first_but_for_the_stated_shares() -> None:
    served = serve(LaneShares(10, 5), {Lane.HIGH, Lane.NORMAL, Lane.LOW}, 2_000)
    counts = Counter(served)
    assert counts[Lane.LOW] == pytest.approx(100, abs=6)
    assert counts[Lane.NORMAL] == pytest.approx(200, abs=12)
    assert counts[Lane.HIGH] == pytest.approx(1_700, abs=12)


@given(st.integers(1, 25), st.integers(1, 25))
def test_no_lane_waits_longer_than_its_share_says(normal: int, low: int) -> None:
    served = serve(LaneShares(normal, low), {Lane.HIGH, Lane.NORMAL, Lane.LOW}, 1_500)
    for lane, percent in ((Lane.NORMAL, normal), (Lane.LOW, low)):
        distance = -(-100 // percent) + 2
        for start in range(0, len(served) - distance, distance):
            assert lane in served[start : start + distance]


def test_a_lane_alone_gets_everything_and_saves_up_nothing() -> None:
    shares = LaneShares(10, 5)
    assert set(serve(shares, {Lane.LOW}, 500)) == {Lane.LOW}
    serve(shares, {Lane.HIGH}, 500)
    # LOW did not wait meanwhile, so nothing is owed to it now.
    assert serve(shares, {Lane.HIGH, Lane.LOW}, 19) == [Lane.HIGH] * 19


# -- the dedupe window

IDS = st.one_of(
    st.builds("{}-{}".format, st.sampled_from(["a", "b", ""]), st.integers(0, 30)),
    st.sampled_from(["a-01", "a-", "-", "x", "a-b-7", "a-٣", "9" * 30, "a-" + "9" * 19]),
)


@given(st.lists(st.tuples(IDS, st.integers(0, 300)), max_size=120), st.data())
def test_the_window_is_a_map_that_forgets_late(rows: list[tuple[str, int]], data: st.DataObject) -> None:
    window = DedupWindow()
    reference: dict[str, tuple[bytes, int]] = {}
    ends: dict[str, int] = {}
    now = 0
    for sequence, (message_id, keep_ms) in enumerate(rows):
        mark = b"%08d" % sequence
        known = window.add(message_id, mark, sequence, Instant(now + keep_ms))
        if message_id in reference and ends[message_id] > now:
            assert known == reference[message_id]
        if known is None:
            reference[message_id], ends[message_id] = (mark, sequence), now + keep_ms
        if data.draw(st.integers(0, 5)) == 0:
            now += data.draw(st.integers(0, 20_000))
            window.expire(Instant(now))
        for one, end in ends.items():
            if end > now:
                assert window.find(one) == reference[one]
    window.expire(Instant(now + 10**6))
    assert len(window) == 0
    assert window.bytes_used == 0
    assert window.next_expiry() is None


@given(st.lists(IDS, unique=True, max_size=60), st.integers(0, 60))
def test_what_was_added_last_can_be_taken_back(ids: list[str], kept: int) -> None:
    window = DedupWindow()
    for number, message_id in enumerate(ids):
        window.add(message_id, b"12345678", number, Instant(5))
    for message_id in ids[kept:][::-1]:
        window.take_back(message_id)
    for message_id in ids:
        assert (window.find(message_id) is not None) == (message_id in ids[:kept])
    window.expire(Instant(10**6))
    assert window.bytes_used == 0


def test_ids_that_count_up_cost_little() -> None:
    counted, others = DedupWindow(), DedupWindow()
    for number in range(10_000):
        counted.add(f"run-{number}", b"12345678", number, Instant(1))
        others.add(f"{number:05}run", b"12345678", number, Instant(1))
    assert counted.bytes_used < 10_000 * 20
    assert others.bytes_used == 10_000 * dedup.LOOSE_ID_BYTES


# -- quotas


def test_room_and_limits_agree() -> None:
    limits = Limits(
        mailbox_count_max=10,
        domain_share_percent=50,
        mailbox_emergency_count_max=3,
        sender_pending_max=8,
        mailbox_bytes_max=1_000,
        pending_bytes_max=2_000,
    )
    state = State(limits, 1)
    one = state.domain(DomainKey("alpha", "beta", Lane.HIGH))
    two = state.domain(DomainKey("alpha", "beta", Lane.LOW))
    alarm = state.domain(DomainKey("alpha", "beta", Lane.EMERGENCY))
    assert flow.room(state, one) == (5, 1_000)
    flow.charge(state, one, 5, 500)
    assert flow.limit_met(state, one, 1) == "domain_share_percent"
    assert flow.room(state, two) == (3, 500)
    flow.charge(state, two, 3, 450)
    assert flow.limit_met(state, two, 1) == "sender_pending_max"
    # An emergency has room of its own, but for the bytes of the whole broker.
    assert flow.room(state, alarm) == (3, 1_050)
    flow.charge(state, alarm, 3, 900)
    assert flow.limit_met(state, alarm, 1) == "mailbox_emergency_count_max"
    for domain, count, size in ((one, 5, 500), (two, 3, 450), (alarm, 3, 900)):
        flow.charge(state, domain, -count, -size)
    assert flow.limit_met(state, one, 1_001) == "mailbox_bytes_max"
    assert flow.limit_met(state, alarm, 2_001) == "pending_bytes_max"
    assert flow.limit_met(state, one, 1_000) is None


def test_a_full_dedupe_window_refuses_rather_than_forgets() -> None:
    state = State(Limits(dedup_bytes_max_per_sender=2_000), 1)
    domain = state.domain(DomainKey("alpha", "beta", Lane.NORMAL))
    window = domain.sender.window
    for number in range(4):
        window.add(f"{number}x", b"12345678", number, Instant(9))
    assert flow.limit_met(state, domain, 1) == "dedup_bytes_max_per_sender"
