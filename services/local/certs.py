"""The development authorities of a plane's directory, and the certificates that they sign.

Two authorities: the plane's (agents, services, operators) and etcd's own, so that no agent's certificate
ever opens etcd. Both keys lie in the directory (0600): good for one machine, never for production.

    ca.crt ca.key                     the plane's authority
    services/<service>.crt .key       what a service shows to everybody
    operators/<name>.crt .key
    agents/<name>.crt .key
    etcd/ca.crt ca.key                etcd's authority
    etcd/server.crt .key              what the members show to clients and to each other
    etcd/<service>.crt .key           what a service shows to etcd; `admin` is for people
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from services.common.certificates import (
    Authority,
    Credential,
    create_authority,
    load_authority,
    write_authority,
    write_credential,
)
from services.common.clock import Clock, SystemClock, to_datetime
from services.common.core.ids import AGENT_ID
from services.common.etcd.channel import EtcdTls
from services.common.identity import TRUST_DOMAIN, Principal, spiffe_id
from services.common.rpc.channel import service_dns_name
from services.local.etcd_server import EtcdFiles
from services.local.ports import LOOPBACK

LIFETIME = timedelta(days=365)
# A certificate with less than this left is replaced when the plane starts.
RENEW_BEFORE = timedelta(days=30)
ETCD_ADMIN = "admin"


class CertificateError(Exception):
    """A certificate can not be issued; the message says what to do."""


class PlaneCertificates:
    """Makes and finds the certificates in one plane's directory."""

    def __init__(
        self, directory: Path, *, trust_domain: str = TRUST_DOMAIN, clock: Clock | None = None
    ) -> None:
        self.directory = directory
        self._trust_domain = trust_domain
        self._clock = clock or SystemClock()

    @property
    def ca(self) -> Path:
        """The plane's root certificate."""
        return self.directory / "ca.crt"

    def prepare(self, services: tuple[str, ...], etcd_names: tuple[str, ...] = ()) -> None:
        """Make what is missing or old: authorities, services, etcd and its clients, operator `admin`.

        `etcd_names` are DNS names of etcd's members beyond those of this machine.
        """
        plane = self._authority(self.directory, "Muster development authority", create=True)
        etcd = self._authority(self.directory / "etcd", "Muster development etcd authority", create=True)
        for service in services:
            self._ensure(plane, "services", Principal("service", service))
            self._ensure_etcd_client(etcd, service)
        self._ensure(plane, "operators", Principal("operator", "admin"))
        self._ensure_etcd_client(etcd, ETCD_ADMIN)
        self._ensure_etcd_server(etcd, etcd_names)

    def issue(self, principal: Principal) -> tuple[Path, Path]:
        """Issue a new certificate for an agent or operator; return (certificate, key) files."""
        if AGENT_ID.match(principal.name) is None:
            raise CertificateError(
                f"{principal.name!r} is no name: use 1 to 64 of a-z, 0-9 and '-', not at the ends"
            )
        plane = self._authority(self.directory, "", create=False)
        return self._write(plane, f"{principal.kind}s", principal)

    def service_pair(self, service: str) -> tuple[Path, Path]:
        """Return the (certificate, key) files of a service."""
        return _pair(self.directory / "services", service)

    def operator_pair(self, name: str = "admin") -> tuple[Path, Path]:
        """Return the (certificate, key) files of an operator."""
        return _pair(self.directory / "operators", name)

    def etcd_server(self) -> EtcdFiles:
        """Return the files of etcd's members."""
        certificate, key = _pair(self.directory / "etcd", "server")
        return EtcdFiles(self.directory / "etcd" / "ca.crt", certificate, key)

    def etcd_client(self, name: str = ETCD_ADMIN) -> EtcdTls:
        """Return the files that a service, or `admin`, shows to etcd."""
        certificate, key = _pair(self.directory / "etcd", name)
        return EtcdTls(self.directory / "etcd" / "ca.crt", certificate, key, service_dns_name("etcd"))

    def _authority(self, folder: Path, common_name: str, *, create: bool) -> Authority:
        certificate, key = _pair(folder, "ca")
        there = (certificate.exists(), key.exists())
        if there == (True, True):
            try:
                return load_authority(certificate.read_bytes(), key.read_bytes(), self._clock)
            except ValueError as error:
                raise CertificateError(f"{certificate} and {key} are of no use: {error}") from error
        if any(there):
            # Never make a second authority by accident: certificates of the first would stop working.
            missing = certificate if there[1] else key
            raise CertificateError(
                f"{missing} is missing while its twin is there; restore it, or remove the folder "
                f"{self.directory} to begin anew (its data goes too)"
            )
        if not create:
            raise CertificateError(
                f"{folder} holds no authority; start the plane there first: "
                f"python -m services.local up --directory {self.directory}"
            )
        authority = create_authority(common_name, clock=self._clock)
        write_authority(folder, authority)
        return authority

    def _ensure(self, authority: Authority, folder: str, principal: Principal) -> None:
        if not self._usable(authority, _pair(self.directory / folder, principal.name)[0]):
            self._write(authority, folder, principal)

    def _write(self, authority: Authority, folder: str, principal: Principal) -> tuple[Path, Path]:
        served = principal.kind == "service"
        credential = authority.issue(
            spiffe_id(principal, self._trust_domain),
            # Only a service's certificate names a host: a client that checks the name meets a service.
            dns_names=(service_dns_name(principal.name), "localhost") if served else (),
            ip_addresses=(LOOPBACK,) if served else (),
            lifetime=LIFETIME,
        )
        return write_credential(self.directory / folder, principal.name, credential)

    def _ensure_etcd_client(self, authority: Authority, name: str) -> None:
        folder = self.directory / "etcd"
        if not self._usable(authority, _pair(folder, name)[0]):
            write_credential(folder, name, authority.issue("", lifetime=LIFETIME))

    def _ensure_etcd_server(self, authority: Authority, names: tuple[str, ...]) -> None:
        folder = self.directory / "etcd"
        if self._usable(authority, _pair(folder, "server")[0]):
            return
        # RSA, unlike everything else: see services/__init__.py on etcd before 3.5.9.
        key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
        request = (
            x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        )
        certificate_pem = authority.issue_for_csr(
            request.public_bytes(serialization.Encoding.PEM),
            "",
            dns_names=(service_dns_name("etcd"), "localhost", *names),
            ip_addresses=(LOOPBACK,),
            lifetime=LIFETIME,
        )
        key_pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_credential(folder, "server", Credential(certificate_pem, key_pem))

    def _usable(self, authority: Authority, certificate: Path) -> bool:
        """Return whether a certificate is there, of this authority, with both files, and not about to end."""
        if not (certificate.exists() and certificate.with_suffix(".key").exists()):
            return False
        root = x509.load_pem_x509_certificate(authority.certificate_pem)
        try:
            leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
            leaf.verify_directly_issued_by(root)
        except (ValueError, InvalidSignature):
            return False
        return leaf.not_valid_after_utc - to_datetime(self._clock.now()) > RENEW_BEFORE


def _pair(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.crt", folder / f"{name}.key"
