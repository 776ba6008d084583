"""When entries become durable, and when they reach the tree: the log's decisions, step by step."""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.audit.core.effects import (
    Acknowledge,
    Commit,
    Effect,
    Integrate,
    LimitReached,
    Publish,
    Refuse,
)
from services.audit.core.events import (
    CommitFailed,
    Committed,
    DrainBegan,
    Event,
    FrameArrived,
    Integrated,
    IntegrationFailed,
    TurnEnded,
)
from services.audit.core.machine import LogMachine
from services.audit.core.model import Batch, Frame, LogLimits, Producer, Recovered
from services.audit.core.tree import Tree, grow
from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import Instant

BROKER = Producer("broker", "broker-1", "spool")
REGISTRY = Producer("registry", "registry-1", "spool")
LIMITS = LogLimits(checkpoint_interval_ms=100, integration_retry_ms=50, producers_max=3)
FULL = ServiceError(Reason.DISK_FULL, "no space")
# Before the first integration may start.
NOT_DUE = Instant(-1)
EMPTY = Recovered(b"", Tree(), (), {})


def leaf(producer: Producer, sequence: int) -> bytes:
    return f"{producer.service} {sequence}".encode()


def frame(producer: Producer, first: int, count: int, ticket: int = 0, *, contiguous: bool = True) -> Frame:
    leaves = tuple(leaf(producer, first + n) for n in range(count))
    return Frame(producer, first, leaves, ticket, contiguous)


class Bench:
    """The machine with a clock; checks its invariants after every step."""

    def __init__(self, recovered: Recovered = EMPTY, limits: LogLimits = LIMITS) -> None:
        self.machine = LogMachine(recovered, limits)
        self.now = Instant(1_000)

    def step(self, event: Event) -> list[Effect]:
        effects = self.machine.step(event, self.now)
        self.machine.validate()
        return effects

    def turn(self, *frames: Frame) -> list[Effect]:
        for one in frames:
            assert self.step(FrameArrived(one)) == []
        return self.step(TurnEnded())

    def integrate(self, effect: Integrate) -> list[Effect]:
        return self.step(Integrated(grow(effect.tree, effect.leaves).tree, b"note"))


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.machine.validate()


def test_a_frame_is_acked_after_its_commit(bench: Bench) -> None:
    effects = bench.turn(frame(BROKER, 1, 3, ticket=7))
    leaves = tuple(leaf(BROKER, n) for n in (1, 2, 3))
    assert effects == [Commit(Batch(0, leaves, {BROKER: 3}), {})]
    assert bench.step(Committed()) == [Acknowledge(7, 3)]
    assert bench.machine.durable_size == 3
    assert bench.machine.durable_sequence(BROKER) == 3


def test_what_arrives_during_a_commit_makes_up_the_next(bench: Bench) -> None:
    bench.turn(frame(BROKER, 1, 1, ticket=1))
    assert bench.turn(frame(BROKER, 2, 2, ticket=2), frame(REGISTRY, 1, 1, ticket=3)) == []
    assert bench.step(Committed()) == [Acknowledge(1, 1)]
    commit, integrate = bench.step(TurnEnded())
    assert isinstance(commit, Commit)
    assert (commit.batch.first_index, commit.batch.cursors) == (1, {BROKER: 3, REGISTRY: 1})
    assert isinstance(integrate, Integrate)
    assert bench.step(Committed()) == [Acknowledge(2, 3), Acknowledge(3, 1)]


def test_what_was_logged_before_is_acked_and_not_logged_again(bench: Bench) -> None:
    bench.turn(frame(BROKER, 1, 3))
    bench.step(Committed())
    bench.now = NOT_DUE
    assert bench.turn(frame(BROKER, 1, 2, ticket=5)) == [Acknowledge(5, 3)]
    (commit,) = bench.turn(frame(BROKER, 2, 4, ticket=6))
    assert commit == Commit(Batch(3, (leaf(BROKER, 4), leaf(BROKER, 5)), {BROKER: 5}), {BROKER: 3})


