"""Envelopes from agent to agent through a real broker: mTLS, SQLite, the whole protocol."""

from __future__ import annotations

import grpc
import pytest
from muster.broker.v1 import broker_service_pb2 as pb

from services.common.core.errors import Reason
from services.common.rpc.status import from_rpc_error, from_status
from tests.conftest import Eventually
from tests.integration.broker.broker_client import EMERGENCY, MailboxClient, envelope, error_of
from tests.integration.broker.conftest import House


async def test_an_envelope_travels(opened: House) -> None:
    alpha, beta = await opened.open("agent/alpha"), await opened.open("agent/beta")
    (outcome,) = await alpha.send(envelope("m-1", "beta", b"water rises", correlation_id="talk-7"))
    assert (outcome.message_id, outcome.sequence_number, outcome.HasField("error")) == ("m-1", 1, False)
    (delivery,) = await beta.take(1)
    got = delivery.envelope
    assert (got.sender_id, got.receiver_id, got.payload.data) == ("alpha", "beta", b"water rises")
    assert (got.sequence_number, got.retry_count, got.correlation_id) == (1, 0, "talk-7")
    assert got.accepted_time.ToMilliseconds() > 1_600_000_000_000
    assert (delivery.delivery_number, delivery.ack_token > 0) == (1, True)
    assert delivery.ack_deadline_time.ToMilliseconds() > got.accepted_time.ToMilliseconds()
    await beta.ack([delivery])
    assert beta.settled == [delivery.ack_token]


async def test_an_offline_agent_finds_its_envelopes_when_it_comes(opened: House) -> None:
    alpha = await opened.open("agent/alpha", send_only=True)
    await alpha.send(*(envelope(f"m-{number}", "gamma", b"%d" % number) for number in range(1, 51)))
    gamma = await opened.open("agent/gamma")
    assert gamma.welcome.waiting_count == 50
    deliveries = await gamma.take(50)
    assert [one.envelope.sequence_number for one in deliveries] == list(range(1, 51))


async def test_what_is_stored_survives_a_restart_and_what_is_acked_does_not_come_back(house: House) -> None:
    await house.start()
    alpha, beta = await house.open("agent/alpha"), await house.open("agent/beta")
    await alpha.send(*(envelope(f"m-{number}", "beta") for number in range(1, 11)))
    deliveries = await beta.take(10)
    await beta.ack([one for one in deliveries if one.envelope.sequence_number != 4])
    await house.stop()
    house.agents.names = frozenset()  # the registry has nothing to say after the restart
    await house.start()
    beta = await house.open("agent/beta")
    (again,) = await beta.take(1)
    assert (again.envelope.message_id, again.envelope.sequence_number) == ("m-4", 4)
    alpha = await house.open("agent/alpha")
    (repeated, fresh) = await alpha.send(envelope("m-1", "beta"), envelope("m-11", "beta"))
    assert (repeated.sequence_number, fresh.sequence_number) == (1, 11)


async def test_an_unknown_receiver_is_refused_at_once_and_known_as_soon_as_it_registers(
    opened: House,
) -> None:
    alpha = await opened.open("agent/alpha")
    (outcome,) = await alpha.send(envelope("m-1", "nobody"))
    assert error_of(outcome).reason is Reason.AGENT_NOT_FOUND
    # A certificate proves that its owner exists.
    late = await opened.open("agent/nobody")
    (outcome,) = await alpha.send(envelope("m-2", "nobody"))
    assert not outcome.HasField("error")
    await late.take(1)


async def test_the_same_id_twice_is_stored_once(opened: House) -> None:
    alpha, beta = await opened.open("agent/alpha"), await opened.open("agent/beta")
    outcomes = await alpha.send(envelope("m-1", "beta"), envelope("m-1", "beta"))
    assert [one.sequence_number for one in outcomes] == [1, 1]
    (reused,) = await alpha.send(envelope("m-1", "beta", b"other"))
    assert error_of(reused).reason is Reason.REQUEST_ID_REUSED
    await beta.take(1)
    await alpha.send(envelope("m-2", "beta"))
    (second,) = await beta.take(1)
    assert second.envelope.message_id == "m-2"


async def test_a_sender_can_not_speak_for_another(opened: House) -> None:
    alpha = await opened.open("agent/alpha")
    refused, taken = await alpha.send(
        envelope("m-1", "beta", sender_id="gamma"), envelope("m-2", "beta", sender_id="alpha")
    )
    assert error_of(refused).reason is Reason.IDENTITY_MISMATCH
    assert taken.sequence_number == 1


