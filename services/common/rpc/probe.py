"""`python -m services.common.rpc.probe ADDRESS …`: is this replica serving? For Kubernetes' exec probes.

Exit code 0: serving. 1: not serving, not reachable or not who it should be; one line on stderr says which.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.core.errors import ServiceError
from services.common.identity import TRUST_DOMAIN
from services.common.rpc.channel import make_channel
from services.common.rpc.status import from_rpc_error
from services.common.tls import TlsIdentity, TlsMaterialError


async def probe(address: str, tls: TlsIdentity, service: str, timeout_ms: int) -> str:
    """Return "SERVING" or another state of the health protocol; raises ServiceError when nothing answers.

    `service` is the name of the service ("registry"), which the server's certificate must carry.
    """
    channel = make_channel(address, tls, service)
    try:
        stub = health_pb2_grpc.HealthStub(channel)
        response = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_ms / 1000)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    finally:
        await channel.close(None)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the probe; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m services.common.rpc.probe", description=__doc__)
    parser.add_argument("address", help="host:port of the replica")
    parser.add_argument("--ca", type=Path, required=True, help="PEM file of the plane's authority")
    parser.add_argument("--cert", type=Path, required=True, help="PEM file of any certificate of the plane")
    parser.add_argument("--key", type=Path, required=True, help="PEM file of its private key")
    parser.add_argument("--service", help="service that must answer; default: the one in --cert")
    parser.add_argument("--trust-domain", default=TRUST_DOMAIN)
    parser.add_argument("--timeout-ms", type=int, default=2_000)
    options = parser.parse_args(arguments)
    try:
        tls = TlsIdentity(options.ca, options.cert, options.key, options.trust_domain)
        service = options.service or (tls.principal.name if tls.principal else "")
        state = asyncio.run(probe(options.address, tls, service, options.timeout_ms))
    except (TlsMaterialError, ServiceError) as error:
        sys.stderr.write(f"{options.address}: {error}\n")
        return 1
    if state != "SERVING":
        sys.stderr.write(f"{options.address}: {state}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
