"""Appending over mTLS: acks, repeats, gaps, identity, bad frames, and what survives a restart."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from muster.audit.v1 import audit_service_pb2 as pb
from muster.audit.v1 import entry_pb2

from services.common.core.errors import Reason
from services.common.rpc.status import from_rpc_error, from_status
from tests.integration.audit.conftest import Audit, StartAudit, entry, frame


async def test_entries_are_logged_as_sent_with_the_service_from_the_certificate(audit: Audit) -> None:
    sent = entry(1, attributes={"lane": "HIGH"}, cause_id="rpc-1", collaboration_id="c-1", service="broker")
    sent.service = "registry"
    sent.entry_id = "broker/broker-1/spool.1"
    request = pb.AppendRequest(first_sequence_number=1, entries=[sent], spool_id="spool")
    (response,) = await audit.append(request)
    assert response.durable_sequence_number == 1
    (logged,) = await audit.entries(collaboration_id="c-1")
    sent.service = "broker"
    assert logged == sent


async def test_many_frames_of_several_producers_arrive_in_order_once(audit: Audit) -> None:
    frames = [frame(1 + 100 * n, 100) for n in range(10)]
    others = [frame(1 + n, 1, service="registry", replica="registry-1") for n in range(50)]
    responses = await audit.append(*frames)
    assert responses[-1].durable_sequence_number == 1_000
    responses = await audit.append(*others, principal="service/registry")
    assert responses[-1].durable_sequence_number == 50
    assert [one.subject for one in await audit.entries(service="broker")] == [
        f"message/{n}" for n in range(1, 1_001)
    ]
    assert len(await audit.entries(service="registry")) == 50
    report = await audit.verify()
    assert report.checkpoint.size >= 1_050


async def test_what_was_logged_before_is_acked_and_not_logged_again(audit: Audit) -> None:
    await audit.append(frame(1, 5))
    (response,) = await audit.append(frame(1, 3))
    assert response.durable_sequence_number == 5
    (response,) = await audit.append(frame(4, 4))
    assert response.durable_sequence_number == 7
    assert len(await audit.entries(service="broker")) == 7


async def test_numbering_goes_on_across_a_restart(audit: Audit) -> None:
    await audit.append(frame(1, 5))
    await audit.stop()
    await audit.start()
    (response,) = await audit.append(frame(3, 4))
    assert response.durable_sequence_number == 6
    assert len(await audit.entries(service="broker")) == 6
    await audit.verify()


async def test_each_spool_and_replica_has_its_own_numbering(audit: Audit) -> None:
    await audit.append(frame(1, 2))
    await audit.append(frame(1, 2, spool_id="other"))
    await audit.append(frame(1, 2, replica="broker-2"))
    assert len(await audit.entries(service="broker")) == 6


def refusal(responses: list[pb.AppendResponse]) -> Any:
    assert responses[-1].HasField("error")
    return from_status(responses[-1].error)


async def test_a_gap_is_refused_and_recorded(audit: Audit) -> None:
    await audit.append(frame(1, 5))
    error = refusal(await audit.append(frame(7, 1)))
    assert error.reason is Reason.MALFORMED_FRAME
    assert error.metadata["expected_sequence_number"] == "6"
    assert len(await audit.entries(service="broker")) == 5
    (recorded,) = await audit.entries(operation="entries.append")
    assert (recorded.actor, recorded.subject, recorded.outcome, recorded.reason) == (
        "service/broker",
        "spool/broker/broker-1",
        entry_pb2.OUTCOME_REFUSED,
        "MALFORMED_FRAME",
    )


async def test_frames_before_a_bad_one_are_kept(audit: Audit) -> None:
    responses = await audit.append(frame(1, 5), frame(9, 1))
    assert max(one.durable_sequence_number for one in responses) == 5
    assert refusal(responses).reason is Reason.MALFORMED_FRAME
    assert len(await audit.entries(service="broker")) == 5


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"entry_id": ""}, "entries[1].entry_id"),
        ({"entry_id": "broker/broker-2/spool.2"}, "entries[1].entry_id"),
        ({"entry_id": "broker/broker-1/" + "x" * 300}, "entries[1].entry_id"),
        ({"actor": ""}, "entries[1].actor"),
        ({"actor": "é" * 600}, "entries[1].actor"),
        ({"operation": ""}, "entries[1].operation"),
        ({"outcome": 0}, "entries[1].outcome"),
        ({"outcome": 99}, "entries[1].outcome"),
        ({"subject": "x" * 1_025}, "entries[1].subject"),
        ({"traceparent": "x" * 1_025}, "entries[1].traceparent"),
        ({"attributes": {f"k{n}": "v" for n in range(33)}}, "entries[1].attributes"),
        ({"attributes": {"key": "v" * 1_025}}, "entries[1].attributes['key']"),
        ({"attributes": {"k" * 1_025: "v"}}, "entries[1].attributes"),
    ],
)
async def test_a_bad_entry_is_named(audit: Audit, change: dict[str, Any], field: str) -> None:
    request = frame(1, 3)
    bad = entry(2, **change)
    request.entries[1].CopyFrom(bad)
    error = refusal(await audit.append(request))
    assert error.reason is Reason.INVALID_FIELD
    assert error.violations[0].field == field
    assert await audit.entries(service="broker") == []


async def test_a_bad_time_is_named(audit: Audit) -> None:
    for seconds, nanos in ((10**12, 0), (1, -1), (1, 10**9)):
        request = frame(1)
        request.entries[0].event_time.seconds, request.entries[0].event_time.nanos = seconds, nanos
        assert refusal(await audit.append(request)).violations[0].field == "entries[0].event_time"
    request = frame(1)
    request.entries[0].ClearField("event_time")
    assert refusal(await audit.append(request)).violations[0].field == "entries[0].event_time"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.AppendRequest(first_sequence_number=1, spool_id="s"), "entries"),
        (frame(0, 1), "first_sequence_number"),
        (
            pb.AppendRequest(first_sequence_number=2**64 - 1, spool_id="s", entries=[entry(1)]),
            "first_sequence_number",
        ),
        (frame(1, 1_025), "entries"),
        (frame(1, 1, spool_id=""), "spool_id"),
        (frame(1, 1, spool_id="a b"), "spool_id"),
        (frame(1, 1, spool_id="x" * 65), "spool_id"),
        (frame(1, 1, replica=""), "entries[0].replica_id"),
        (frame(1, 1, replica="a/b"), "entries[0].replica_id"),
    ],
)
async def test_a_bad_frame_is_named(audit: Audit, request_: pb.AppendRequest, field: str) -> None:
    error = refusal(await audit.append(request_))
    assert error.reason is Reason.INVALID_FIELD
    assert error.violations[0].field == field


async def test_an_oversized_frame_is_refused(audit: Audit) -> None:
    request = frame(1, 40, attributes={f"k{n:02}": "v" * 1_000 for n in range(32)})
    error = refusal(await audit.append(request))
    assert error.reason is Reason.PAYLOAD_TOO_LARGE
    assert error.metadata["limit_bytes"] == "1048576"


async def test_a_leaf_that_no_bundle_can_hold_is_refused(audit: Audit) -> None:
    request = frame(1, 1, attributes={f"{n:02}" + "k" * 1_022: "v" * 1_024 for n in range(32)})
    error = refusal(await audit.append(request))
    assert error.reason is Reason.PAYLOAD_TOO_LARGE
    assert error.metadata["limit_bytes"] == "65535"


async def test_a_stream_is_of_one_replica_and_one_spool(audit: Audit) -> None:
    error = refusal(await audit.append(frame(1), frame(1, 1, replica="broker-2")))
    assert error.reason is Reason.IDENTITY_MISMATCH
    error = refusal(await audit.append(frame(2), frame(1, 1, spool_id="other")))
    assert error.violations[0].field == "spool_id"
    mixed = frame(3, 2)
    mixed.entries[1].replica_id = "broker-2"
    assert refusal(await audit.append(mixed)).reason is Reason.IDENTITY_MISMATCH


@pytest.mark.parametrize("principal", ["agent/field-1", "operator/admin"])
async def test_only_services_append(audit: Audit, principal: str) -> None:
    assert from_rpc_error(await audit.refused_stream(principal)).reason is Reason.ACCESS_DENIED
    (recorded,) = await audit.entries(operation="access.refuse")
    assert (recorded.actor, recorded.outcome) == (principal, entry_pb2.OUTCOME_REFUSED)
    assert recorded.service == "audit"


async def test_the_audit_service_does_not_take_its_own_name_from_outside(audit: Audit) -> None:
    assert from_rpc_error(await audit.refused_stream("service/audit")).reason is Reason.ACCESS_DENIED


async def test_hostile_bytes_end_the_stream_with_a_typed_error(audit: Audit) -> None:
    channel = audit.channel("service/broker")
    method: Any = channel.stream_stream("/muster.audit.v1.AuditService/Append", None, None)
    stream = method(None)
    await stream.write(b"\xff\xff\xff\xff not a message")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert from_rpc_error(caught.value).reason is Reason.MALFORMED_FRAME
    assert (await audit.append(frame(1)))[-1].durable_sequence_number == 1


async def test_acks_come_while_the_stream_is_open(audit: Audit) -> None:
    stream = audit.stub("service/broker").Append()
    for n in range(1, 30):
        await stream.write(frame(n))
        response = await stream.read()
        assert response.durable_sequence_number == n
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF  # type: ignore[attr-defined]


async def test_a_producer_beyond_the_window_is_not_read_but_served(start_audit: StartAudit) -> None:
    audit = await start_audit(stream_frames_max=1, batch_leaves_max=1)
    responses = await audit.append(*(frame(n) for n in range(1, 101)))
    assert responses[-1].durable_sequence_number == 100
    assert len(await audit.entries(service="broker")) == 100
