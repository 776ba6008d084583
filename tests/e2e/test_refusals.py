"""Whom and what a running plane refuses: strangers, impostors, bad submissions; it stays whole through it.

All tests share one plane. The last one looks at what the others left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from muster.audit.v1 import audit_service_pb2 as audit_pb
from muster.audit.v1 import entry_pb2
from muster.broker.v1 import broker_service_pb2 as broker_pb
from muster.common.v1 import envelope_pb2, payload_pb2
from muster.registry.v1 import agent_pb2
from muster.registry.v1 import registry_service_pb2 as registry_pb
from muster.scheduler.v1 import collaboration_pb2, task_pb2
from muster.scheduler.v1 import scheduler_service_pb2 as scheduler_pb

from agent_client import (
    AccessError,
    Client,
    ContextError,
    InvalidRequestError,
    MusterError,
    NotFoundError,
    PreconditionError,
    RequestReusedError,
)
from services.common.certificates import create_authority, load_authority, write_credential
from services.common.core.errors import Reason
from services.common.identity import Principal, spiffe_id
from services.common.rpc.status import from_rpc_error, from_status
from services.common.tls import TlsIdentity
from tests.e2e.raw_calls import (
    PACKAGES,
    PATIENCE_S,
    REPLICAS,
    UPDATE,
    answer_with,
    channel,
    invoke,
    leader,
    mailbox_hello,
    methods,
    refusal,
    service_of,
    stream_end,
    stub,
)
from tests.e2e.wholeness import Usage, assert_whole, task, usage
from tests.harness.launched import Launched, launched_plane

Eventually = Callable[..., Awaitable[None]]

pytestmark = pytest.mark.timeout(60)

# What a client of HTTP/2 begins with: the magic and an empty SETTINGS frame.
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    with launched_plane(tmp_path_factory.mktemp("plane")) as launched:
        yield launched


@pytest.fixture(scope="module")
def before(plane: Launched) -> Usage:
    return usage(plane)


@pytest.fixture(autouse=True)
def _measured_first(before: Usage) -> None:
    """See that every test comes after the first measurement."""


# Strangers: no certificate, another authority's, none of Muster's names in it.


@pytest.mark.parametrize("replica", REPLICAS)
def test_strangers_do_not_get_through_the_handshake(plane: Launched, replica: str, tmp_path: Path) -> None:
    foreign = create_authority("somebody else").issue(spiffe_id(Principal("operator", "admin")))
    known = (plane.home / "operators" / "admin.crt", plane.home / "operators" / "admin.key")
    assert answer_of_http2(plane, replica, known) != b""
    assert answer_of_http2(plane, replica, write_credential(tmp_path, "admin", foreign)) == b""
    assert answer_of_http2(plane, replica, None) == b""


def answer_of_http2(plane: Launched, replica: str, files: tuple[Path, Path] | None) -> bytes:
    """Return the first bytes with which a server answers HTTP/2 over TLS; none when it closes at once."""
    context = ssl.create_default_context(cafile=str(plane.home / "ca.crt"))
    context.set_alpn_protocols(["h2"])
    if files is not None:
        context.load_cert_chain(*files)
    host, _, port = plane.addresses[replica].partition(":")
    name = f"{service_of(replica)}.muster.internal"
    with contextlib.suppress(ssl.SSLError, ConnectionError), contextlib.ExitStack() as stack:
        raw = stack.enter_context(socket.create_connection((host, int(port)), PATIENCE_S))
        wrapped = stack.enter_context(context.wrap_socket(raw, server_hostname=name))
        # In TLS 1.3 a client hears only now that the server did not accept its certificate.
        wrapped.sendall(HTTP2_PREFACE)
        return wrapped.recv(64)
    return b""


@pytest.mark.parametrize("replica", REPLICAS)
async def test_a_client_of_another_authority_gets_no_call_through(
    plane: Launched, replica: str, tmp_path: Path
) -> None:
    foreign = create_authority("somebody else").issue(spiffe_id(Principal("operator", "admin")))
    stranger = TlsIdentity(plane.home / "ca.crt", *write_credential(tmp_path, "admin", foreign))
    async with channel(plane, replica, stranger) as opened:
        for method in methods(replica):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(invoke(opened, method), PATIENCE_S)
            # No service hears of it, so that it is the connection that fails.
            assert from_rpc_error(caught.value).reason is Reason.PEER_SILENT


async def test_the_library_says_that_it_is_a_stranger(plane: Launched, tmp_path: Path) -> None:
    foreign = create_authority("somebody else").issue(spiffe_id(Principal("operator", "admin")))
    write_credential(tmp_path, "admin", foreign)
    context = json.loads((plane.home / "context.json").read_text(encoding="utf-8"))
    context["ca"] = str(plane.home / "ca.crt")
    context["operator"] = {"certificate": "admin.crt", "key": "admin.key"}
    (tmp_path / "context.json").write_text(json.dumps(context))
    async with Client(home=tmp_path, patience=1) as client:
        with pytest.raises(ContextError, match="not issued by the authority of this plane") as caught:
            await client.agents()
    assert caught.value.reason == "FOREIGN_CERTIFICATE"


@pytest.mark.parametrize("uri", ["spiffe://elsewhere.example/operator/admin", ""])
async def test_a_certificate_that_names_nobody_of_this_plane(
    plane: Launched, tmp_path: Path, uri: str
) -> None:
    authority = load_authority((plane.home / "ca.crt").read_bytes(), (plane.home / "ca.key").read_bytes())
    nobody = TlsIdentity(plane.home / "ca.crt", *write_credential(tmp_path, "nobody", authority.issue(uri)))
    for replica in REPLICAS:
        async with channel(plane, replica, nobody) as opened:
            for method in methods(replica):
                error = await refusal(invoke(opened, method))
                assert error.reason is Reason.IDENTITY_MISSING, method
                assert "one URI SAN spiffe://muster.internal/" in error.message


# Known people who ask for what is not theirs.


@pytest.mark.parametrize(
    ("who", "denied"),
    [
        (
            "agent/curious",
            {
                "registry": {"WatchAgents"},
                "broker": set(),
                "scheduler": set(),
                "audit": {"Append", "Query", "Tail", "GetTile"},
            },
        ),
        (
            "operator/admin",
            {"registry": {"Session"}, "broker": set(), "scheduler": {"Work"}, "audit": {"Append"}},
        ),
        (
            "service/broker",
            {
                "registry": {"Session"},
                "broker": {"Mailbox", "GetMailbox", "ListDeadLetters"},
                "scheduler": {"SubmitCollaboration", "Submit", "CancelCollaboration", "Work"},
                "audit": {"Query", "Tail", "GetTile", "GetInclusionProof"},
            },
        ),
    ],
)
async def test_a_method_that_is_not_for_this_kind(
    plane: Launched, who: str, denied: Mapping[str, set[str]]
) -> None:
    for replica in REPLICAS:
        async with channel(plane, replica, who) as opened:
            for method in methods(replica):
                if method.rpartition("/")[2] not in denied[service_of(replica)]:
                    continue
                error = await refusal(invoke(opened, method))
                assert error.reason is Reason.ACCESS_DENIED, method
                assert error.metadata["identity"] == who
                assert error.metadata["method"] == method.removeprefix("/")


async def test_a_refused_call_is_in_the_log(plane: Launched, eventually: Eventually) -> None:
    async with channel(plane, "registry-1", "agent/recorded") as opened:
        await refusal(invoke(opened, "/muster.registry.v1.RegistryService/WatchAgents"))

    async with channel(plane, "audit-1", "operator/admin") as opened:
        query = audit_pb.QueryRequest(actor="agent/recorded", operation="access.refuse")

        async def recorded() -> object:
            answer = await stub("audit", opened).Query(query)
            return [one.entry.reason for one in answer.entries] == ["ACCESS_DENIED"]

        await eventually(recorded)


async def test_an_agent_speaks_for_itself_only(plane: Launched) -> None:
    async with channel(plane, "registry-1", "agent/impostor") as opened:
        hello = registry_pb.SessionHello(versions=[1], agent_id="victim", skills=[agent_pb2.Skill(name="s")])
        error = await stream_end(stub("registry", opened).Session(), registry_pb.SessionRequest(hello=hello))
        assert error.reason is Reason.IDENTITY_MISMATCH

    async with channel(plane, "broker-1", "agent/impostor") as opened:
        calls = stub("broker", opened)
        error = await refusal(calls.GetMailbox(broker_pb.GetMailboxRequest(agent_id="victim")))
        assert error.reason is Reason.ACCESS_DENIED
        error = await refusal(calls.ListDeadLetters(broker_pb.ListDeadLettersRequest(agent_id="victim")))
        assert error.reason is Reason.ACCESS_DENIED
        stream = calls.Mailbox()
        await stream.write(mailbox_hello())
        envelope = envelope_pb2.Envelope(
            message_id="m-1", sender_id="victim", receiver_id="impostor", message_type=UPDATE
        )
        await stream.write(broker_pb.MailboxRequest(sends=[envelope]))
        outcome = await answer_with(stream, "accepted")
        assert from_status(outcome.accepted[0].error).reason is Reason.IDENTITY_MISMATCH
        stream.cancel()


async def test_an_agent_sees_and_cancels_its_own_collaborations_only(plane: Launched) -> None:
    async with Client(home=plane.home) as client:
        collaboration = await client.submit({"tasks": [task("a", skill="nobody-has-it")]})
        plane.tls("agent/curious")
        async with Client(home=plane.home, agent="curious") as curious:
            for call in (
                curious.get(collaboration.id),
                curious.cancel(collaboration.id),
                anext(curious.watch(collaboration.id)),
            ):
                with pytest.raises(AccessError) as refused:
                    await call
                assert refused.value.reason == "ACCESS_DENIED"
            assert await curious.collaborations() == []
        assert (await collaboration.cancel("done with it")).final


async def test_a_service_appends_in_its_own_name_only(plane: Launched, eventually: Eventually) -> None:
    entry = entry_pb2.Entry(
        entry_id="scheduler/scheduler-1/forged.1",
        service="scheduler",
        replica_id="forger",
        actor="operator/admin",
        operation="forged.entry",
        subject="log/it",
        outcome=entry_pb2.OUTCOME_OK,
    )
    entry.event_time.GetCurrentTime()
    async with channel(plane, "audit-1", "service/broker") as opened:
        stream = stub("audit", opened).Append()
        await stream.write(
            audit_pb.AppendRequest(first_sequence_number=1, entries=[entry], spool_id="forged")
        )
        answer = await asyncio.wait_for(stream.read(), PATIENCE_S)
        stream.cancel()
    async with channel(plane, "audit-1", "operator/admin") as opened:
        found = await stub("audit", opened).Query(audit_pb.QueryRequest(operation="forged.entry"))
    # Either refused, or logged as what it is.
    services = {one.entry.service for one in found.entries}
    assert (answer.HasField("error") and not services) or services == {"broker"}


# Bad submissions.


async def refused_submission(plane: Launched, spec: Any, request_id: str | None = None) -> MusterError:
    async with Client(home=plane.home) as client:
        with pytest.raises(MusterError) as caught:
            await client.submit(spec, request_id=request_id)
    assert caught.value.definite
    return caught.value


async def test_a_cycle_is_named(plane: Launched) -> None:
    tasks = [task("a", "c"), task("b", "a"), task("c", "b"), task("d", "c")]
    error = await refused_submission(plane, {"tasks": tasks})
    assert isinstance(error, InvalidRequestError)
    assert error.reason == "CYCLIC_DEPENDENCY"
    named = error.metadata["cycle"].split(" -> ")
    assert (set(named), len(named), named[0]) == ({"a", "b", "c"}, 4, named[-1])
    assert ".dependencies[" in error.violations[0].field


async def test_an_unknown_skill_is_refused_or_waited_for_as_the_requester_wants(plane: Launched) -> None:
    spec = {"tasks": [task("a", skill="levitation")]}
    error = await refused_submission(plane, spec | {"unknown_skill_policy": "FAIL"})
    assert isinstance(error, PreconditionError)
    assert (error.reason, error.metadata["skills"]) == ("UNKNOWN_SKILL", "levitation")
    async with Client(home=plane.home) as client:
        collaboration = await client.submit(spec | {"unknown_skill_policy": "WAIT"})
        (warning,) = collaboration.warnings
        assert "levitation" in warning
        (waiting,) = (await collaboration.info()).tasks
        assert "levitation" in waiting.waiting_for
        await collaboration.cancel()


async def test_deadlines_that_can_not_be_met(plane: Launched) -> None:
    past = await refused_submission(plane, {"tasks": [task("a", deadline="2020-01-01T00:00:00Z")]})
    assert (past.reason, past.violations[0].field) == ("DEADLINE_IN_PAST", "collaboration.tasks[0].deadline")
    assert past.metadata["deadline"].startswith("2020-01-01T00:00:00")
    chain = [task("a", estimated_duration=40), task("b", "a", estimated_duration=40)]
    error = await refused_submission(plane, {"tasks": chain, "deadline": timedelta(seconds=60)})
    assert (error.reason, error.violations[0].field) == ("DEADLINE_IMPOSSIBLE", "collaboration.deadline")
    assert error.metadata["needed_ms"] == "80000"
    assert 50_000 < int(error.metadata["left_ms"]) <= 60_000


async def test_payloads_that_are_too_large(plane: Launched) -> None:
    large = payload_pb2.Payload(content_type="application/octet-stream", data=bytes(65_537))
    spec = collaboration_pb2.CollaborationSpec(
        tasks=[task_pb2.TaskSpec(task_id="a", required_skills=["work"], payload=large)]
    )
    error = await refused_submission(plane, spec)
    assert (error.reason, error.metadata["limit_bytes"], error.metadata["size_bytes"]) == (
        "PAYLOAD_TOO_LARGE",
        "65536",
        "65537",
    )
    assert error.violations[0].field == "collaboration.tasks[0].payload.data"
    # The library says the same before anything travels.
    error = await refused_submission(plane, {"tasks": [task("a", payload=bytes(65_537))]})
    assert (error.reason, error.metadata["size_bytes"]) == ("PAYLOAD_TOO_LARGE", "65537")
    assert error.violations[0].field == "collaboration.tasks[0].payload"
    # More than a message may have at all.
    spec.tasks[0].payload.data = bytes(5 * 1024**2)
    async with channel(plane, await leader(plane), "operator/admin") as opened:
        request = scheduler_pb.SubmitCollaborationRequest(request_id="huge", collaboration=spec)
        raw = opened.unary_unary(f"/{PACKAGES['scheduler']}/SubmitCollaboration")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw(request.SerializeToString())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_message_that_is_too_large_or_has_no_receiver(plane: Launched) -> None:
    async with channel(plane, "broker-1", "operator/admin") as opened:
        stream = stub("broker", opened).Mailbox()
        await stream.write(mailbox_hello())
        sends = [
            envelope_pb2.Envelope(message_id="m-1", receiver_id="nobody", message_type=UPDATE),
            envelope_pb2.Envelope(message_id="m-2", receiver_id="nobody"),
            envelope_pb2.Envelope(message_id="m-3", receiver_id="nobody", message_type=UPDATE),
        ]
        sends[2].payload.data = bytes(65_537)
        await stream.write(broker_pb.MailboxRequest(sends=sends))
        outcomes: list[Any] = []
        while len(outcomes) < len(sends):
            outcomes += (await answer_with(stream, "accepted")).accepted
        stream.cancel()
    reasons = {one.message_id: from_status(one.error).reason for one in outcomes}
    assert reasons == {
        "m-1": Reason.AGENT_NOT_FOUND,
        "m-2": Reason.INVALID_FIELD,
        "m-3": Reason.PAYLOAD_TOO_LARGE,
    }


async def test_a_request_id_means_one_submission(plane: Launched) -> None:
    spec = {"name": "once", "tasks": [task("a", skill="nobody-has-it")]}
    async with Client(home=plane.home) as client:
        first = await client.submit(spec, request_id="r-once")
        again = await client.submit(spec, request_id="r-once")
        assert (again.id, again.already_accepted, first.already_accepted) == (first.id, True, False)
        error = await refused_submission(plane, spec | {"name": "twice"}, "r-once")
        assert isinstance(error, RequestReusedError)
        assert error.reason == "REQUEST_ID_REUSED"
        assert (await first.info()).name == "once"
        await first.cancel()
        with pytest.raises(NotFoundError):
            await client.get("c-nowhere")


# What is left.


async def test_the_plane_is_whole_after_all_this(
    plane: Launched, before: Usage, eventually: Eventually
) -> None:
    await assert_whole(plane, before, eventually)
