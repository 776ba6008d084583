"""Identities from certificates: what is one, what is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import AGENT_ID
from services.common.identity import Principal, parse_spiffe_id, principal_from_context, spiffe_id


class Context:
    def __init__(self, *names: bytes, version: bytes = b"TLSv1.3") -> None:
        self.facts = {"x509_subject_alternative_name": list(names), "ssl_tls_version": [version]}

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return self.facts


@given(kind=st.sampled_from(["agent", "service", "operator"]), name=st.from_regex(AGENT_ID, fullmatch=True))
def test_round_trip(kind: str, name: str) -> None:
    principal = Principal(kind, name)
    assert parse_spiffe_id(spiffe_id(principal)) == principal
    assert str(principal) == f"{kind}/{name}"


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    for uri in (text, f"spiffe://muster.internal/{text}", f"spiffe://muster.internal/agent/{text}"):
        principal = parse_spiffe_id(uri)
        assert principal is None or spiffe_id(principal) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://other.example/agent/x",
        "spiffe://muster.internal.evil.example/agent/x",
        "spiffe://muster.internal/agent",
        "spiffe://muster.internal/agent/",
        "spiffe://muster.internal/agent/x/y",
        "spiffe://muster.internal/agent/X",
        "spiffe://muster.internal/agent/x\n",
        "spiffe://muster.internal/root/x",
        "https://muster.internal/agent/x",
    ],
)
def test_what_is_no_identity(uri: str) -> None:
    assert parse_spiffe_id(uri) is None


def test_the_trust_domain_is_configurable() -> None:
    context = Context(b"spiffe://plane.example/operator/admin", b"localhost")
    assert str(principal_from_context(context, "plane.example")) == "operator/admin"


@pytest.mark.parametrize(
    "context",
    [
        Context(),
        Context(b"localhost"),
        Context(b"spiffe://muster.internal/agent/a", b"spiffe://muster.internal/agent/b"),
        Context(b"spiffe://muster.internal/agent/a", b"spiffe://other.example/agent/a"),
        Context(b"\xff\xfe"),
        Context(b"spiffe://muster.internal/agent/a", version=b"TLSv1.2"),
    ],
    ids=["none", "dns", "two", "two domains", "bytes", "old tls"],
)
def test_a_peer_without_one_identity_is_refused(context: Context) -> None:
    with pytest.raises(ServiceError) as raised:
        principal_from_context(context)
    assert raised.value.reason is Reason.IDENTITY_MISSING