async def test_an_emergency_overtakes_and_has_credit_of_its_own(opened: House) -> None:
    alpha = await opened.open("agent/alpha")
    beta = await opened.open("agent/beta", credits_=0)
    await alpha.send(*(envelope(f"m-{number}", "beta") for number in range(20)))
    await alpha.send(envelope("alarm", "beta", priority=EMERGENCY))
    await beta.write(emergency_credits=5)
    (first,) = await beta.take(1)
    assert first.envelope.message_id == "alarm"
    await beta.write(credits=3)
    assert [one.envelope.message_id for one in await beta.take(3)] == ["m-0", "m-1", "m-2"]
    assert beta.deliveries == []


async def test_a_nack_brings_it_again_before_what_is_behind(opened: House) -> None:
    alpha, beta = await opened.open("agent/alpha"), await opened.open("agent/beta")
    await alpha.send(*(envelope(f"m-{number}", "beta") for number in range(1, 4)))
    first, second, third = await beta.take(3)
    await beta.write(nacks=[pb.Nack(ack_token=first.ack_token)])
    again = await beta.take(3)
    assert [one.envelope.sequence_number for one in again] == [1, 2, 3]
    assert [one.delivery_number for one in again] == [2, 2, 2]
    assert again[0].envelope.retry_count == 1
    assert sorted(beta.recalled) == sorted([second.ack_token, third.ack_token])
    assert first.ack_token in beta.settled
    # The old tokens settle nothing.
    await beta.write(acks=[pb.Ack(ack_token=second.ack_token)])
    await beta.wait(lambda: beta.refusals)
    assert error_of(beta.refusals[0]).reason is Reason.STALE_ACK_TOKEN
    await beta.ack(again)


async def test_what_nobody_answers_comes_again(house: House) -> None:
    await house.start(ack_deadline_ms=100)
    alpha, beta = await house.open("agent/alpha"), await house.open("agent/beta")
    await alpha.send(envelope("m-1", "beta"))
    first, second = await beta.take(2)
    assert (first.delivery_number, second.delivery_number) == (1, 2)
    assert first.ack_token != second.ack_token
    await beta.write(extends=[pb.Extend(ack_token=second.ack_token)])
    await beta.wait(lambda: beta.refusals)
    assert error_of(beta.refusals[0]).reason is Reason.INVALID_FIELD


async def test_a_rejected_envelope_is_a_dead_letter_with_a_tombstone(opened: House) -> None:
    alpha, beta = await opened.open("agent/alpha"), await opened.open("agent/beta")
    await alpha.send(envelope("m-1", "beta", b"bad"), envelope("m-2", "beta", b"good"))
    bad, good = await beta.take(2)
    await beta.write(rejects=[pb.Reject(ack_token=bad.ack_token, reason="not for me")])
    await beta.wait(lambda: beta.tombstones)
    stone = beta.tombstones[0]
    assert (stone.sender_id, stone.sequence_number, stone.message_id) == ("alpha", 1, "m-1")
    assert stone.reason == pb.TOMBSTONE_REASON_REJECTED
    await beta.ack([good])
    listed = await beta.stub.ListDeadLetters(pb.ListDeadLettersRequest())
    (letter,) = listed.dead_letters
    assert (letter.message, letter.envelope.payload.data, letter.envelope.sender_id) == (
        "not for me",
        b"bad",
        "alpha",
    )
    assert (letter.reason, letter.delivery_count) == (pb.TOMBSTONE_REASON_REJECTED, 1)


async def test_retries_end_in_a_dead_letter(opened: House) -> None:
    alpha, beta = await opened.open("agent/alpha"), await opened.open("agent/beta")
    await alpha.send(envelope("m-1", "beta", retry_max=2))
    for number in (1, 2, 3):
        (delivery,) = await beta.take(1)
        assert delivery.delivery_number == number
        await beta.write(nacks=[pb.Nack(ack_token=delivery.ack_token)])
    await beta.wait(lambda: beta.tombstones)
    assert beta.tombstones[0].reason == pb.TOMBSTONE_REASON_DELIVERIES_EXHAUSTED


async def test_what_waits_too_long_expires_with_a_tombstone(opened: House) -> None:
    alpha = await opened.open("agent/alpha")
    await alpha.send(envelope("m-1", "beta", ttl_ms=1_000), envelope("m-2", "beta"))
    mailbox = await alpha.stub.GetMailbox(pb.GetMailboxRequest())
    assert mailbox.agent_id == "alpha"
    beta = await opened.open("agent/beta", credits_=0)
    await beta.wait(lambda: beta.tombstones)
    assert beta.tombstones[0].reason == pb.TOMBSTONE_REASON_EXPIRED
    await beta.write(credits=10)
    (delivery,) = await beta.take(1)
    assert delivery.envelope.message_id == "m-2"


