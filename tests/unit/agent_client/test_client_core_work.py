"""What the work core decides: attempts held, credits granted, results owed."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from agent_client.core.records import (
    AttemptRef,
    Failed,
    FencingToken,
    HeldLock,
    Outcome,
    Payload,
    Stopped,
    Succeeded,
)
from agent_client.core.work import (
    ENDED_MAX,
    FRAME_BYTES_MAX,
    FRAME_RESULTS_MAX,
    Start,
    Stop,
    WorkCore,
    WorkFrame,
)

NOW = 1_000
OK = Succeeded(Payload("text/plain", b"ok"))


def attempt(number: int = 1, task: str = "t", epoch: int = 1) -> AttemptRef:
    return AttemptRef("c", task, FencingToken(epoch, number))


def opened(slots: int = 2) -> WorkCore:
    core = WorkCore(slots)
    core.opened()
    core.take_frame(NOW)
    return core


def frame(core: WorkCore) -> WorkFrame:
    taken = core.take_frame(NOW)
    assert taken is not None
    return taken


def test_a_new_stream_grants_a_credit_for_each_slot_and_then_is_silent() -> None:
    core = WorkCore(3)
    assert core.take_frame(NOW) is None
    core.opened()
    assert frame(core) == WorkFrame(credits=3)
    assert core.take_frame(NOW) is None


def test_a_result_frees_the_slot_in_the_same_frame() -> None:
    core = opened()
    assert core.assigned(attempt()) == [Start(attempt())]
    core.started(attempt())
    core.started(attempt())
    assert frame(core) == WorkFrame(started=[attempt()])
    core.progressed(attempt(), 0.1, "a")
    core.progressed(attempt(), 0.2, "b")
    assert frame(core) == WorkFrame(progress=[(attempt(), 0.2, "b")])
    core.ended(attempt(), OK)
    assert frame(core) == WorkFrame(credits=1, results=[(attempt(), OK)])
    assert core.held_count == 1
    assert core.acked(attempt())
    assert not core.acked(attempt())
    assert core.held_count == 0


def test_an_assignment_that_is_known_starts_nothing_and_gives_its_credit_back() -> None:
    core = opened()
    core.assigned(attempt(2))
    for again in (attempt(2), attempt(1)):
        assert core.assigned(again) == []
    # Two credits were granted and three used.
    assert frame(core).credits == 1
    core.ended(attempt(2), OK)
    core.acked(attempt(2))
    assert core.assigned(attempt(2)) == []


def test_a_newer_attempt_of_the_same_task_fences_the_older() -> None:
    core = opened()
    core.assigned(attempt(1))
    effects = core.assigned(attempt(2))
    assert effects[0] == Stop(
        attempt(1), fenced=True, reason="a newer attempt of this task was assigned here"
    )
    assert effects[1] == Start(attempt(2))
    core.ended(attempt(1), OK)
    core.ended(attempt(2), OK)
    assert frame(core).results == [(attempt(2), OK)]


def test_a_newer_epoch_counts_as_newer() -> None:
    core = opened()
    core.assigned(attempt(9, epoch=1))
    assert core.assigned(attempt(1, epoch=2))[-1] == Start(attempt(1, epoch=2))


def test_a_cancel_is_passed_on_once_and_answered() -> None:
    core = opened()
    core.assigned(attempt())
    stop = [Stop(attempt(), fenced=False, reason="why")]
    assert core.cancelled(attempt(), fenced=False, reason="why") == stop
    assert core.cancelled(attempt(), fenced=False, reason="why") == []
    core.ended(attempt(), Stopped())
    assert frame(core).results == [(attempt(), Stopped())]
    assert core.cancelled(attempt(), fenced=False, reason="why") == []


def test_a_cancel_for_an_unknown_attempt_is_answered_too() -> None:
    core = opened()
    assert core.cancelled(attempt(), fenced=True, reason="") == []
    assert core.take_frame(NOW) is None
    assert core.cancelled(attempt(), fenced=False, reason="") == []
    assert frame(core).results == [(attempt(), Stopped())]
    assert core.acked(attempt())


def test_a_cancel_for_an_older_attempt_does_not_touch_the_newer() -> None:
    core = opened()
    core.assigned(attempt(2))
    assert core.cancelled(attempt(1), fenced=True, reason="") == []
    core.cancelled(attempt(1), fenced=False, reason="")
    core.ended(attempt(2), OK)
    assert frame(core).results == [(attempt(2), OK)]


def test_a_fenced_attempt_keeps_its_slot_until_its_handler_returns() -> None:
    core = opened(slots=1)
    core.assigned(attempt())
    assert core.cancelled(attempt(), fenced=True, reason="x") == [Stop(attempt(), fenced=True, reason="x")]
    assert (core.busy_count, core.held_count) == (1, 0)
    assert core.take_frame(NOW) is None
    core.ended(attempt(), OK)
    assert frame(core) == WorkFrame(credits=1)


def test_a_fence_after_the_result_was_sent_ends_the_debt() -> None:
    core = opened()
    core.assigned(attempt())
    core.ended(attempt(), OK)
    frame(core)
    assert core.cancelled(attempt(), fenced=True, reason="x") == []
    assert core.held_count == 0


def test_a_new_stream_gets_what_the_old_one_may_have_missed() -> None:
    core = opened()
    core.assigned(attempt(1, "a"))
    core.assigned(attempt(1, "b"))
    core.started(attempt(1, "a"))
    core.started(attempt(1, "b"))
    core.ended(attempt(1, "a"), OK)
    frame(core)
    core.progressed(attempt(1, "b"), 0.5, "lost with the stream")
    core.closed()
    core.ended(attempt(1, "x"), OK)
    assert core.take_frame(NOW) is None
    assert core.hello().held == (attempt(1, "a"), attempt(1, "b"))
    core.opened()
    assert frame(core) == WorkFrame(credits=1, started=[attempt(1, "b")], results=[(attempt(1, "a"), OK)])


def test_a_result_that_came_while_the_stream_was_away_is_sent_on_the_next() -> None:
    core = opened()
    core.assigned(attempt())
    core.closed()
    core.ended(attempt(), Failed(permanent=False, reason="R", message="m"))
    core.opened()
    assert frame(core).results == [(attempt(), Failed(permanent=False, reason="R", message="m"))]


def test_a_drain_is_said_once_per_stream_and_voids_the_credits() -> None:
    core = opened()
    core.assigned(attempt())
    core.drain()
    assert core.draining
    assert frame(core) == WorkFrame(drain=True)
    core.ended(attempt(), OK)
    assert frame(core) == WorkFrame(results=[(attempt(), OK)])
    core.closed()
    core.opened()
    assert frame(core) == WorkFrame(drain=True, results=[(attempt(), OK)])


def test_probes_are_answered_with_the_newest_nonce() -> None:
    core = opened()
    core.probed(4)
    core.probed(5)
    assert frame(core) == WorkFrame(probe_nonce=5)
    assert core.take_frame(NOW) is None


def test_frames_are_bounded_by_count_and_bytes() -> None:
    core = opened(slots=3_000)
    for number in range(FRAME_RESULTS_MAX + 10):
        core.assigned(attempt(1, str(number)))
        core.ended(attempt(1, str(number)), OK)
    assert len(frame(core).results) == FRAME_RESULTS_MAX
    assert len(frame(core).results) == 10
    large = Succeeded(Payload("", b"x" * 65_536))
    for number in range(40):
        core.assigned(attempt(2, str(number)))
        core.ended(attempt(2, str(number)), large)
    assert len(frame(core).results) == FRAME_BYTES_MAX // 65_536
    assert len(frame(core).results) == FRAME_BYTES_MAX // 65_536
    assert len(frame(core).results) == 40 - 2 * FRAME_BYTES_MAX // 65_536


def test_reports_without_a_stream_or_after_the_end_are_dropped() -> None:
    core = opened()
    core.assigned(attempt())
    core.closed()
    core.progressed(attempt(), 0.5, "nobody hears it")
    core.opened()
    assert frame(core) == WorkFrame(credits=1)
    core.ended(attempt(), OK)
    core.progressed(attempt(), 0.9, "too late")
    core.progressed(attempt(2), 0.9, "never assigned")
    assert frame(core) == WorkFrame(credits=1, results=[(attempt(), OK)])


def test_remembered_ends_are_bounded() -> None:
    core = opened(slots=1)
    for number in range(ENDED_MAX + 1):
        core.assigned(attempt(1, str(number)))
        core.ended(attempt(1, str(number)), OK)
        core.acked(attempt(1, str(number)))
    assert core.assigned(attempt(1, "1")) == []
    assert core.assigned(attempt(1, "0")) == [Start(attempt(1, "0"))]


def test_locks_are_reported_in_the_hello_and_end_with_their_attempt() -> None:
    core = opened()
    core.assigned(attempt())
    core.locks.wanted(7, (), wait_ms=None, attempt=attempt(), now=NOW)
    held = (HeldLock("r", FencingToken(1, 3)),)
    assert core.locks.granted(7, held)
    assert core.hello().held_locks == held
    core.ended(attempt(), OK)
    assert core.locks.take_orphans() == [7]
    assert core.hello().held_locks == ()


class Histories(RuleBasedStateMachine):
    """Random histories against a coordinator that keeps to the protocol, with streams that break."""

    attempts = Bundle("attempts")

    @initialize(slots=st.integers(1, 4))
    def begin(self, slots: int) -> None:
        self.core = WorkCore(slots)
        self.slots = slots
        self.is_open = False
        self.coordinator_credits = 0
        # By attempt: what the handler returned, None while it runs.
        self.handlers: dict[AttemptRef, Outcome | None] = {}
        self.assigned: dict[AttemptRef, bool] = {}
        self.fenced: set[AttemptRef] = set()
        self.acked: set[AttemptRef] = set()
        self.sent_now: set[AttemptRef] = set()
        self.sent_ever: set[AttemptRef] = set()
        self.number = 0

    def carry_out(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Start):
                assert effect.attempt not in self.handlers, "started twice"
                self.handlers[effect.attempt] = None
            elif effect.fenced:
                self.fenced.add(effect.attempt)

    def flush(self) -> None:
        while (taken := self.core.take_frame(NOW)) is not None:
            self.coordinator_credits += taken.credits
            for sent, outcome in taken.results:
                assert sent not in self.fenced, "the result of a fenced attempt was sent"
                assert sent not in self.sent_now, "sent twice on one stream"
                assert self.handlers[sent] == outcome
                self.sent_now.add(sent)
                self.sent_ever.add(sent)

    @rule()
    def open(self) -> None:
        if not self.is_open:
            # Before the stream is open nothing of it may count.
            assert self.core.take_frame(NOW) is None
            held = set(self.core.hello().held)
            assert held == set(self.handlers) - self.fenced - self.acked
            self.core.opened()
            self.is_open, self.coordinator_credits = True, 0
            self.sent_now.clear()
            self.flush()

    @rule()
    def close(self) -> None:
        self.core.closed()
        self.is_open = False

    @rule(target=attempts, task=st.sampled_from("abc"))
    def assign(self, task: str) -> AttemptRef:
        self.number += 1
        new = attempt(self.number, task)
        if self.is_open and self.coordinator_credits:
            self.coordinator_credits -= 1
            for older in self.handlers:
                # A coordinator that assigns anew has given the older attempts of the task up.
                if older.task_id == task:
                    self.fenced.add(older)
            self.carry_out(self.core.assigned(new))
            self.flush()
        return new

    @rule(of=attempts)
    def assign_again(self, of: AttemptRef) -> None:
        if self.is_open and of in self.handlers and self.coordinator_credits:
            self.coordinator_credits -= 1
            self.carry_out(self.core.assigned(of))
            self.flush()

    @rule(of=attempts, fenced=st.booleans())
    def cancel(self, of: AttemptRef, fenced: bool) -> None:
        if self.is_open and of in self.handlers:
            if fenced:
                self.fenced.add(of)
            self.carry_out(self.core.cancelled(of, fenced=fenced, reason="r"))
            if of in self.acked or (of in self.fenced and not fenced):
                # Answered as stopped although it is over: the coordinator refuses that, which is an ack.
                self.core.take_frame(NOW)
                self.core.acked(of)
            self.flush()

    @rule(of=attempts, outcome=st.sampled_from([OK, Stopped(), Failed(False, "R", "m")]))
    def end(self, of: AttemptRef, outcome: Outcome) -> None:
        if of in self.handlers and self.handlers[of] is None:
            self.handlers[of] = outcome
            self.core.ended(of, outcome)
            self.flush()

    @rule(of=attempts)
    def ack(self, of: AttemptRef) -> None:
        if self.is_open and of in self.sent_now and of not in self.acked and of not in self.fenced:
            assert self.core.acked(of)
            self.acked.add(of)
            self.flush()

    @invariant()
    def slots_are_never_promised_twice(self) -> None:
        if not hasattr(self, "core"):
            return
        running = sum(1 for outcome in self.handlers.values() if outcome is None)
        assert self.core.busy_count == running
        if self.is_open:
            assert self.coordinator_credits + running == self.slots

    @invariant()
    def everything_owed_is_sent(self) -> None:
        if hasattr(self, "core") and self.is_open:
            owed = {
                ended
                for ended, outcome in self.handlers.items()
                if outcome is not None and ended not in self.fenced | self.acked
            }
            assert owed <= self.sent_now


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40)