def test_a_repeated_frame_waits_for_the_commit_of_the_first(bench: Bench) -> None:
    (commit,) = bench.turn(frame(BROKER, 1, 2, ticket=1), frame(BROKER, 1, 2, ticket=2))
    assert isinstance(commit, Commit)
    assert commit.batch.leaves == (leaf(BROKER, 1), leaf(BROKER, 2))
    assert bench.step(Committed()) == [Acknowledge(1, 2), Acknowledge(2, 2)]


def test_a_gap_is_refused_with_the_number_that_is_missing(bench: Bench) -> None:
    (refused,) = bench.turn(frame(BROKER, 2, 1, ticket=4))
    assert isinstance(refused, Refuse)
    assert refused.ticket == 4
    assert refused.error.reason is Reason.MALFORMED_FRAME
    assert refused.error.metadata == {"expected_sequence_number": "1", "first_sequence_number": "2"}
    assert "broker/broker-1 must go on with number 1" in refused.error.message


def test_a_gap_does_not_hold_up_others(bench: Bench) -> None:
    refused, commit = bench.turn(frame(BROKER, 5, 1, ticket=1), frame(REGISTRY, 1, 1, ticket=2))
    assert isinstance(refused, Refuse)
    assert isinstance(commit, Commit)
    assert commit.batch.cursors == {REGISTRY: 1}


def test_a_new_spool_starts_at_one(bench: Bench) -> None:
    bench.turn(frame(BROKER, 1, 3))
    bench.step(Committed())
    (commit, _) = bench.turn(frame(BROKER._replace(spool_id="other"), 1, 1))
    assert isinstance(commit, Commit)
    assert commit.batch.first_index == 3


def test_the_logs_own_numbers_may_have_holes(bench: Bench) -> None:
    (commit,) = bench.turn(frame(BROKER, 5, 1, contiguous=False))
    assert isinstance(commit, Commit)
    assert commit.batch.cursors == {BROKER: 5}


def test_a_failed_commit_logs_nothing_and_can_be_repeated(bench: Bench) -> None:
    bench.turn(frame(BROKER, 1, 2, ticket=1))
    bench.turn(frame(BROKER, 3, 1, ticket=2))
    assert bench.step(CommitFailed(FULL)) == [Refuse(1, FULL)]
    assert bench.machine.durable_size == 0
    # The frame behind it is now a gap: its stream has ended with the first refusal anyway.
    (refused,) = bench.step(TurnEnded())
    assert isinstance(refused, Refuse)
    assert refused.ticket == 2
    (commit,) = bench.turn(frame(BROKER, 1, 2, ticket=3))
    assert isinstance(commit, Commit)
    assert commit.batch.first_index == 0


def test_durable_leaves_are_integrated_at_once_and_then_at_intervals(bench: Bench) -> None:
    bench.turn(frame(BROKER, 1, 2))
    bench.step(Committed())
    (integrate,) = bench.step(TurnEnded())
    assert integrate == Integrate(Tree(), (leaf(BROKER, 1), leaf(BROKER, 2)))
    assert bench.machine.wake_at() is None
    tree = grow(Tree(), integrate.leaves).tree
    assert bench.step(Integrated(tree, b"note")) == [Publish(tree, b"note")]
    assert bench.machine.idle
    bench.turn(frame(BROKER, 3, 1))
    bench.step(Committed())
    assert bench.step(TurnEnded()) == []
    assert bench.machine.wake_at() == 1_100
    bench.now = Instant(1_100)
    assert bench.step(TurnEnded()) == [Integrate(tree, (leaf(BROKER, 3),))]