async def test_without_an_ack_wanted_it_comes_once(opened: House) -> None:
    alpha, beta = await opened.open("agent/alpha"), await opened.open("agent/beta")
    await alpha.send(*(envelope(f"m-{number}", "beta", requires_ack=False) for number in range(5)))
    deliveries = await beta.take(5)
    assert [one.ack_token for one in deliveries] == [0] * 5
    beta = await opened.open("agent/beta", incarnation=2)
    assert beta.welcome.waiting_count == 0


async def test_two_instances_share_a_mailbox(opened: House) -> None:
    alpha, gamma = await opened.open("agent/alpha"), await opened.open("agent/gamma")
    one = await opened.open("agent/beta", instance_id="one", credits_=5)
    two = await opened.open("agent/beta", instance_id="two", credits_=5)
    await alpha.send(*(envelope(f"a-{number}", "beta") for number in range(5)))
    await gamma.send(*(envelope(f"g-{number}", "beta") for number in range(5)))
    await one.wait(lambda: len(one.deliveries) == 5)
    await two.wait(lambda: len(two.deliveries) == 5)
    # A domain stays with one instance, so that its order holds.
    for client in (one, two):
        assert len({delivery.envelope.sender_id for delivery in client.deliveries}) == 1
    foreign = two.deliveries[0].ack_token
    await one.write(acks=[pb.Ack(ack_token=foreign)])
    await one.wait(lambda: one.refusals)
    assert error_of(one.refusals[0]).reason is Reason.STALE_ACK_TOKEN


async def test_people_may_look_and_only_operators_at_others(opened: House) -> None:
    alpha, admin = await opened.open("agent/alpha"), await opened.open("operator/admin", incarnation=0)
    await alpha.send(*(envelope(f"m-{number}", "beta") for number in range(3)))
    await admin.send(envelope("op-1", "beta", priority=EMERGENCY))
    mailbox = await admin.stub.GetMailbox(pb.GetMailboxRequest(agent_id="beta"))
    counts = {lane.priority: lane.waiting_count for lane in mailbox.lanes}
    assert counts == {1: 1, 2: 0, 3: 3, 4: 0}
    assert (mailbox.stream_count, mailbox.dead_letter_count) == (0, 0)
    with pytest.raises(grpc.aio.AioRpcError, match="may not look into"):
        await alpha.stub.GetMailbox(pb.GetMailboxRequest(agent_id="beta"))
    with pytest.raises(grpc.aio.AioRpcError, match="no agent 'zeta'"):
        await admin.stub.GetMailbox(pb.GetMailboxRequest(agent_id="zeta"))
    await alpha.send(envelope("m-9", "operator/admin", b"done"))
    (answer,) = await admin.take(1)
    assert (answer.envelope.sender_id, answer.envelope.payload.data) == ("alpha", b"done")


async def test_dead_letters_come_in_pages(opened: House) -> None:
    alpha, beta = await opened.open("agent/alpha"), await opened.open("agent/beta")
    await alpha.send(*(envelope(f"m-{number}", "beta") for number in range(7)))
    for delivery in await beta.take(7):
        await beta.write(rejects=[pb.Reject(ack_token=delivery.ack_token)])
    await beta.wait(lambda: len(beta.settled) == 7)
    found: list[str] = []
    token = ""
    while True:
        request = pb.ListDeadLettersRequest()
        request.page.page_size, request.page.page_token = 3, token
        page = await beta.stub.ListDeadLetters(request)
        found += [letter.envelope.message_id for letter in page.dead_letters]
        token = page.page.next_page_token
        if not token:
            break
    assert found == [f"m-{number}" for number in range(7)]
    request.page.page_token = "else"
    with pytest.raises(grpc.aio.AioRpcError, match="next_page_token"):
        await beta.stub.ListDeadLetters(request)


async def test_every_step_is_an_entry(opened: House, eventually: Eventually) -> None:
    alpha, beta = await opened.open("agent/alpha"), await opened.open("agent/beta")
    await alpha.send(envelope("m-1", "beta", collaboration_id="c-1", causation_id="attempt-1"))
    await alpha.send(envelope("m-2", "nobody"))
    await beta.ack(await beta.take(1))
    await eventually(lambda: "envelope.ack" in opened.outbox.operations())
    entries = {entry.operation: entry for entry in opened.outbox.entries}
    accepted = entries["envelope.accept"]
    assert (accepted.actor, accepted.subject) == ("agent/alpha", "envelope/alpha/m-1")
    assert (accepted.collaboration_id, accepted.cause_id) == ("c-1", "attempt-1")
    assert entries["envelope.ack"].actor == "agent/beta"
    assert entries["envelope.send"].reason == Reason.AGENT_NOT_FOUND
    assert {"mailbox.open"} <= set(entries)


