"""Who is at the other end: a peer's certificate as a `Principal`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import AGENT_ID

TRUST_DOMAIN = "muster.internal"
KINDS = frozenset({"agent", "service", "operator"})
_SAN = "x509_subject_alternative_name"


@dataclass(frozen=True, slots=True)
class Principal:
    """An identity from a certificate: `kind` is "agent", "service" or "operator"."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


class HasAuthContext(Protocol):
    """The part of a gRPC servicer context that says who called."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return the transport's facts about the peer."""
        ...


def spiffe_id(principal: Principal, trust_domain: str = TRUST_DOMAIN) -> str:
    """Return the SPIFFE ID that a certificate of `principal` carries."""
    return f"spiffe://{trust_domain}/{principal}"


def parse_spiffe_id(uri: str, trust_domain: str = TRUST_DOMAIN) -> Principal | None:
    """Return the identity in a SPIFFE ID; None when it is of another trust domain or shape."""
    prefix = f"spiffe://{trust_domain}/"
    if not uri.startswith(prefix):
        return None
    kind, _, name = uri.removeprefix(prefix).partition("/")
    if kind not in KINDS or AGENT_ID.match(name) is None:
        return None
    return Principal(kind, name)


def principal_from_context(context: HasAuthContext, trust_domain: str = TRUST_DOMAIN) -> Principal:
    """Return who called, from the certificate that the TLS handshake verified.

    Raises IDENTITY_MISSING when it holds no Muster identity, or more than one SPIFFE ID (X.509-SVID, section
    2: exactly one URI SAN).
    """
    facts = context.auth_context()
    if any(version != b"TLSv1.3" for version in facts.get("ssl_tls_version", ())):
        raise ServiceError(Reason.IDENTITY_MISSING, "this plane speaks TLS 1.3 only: upgrade the client")
    names = [raw.decode("utf-8", "replace") for raw in facts.get(_SAN, ())]
    uris = [name for name in names if name.startswith("spiffe://")]
    if len(uris) == 1 and (principal := parse_spiffe_id(uris[0], trust_domain)) is not None:
        return principal
    raise ServiceError(
        Reason.IDENTITY_MISSING,
        f"the certificate must carry one URI SAN spiffe://{trust_domain}/<agent|service|operator>/<name>: "
        "ask the operator for a certificate of this plane",
    )
