"""What the inbox decides: what to hand over, what to settle, how many more to ask for."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent_client.core.inbox import (
    ACKED_MAX,
    WINDOW_MAX,
    Handing,
    InboxCore,
    InboxFrame,
    Settlement,
    Verdict,
)

KEY = ("other", "m1")
NOW = 5_000
ACK_DEADLINE_MS = 10_000


@pytest.fixture
def core() -> InboxCore:
    made = InboxCore(window=8, emergency_window=4)
    made.want()
    made.opened(ACK_DEADLINE_MS, NOW)
    made.take()
    return made


def deliver(core: InboxCore, token: int = 1, key: tuple[str, str] = KEY) -> Handing:
    return core.delivered(key, token, emergency=False)


def settle(core: InboxCore, verdict: Verdict = Verdict.ACK) -> bool:
    return core.settled(KEY, verdict, domain=("other", "NORMAL"), delay_ms=5, reason="r")


def test_nothing_is_asked_for_before_somebody_wants_it() -> None:
    core = InboxCore(window=8, emergency_window=4)
    core.opened(ACK_DEADLINE_MS, NOW)
    assert core.take() == InboxFrame()
    core.want()
    assert core.take() == InboxFrame(credits=8, emergency_credits=4)
    assert not core.take()


def test_credits_come_back_in_batches_and_at_once_with_other_words(core: InboxCore) -> None:
    for token in range(1, 6):
        core.delivered(("other", f"m{token}"), token, emergency=False)
    assert not core.take()
    # Without an ack there is no other word to say: a credit alone would be a frame of its own.
    core.delivered(("other", "quiet"), 0, emergency=False)
    core.taken(("other", "quiet"))
    assert not core.take()
    assert core.settled(("other", "m1"), Verdict.ACK)
    frame = core.take()
    assert (frame.credits, [one.ack_token for one in frame.settlements]) == (2, [1])


@pytest.mark.parametrize("verdict", list(Verdict))
def test_a_decision_is_said_once_and_kept_until_it_is_confirmed(core: InboxCore, verdict: Verdict) -> None:
    assert deliver(core) is Handing.NOW
    assert settle(core, verdict)
    assert not settle(core, verdict)
    said = Settlement(1, verdict, 5, "r", ("other", "NORMAL"))
    assert core.take().settlements == [said]
    core.closed()
    core.opened(ACK_DEADLINE_MS, NOW)
    assert core.take().settlements == [said]
    assert core.confirmed(1) == said
    assert core.confirmed(1) is None
    core.opened(ACK_DEADLINE_MS, NOW)
    assert core.take().settlements == []


def test_a_decision_while_the_stream_is_away_is_said_on_the_next(core: InboxCore) -> None:
    deliver(core)
    core.closed()
    assert settle(core)
    assert core.take() == InboxFrame()
    assert core.resume_ack_token == 1
    core.opened(ACK_DEADLINE_MS, NOW)
    assert [one.ack_token for one in core.take().settlements] == [1]


def test_a_repeat_of_what_is_being_worked_on_only_renews_the_token(core: InboxCore) -> None:
    deliver(core, 1)
    core.taken(KEY)
    assert deliver(core, 4) is Handing.NEVER
    assert core.unsettled_count == 1
    settle(core)
    assert [one.ack_token for one in core.take().settlements] == [4]


def test_a_repeat_of_what_was_acked_is_acked_unseen(core: InboxCore) -> None:
    deliver(core, 1)
    settle(core)
    core.take()
    assert deliver(core, 1) is Handing.NEVER
    assert core.take().settlements == []
    core.confirmed(1)
    assert deliver(core, 9) is Handing.NEVER
    assert core.take().settlements == [Settlement(9, Verdict.ACK)]


def test_a_repeat_of_what_was_nacked_is_new(core: InboxCore) -> None:
    deliver(core, 1)
    settle(core, Verdict.NACK)
    core.confirmed(1)
    assert deliver(core, 2) is Handing.NOW


def test_what_needs_no_ack_is_done_when_it_is_taken(core: InboxCore) -> None:
    assert deliver(core, 0) is Handing.NOW
    assert core.unsettled_count == 1
    core.given(KEY)
    assert core.unsettled_count == 0
    assert not settle(core)
    assert deliver(core, 0) is Handing.NOW


def test_what_waits_or_is_handled_is_extended_and_what_was_given_away_is_not(core: InboxCore) -> None:
    for token, name in enumerate(("waits", "handled", "given", "no ack"), 1):
        core.delivered(("other", name), token if name != "no ack" else 0, emergency=False)
    core.taken(("other", "handled"))
    core.given(("other", "given"))
    assert core.extend_due_at() == NOW + ACK_DEADLINE_MS // 2
    core.extend_kept(NOW + 5_000)
    assert core.extend_due_at() == NOW + 5_000 + ACK_DEADLINE_MS // 2
    assert core.take().extends == [(1, ACK_DEADLINE_MS), (2, ACK_DEADLINE_MS)]
    assert core.extended(("other", "given"), 60_000)
    assert not core.extended(("other", "unknown"), 60_000)
    assert core.take().extends == [(3, 60_000)]
    core.closed()
    assert core.extend_due_at() is None


def test_a_recalled_delivery_that_waits_is_dropped_and_new_when_it_comes_again(core: InboxCore) -> None:
    deliver(core, 1)
    assert core.recalled(1) == KEY
    assert core.recalled(1) is None
    assert not core.recall_answered(KEY, dropped=True)
    assert core.unsettled_count == 0
    assert deliver(core, 2) is Handing.NOW


def test_a_recalled_delivery_that_came_again_too_soon_is_handed_over_after_the_answer(
    core: InboxCore,
) -> None:
    deliver(core, 1)
    assert core.recalled(1) == KEY
    assert deliver(core, 2) is Handing.LATER
    assert core.recall_answered(KEY, dropped=True)
    assert not core.recall_answered(KEY, dropped=True)
    settle(core)
    assert [one.ack_token for one in core.take().settlements] == [2]


def test_a_recalled_delivery_that_is_being_handled_stays_one(core: InboxCore) -> None:
    deliver(core, 1)
    assert core.recalled(1) == KEY
    assert deliver(core, 2) is Handing.LATER
    assert not core.recall_answered(KEY, dropped=False)
    settle(core)
    assert [one.ack_token for one in core.take().settlements] == [2]


def test_a_recalled_delivery_that_is_decided_before_it_comes_again_is_acked_then(core: InboxCore) -> None:
    deliver(core, 1)
    core.given(KEY)
    assert core.recalled(1) is None
    assert not settle(core), "there is nothing to tell the broker"
    assert deliver(core, 2) is Handing.NEVER
    assert core.take().settlements == [Settlement(2, Verdict.ACK)]


def test_a_new_incarnation_forgets_tokens_but_not_what_is_being_worked_on(core: InboxCore) -> None:
    deliver(core, 1)
    core.delivered(("other", "m2"), 2, emergency=False)
    core.settled(("other", "m2"), Verdict.NACK, domain=("other", "NORMAL"))
    core.closed()
    assert [one.verdict for one in core.restarted()] == [Verdict.NACK]
    assert core.resume_ack_token == 0
    assert core.unconfirmed_count == 0
    core.opened(ACK_DEADLINE_MS, NOW)
    # What the broker does not count does not use up the window.
    assert core.take().credits == 8
    assert deliver(core, 7) is Handing.NEVER
    settle(core)
    assert [one.ack_token for one in core.take().settlements] == [7]


def test_the_memory_of_acks_is_bounded(core: InboxCore) -> None:
    for number in range(ACKED_MAX + 1):
        key = ("other", str(number))
        core.delivered(key, number + 1, emergency=False)
        core.settled(key, Verdict.ACK)
        core.confirmed(number + 1)
    assert core.delivered(("other", "0"), 90_000, emergency=False) is Handing.NOW
    assert core.delivered(("other", "1"), 90_001, emergency=False) is Handing.NEVER


def test_a_full_window_is_noticed(core: InboxCore) -> None:
    for token in range(1, 9):
        assert not core.full
        core.delivered(("other", f"m{token}"), token, emergency=False)
    assert core.full
    assert "unsettled=8" in repr(core)


class Histories(RuleBasedStateMachine):
    """Against a broker that keeps to the protocol: resumed and new streams, repeats, recalls."""

    @initialize()
    def begin(self) -> None:
        self.core = InboxCore(window=4, emergency_window=2)
        self.core.want()
        self.token = 0
        # What the broker waits for: token -> message.
        self.outstanding: dict[int, str] = {}
        self.waiting = [f"m{number}" for number in range(12)]
        self.credits = 0
        self.done: list[str] = []
        # What the agent's code has: message -> how often it was handed over without a nack between.
        self.in_hand: list[str] = []
        self.handled: list[str] = []
        self.nacked: set[str] = set()
        self.is_open = False

    def say(self) -> None:
        frame = self.core.take()
        self.credits += frame.credits
        for settlement in frame.settlements:
            message = self.outstanding.pop(settlement.ack_token, None)
            if message is not None and settlement.verdict is Verdict.NACK:
                self.waiting.insert(0, message)
            elif message is not None:
                self.done.append(message)
            self.core.confirmed(settlement.ack_token)

    @rule(resume=st.booleans())
    def open(self, resume: bool) -> None:
        if self.is_open:
            return
        if not resume:
            self.core.restarted()
        for token in [one for one in self.outstanding if one > self.core.resume_ack_token]:
            self.waiting.insert(0, self.outstanding.pop(token))
        self.core.opened(ACK_DEADLINE_MS, NOW)
        self.is_open, self.credits = True, 0
        self.say()

    @rule()
    def close(self) -> None:
        self.core.closed()
        self.is_open = False

    @rule()
    def give(self) -> None:
        if self.is_open and self.credits and self.waiting:
            self.credits -= 1
            self.token += 1
            message = self.waiting.pop(0)
            self.outstanding[self.token] = message
            handing = self.core.delivered(("s", message), self.token, emergency=False)
            if handing is Handing.NOW:
                assert message not in self.in_hand, "handed over twice"
                assert message not in self.handled, "handed over after it was acked"
                self.in_hand.append(message)
            self.say()

    @rule(data=st.data())
    def recall(self, data: st.DataObject) -> None:
        if self.is_open and self.outstanding:
            token = data.draw(st.sampled_from(sorted(self.outstanding)))
            message = self.outstanding.pop(token)
            self.waiting.insert(0, message)
            key = self.core.recalled(token)
            if key is not None:
                dropped = message in self.in_hand and data.draw(st.booleans())
                if dropped:
                    self.in_hand.remove(message)
                assert not self.core.recall_answered(key, dropped=dropped)
            self.say()

    @rule(data=st.data(), verdict=st.sampled_from(Verdict))
    def decide(self, data: st.DataObject, verdict: Verdict) -> None:
        if self.in_hand:
            message = data.draw(st.sampled_from(self.in_hand))
            self.in_hand.remove(message)
            if verdict is Verdict.ACK:
                self.handled.append(message)
            self.core.settled(("s", message), verdict)
            self.say()

    @invariant()
    def the_window_holds(self) -> None:
        if hasattr(self, "core") and self.is_open:
            assert self.credits + len(self.outstanding) <= 4

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "core"):
            here = [*self.waiting, *self.outstanding.values(), *self.done]
            assert sorted(here) == sorted(f"m{number}" for number in range(12))


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=80, stateful_step_count=50)


def test_the_window_follows_what_is_settled_within_a_tenth_of_a_second(core: InboxCore) -> None:
    tokens = itertools.count(1)

    def settle(count: int) -> None:
        for token in itertools.islice(tokens, count):
            key = ("other", f"m-{token}")
            core.delivered(key, token, emergency=False)
            core.settled(key, Verdict.ACK)

    def room() -> int:
        """Return how many the broker may send now, in all."""
        core.take()
        return core._lane.open + core._lane.unsettled

    assert room() == 8
    core.pace(1_000)
    settle(50)
    core.pace(1_050)
    assert room() == 8, "too early to tell"
    settle(50)
    core.pace(1_200)
    assert room() == 50, "100 within 200 ms"
    settle(10_000)
    core.pace(1_300)
    assert room() == WINDOW_MAX
    settle(30)
    core.pace(61_300)
    # What was granted stays granted; once it is used no more is than the least.
    settle(WINDOW_MAX)
    assert room() == 8
