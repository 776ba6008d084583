"""The settings that every service has, whatever it does; each service's config class adds its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.common.config import knob


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """Settings shared by all services."""

    replica_id: str = knob(help_text="Unique among the replicas of this service.")
    listen: str = knob(help_text="host:port of the gRPC listener; port 0 takes a free one.")
    advertise: str = knob("", "host:port that others should use; empty means the address that was bound.")
    metrics_listen: str = knob("", "host:port of the Prometheus listener (mTLS too); empty turns it off.")
    trust_domain: str = knob("muster.internal", "The SPIFFE trust domain of every certificate.")
    ca: Path = knob(help_text="PEM file of the authority of agents, services and operators.")
    certificate: Path = knob(help_text="PEM file of this service's certificate chain.")
    key: Path = knob(help_text="PEM file of this service's private key.")
    etcd_endpoints: tuple[str, ...] = knob(
        help_text="host:port of the etcd members: IP addresses, or one DNS name that resolves to all of them."
    )
    etcd_ca: Path = knob(help_text="PEM file of etcd's own authority.")
    etcd_certificate: Path = knob(help_text="PEM file of the certificate shown to etcd.")
    etcd_key: Path = knob(help_text="PEM file of its private key.")
    etcd_server_name: str = knob("etcd.muster.internal", "DNS name in the certificates of etcd's members.")
    key_prefix: str = knob("/muster", "Where this plane's keys begin in etcd; no slash at the end.")
    data_directory: Path = knob(help_text="Folder of the files that this replica owns; made with mode 0700.")
    log_level: str = knob("INFO", "DEBUG, INFO, WARNING or ERROR.")

    def __post_init__(self) -> None:
        """Check what concerns the shared settings; subclasses with checks of their own call it too."""
        if not self.etcd_endpoints:
            raise ValueError("etcd_endpoints is empty; write host:port of at least one member")
        if not self.key_prefix.startswith("/") or self.key_prefix.endswith("/"):
            raise ValueError(f"key_prefix {self.key_prefix!r} must begin with '/' and not end with one")
