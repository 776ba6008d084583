"""One process's TLS identity: from files, reloaded when they change; TLS 1.3, client certificates."""

from __future__ import annotations

import contextlib
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from services.common.identity import TRUST_DOMAIN, Principal, parse_spiffe_id


class TlsMaterialError(Exception):
    """The files are missing, unreadable or do not belong together; the message says which and why."""


@dataclass(frozen=True, slots=True)
class _Material:
    """What was read in one go and belongs together."""

    version: int
    ca: bytes
    certificate: bytes
    key: bytes
    leaf: x509.Certificate


class TlsIdentity:
    """The CA that this process trusts, its certificate and its key.

    `refresh` may be called from any thread; it swaps in new material as a whole or keeps the old. Open
    connections keep the certificate of their handshake, new handshakes use the newest.
    """

    def __init__(
        self, ca_path: Path, certificate_path: Path, key_path: Path, trust_domain: str = TRUST_DOMAIN
    ) -> None:
        self.trust_domain = trust_domain
        self._paths = (ca_path, certificate_path, key_path)
        # Guards _material and _stamp against two refreshing threads; readers take the reference only.
        self._lock = threading.Lock()
        self._stamp = self._read_stamp()
        self._material = self._load(version=1)

    @property
    def version(self) -> int:
        """Grows by one each time new material was taken; a client channel of an older version should go."""
        return self._material.version

    @property
    def spiffe_id(self) -> str:
        """The certificate's SPIFFE ID, or "" when it has none."""
        return _spiffe_id(self._material.leaf)

    @property
    def principal(self) -> Principal | None:
        """Who this process is to others."""
        return parse_spiffe_id(self.spiffe_id, self.trust_domain)

    @property
    def expiry_seconds(self) -> float:
        """When the certificate ends, in seconds since the Unix epoch; for a gauge."""
        return self._material.leaf.not_valid_after_utc.timestamp()

    def refresh(self) -> bool:
        """Take new files if they changed and belong together; return whether they were taken.

        Raises `TlsMaterialError` when they changed into something unusable; the old material stays and the
        next call tries again, since a rotation replaces several files one after the other.
        """
        with self._lock:
            stamp = self._read_stamp()
            if stamp == self._stamp:
                return False
            material = self._load(self._material.version + 1)
            self._material, self._stamp = material, stamp
            return True

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return credentials that demand a client certificate of the CA and follow `refresh`.

        The fetcher runs in each handshake on a thread of gRPC's core: it takes no lock and opens no file.
        """
        first = self._material
        served = [first.version]

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            material = self._material
            if material.version == served[0]:
                return None
            # Two handshakes may both get here; each then hands over the same new material, which is harmless.
            served[0] = material.version
            return _server_configuration(material)

        return grpc.dynamic_ssl_server_credentials(
            _server_configuration(first),
            fetch,  # type: ignore[arg-type]  # None means "no change"; the stubs do not know it
            require_client_authentication=True,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return client credentials of the newest material.

        They do not follow a rotation (grpc#41779): when `version` has grown, make a new channel, move over
        and close the old one.
        """
        material = self._material
        return grpc.ssl_channel_credentials(material.ca, material.key, material.certificate)

    def server_ssl_context(self) -> ssl.SSLContext:
        """Return a context for asyncio servers: TLS 1.3, client certificate required, follows `refresh`."""
        context = self._ssl_context(ssl.PROTOCOL_TLS_SERVER)
        made = (self._material.version, context)

        def choose(connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _: ssl.SSLContext) -> None:
            nonlocal made
            version = self._material.version
            if made[0] != version:
                # OpenSSL wants files, and the next rotation may be half done there: then the old one serves
                # this handshake and the next one tries again.
                with contextlib.suppress(TlsMaterialError):
                    made = (version, self._ssl_context(ssl.PROTOCOL_TLS_SERVER))
            connection.context = made[1]

        # Called in every handshake, also without SNI: the one place where OpenSSL lets a context be replaced.
        context.sni_callback = choose
        return context

    def client_ssl_context(self) -> ssl.SSLContext:
        """Return a context for asyncio clients: TLS 1.3, host name checked; may raise `TlsMaterialError`."""
        return self._ssl_context(ssl.PROTOCOL_TLS_CLIENT)

    def _ssl_context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=self._material.ca.decode("ascii"))
        _, certificate_path, key_path = self._paths
        try:
            context.load_cert_chain(certificate_path, key_path)
        except OSError as error:
            # ssl.SSLError is one too: the two files do not match at this moment.
            raise TlsMaterialError(f"{certificate_path} and {key_path}: {error}") from error
        return context

    def _read_stamp(self) -> tuple[tuple[int, int, int], ...]:
        try:
            stats = [path.stat() for path in self._paths]
        except OSError as error:
            raise TlsMaterialError(f"{error.filename}: {error.strerror}") from error
        return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)

    def _load(self, version: int) -> _Material:
        try:
            ca, certificate, key = (path.read_bytes() for path in self._paths)
        except OSError as error:
            raise TlsMaterialError(f"{error.filename}: {error.strerror}") from error
        ca_path, certificate_path, key_path = self._paths
        try:
            x509.load_pem_x509_certificates(ca)
        except ValueError as error:
            raise TlsMaterialError(f"{ca_path}: holds no PEM certificate") from error
        try:
            leaf = x509.load_pem_x509_certificates(certificate)[0]
        except ValueError as error:
            raise TlsMaterialError(f"{certificate_path}: holds no PEM certificate") from error
        try:
            private_key = load_pem_private_key(key, password=None)
        except (ValueError, TypeError) as error:
            raise TlsMaterialError(f"{key_path}: holds no unencrypted PEM private key") from error
        if private_key.public_key() != leaf.public_key():
            raise TlsMaterialError(f"{key_path}: does not belong to {certificate_path}")
        return _Material(version, ca, certificate, key, leaf)


def _server_configuration(material: _Material) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.certificate)], root_certificates=material.ca
    )


def _spiffe_id(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uris[0] if len(uris) == 1 else ""
