"""The development authorities: what they sign, for whom, and what they refuse."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from services.common.identity import Principal
from services.common.testing.clock import FakeClock
from services.common.tls import TlsIdentity
from services.local.certs import CertificateError, PlaneCertificates

DAY_MS = 24 * 3_600 * 1_000


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def certificates(tmp_path: Path, clock: FakeClock) -> PlaneCertificates:
    made = PlaneCertificates(tmp_path / "plane", clock=clock)
    made.prepare(("registry",))
    return made


def leaf(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def names(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    """Return (URIs, DNS names)."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [], []
    return (
        found.get_values_for_type(x509.UniformResourceIdentifier),
        found.get_values_for_type(x509.DNSName),
    )


def test_identities_are_those_of_the_plane(certificates: PlaneCertificates) -> None:
    registry = leaf(certificates.service_pair("registry")[0])
    assert names(registry) == (
        ["spiffe://muster.internal/service/registry"],
        ["registry.muster.internal", "localhost"],
    )
    admin = leaf(certificates.operator_pair()[0])
    assert names(admin) == (["spiffe://muster.internal/operator/admin"], [])
    certificate, key = certificates.issue(Principal("agent", "s-agent"))
    assert names(leaf(certificate)) == (["spiffe://muster.internal/agent/s-agent"], [])
    # What was written can be used.
    identity = TlsIdentity(certificates.ca, certificate, key)
    assert identity.principal == Principal("agent", "s-agent")


def test_etcd_has_an_authority_and_identities_of_its_own(certificates: PlaneCertificates) -> None:
    plane, etcd = leaf(certificates.ca), leaf(certificates.etcd_server().ca)
    assert plane.public_key() != etcd.public_key()
    for tls in (certificates.etcd_client("registry"), certificates.etcd_client()):
        client = leaf(tls.certificate)
        client.verify_directly_issued_by(etcd)
        assert names(client) == ([], [])
    server = leaf(certificates.etcd_server().certificate)
    server.verify_directly_issued_by(etcd)
    assert "etcd.muster.internal" in names(server)[1]
    # See services/__init__.py: the one server that may be spoken to in TLS 1.2.
    assert isinstance(server.public_key(), rsa.RSAPublicKey)
    assert isinstance(leaf(certificates.service_pair("registry")[0]).public_key(), ec.EllipticCurvePublicKey)


def test_keys_are_for_their_owner_only(certificates: PlaneCertificates) -> None:
    keys = list(certificates.directory.rglob("*.key"))
    assert len(keys) == 7
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
    folders = [certificates.directory, *(path for path in certificates.directory.rglob("*") if path.is_dir())]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}


def test_a_second_start_keeps_what_is_good(certificates: PlaneCertificates, clock: FakeClock) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in certificates.directory.rglob("*.*") if path.is_file()}

    before = contents()
    clock.advance(DAY_MS)
    certificates.prepare(("registry",))
    assert contents() == before


def test_what_is_about_to_end_is_replaced(certificates: PlaneCertificates, clock: FakeClock) -> None:
    path = certificates.service_pair("registry")[0]
    old, authority = leaf(path), certificates.ca.read_bytes()
    clock.advance(350 * DAY_MS)
    certificates.prepare(("registry",))
    assert leaf(path).not_valid_after_utc - old.not_valid_after_utc > timedelta(days=300)
    assert certificates.ca.read_bytes() == authority


def test_a_foreign_or_broken_certificate_is_replaced(certificates: PlaneCertificates, tmp_path: Path) -> None:
    path = certificates.service_pair("registry")[0]
    other = PlaneCertificates(tmp_path / "other")
    other.prepare(("registry",))
    for content in (b"nonsense", other.service_pair("registry")[0].read_bytes()):
        path.write_bytes(content)
        certificates.prepare(("registry",))
        leaf(path).verify_directly_issued_by(leaf(certificates.ca))


def test_an_authority_is_never_remade_by_accident(certificates: PlaneCertificates) -> None:
    certificates.ca.with_suffix(".key").unlink()
    with pytest.raises(CertificateError, match=r"ca\.key is missing"):
        certificates.prepare(("registry",))


def test_nothing_is_issued_before_there_is_a_plane(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="start the plane"):
        PlaneCertificates(tmp_path).issue(Principal("agent", "a"))


@pytest.mark.parametrize("name", ["", "A", "a/b", "../x", "-a", "a" * 65])
def test_names_that_are_none_are_refused(certificates: PlaneCertificates, name: str) -> None:
    with pytest.raises(CertificateError, match="is no name"):
        certificates.issue(Principal("agent", name))
