"""The gRPC channel to etcd: several members, mTLS, half-open links found by keepalive."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from services.common.etcd.ops import REQUEST_BYTES_MAX

# Keys in one page of a read; with RESPONSE_BYTES_MAX it bounds what one answer can weigh.
PAGE_KEYS = 128
# A page of the largest values that etcd stores fits.
RESPONSE_BYTES_MAX = PAGE_KEYS * REQUEST_BYTES_MAX

# What a stream's `read` returns at its end.
END_OF_STREAM: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # grpc-stubs does not know it
# Sent with every call: a member that has lost its leader answers at once instead of keeping us waiting.
METADATA = (("hasleader", "true"),)

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.max_receive_message_length", RESPONSE_BYTES_MAX),
    ("grpc.max_send_message_length", 2 * REQUEST_BYTES_MAX),
    # etcd answers pings more frequent than every 5 s, or without a call, with GOAWAY.
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # A restarted etcd is found within a second instead of gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # One connection of its own per client: sessions must not share another client's stalled link.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class EtcdTls:
    """Files of the client's certificate, and the name that the members' certificates carry.

    Members are often addressed by IP; `server_name` is checked against their DNS names instead.
    """

    ca: Path
    certificate: Path
    key: Path
    server_name: str = "etcd.muster.internal"


def target(endpoints: Sequence[str]) -> str:
    """Return the gRPC target of `host:port` endpoints.

    Either IP addresses (all of one family), or a single DNS name, which may resolve to every member (a
    headless service): gRPC has no target that lists several names. Raises ValueError otherwise.
    """
    if not endpoints:
        raise ValueError("no etcd endpoint given; write host:port, for example 127.0.0.1:2379")
    families: set[int] = set()
    names: list[str] = []
    for endpoint in endpoints:
        host, colon, port = endpoint.rpartition(":")
        if not colon or not port.isdigit() or "://" in endpoint:
            raise ValueError(f"etcd endpoint {endpoint!r} is not host:port")
        try:
            families.add(ipaddress.ip_address(host.strip("[]")).version)
        except ValueError:
            names.append(endpoint)
    if not names and len(families) == 1:
        return f"ipv{families.pop()}:{','.join(endpoints)}"
    if len(names) == len(endpoints) == 1:
        return f"dns:///{names[0]}"
    raise ValueError(
        f"etcd endpoints {', '.join(endpoints)}: give IP addresses of one family, or one DNS name that "
        "resolves to every member"
    )


def cancelled_from_outside() -> bool:
    """Return, in a handler of CancelledError, whether somebody cancelled this task.

    gRPC raises CancelledError also when not the task but the call was cancelled, by closing the channel.
    Passed on, that would end the task in silence.
    """
    running = asyncio.current_task()
    return running is not None and running.cancelling() > 0


def open_channel(endpoints: Sequence[str], tls: EtcdTls) -> grpc.aio.Channel:
    """Return a channel over all members; reads the certificate files, so it may raise OSError."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=tls.ca.read_bytes(),
        private_key=tls.key.read_bytes(),
        certificate_chain=tls.certificate.read_bytes(),
    )
    options = (*_OPTIONS, ("grpc.ssl_target_name_override", tls.server_name))
    return grpc.aio.secure_channel(target(endpoints), credentials, options=options)
