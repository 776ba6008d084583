"""Who may do what: every hop is mTLS, identity comes from the certificate, the default is no."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from muster.registry.v1 import registry_service_pb2 as pb
from muster.registry.v1 import registry_service_pb2_grpc as pb_grpc

from services.common.core.errors import Reason
from services.common.rpc.channel import service_dns_name
from tests.conftest import Certificates
from tests.integration.registry.conftest import Plane, Session, refused


async def test_another_agents_name_is_refused(plane: Plane) -> None:
    app = await plane.start()
    session = plane.session(app.address, "a-agent")
    with refused() as errors:
        await session.open(agent_id="b-agent")
    assert errors[0].reason is Reason.IDENTITY_MISMATCH
    stub = plane.stub(app.address)
    with refused() as errors:
        await stub.GetAgent(pb.GetAgentRequest(agent_id="b-agent"))
    assert errors[0].reason is Reason.AGENT_NOT_FOUND
    # One's own may be said.
    assert (await plane.session(app.address, "a-agent").open(agent_id="a-agent")).incarnation == 1


async def test_a_foreign_authority_is_not_even_heard(plane: Plane, tmp_path: Path) -> None:
    app = await plane.start()
    foreign = Certificates(tmp_path / "foreign")
    certificate, key = foreign.issue("agent/a-agent")
    credentials = grpc.ssl_channel_credentials(
        plane.certificates.ca_path.read_bytes(), key.read_bytes(), certificate.read_bytes()
    )
    assert await code_of(app.address, credentials) is grpc.StatusCode.UNAVAILABLE


async def test_without_a_certificate_nobody_is_heard(plane: Plane) -> None:
    app = await plane.start()
    credentials = grpc.ssl_channel_credentials(plane.certificates.ca_path.read_bytes())
    assert await code_of(app.address, credentials) is grpc.StatusCode.UNAVAILABLE


async def test_a_registry_with_a_foreign_certificate_is_not_spoken_to(plane: Plane, tmp_path: Path) -> None:
    app = await plane.start()
    foreign = Certificates(tmp_path / "foreign")
    certificate, key = foreign.issue("agent/a-agent")
    credentials = grpc.ssl_channel_credentials(
        foreign.ca_path.read_bytes(), key.read_bytes(), certificate.read_bytes()
    )
    assert await code_of(app.address, credentials) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("principal", "method", "allowed"),
    [
        ("operator/admin", "Session", False),
        ("service/scheduler", "Session", False),
        ("agent/a-agent", "WatchAgents", False),
        ("service/scheduler", "WatchAgents", True),
        ("operator/admin", "WatchAgents", True),
        ("agent/a-agent", "ListAgents", True),
        ("agent/a-agent", "ListServices", True),
        ("service/broker", "ListAgents", True),
    ],
)
async def test_the_table_of_access(plane: Plane, principal: str, method: str, allowed: bool) -> None:
    app = await plane.start()
    channel = plane.channel(app.address, principal)
    stub: Any = pb_grpc.RegistryServiceStub(channel)
    if method == "Session":
        error = await Session(channel).error()
        assert error is not None
        assert error.reason is Reason.ACCESS_DENIED
        return
    request = getattr(pb, f"{method}Request")()
    call = getattr(stub, method)(request)
    if not allowed:
        with refused() as errors:
            await call.read()
        assert errors[0].reason is Reason.ACCESS_DENIED
        assert errors[0].metadata["identity"] == principal
    elif method == "WatchAgents":
        assert (await call.read()).snapshot_complete
        call.cancel()
    else:
        await call


async def code_of(address: str, credentials: grpc.ChannelCredentials) -> grpc.StatusCode:
    """Return with which code a session fails over a channel of these credentials."""
    options = [("grpc.ssl_target_name_override", service_dns_name("registry"))]
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        session = Session(channel)
        try:
            while True:
                await session.call.read()
        except grpc.aio.AioRpcError as error:
            return error.code()
