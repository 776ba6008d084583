"""The broker as a real process that can be killed and started again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from tests.conftest import Certificates


class BrokerProcess:
    """`python -m services.broker --config FILE` on one port and in one folder.

    Nobody is where it looks for etcd: mailboxes need neither etcd nor the registry to do their work.
    """

    def __init__(self, certificates: Certificates, folder: Path, port: int, **settings: object) -> None:
        self.address = f"127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None
        certificate, key = certificates.issue("service/broker")
        folder.mkdir(parents=True, exist_ok=True)
        self.config_path, self.log_path = folder / "broker.toml", folder / "broker.log"
        values = {
            "replica_id": "broker-1",
            "listen": self.address,
            "ca": str(certificates.ca_path),
            "certificate": str(certificate),
            "key": str(key),
            "etcd_endpoints": ["127.0.0.1:1"],
            "etcd_ca": str(certificates.ca_path),
            "etcd_certificate": str(certificate),
            "etcd_key": str(key),
            "data_directory": str(folder / "data"),
            **settings,
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        self.config_path.write_text("\n".join(lines) + "\n")

    def start(self, *before: str) -> None:
        """Start it; it serves a little later. `before` is a command that runs the one behind it."""
        assert self.process is None
        command = [*before, sys.executable, "-m", "services.broker", "--config", str(self.config_path)]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self) -> None:
        """Kill it as the kernel would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop it without ending it (SIGSTOP): its connections stay, nothing answers."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """Ask it to drain and return its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(timeout=30)
        self.process = None
        return code
