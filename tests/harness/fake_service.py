"""`python fake_service.py SERVICE CONFIG`: a service that only serves health, registers and campaigns.

For tests of the launcher, which must not depend on what the real services do. The key `fail` of the settings
makes it misbehave: "start" ends at once, "term" ignores SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp
from muster.registry.v1 import registry_service_pb2 as registry_pb

from services.common import logs
from services.common.clock import SystemClock
from services.common.config import knob, load
from services.common.etcd.channel import EtcdTls
from services.common.etcd.client import EtcdClient
from services.common.etcd.directory import COORDINATOR_ELECTION, coordinator_value
from services.common.etcd.election import EtcdElection
from services.common.etcd.registration import Registration
from services.common.metrics import Metrics
from services.common.rpc.server import GrpcServer
from services.common.service_config import ServiceConfig
from services.common.tls import TlsIdentity


@dataclass(frozen=True, kw_only=True)
class FakeConfig(ServiceConfig):
    fail: str = knob("", "How to misbehave.")


async def campaign(election: EtcdElection, value: bytes) -> None:
    while True:
        leadership = await election.campaign(value)
        await leadership.wait_lost()


async def main(service: str, config: FakeConfig) -> None:
    clock = SystemClock()
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, (lambda: None) if config.fail == "term" else asked.set)
    log = logs.get(service)
    tls = TlsIdentity(config.ca, config.certificate, config.key, config.trust_domain)
    server = GrpcServer(tls, config.listen, {}, Metrics(service), log)
    address = await server.start()
    files = EtcdTls(config.etcd_ca, config.etcd_certificate, config.etcd_key, config.etcd_server_name)
    async with EtcdClient(config.etcd_endpoints, files) as client, asyncio.TaskGroup() as group:
        replica = registry_pb.ServiceReplica(
            service=service,
            replica_id=config.replica_id,
            address=address,
            start_time=Timestamp(seconds=clock.now() // 1_000),
        )
        running = [group.create_task(Registration(client, clock, config.key_prefix, replica).run())]
        election = EtcdElection(client, clock, f"{config.key_prefix}/{COORDINATOR_ELECTION}")
        if service == "scheduler":
            value = coordinator_value(config.replica_id, address)
            running.append(group.create_task(campaign(election, value)))
        await asked.wait()
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await election.resign()
        await server.drain(1_000)


if __name__ == "__main__":
    settings = load(FakeConfig, Path(sys.argv[2]), {})
    logs.configure(sys.argv[1], settings.replica_id, settings.log_level)
    if settings.fail == "start":
        sys.exit("this service was told to fail")
    asyncio.run(main(sys.argv[1], settings))
