"""The audit service as a real process that can be killed and started again."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
from muster.audit.v1 import audit_service_pb2 as pb
from muster.audit.v1 import audit_service_pb2_grpc as pb_grpc

from services.common.rpc.channel import make_channel
from tests.conftest import Certificates

READY_SECONDS = 40.0


def stub_on(channel: grpc.aio.Channel) -> Any:
    """Return a stub; its generated class is untyped."""
    made: Any = pb_grpc.AuditServiceStub
    return made(channel)


class AuditProcess:
    """`python -m services.audit --config FILE` on one port and in one folder."""

    def __init__(self, certificates: Certificates, folder: Path, port: int, **settings: object) -> None:
        self.certificates, self.folder = certificates, folder
        self.address = f"127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None
        certificate, key = certificates.issue("service/audit")
        folder.mkdir(parents=True, exist_ok=True)
        self.config_path = folder / "audit.toml"
        self.log_path = folder / "audit.log"
        values = {
            "replica_id": "audit-1",
            "listen": self.address,
            "ca": str(certificates.ca_path),
            "certificate": str(certificate),
            "key": str(key),
            # Nobody listens there: the log needs no etcd to do its work.
            "etcd_endpoints": ["127.0.0.1:1"],
            "etcd_ca": str(certificates.ca_path),
            "etcd_certificate": str(certificate),
            "etcd_key": str(key),
            "data_directory": str(folder / "data"),
            **settings,
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        self.config_path.write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        assert self.process is None
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.audit", "--config", str(self.config_path)],
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parents[3],
            )

    async def wait_ready(self) -> None:
        """Return when it answers."""
        async with asyncio.timeout(READY_SECONDS):
            while True:
                assert self.process is not None
                assert self.process.poll() is None, self.log_path.read_text()
                channel = self.channel("operator/admin")
                try:
                    await stub_on(channel).GetCheckpoint(pb.GetCheckpointRequest())
                    return
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.02)  # sleeps: between probes of another process
                finally:
                    await channel.close(None)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def terminate(self) -> int:
        """Let it drain; return its exit code."""
        return self._end(signal.SIGTERM)

    def wait_exit(self) -> int:
        """Return the exit code when it has ended by itself."""
        assert self.process is not None
        code = self.process.wait(READY_SECONDS)
        self.process = None
        return code

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(READY_SECONDS)
        self.process = None
        return code

    def channel(self, principal: str) -> grpc.aio.Channel:
        return make_channel(self.address, self.certificates.tls(principal), "audit")

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]
