"""Channels to the services: mutual TLS in both directions, keepalive, no hidden retries."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from agent_client.context import Context, Identity
from agent_client.errors import ContextError

# The services' own limit (services/common/rpc/server.py).
MESSAGE_BYTES_MAX = 4 * 1024 * 1024
KEEPALIVE_TIME_MS = 10_000
KEEPALIVE_TIMEOUT_MS = 5_000


class Dialer:
    """Opens channels as one identity.

    The files are read for every channel, so that a renewed certificate is used from the next link on.
    """

    def __init__(self, context: Context, identity: Identity) -> None:
        self.context, self.identity = context, identity

    def __repr__(self) -> str:
        return f"Dialer({self.identity.principal})"

    async def open(self, service: str, address: str) -> grpc.aio.Channel:
        """Return a channel to `service` at host:port. Raises ContextError when a file can not be read.

        The server must present a certificate of the plane's CA for `<service>.<trust domain>`, whatever
        address it was reached by.
        """
        credentials = await asyncio.to_thread(self._credentials)
        return grpc.aio.secure_channel(
            address,
            credentials,
            options=[
                ("grpc.ssl_target_name_override", f"{service}.{self.context.trust_domain}"),
                ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                # Half-open connections are found also when nobody talks.
                ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
                ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
                ("grpc.http2.max_pings_without_data", 0),
                # The cores decide when to try again; a shared or lingering connection would decide for them.
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_retries", 0),
            ],
        )

    def _credentials(self) -> grpc.ChannelCredentials:
        try:
            root = self.context.ca.read_bytes()
            certificate = self.identity.certificate.read_bytes()
            key = self.identity.key.read_bytes()
        except OSError as error:
            raise ContextError(
                f"{error.filename} can not be read: {error.strerror}; run `muster up`, "
                "or `muster agents enroll` for an agent's certificate",
                reason="NO_CERTIFICATE",
            ) from error
        self._check(root, certificate)
        return grpc.ssl_channel_credentials(root, key, certificate)

    def _check(self, root: bytes, certificate: bytes) -> None:
        """Say here what a server, which refuses a certificate by closing the connection, never tells."""
        try:
            authorities = x509.load_pem_x509_certificates(root)
            chain = x509.load_pem_x509_certificates(certificate)
        except ValueError as error:
            raise ContextError(
                f"{self.context.ca} or {self.identity.certificate} is not a PEM certificate: {error}",
                reason="NO_CERTIFICATE",
            ) from error
        leaf, now = chain[0], datetime.now(UTC)
        if not any(_issued(one, authority) for one in chain for authority in authorities):
            raise ContextError(
                f"{self.identity.certificate} was not issued by the authority of this plane, "
                f"{self.context.ca}; {_renew(self.identity.principal)}",
                reason="FOREIGN_CERTIFICATE",
            )
        if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
            raise ContextError(
                f"{self.identity.certificate} is valid from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} to "
                f"{leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC and it is {now:%Y-%m-%d %H:%M}: look at the "
                f"clock, or {_renew(self.identity.principal)}",
                reason="CERTIFICATE_NOT_VALID",
                retryable=True,
            )


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _renew(principal: str) -> str:
    kind, _, name = principal.partition("/")
    if kind == "agent":
        return f"run `muster agents enroll {name}` with this plane's --home"
    return "ask whoever runs the plane for an operator certificate"
