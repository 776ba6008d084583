"""Client channels: mutual TLS, the server's identity checked, dead links found."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import grpc

from services.common.core.errors import Reason, ServiceError
from services.common.identity import TRUST_DOMAIN
from services.common.tls import TlsIdentity

MESSAGE_BYTES_MAX = 4 * 1024 * 1024
# A link that died without a FIN is found after at most KEEPALIVE_MS + KEEPALIVE_TIMEOUT_MS.
KEEPALIVE_MS = 10_000
KEEPALIVE_TIMEOUT_MS = 5_000
RECONNECT_BACKOFF_MS_MIN = 100
RECONNECT_BACKOFF_MS_MAX = 5_000
# How long one attempt to connect may take, handshake included. gRPC's name for it misleads.
CONNECT_TIMEOUT_MS = 3_000


def service_dns_name(service: str, trust_domain: str = TRUST_DOMAIN) -> str:
    """Return the DNS name that only certificates of `service` carry.

    gRPC's clients can check a DNS name and not a URI, so that each service certificate has both; an agent's
    or operator's certificate never gets such a name.
    """
    return f"{service}.{trust_domain}"


def make_channel(
    targets: str | Sequence[str],
    tls: TlsIdentity,
    service: str,
    *,
    options: Sequence[tuple[str, int | str]] = (),
) -> grpc.aio.Channel:
    """Return a channel to `service` ("registry", …) at one or several "host:port".

    With several, calls go round robin over those that are up. The handshake fails unless the server's
    certificate comes from our CA and names `service`. Close it with `await channel.close()`.
    """
    addresses = [targets] if isinstance(targets, str) else list(targets)
    if not addresses:
        raise ValueError(f"no address of {service} is known")
    target = addresses[0] if len(addresses) == 1 else _list_target(addresses)
    return grpc.aio.secure_channel(
        target,
        tls.channel_credentials(),
        options=[
            ("grpc.ssl_target_name_override", service_dns_name(service, tls.trust_domain)),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.initial_reconnect_backoff_ms", RECONNECT_BACKOFF_MS_MIN),
            ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
            ("grpc.max_reconnect_backoff_ms", RECONNECT_BACKOFF_MS_MAX),
            # A retry decides who may repeat a call: only the caller knows whether it is idempotent.
            ("grpc.enable_retries", 0),
            ("grpc.lb_policy_name", "round_robin" if len(addresses) > 1 else "pick_first"),
            # Two channels of one process to one target share no connection, so that closing one ends its own.
            ("grpc.use_local_subchannel_pool", 1),
            *options,
        ],
    )


def connector(
    addresses: Callable[[], Sequence[str]], tls: TlsIdentity, service: str
) -> Callable[[], Awaitable[grpc.aio.Channel]]:
    """Return a function that makes a new channel to the replicas of `service` that are known at that moment.

    It raises PEER_SILENT when none is known. For loops that reconnect for ever, such as the outbox's.
    """

    async def connect() -> grpc.aio.Channel:
        known = addresses()
        if not known:
            raise ServiceError(Reason.PEER_SILENT, f"no replica of {service} is known")
        return make_channel(known, tls, service)

    return connect


def _list_target(addresses: Sequence[str]) -> str:
    scheme = "ipv6" if addresses[0].startswith("[") else "ipv4"
    return f"{scheme}:{','.join(addresses)}"
