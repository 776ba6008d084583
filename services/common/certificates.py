"""Certificate-issuing primitives: an authority, leaves with a SPIFFE identity, private files.

Keys are ECDSA P-256: the smallest that every gRPC build accepts (BoringSSL refuses Ed25519 leaves by
default). Profile: RFC 5280, with the X.509-SVID rules (one URI SAN, no CA flag on leaves, digitalSignature).
"""

from __future__ import annotations

import ipaddress
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.common.clock import Clock, SystemClock, to_datetime
from services.common.core.errors import ServiceError, invalid

# A verifier whose clock is this far behind still accepts a certificate that was just issued.
SKEW_ALLOWED = timedelta(minutes=5)
AUTHORITY_LIFETIME = timedelta(days=3650)
CSR_BYTES_MAX = 16_384
RSA_BITS_MIN = 2_048

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate (leaf first, then its issuers below the root) and its private key, both PEM."""

    certificate_pem: bytes
    key_pem: bytes

    def __repr__(self) -> str:
        """Show no key."""
        return f"Credential({len(self.certificate_pem)} bytes of certificate)"


class Authority:
    """A certificate authority whose private key is in this process."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, clock: Clock) -> None:
        self._certificate, self._key, self._clock = certificate, key, clock

    @property
    def certificate_pem(self) -> bytes:
        """The root certificate, PEM; this is what others must trust."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The root's private key, PEM; store it with `write_private` only."""
        return _key_pem(self._key)

    def issue(
        self,
        spiffe_id: str,
        dns_names: Sequence[str] = (),
        ip_addresses: Sequence[str] = (),
        lifetime: timedelta = timedelta(days=30),
    ) -> Credential:
        """Return a new key and its certificate, good for both ends of a TLS connection.

        An empty `spiffe_id` issues a certificate that carries no Muster identity.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(key.public_key(), spiffe_id, dns_names, ip_addresses, lifetime)
        return Credential(certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key))

    def issue_for_csr(
        self,
        csr_pem: bytes,
        spiffe_id: str,
        dns_names: Sequence[str] = (),
        ip_addresses: Sequence[str] = (),
        lifetime: timedelta = timedelta(days=30),
    ) -> bytes:
        """Return a PEM certificate for the key of a PKCS #10 request (PEM, at most 16,384 bytes).

        Only the public key is taken from the request: names and extensions that it asks for are ignored, so
        that nobody obtains an identity by writing it there. Raises INVALID_FIELD for `csr`.
        """
        public_key = _csr_public_key(csr_pem)
        certificate = self._sign(public_key, spiffe_id, dns_names, ip_addresses, lifetime)
        return certificate.public_bytes(serialization.Encoding.PEM)

    def _sign(
        self,
        public_key: PublicKey,
        spiffe_id: str,
        dns_names: Sequence[str],
        ip_addresses: Sequence[str],
        lifetime: timedelta,
    ) -> x509.Certificate:
        now = to_datetime(self._clock.now())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id)] if spiffe_id else []
        names += [x509.DNSName(name) for name in dns_names]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ip_addresses]
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(spiffe_id.rpartition("/")[2] or "anonymous"))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW_ALLOWED)
            # A leaf that outlives its authority would fail with an error about the authority.
            .not_valid_after(min(now + lifetime, self._certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def create_authority(
    common_name: str, lifetime: timedelta = AUTHORITY_LIFETIME, clock: Clock | None = None
) -> Authority:
    """Return a new self-signed authority that may sign leaves only (path length 0)."""
    clock = clock or SystemClock()
    now = to_datetime(clock.now())
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(common_name)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW_ALLOWED)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key, clock)


def load_authority(certificate_pem: bytes, key_pem: bytes, clock: Clock | None = None) -> Authority:
    """Return the authority that was written with `write_authority`; ValueError when the two do not match."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    key = serialization.load_pem_private_key(key_pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the authority's key is not an elliptic curve key")
    if certificate.public_key() != key.public_key():
        raise ValueError("the authority's certificate and key do not belong together")
    return Authority(certificate, key, clock or SystemClock())


def write_authority(directory: Path, authority: Authority, name: str = "ca") -> tuple[Path, Path]:
    """Write `<name>.crt` and `<name>.key`; return their paths."""
    return write_credential(directory, name, Credential(authority.certificate_pem, authority.key_pem))


def write_credential(directory: Path, name: str, credential: Credential) -> tuple[Path, Path]:
    """Write `<name>.crt` and `<name>.key`, each replaced atomically, the key first; return their paths.

    A reader may see the new key beside the old certificate for a moment; `TlsIdentity` therefore takes a
    pair only when it matches.
    """
    certificate_path, key_path = directory / f"{name}.crt", directory / f"{name}.key"
    write_private(key_path, credential.key_pem)
    write_public(certificate_path, credential.certificate_pem)
    return certificate_path, key_path


def write_private(path: Path, content: bytes) -> None:
    """Replace `path` atomically with a file that only its owner can read (0600, folder 0700)."""
    _replace(path, content, 0o600)


def write_public(path: Path, content: bytes) -> None:
    """Replace `path` atomically with a file that everybody may read (0644, folder 0700)."""
    _replace(path, content, 0o644)


def _replace(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # mkstemp creates with 0600, so that a private key is never readable, not even for a moment.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        # Whatever it was, also Ctrl-C: a half-written key must not lie about.
        Path(temporary).unlink(missing_ok=True)
        raise


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _csr_public_key(csr_pem: bytes) -> PublicKey:
    if len(csr_pem) > CSR_BYTES_MAX:
        raise invalid("csr", f"is {len(csr_pem)} bytes, at most {CSR_BYTES_MAX} are allowed")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        valid = request.is_signature_valid
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise _bad_csr() from error
    if not valid:
        raise invalid("csr", "its signature does not match its key: make the request again")
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= RSA_BITS_MIN:
        return key
    raise invalid("csr", f"its key must be ECDSA P-256 or P-384, or RSA of at least {RSA_BITS_MIN} bits")


def _bad_csr() -> ServiceError:
    return invalid("csr", "is not a PEM encoded PKCS #10 certificate request")