def test_leaves_that_become_durable_meanwhile_wait_for_the_next_integration(bench: Bench) -> None:
    bench.turn(frame(BROKER, 1, 1))
    bench.step(Committed())
    (first,) = bench.step(TurnEnded())
    bench.now = Instant(2_000)
    bench.turn(frame(BROKER, 2, 1))
    bench.step(Committed())
    assert bench.step(TurnEnded()) == []
    assert isinstance(first, Integrate)
    bench.integrate(first)
    (second,) = bench.step(TurnEnded())
    assert isinstance(second, Integrate)
    assert second.leaves == (leaf(BROKER, 2),)


def test_a_failed_integration_is_tried_again_ever_more_rarely(bench: Bench) -> None:
    bench.turn(frame(BROKER, 1, 1))
    bench.step(Committed())
    for failures, delay_ms in ((1, 50), (2, 100), (3, 200)):
        (integrate,) = bench.step(TurnEnded())
        assert isinstance(integrate, Integrate)
        assert bench.step(IntegrationFailed(FULL)) == []
        assert bench.machine.integration_failures == failures
        wake_at = bench.machine.wake_at()
        assert wake_at == bench.now + delay_ms
        assert bench.step(TurnEnded()) == []
        bench.now = Instant(bench.now + delay_ms)
    (integrate,) = bench.step(TurnEnded())
    assert isinstance(integrate, Integrate)
    bench.integrate(integrate)
    assert bench.machine.integration_failures == 0


def test_a_drain_integrates_without_waiting(bench: Bench) -> None:
    bench.turn(frame(BROKER, 1, 1))
    bench.step(Committed())
    (integrate,) = bench.step(TurnEnded())
    assert isinstance(integrate, Integrate)
    bench.turn(frame(BROKER, 2, 1))
    bench.step(Committed())
    bench.step(DrainBegan())
    bench.integrate(integrate)
    (integrate,) = bench.step(TurnEnded())
    assert isinstance(integrate, Integrate)
    bench.integrate(integrate)
    assert bench.machine.idle


def test_a_batch_is_bounded() -> None:
    for limits in (LogLimits(batch_leaves_max=4), LogLimits(batch_bytes_max=30)):
        bench = Bench(limits=limits)
        effects = bench.turn(*(frame(BROKER, n, 1, ticket=n) for n in range(1, 11)))
        assert isinstance(effects[-1], Commit)
        assert len(effects[-1].batch.leaves) == 4
        bench.step(Committed())
        effects = bench.step(TurnEnded())
        assert isinstance(effects[0], Commit)
        assert effects[0].batch.first_index == 4


def test_an_integration_is_bounded() -> None:
    bench = Bench(limits=LogLimits(growth_leaves_max=3))
    bench.turn(frame(BROKER, 1, 10))
    bench.step(Committed())
    (integrate,) = bench.step(TurnEnded())
    assert isinstance(integrate, Integrate)
    assert len(integrate.leaves) == 3


def test_frames_wait_while_too_much_is_pending() -> None:
    bench = Bench(limits=LogLimits(pending_bytes_max=10))
    bench.turn(frame(BROKER, 1, 2))
    bench.step(Committed())
    reached, integrate = bench.turn(frame(BROKER, 3, 1))
    assert reached == LimitReached("pending_bytes_max")
    assert isinstance(integrate, Integrate)
    assert not bench.machine.idle
    bench.integrate(integrate)
    (commit,) = bench.step(TurnEnded())
    assert isinstance(commit, Commit)


def test_the_least_recently_used_producer_is_forgotten_and_never_logged_twice(bench: Bench) -> None:
    producers = [BROKER._replace(replica_id=str(n)) for n in range(4)]
    for one in producers:
        bench.turn(frame(one, 1, 2))
        ended = bench.step(Committed())
        bench.now = NOT_DUE
    assert ended[1:] == [LimitReached("producers_max")]
    assert [bench.machine.durable_sequence(one) for one in producers] == [0, 2, 2, 2]
    (refused,) = bench.turn(frame(producers[0], 2, 2))
    assert isinstance(refused, Refuse)


