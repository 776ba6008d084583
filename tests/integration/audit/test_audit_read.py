"""Reading over mTLS: queries, tails, proofs, tiles; who may read what; that reading is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from muster.audit.v1 import audit_service_pb2 as pb
from muster.audit.v1 import entry_pb2

from agent_client.operations import operations
from agent_client.verify import (
    VerifierKey,
    verify_checkpoint,
    verify_consistency,
    verify_inclusion,
)
from services.audit import reader
from services.common.core.errors import Reason, ServiceError
from services.common.rpc.status import from_rpc_error
from tests.conftest import Eventually
from tests.integration.audit.conftest import Audit, StartAudit, frame

SERVICE = "muster.audit.v1.AuditService"


async def refused(call: Any) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def checkpoint(audit: Audit, principal: str = "operator/admin") -> Any:
    response = await audit.stub(principal).GetCheckpoint(pb.GetCheckpointRequest())
    return verify_checkpoint(response.checkpoint, VerifierKey.parse(response.verifier_key))


# Query.


async def test_a_query_pages_through_the_log_at_one_tree_size(audit: Audit) -> None:
    await audit.append(frame(1, 250))
    stub = audit.stub()
    request = pb.QueryRequest(service="broker")
    request.page.page_size = 100
    pages = []
    while True:
        response = await stub.Query(request)
        pages.append(response)
        # What comes meanwhile is not part of this list.
        await audit.append(frame(251 + len(pages), 1))
        request.page.page_token = response.page.next_page_token
        if not request.page.page_token:
            break
    assert [len(page.entries) for page in pages] == [100, 100, 50]
    assert len({page.tree_size for page in pages}) == 1
    indices = [logged.leaf_index for page in pages for logged in page.entries]
    assert indices == sorted(indices)
    for logged in pages[0].entries:
        assert entry_pb2.Entry.FromString(logged.leaf) == logged.entry


async def test_a_producer_finds_at_once_what_was_acked(audit: Audit) -> None:
    for n in range(1, 20):
        await audit.append(frame(n))
        assert len(await audit.entries(subject=f"message/{n}")) == 1


async def test_whoever_asks_does_not_wait_for_the_index_to_rest(
    audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_REST_S", 600.0)
    tail = audit.stub().Tail(pb.TailRequest(from_leaf_index=0))
    for n in range(1, 4):
        await audit.append(frame(n))
        page = await audit.stub().Query(pb.QueryRequest(subject=f"message/{n}"))
        assert [logged.entry.subject for logged in page.entries] == [f"message/{n}"]
        assert page.tree_size > page.entries[0].leaf_index
    assert (await tail.read()).entries
    tail.cancel()


async def test_filters_narrow(audit: Audit) -> None:
    await audit.append(frame(1, 3, collaboration_id="c-1"), frame(4, 3, actor="agent/medic"))
    assert len(await audit.entries(collaboration_id="c-1")) == 3
    assert len(await audit.entries(actor="agent/medic")) == 3
    assert len(await audit.entries(subject="message/*", actor="agent/field-1")) == 3
    assert await audit.entries(outcomes=[entry_pb2.OUTCOME_TIMED_OUT]) == []
    found = await audit.entries(start_time={"seconds": 1_700_000_000, "nanos": 4_000_000}, service="broker")
    assert [one.subject for one in found] == ["message/4", "message/5", "message/6"]
    found = await audit.entries(end_time={"seconds": 1_700_000_000, "nanos": 1_500_000}, service="broker")
    assert [one.subject for one in found] == ["message/1"]


async def test_each_operation_of_a_group_is_found_and_proved(audit: Audit) -> None:
    """A2: one entry for many envelopes says of each what an entry of its own would."""
    together = frame(1, 3)
    for at, one in enumerate(together.entries[:2]):
        one.subject, one.operation = "envelope/alpha/", ("envelope.accept", "envelope.ack")[at]
        one.attributes["lane"] = "NORMAL"
        one.group.names.extend(f"m-{n}" for n in range(50))
        one.group.cause_ids.extend(f"attempt-{n}" if n % 2 else "" for n in range(50))
        one.group.collaboration_ids.extend("c-1" if n % 10 == 0 else "" for n in range(50))
        one.group.attributes["sequence"].values.extend(str(n + 1) for n in range(50))
    await audit.append(together)
    for wanted, operations_wanted in (
        ({"subject": "envelope/alpha/m-7"}, ["envelope/alpha/m-7"] * 2),
        ({"subject": "envelope/alpha/m-7", "operation": "envelope.ack"}, ["envelope/alpha/m-7"]),
        ({"cause_id": "attempt-7"}, ["envelope/alpha/m-7"] * 2),
        ({"cause_id": "m-8"}, ["envelope/alpha/m-8"] * 2),
        ({"subject": "envelope/alpha/m-4*", "collaboration_id": "c-1"}, ["envelope/alpha/m-40"] * 2),
        ({"subject": "envelope/alpha/m-50"}, []),
        ({"subject": "envelope/alpha/m-8", "cause_id": "attempt-7"}, []),
    ):
        page = await audit.stub().Query(pb.QueryRequest(**wanted))  # type: ignore[arg-type]
        shown = [one for hit in page.entries for one in operations(hit.entry, hit.group_positions)]
        assert [one.subject for one in shown] == operations_wanted, wanted
    found = await audit.stub().Query(pb.QueryRequest(collaboration_id="c-1"))
    assert [list(hit.group_positions) for hit in found.entries] == [[0, 10, 20, 30, 40]] * 2
    # What is proved is the very entry, and the envelope is in it.
    proof = await audit.stub().GetInclusionProof(
        pb.GetInclusionProofRequest(leaf_index=found.entries[1].leaf_index)
    )
    head = await audit.stub().GetCheckpoint(pb.GetCheckpointRequest())
    signed = verify_checkpoint(proof.checkpoint, VerifierKey.parse(head.verifier_key))
    verify_inclusion(proof.entry.leaf, proof.leaf_index, list(proof.hashes), signed)
    (seventh,) = operations(entry_pb2.Entry.FromString(proof.entry.leaf), [7])
    assert (seventh.subject, seventh.operation) == ("envelope/alpha/m-7", "envelope.ack")
    assert dict(seventh.attributes) == {"lane": "NORMAL", "sequence": "8"}
    # A tail that is narrowed says which, too; one that is not shows the entry.
    tail = audit.stub().Tail(pb.TailRequest(from_leaf_index=0, collaboration_id="c-1"))
    assert [list(hit.group_positions) for hit in (await tail.read()).entries] == [[0, 10, 20, 30, 40]] * 2
    tail.cancel()


async def test_a_page_stays_small_whatever_its_entries_are(audit: Audit) -> None:
    large = {f"key{n:02}": "v" * 1_000 for n in range(32)}
    for n in range(4):
        await audit.append(frame(1 + 25 * n, 25, attributes=large))
    request = pb.QueryRequest(service="broker")
    request.page.page_size = 1_000
    response = await audit.stub().Query(request)
    assert 1 <= len(response.entries) < 100
    assert response.page.next_page_token
    assert len(await audit.entries(service="broker")) == 100


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"page": {"page_size": 1_001}}, "page.page_size"),
        ({"page": {"page_token": "nonsense"}}, "page.page_token"),
        ({"page": {"page_token": "AAAA"}}, "page.page_token"),
        ({"actor": "x" * 1_025}, "actor"),
        ({"outcomes": [1, 77]}, "outcomes[1]"),
        ({"outcomes": [0]}, "outcomes[0]"),
        ({"start_time": {"seconds": 10**15}}, "start_time"),
        ({"end_time": {"nanos": -1}}, "end_time"),
    ],
)
async def test_a_bad_query_is_named_and_recorded(audit: Audit, request_: dict[str, Any], field: str) -> None:
    error = await refused(audit.stub().Query(pb.QueryRequest(**request_)))
    assert error.reason is Reason.INVALID_FIELD
    assert error.violations[0].field == field
    found = await audit.entries(operation="entries.query", outcomes=[entry_pb2.OUTCOME_REFUSED])
    assert [one.reason for one in found] == ["INVALID_FIELD"]


async def test_a_page_token_is_of_its_filter(audit: Audit) -> None:
    await audit.append(frame(1, 5))
    request = pb.QueryRequest(service="broker")
    request.page.page_size = 2
    stub = audit.stub()
    token = (await stub.Query(request)).page.next_page_token
    other = pb.QueryRequest(service="registry")
    other.page.page_token = token
    error = await refused(stub.Query(other))
    assert "another filter" in error.message


# Tail.


async def received(tail: Any, count: int) -> list[Any]:
    found: list[Any] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            found += (await tail.read()).entries
    return found


async def first_read(tail: Any) -> Any:
    return await tail.read()


async def test_a_tail_starts_where_it_is_told_and_goes_on_live(audit: Audit) -> None:
    await audit.append(frame(1, 600))
    tail = audit.stub().Tail(pb.TailRequest(from_leaf_index=10))
    found = await received(tail, 590)
    assert [logged.leaf_index for logged in found[:590]] == list(range(10, 600))
    await audit.append(frame(601, 3))
    found = await received(tail, 3)
    assert {"message/601", "message/602", "message/603"} <= {one.entry.subject for one in found} | {
        one.entry.subject for one in await received(tail, 0)
    }
    tail.cancel()


async def test_a_tail_starts_at_the_end_unless_told(audit: Audit) -> None:
    await audit.append(frame(1, 5))
    await audit.entries()
    tail = audit.stub().Tail(pb.TailRequest())
    # It sees nothing that was there before, but soon the record of itself.
    found = await received(tail, 1)
    while found[-1].entry.operation != "entries.tail":
        found += await received(tail, 1)
    assert all(one.entry.service == "audit" for one in found)
    tail.cancel()


async def test_a_tail_of_one_collaboration_sees_nothing_else(audit: Audit) -> None:
    await audit.append(frame(1, 300, collaboration_id="c-1"), frame(301, 300))
    tail = audit.stub().Tail(pb.TailRequest(from_leaf_index=0, collaboration_id="c-1"))
    found = await received(tail, 300)
    await audit.append(frame(601, 2, collaboration_id="c-2"), frame(603, 2, collaboration_id="c-1"))
    found += await received(tail, 2)
    assert [one.entry.subject for one in found] == [f"message/{n}" for n in [*range(1, 301), 603, 604]]
    tail.cancel()


async def test_a_slow_tail_holds_up_nobody(audit: Audit) -> None:
    large = {f"key{n:02}": "v" * 1_000 for n in range(32)}
    tail = audit.stub().Tail(pb.TailRequest(from_leaf_index=0))
    for n in range(20):
        await audit.append(frame(1 + 25 * n, 25, attributes=large))
    # Nothing was read so far; everything is still there for it, in order.
    found = [one for one in await received(tail, 500) if one.entry.service == "broker"]
    assert [one.entry.subject for one in found] == [f"message/{n}" for n in range(1, len(found) + 1)]
    tail.cancel()


async def test_tails_are_bounded(start_audit: StartAudit, eventually: Eventually) -> None:
    audit = await start_audit(tails_max=1)
    first = audit.stub().Tail(pb.TailRequest(from_leaf_index=0))
    await received(first, 1)
    error = await refused(first_read(audit.stub().Tail(pb.TailRequest())))
    assert error.reason is Reason.QUOTA_EXCEEDED
    assert error.metadata["limit"] == "tails_max"
    first.cancel()

    async def free() -> bool:
        try:
            again = audit.stub().Tail(pb.TailRequest(from_leaf_index=0))
            await received(again, 1)
        except grpc.aio.AioRpcError:
            return False
        again.cancel()
        return True

    await eventually(free)


# Proofs.


async def test_each_entry_can_be_proved_in_each_tree(audit: Audit) -> None:
    await audit.append(frame(1, 300))
    await audit.entries()
    stub = audit.stub()
    newest = await checkpoint(audit)
    for index, size in ((0, 0), (299, 0), (0, 1), (5, 8), (255, 256), (256, 257)):
        proof = await stub.GetInclusionProof(pb.GetInclusionProofRequest(leaf_index=index, tree_size=size))
        assert proof.entry.leaf_index == proof.leaf_index == index
        assert proof.entry.entry.subject == f"message/{index + 1}"
        if size:
            assert proof.tree_size == size
        if proof.checkpoint:
            key = VerifierKey.parse((await stub.GetCheckpoint(pb.GetCheckpointRequest())).verifier_key)
            newest = verify_checkpoint(proof.checkpoint, key)
            verify_inclusion(proof.entry.leaf, index, list(proof.hashes), newest)
    assert newest.size >= 300


async def test_the_log_only_grows(audit: Audit) -> None:
    heads = [await checkpoint(audit)]
    for n in range(5):
        await audit.append(frame(1 + 100 * n, 100))
        await audit.entries()
        heads.append(await checkpoint(audit))
    stub = audit.stub()
    for old in heads:
        for new in heads[heads.index(old) :]:
            proof = await stub.GetConsistencyProof(
                pb.GetConsistencyProofRequest(old_tree_size=old.size, new_tree_size=new.size or 0)
            )
            if new.size:
                verify_consistency(old, new, list(proof.hashes))


@pytest.mark.parametrize(
    ("method", "request_", "reason", "field"),
    [
        ("GetInclusionProof", pb.GetInclusionProofRequest(leaf_index=10**6), Reason.ENTRY_NOT_FOUND, ""),
        (
            "GetInclusionProof",
            pb.GetInclusionProofRequest(leaf_index=5, tree_size=5),
            Reason.ENTRY_NOT_FOUND,
            "",
        ),
        (
            "GetInclusionProof",
            pb.GetInclusionProofRequest(leaf_index=0, tree_size=10**6),
            Reason.INVALID_FIELD,
            "tree_size",
        ),
        (
            "GetConsistencyProof",
            pb.GetConsistencyProofRequest(old_tree_size=1, new_tree_size=10**6),
            Reason.INVALID_FIELD,
            "new_tree_size",
        ),
        (
            "GetConsistencyProof",
            pb.GetConsistencyProofRequest(old_tree_size=8, new_tree_size=7),
            Reason.INVALID_FIELD,
            "old_tree_size",
        ),
        ("GetTile", pb.GetTileRequest(path="tile/0/001"), Reason.ENTRY_NOT_FOUND, ""),
        ("GetTile", pb.GetTileRequest(path="tile/0/000.p/255"), Reason.ENTRY_NOT_FOUND, ""),
        ("GetTile", pb.GetTileRequest(path="../log.key"), Reason.INVALID_FIELD, "path"),
        ("GetTile", pb.GetTileRequest(path="tile/entries/000.p/0"), Reason.INVALID_FIELD, "path"),
        ("GetTile", pb.GetTileRequest(path=""), Reason.INVALID_FIELD, "path"),
    ],
)
async def test_what_is_not_in_the_log_is_said(
    audit: Audit, method: str, request_: Any, reason: Reason, field: str
) -> None:
    await audit.append(frame(1, 10))
    await audit.entries()
    error = await refused(getattr(audit.stub(), method)(request_))
    assert error.reason is reason
    assert [one.field for one in error.violations] == ([field] if field else [])


async def test_tiles_of_older_widths_can_still_be_had(audit: Audit) -> None:
    await audit.append(frame(1, 300))
    await audit.entries()
    stub = audit.stub()
    full = (await stub.GetTile(pb.GetTileRequest(path="tile/0/000"))).data
    for width in (1, 17, 255):
        part = (await stub.GetTile(pb.GetTileRequest(path=f"tile/0/000.p/{width}"))).data
        assert part == full[: 32 * width]
    bundle = (await stub.GetTile(pb.GetTileRequest(path="tile/entries/000"))).data
    part = (await stub.GetTile(pb.GetTileRequest(path="tile/entries/000.p/3"))).data
    assert bundle.startswith(part)
    assert (await stub.GetTile(pb.GetTileRequest(path="tile/0/001.p/5"))).data == (
        (await stub.GetTile(pb.GetTileRequest(path="tile/0/001.p/7"))).data[: 5 * 32]
    )
    assert (await stub.GetTile(pb.GetTileRequest(path="checkpoint"))).data.startswith(
        b"muster.internal/audit\n"
    )


# Who may read what.

ALLOWED = {
    "Query": {"operator"},
    "Tail": {"operator"},
    "GetTile": {"operator"},
    "GetCheckpoint": {"operator", "service", "agent"},
    "GetConsistencyProof": {"operator", "service", "agent"},
    "GetInclusionProof": {"operator", "agent"},
}


@pytest.mark.parametrize("principal", ["operator/admin", "service/scheduler", "agent/field-1"])
async def test_reading_is_denied_by_default(audit: Audit, principal: str) -> None:
    await audit.append(frame(1, 5))
    await audit.entries()
    stub = audit.stub(principal)
    calls: dict[str, Callable[[], Any]] = {
        "Query": lambda: stub.Query(pb.QueryRequest()),
        "Tail": lambda: first_read(stub.Tail(pb.TailRequest(from_leaf_index=0))),
        "GetTile": lambda: stub.GetTile(pb.GetTileRequest(path="tile/entries/000.p/1")),
        "GetCheckpoint": lambda: stub.GetCheckpoint(pb.GetCheckpointRequest()),
        "GetConsistencyProof": lambda: stub.GetConsistencyProof(pb.GetConsistencyProofRequest()),
        "GetInclusionProof": lambda: stub.GetInclusionProof(pb.GetInclusionProofRequest(leaf_index=0)),
    }
    for method, call in calls.items():
        if principal.partition("/")[0] in ALLOWED[method]:
            await call()
        else:
            error = await refused(call())
            assert error.reason is Reason.ACCESS_DENIED
            assert error.metadata["method"] == f"{SERVICE}/{method}"


async def test_an_agent_proves_its_own_entries_only(audit: Audit) -> None:
    await audit.append(frame(1, 1, actor="agent/medic"), frame(2, 1, actor="agent/field-1"))
    await audit.entries()
    stub = audit.stub("agent/field-1")
    proof = await stub.GetInclusionProof(pb.GetInclusionProofRequest(leaf_index=1))
    verify_inclusion(proof.entry.leaf, 1, list(proof.hashes), await checkpoint_of(audit, proof))
    error = await refused(stub.GetInclusionProof(pb.GetInclusionProofRequest(leaf_index=0)))
    assert error.reason is Reason.ACCESS_DENIED
    assert "medic" not in error.message


async def checkpoint_of(audit: Audit, proof: Any) -> Any:
    response = await audit.stub().GetCheckpoint(pb.GetCheckpointRequest())
    return verify_checkpoint(proof.checkpoint, VerifierKey.parse(response.verifier_key))


# Reading is recorded.


async def test_each_query_is_recorded_with_its_filter(audit: Audit) -> None:
    await audit.entries(actor="agent/field-1", outcomes=[entry_pb2.OUTCOME_FAILED])
    recorded = await audit.entries(operation="entries.query")
    assert recorded[0].actor == "operator/admin"
    assert recorded[0].subject == "log/muster.internal/audit"
    assert recorded[0].attributes["actor"] == "agent/field-1"
    assert recorded[0].attributes["outcomes"] == "FAILED"
    assert recorded[0].attributes["found"] == "0"
    assert recorded[0].cause_id.startswith("rpc-")
    # One more for each page that was asked for.
    assert len(await audit.entries(operation="entries.query")) == 2


async def test_the_tiles_of_one_verification_are_few_entries(start_audit: StartAudit) -> None:
    audit = await start_audit(read_window_ms=200)
    await audit.append(frame(1, 1_000))
    await audit.entries()
    await audit.verify()
    await audit.verify()
    await audit.stop()
    await audit.start()
    found = await audit.entries(operation="bundle.read")
    assert found[0].actor == "operator/admin"
    assert found[0].subject == "tile/entries/000"
    assert 2 <= len(found) <= 6
    repeated = sum(int(one.attributes.get("repeated", "1")) for one in found)
    assert repeated == 8
    assert "last_subject" in found[1].attributes


async def test_proofs_are_recorded(audit: Audit) -> None:
    await audit.append(frame(1, 2))
    await audit.entries()
    await audit.stub().GetInclusionProof(pb.GetInclusionProofRequest(leaf_index=1))
    (recorded,) = await audit.entries(operation="entry.prove")
    assert recorded.subject == "entry/1"


async def test_asking_again_and_again_for_what_is_denied_does_not_fill_the_log(audit: Audit) -> None:
    stub = audit.stub("agent/field-1")
    for _ in range(50):
        await refused(stub.Query(pb.QueryRequest()))
        await refused(stub.GetConsistencyProof(pb.GetConsistencyProofRequest(old_tree_size=10**6)))
    await audit.stop()
    await audit.start()
    for operation, reason in (("access.refuse", "ACCESS_DENIED"), ("consistency.prove", "INVALID_FIELD")):
        first, others = await audit.entries(operation=operation, actor="agent/field-1")
        assert first.reason == others.reason == reason
        assert first.outcome == others.outcome == entry_pb2.OUTCOME_REFUSED
        assert others.attributes["repeated"] == "49"
