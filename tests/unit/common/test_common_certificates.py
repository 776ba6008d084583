"""Issued certificates: names, limits, requests, files."""

from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from services.common.certificates import (
    Authority,
    create_authority,
    load_authority,
    write_authority,
    write_credential,
    write_private,
)
from services.common.clock import to_datetime
from services.common.core.errors import Reason, ServiceError
from services.common.testing.clock import FakeClock

AGENT = "spiffe://muster.internal/agent/field-1"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return create_authority("test", clock=FakeClock())


def names(certificate_pem: bytes) -> x509.SubjectAlternativeName:
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def request(key: object, common_name: str = "admin", alternative: str = "") -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    )
    if alternative:
        uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(alternative)])
        builder = builder.add_extension(uri, critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    csr = builder.sign(key, algorithm)  # type: ignore[arg-type]
    return csr.public_bytes(serialization.Encoding.PEM)


def test_a_leaf_carries_its_names_and_can_sign_nothing(authority: Authority) -> None:
    credential = authority.issue(
        "spiffe://muster.internal/service/registry", ["registry.muster.internal"], ["127.0.0.1", "::1"]
    )
    leaf = x509.load_pem_x509_certificate(credential.certificate_pem)
    found = names(credential.certificate_pem)
    assert found.get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://muster.internal/service/registry"
    ]
    assert found.get_values_for_type(x509.DNSName) == ["registry.muster.internal"]
    assert [str(one) for one in found.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate_pem))


def test_lifetimes(authority: Authority) -> None:
    now = to_datetime(FakeClock().now())
    root = x509.load_pem_x509_certificate(authority.certificate_pem)
    short = x509.load_pem_x509_certificate(
        authority.issue(AGENT, lifetime=timedelta(hours=1)).certificate_pem
    )
    assert short.not_valid_before_utc < now.replace(microsecond=0)
    assert short.not_valid_after_utc == (now + timedelta(hours=1)).replace(microsecond=0)
    long = x509.load_pem_x509_certificate(
        authority.issue(AGENT, lifetime=timedelta(days=99_999)).certificate_pem
    )
    assert long.not_valid_after_utc == root.not_valid_after_utc


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65_537, 2_048)],
    ids=["ec", "rsa"],
)
def test_a_request_gives_its_key_and_nothing_else(
    authority: Authority, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
) -> None:
    """An agent that writes an operator's name into its request gets its own."""
    wish = "spiffe://muster.internal/operator/admin"
    pem = authority.issue_for_csr(request(key, alternative=wish), AGENT)
    assert names(pem).get_values_for_type(x509.UniformResourceIdentifier) == [AGENT]
    leaf = x509.load_pem_x509_certificate(pem)
    assert leaf.public_key() == key.public_key()
    assert leaf.subject.rfc4514_string() == "CN=field-1"


def _with_a_foreign_signature() -> bytes:
    """A request whose key is not the one that signed it."""
    good = request(ec.generate_private_key(ec.SECP256R1()))
    other = request(ec.generate_private_key(ec.SECP256R1()))
    der = x509.load_pem_x509_csr(good).public_bytes(serialization.Encoding.DER)
    body = x509.load_pem_x509_csr(good).tbs_certrequest_bytes
    foreign = x509.load_pem_x509_csr(other).tbs_certrequest_bytes
    mixed = x509.load_der_x509_csr(der.replace(body, foreign))
    return mixed.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    "csr",
    [
        b"",
        b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        b"x" * 20_000,
        request(ed25519.Ed25519PrivateKey.generate()),
        request(rsa.generate_private_key(65_537, 1_024)),
        request(ec.generate_private_key(ec.SECP256K1())),
        _with_a_foreign_signature(),
    ],
    ids=["empty", "broken", "huge", "ed25519", "short rsa", "odd curve", "foreign signature"],
)
def test_a_bad_request_is_refused(authority: Authority, csr: bytes) -> None:
    with pytest.raises(ServiceError) as raised:
        authority.issue_for_csr(csr, AGENT)
    assert raised.value.reason is Reason.INVALID_FIELD
    assert [violation.field for violation in raised.value.violations] == ["csr"]


def test_files_are_private_and_replaced_whole(authority: Authority, tmp_path: Path) -> None:
    folder = tmp_path / "certificates"
    for _ in range(2):
        certificate_path, key_path = write_credential(folder, "field-1", authority.issue(AGENT))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(key_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(certificate_path.stat().st_mode) == 0o644
    assert sorted(path.name for path in folder.iterdir()) == ["field-1.crt", "field-1.key"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_private(path, b"old")
    with pytest.raises(TypeError):
        write_private(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["key"]


def test_an_authority_survives_its_files(authority: Authority, tmp_path: Path) -> None:
    certificate_path, key_path = write_authority(tmp_path, authority)
    again = load_authority(certificate_path.read_bytes(), key_path.read_bytes(), FakeClock())
    leaf = x509.load_pem_x509_certificate(again.issue(AGENT).certificate_pem)
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate_pem))


def test_files_of_two_authorities_are_refused(authority: Authority) -> None:
    other = create_authority("other")
    with pytest.raises(ValueError, match="do not belong together"):
        load_authority(authority.certificate_pem, other.key_pem)
    rsa_key = rsa.generate_private_key(65_537, 2_048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ValueError, match="elliptic"):
        load_authority(authority.certificate_pem, rsa_key)


def test_no_key_is_shown(authority: Authority) -> None:
    assert "PRIVATE" not in repr(authority.issue(AGENT))
