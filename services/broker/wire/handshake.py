"""The first frame of a Mailbox stream: which version and which features both sides know."""

from __future__ import annotations

from typing import NamedTuple

from muster.broker.v1 import broker_service_pb2 as pb

from services.common.core.errors import Reason, ServiceError, invalid
from services.common.core.ids import NAME_64

VERSIONS = frozenset({1})
# Addresses of skills, collaborations and topics.
ROUTES = "routes"
# Addresses of one instance.
INSTANCES = "instances"
FEATURES = frozenset({ROUTES, INSTANCES})
VERSIONS_MAX = 16
FEATURES_MAX = 64
FEATURE_BYTES_MAX = 64
# What a store's signed 64 bits hold.
INCARNATION_MAX = 2**63 - 1


class Terms(NamedTuple):
    """What a stream speaks."""

    version: int
    features: frozenset[str]


# Before the hello.
NOTHING_AGREED = Terms(0, frozenset())


def read_hello(request: pb.MailboxRequest) -> tuple[pb.MailboxHello, Terms]:
    """Return a stream's first frame and what was agreed, or raise what is wrong with it."""
    hello = request.hello
    if not request.HasField("hello") or len(request.ListFields()) != 1:
        raise ServiceError(Reason.MALFORMED_FRAME, "the first frame must hold a hello and nothing else")
    if len(hello.versions) > VERSIONS_MAX:
        raise invalid("hello.versions", f"at most {VERSIONS_MAX}")
    if len(hello.features) > FEATURES_MAX or any(len(one) > FEATURE_BYTES_MAX for one in hello.features):
        raise invalid("hello.features", f"at most {FEATURES_MAX} of at most {FEATURE_BYTES_MAX} bytes")
    shared = VERSIONS.intersection(hello.versions)
    if not shared:
        supported = ", ".join(str(version) for version in sorted(VERSIONS, reverse=True))
        raise ServiceError(
            Reason.UNSUPPORTED_VERSION,
            f"this broker speaks version {supported}: upgrade the client or the broker",
            metadata={"supported": supported},
        )
    if hello.instance_id and NAME_64.match(hello.instance_id) is None:
        raise invalid("hello.instance_id", "1 to 64 bytes of [A-Za-z0-9._-], or empty")
    if hello.incarnation > INCARNATION_MAX:
        raise invalid("hello.incarnation", f"at most {INCARNATION_MAX}: take it from the registry's welcome")
    return hello, Terms(max(shared), FEATURES.intersection(hello.features))