async def test_a_full_mailbox_is_said_and_emergencies_still_come_in(house: House) -> None:
    await house.start(mailbox_count_max=10, domain_share_percent=100, mailbox_emergency_count_max=2)
    alpha = await house.open("agent/alpha")
    outcomes = await alpha.send(*(envelope(f"m-{number}", "beta") for number in range(12)))
    assert [one.HasField("error") for one in outcomes] == [False] * 10 + [True] * 2
    error = error_of(outcomes[-1])
    assert (error.reason, error.metadata["receiver"]) == (Reason.MAILBOX_FULL, "beta")
    assert error.retry_after_ms is not None
    alarms = await alpha.send(*(envelope(f"e-{n}", "beta", priority=EMERGENCY) for n in range(3)))
    assert [one.HasField("error") for one in alarms] == [False, False, True]


async def test_a_sender_beyond_its_window_is_refused_not_lost(house: House) -> None:
    await house.start(send_window=8)
    alpha = await house.open("agent/alpha")
    assert alpha.send_credits == 8
    outcomes = await alpha.send(*(envelope(f"m-{number}", "beta") for number in range(10)))
    assert [one.HasField("error") for one in outcomes] == [False] * 8 + [True] * 2
    assert error_of(outcomes[-1]).reason is Reason.QUOTA_EXCEEDED
    assert alpha.send_credits == 18


async def _with_dead_letters(house: House, count: int) -> tuple[MailboxClient, MailboxClient, list[int]]:
    alpha, beta = await house.open("agent/alpha"), await house.open("agent/beta")
    await alpha.send(*(envelope(f"m-{number}", "beta", b"%d" % number) for number in range(count)))
    for delivery in await beta.take(count):
        await beta.write(rejects=[pb.Reject(ack_token=delivery.ack_token)])
    await beta.wait(lambda: len(beta.settled) == count)
    listed = await beta.stub.ListDeadLetters(pb.ListDeadLettersRequest())
    return alpha, beta, [letter.dead_letter_id for letter in listed.dead_letters]


async def test_dead_letters_are_replayed_and_dropped(opened: House) -> None:
    _, beta, ids = await _with_dead_letters(opened, 3)
    admin = await opened.open("operator/admin", incarnation=0)
    request = pb.ReplayDeadLettersRequest(agent_id="beta", dead_letter_ids=[ids[1], 999_999])
    done, missing = (await admin.stub.ReplayDeadLetters(request)).outcomes
    assert (done.dead_letter_id, done.sequence_number) == (ids[1], 4)
    assert from_status(missing.error).reason is Reason.MESSAGE_NOT_FOUND
    (again,) = await beta.take(1)
    assert (again.envelope.sender_id, again.envelope.payload.data) == ("alpha", b"1")
    await beta.ack([again])
    dropped = await beta.stub.DropDeadLetters(pb.DropDeadLettersRequest(dead_letter_ids=ids))
    gone = [from_status(one.error).reason if one.HasField("error") else None for one in dropped.outcomes]
    assert gone == [None, Reason.MESSAGE_NOT_FOUND, None]
    assert not (await beta.stub.ListDeadLetters(pb.ListDeadLettersRequest())).dead_letters
    entries = [one for one in opened.outbox.entries if one.operation.startswith("dead_letter.")]
    assert [(one.actor, one.operation, one.subject) for one in entries] == [
        ("operator/admin", "dead_letter.replay", "mailbox/beta"),
        ("agent/beta", "dead_letter.drop", "mailbox/beta"),
    ]


async def test_dead_letters_are_touched_by_their_owner_and_operators_only_and_never_unrecorded(
    opened: House,
) -> None:
    alpha, beta, ids = await _with_dead_letters(opened, 1)
    request = pb.DropDeadLettersRequest(agent_id="beta", dead_letter_ids=ids)
    with pytest.raises(grpc.aio.AioRpcError, match="may not look into"):
        await alpha.stub.DropDeadLetters(request)
    with pytest.raises(grpc.aio.AioRpcError, match="dead_letter_ids"):
        await beta.stub.DropDeadLetters(pb.DropDeadLettersRequest())
    opened.outbox.full = True
    with pytest.raises(grpc.aio.AioRpcError) as unrecorded:
        await beta.stub.DropDeadLetters(request)
    assert from_rpc_error(unrecorded.value).reason is Reason.AUDIT_UNAVAILABLE
    assert (await beta.stub.ListDeadLetters(pb.ListDeadLettersRequest())).dead_letters