def test_a_recovered_log_goes_on_where_it_was() -> None:
    tree = grow(Tree(), [b"a", b"b"]).tree
    bench = Bench(Recovered(b"note", tree, (b"c", b"d"), {BROKER: 4}))
    commit, integrate = bench.turn(frame(BROKER, 5, 1))
    assert isinstance(commit, Commit)
    assert commit.batch.first_index == 4
    assert integrate == Integrate(tree, (b"c", b"d"))


def test_answers_to_questions_that_were_not_asked_are_defects(bench: Bench) -> None:
    with pytest.raises(RuntimeError, match="not under way"):
        bench.step(Committed())
    with pytest.raises(RuntimeError, match="does not follow"):
        bench.step(Integrated(grow(Tree(), [b"x"]).tree, b"note"))


def test_the_machine_shows_itself_in_one_line(bench: Bench) -> None:
    bench.turn(frame(BROKER, 1, 2))
    assert repr(bench.machine) == (
        "LogMachine(waiting=0 staged=2 pending=0 integrating=0 published=0 producers=0)"
    )


class AnyCourse(RuleBasedStateMachine):
    """Producers that send, repeat and lose answers, commits and integrations that fail in any order.

    The log must hold exactly what was acked or staged, each number once and in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.ticket = 0
        self.sent: dict[int, Producer] = {}
        self.acked: dict[Producer, int] = {BROKER: 0, REGISTRY: 0}
        self.committing: Batch | None = None
        self.integrating: Integrate | None = None
        self.log: list[bytes] = []
        self.published = Tree()

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Commit(batch, _):
                    assert self.committing is None
                    self.committing = batch
                case Integrate():
                    assert self.integrating is None
                    self.integrating = effect
                case Acknowledge(ticket, sequence):
                    producer = self.sent.pop(ticket)
                    self.acked[producer] = max(sequence, self.acked[producer])
                case Refuse(ticket, _):
                    del self.sent[ticket]
                case Publish(tree, _):
                    self.published = tree

    @rule(
        producer=st.sampled_from([BROKER, REGISTRY]),
        back=st.integers(-2, 4),
        count=st.integers(1, 5),
    )
    def send(self, producer: Producer, back: int, count: int) -> None:
        self.ticket += 1
        self.sent[self.ticket] = producer
        first = max(1, self.acked[producer] + 1 - back)
        self.carry_out(self.bench.step(FrameArrived(frame(producer, first, count, self.ticket))))

    @rule(later_ms=st.integers(0, 150))
    def end_turn(self, later_ms: int) -> None:
        self.bench.now = Instant(self.bench.now + later_ms)
        self.carry_out(self.bench.step(TurnEnded()))

    @precondition(lambda self: self.committing is not None)
    @rule(works=st.booleans())
    def end_commit(self, works: bool) -> None:
        batch, self.committing = self.committing, None
        assert batch is not None
        if works:
            assert batch.first_index == len(self.log)
            self.log += batch.leaves
        self.carry_out(self.bench.step(Committed() if works else CommitFailed(FULL)))

    @precondition(lambda self: self.integrating is not None)
    @rule(works=st.booleans())
    def end_integration(self, works: bool) -> None:
        effect, self.integrating = self.integrating, None
        assert effect is not None
        event = Integrated(grow(effect.tree, effect.leaves).tree, b"") if works else IntegrationFailed(FULL)
        self.carry_out(self.bench.step(event))

    @invariant()
    def every_number_is_logged_once_and_in_order(self) -> None:
        for producer, acked in self.acked.items():
            mine = [one for one in self.log if one.startswith(producer.service.encode())]
            assert mine == [leaf(producer, n) for n in range(1, len(mine) + 1)]
            assert acked <= len(mine)

    @invariant()
    def the_published_tree_is_of_the_log(self) -> None:
        assert self.published == grow(Tree(), self.log[: self.published.size]).tree


TestAnyCourse = AnyCourse.TestCase
TestAnyCourse.settings = settings(max_examples=60, stateful_step_count=40)
