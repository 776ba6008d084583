"""What is wrong with the own certificate is said here: a server only closes the connection."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from agent_client.context import Context, Identity
from agent_client.errors import ContextError
from agent_client.tls import Dialer
from services.common.certificates import create_authority, write_credential
from services.common.identity import Principal, spiffe_id
from tests.conftest import Certificates


def dialer(certificates: Certificates, certificate: Path, key: Path) -> Dialer:
    context = Context(
        home=certificates.folder,
        registry=("127.0.0.1:1",),
        trust_domain="muster.internal",
        ca=certificates.ca_path,
        operator_certificate=certificate,
        operator_key=key,
        agents_directory=certificates.folder / "agent",
    )
    return Dialer(context, Identity("agent/field-1", certificate, key))


async def test_a_certificate_of_this_plane_is_used(certificates: Certificates) -> None:
    channel = await dialer(certificates, *certificates.issue("agent/field-1")).open("registry", "127.0.0.1:1")
    await channel.close(None)


async def test_a_certificate_of_another_plane_is_named(certificates: Certificates, tmp_path: Path) -> None:
    foreign = create_authority("somebody else").issue(spiffe_id(Principal("agent", "field-1")))
    files = write_credential(tmp_path, "field-1", foreign)
    with pytest.raises(
        ContextError, match=r"field-1\.crt was not issued .* `muster agents enroll field-1"
    ) as caught:
        await dialer(certificates, *files).open("registry", "127.0.0.1:1")
    assert (caught.value.reason, caught.value.retryable) == ("FOREIGN_CERTIFICATE", False)


async def test_a_certificate_that_has_expired_is_named(certificates: Certificates, tmp_path: Path) -> None:
    principal = spiffe_id(Principal("agent", "field-1"))
    expired = certificates.authority.issue(principal, [], [], timedelta(seconds=-1))
    files = write_credential(tmp_path, "field-1", expired)
    with pytest.raises(ContextError, match=r"is valid from .* look at the clock") as caught:
        await dialer(certificates, *files).open("registry", "127.0.0.1:1")
    # It may be renewed, or the clock set, while an agent runs.
    assert (caught.value.reason, caught.value.retryable) == ("CERTIFICATE_NOT_VALID", True)


async def test_what_is_no_certificate_is_named(certificates: Certificates, tmp_path: Path) -> None:
    wrong = tmp_path / "field-1.crt"
    wrong.write_text("certificate")
    with pytest.raises(ContextError, match=r"field-1\.crt is not a PEM certificate") as caught:
        await dialer(certificates, wrong, wrong).open("registry", "127.0.0.1:1")
    assert caught.value.reason == "NO_CERTIFICATE"
