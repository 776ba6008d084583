"""What is brought to the audit log, and what is counted instead."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from hypothesis import given
from hypothesis import strategies as st
from muster.common.v1 import envelope_pb2

from services.broker.core import effects as fx
from services.broker.core.model import DeadLetter, DeadReason, DomainKey, Draft, Envelope, Lane
from services.broker.entries import DeadLettersDropped, SendsRefused, entries_of
from services.broker.metrics import BrokerMetrics
from services.broker.recorder import OPERATIONS_MAX, AuditRecorder
from services.common.core.entries import EntryDraft, Outcome
from services.common.core.errors import Reason
from services.common.core.instants import Instant
from services.common.metrics import Metrics
from services.common.testing.clock import FakeClock
from services.common.testing.outbox import MemoryOutbox

GROUP_MAX = 10


def some(count: int) -> list[Envelope]:
    body = envelope_pb2.Envelope(message_type=envelope_pb2.MESSAGE_TYPE_EMERGENCY).SerializeToString()
    key = DomainKey("alpha", "operator/admin", Lane.HIGH)
    draft = Draft("m-1", key.receiver, key.lane, True, 1_000, 3, b"12345678", body)
    return [Envelope(key, number, Instant(1), draft) for number in range(1, count + 1)]


@contextlib.asynccontextmanager
async def recording(
    messages: str = "all", backlog_max: int = 1_000
) -> AsyncIterator[tuple[AuditRecorder, MemoryOutbox, Metrics]]:
    outbox, metrics = MemoryOutbox(), Metrics("broker")
    recorder = AuditRecorder(
        outbox,
        FakeClock(),
        BrokerMetrics(metrics),
        messages=messages,
        backlog_max=backlog_max,
        group_max=GROUP_MAX,
    )
    running = asyncio.create_task(recorder.run())
    yield recorder, outbox, metrics
    await recorder.wait_idle()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def note_course(recorder: AuditRecorder, count: int = 1) -> None:
    envelopes = some(count)
    recorder.note(fx.NoteAccepted(envelopes))
    recorder.note(fx.NoteDone(envelopes, acked=True))


async def test_the_three_settings() -> None:
    for messages, wanted in (
        ("all", ["envelope.accept", "envelope.ack"]),
        ("terminal", ["envelope.ack"]),
        ("none", []),
    ):
        async with recording(messages) as (recorder, outbox, _):
            note_course(recorder)
            await recorder.wait_idle()
            assert outbox.operations() == wanted


async def test_some_things_are_recorded_whatever_the_setting() -> None:
    (envelope,) = some(1)
    async with recording("none") as (recorder, outbox, _):
        recorder.note(fx.NoteOpened("agent/beta", "0", 4, resumed=False))
        recorder.note(fx.NoteFenced("agent/beta", "0", 3, 4))
        recorder.note(SendsRefused("agent/alpha", [("m-1", Reason.INVALID_FIELD)]))
        recorder.note(fx.NoteDead([DeadLetter(envelope, DeadReason.EXPIRED, "late", Instant(5), 2)]))
        recorder.note(DeadLettersDropped({"beta": 3}))
        await recorder.wait_idle()
    assert outbox.operations() == [
        "mailbox.open",
        "mailbox.fence",
        "envelope.send",
        "envelope.expire",
        "dead_letter.drop",
    ]
    fenced, sent, expired = outbox.entries[1:4]
    assert (fenced.outcome, fenced.reason) == (Outcome.REFUSED, Reason.INCARNATION_FENCED)
    assert (sent.actor, sent.outcome, sent.reason) == ("agent/alpha", Outcome.REFUSED, Reason.INVALID_FIELD)
    assert (expired.actor, expired.outcome, expired.reason) == (
        "service/broker",
        Outcome.TIMED_OUT,
        "EXPIRED",
    )
    assert expired.attributes["deliveries"] == "2"


async def test_beyond_its_bound_it_counts_and_says_so() -> None:
    async with recording(backlog_max=300) as (recorder, outbox, metrics):
        note_course(recorder, 200)
        recorder.note(fx.NoteOpened("agent/beta", "0", 1, resumed=False))
        await recorder.wait_idle()
    operations = outbox.operations()
    assert operations.count("envelope.accept") == 200
    assert operations.count("envelope.ack") == 0
    # What is rare is not pushed out by a flood.
    assert "mailbox.open" in operations
    (said,) = [entry for entry in outbox.entries if entry.operation == "envelope.unrecorded"]
    assert said.attributes == {"count": "200"}
    assert metrics.value("unrecorded_envelopes_total") == 200


async def test_groups_are_bounded_and_nothing_is_recorded_twice() -> None:
    async with recording(backlog_max=10_000) as (recorder, outbox, _):
        count = OPERATIONS_MAX + 3
        note_course(recorder, count)
        await recorder.wait_idle()
        note_course(recorder, 1)
        await recorder.wait_idle()
    recorded = [one for entry in outbox.entries for one in alone(entry)]
    # Every envelope by itself, in order, exactly once: accepted, acked.
    sequences = [str(number) for number in range(1, count + 1)]
    assert [one.attributes["sequence"] for one in recorded] == [*sequences, *sequences, "1", "1"]
    assert outbox.operations() == [
        *["envelope.accept"] * count,
        *["envelope.ack"] * count,
        "envelope.accept",
        "envelope.ack",
    ]
    assert {entry.operation_count for entry in outbox.entries} == {GROUP_MAX, count % GROUP_MAX, 1}
    assert outbox.entries[0].actor == "agent/alpha"
    assert outbox.entries[-1].actor == "operator/admin"


def alone(entry: EntryDraft) -> list[EntryDraft]:
    return [entry.part(at, at + 1) for at in range(entry.operation_count)]


CHOICES = st.sampled_from(["", "", "a", "b"])
ENVELOPES = st.lists(
    st.builds(
        lambda sender, receiver, lane, sequence, message_id, fields: Envelope(
            DomainKey(sender, receiver, lane),
            sequence,
            Instant(1),
            Draft(
                message_id,
                receiver,
                lane,
                True,
                1_000,
                3,
                b"12345678",
                envelope_pb2.Envelope(message_type=1 + sequence % 5, **fields).SerializeToString(),
            ),
        ),
        st.sampled_from(["alpha", "operator/admin"]),
        st.sampled_from(["beta", "gamma"]),
        st.sampled_from([Lane.NORMAL, Lane.LOW]),
        st.integers(1, 9),
        st.sampled_from(["m-1", "m-2", "m-3"]),
        st.fixed_dictionaries(
            dict.fromkeys(("collaboration_id", "causation_id", "correlation_id", "traceparent"), CHOICES)
        ),
    ),
    min_size=1,
    max_size=12,
)


@given(ENVELOPES, st.booleans(), st.integers(1, 5))
def test_a_group_says_of_each_envelope_what_an_entry_of_its_own_would(
    envelopes: list[Envelope], acked: bool, group_max: int
) -> None:
    def facts(envelope: Envelope) -> tuple[object, ...]:
        (entry,) = entries_of(fx.NoteDone([envelope], acked=acked), Instant(7), 1)
        return entry[:-3], dict(entry.attributes), entry.traceparent

    together = list(entries_of(fx.NoteDone(envelopes, acked=acked), Instant(7), group_max))
    assert max(entry.operation_count for entry in together) <= group_max
    recorded = [
        (one[:-3], dict(one.attributes), one.traceparent) for entry in together for one in alone(entry)
    ]
    by_actor = sorted(envelopes, key=lambda envelope: firsts(envelopes).index(envelope.key.receiver))
    assert recorded == [facts(envelope) for envelope in by_actor]


def firsts(envelopes: list[Envelope]) -> list[str]:
    return list(dict.fromkeys(envelope.key.receiver for envelope in envelopes))
