"""What the launcher writes and says about its plane. Pure."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from services.local.certs import PlaneCertificates
from services.local.config_files import Setting
from services.local.layout import REPLICAS, Places, Ports, Replica
from services.local.part import Part
from services.local.ports import LOOPBACK

KEY_PREFIX = "/muster"


def service_settings(
    replica: Replica, places: Places, ports: Ports, certificates: PlaneCertificates, trust_domain: str
) -> dict[str, Setting]:
    """Return the settings that every service has (`services.common.service_config`) for one replica."""
    name = replica.replica_id
    certificate, key = certificates.service_pair(replica.service)
    etcd = certificates.etcd_client(replica.service)
    return {
        "replica_id": name,
        "listen": ports.address(name),
        "metrics_listen": ports.metrics_address(name),
        "trust_domain": trust_domain,
        "ca": certificates.ca,
        "certificate": certificate,
        "key": key,
        "etcd_endpoints": [f"{LOOPBACK}:{ports.etcd_client}"],
        "etcd_ca": etcd.ca,
        "etcd_certificate": etcd.certificate,
        "etcd_key": etcd.key,
        "etcd_server_name": etcd.server_name,
        "key_prefix": KEY_PREFIX,
        "data_directory": places.data(name),
    }


def context(places: Places, ports: Ports, certificates: PlaneCertificates, trust_domain: str) -> object:
    """Return the content of context.json; its paths are relative to the folder, which may be moved."""
    certificate, key = certificates.operator_pair()

    def below(path: Path) -> str:
        return path.relative_to(places.directory).as_posix()

    return {
        "registry": [ports.address(one.replica_id) for one in REPLICAS if one.service == "registry"],
        "trust_domain": trust_domain,
        "ca": below(certificates.ca),
        "operator": {"certificate": below(certificate), "key": below(key)},
        "agents_directory": "agents",
    }


def state(parts: Sequence[Part], ports: Ports) -> Mapping[str, object]:
    """Return the content of plane.json."""
    services = {replica.replica_id: replica.service for replica in REPLICAS}
    return {
        "pid": os.getpid(),
        "processes": [
            {
                "name": part.name,
                "service": services.get(part.name, part.name),
                "pid": part.child.pid if part.child is not None else None,
                "address": part.address,
                "metrics_address": ports.metrics_address(part.name) if part.name in ports.metrics else "",
            }
            for part in parts
        ],
    }


def ready_facts(places: Places, ports: Ports, certificates: PlaneCertificates) -> dict[str, object]:
    """Return where everything is, with command lines that a person can paste."""
    certificate, key = certificates.operator_pair()
    etcd = certificates.etcd_client()
    registry = ports.address("registry-1")
    etcd_address = f"{LOOPBACK}:{ports.etcd_client}"
    return {
        "directory": str(places.directory),
        "context": str(places.context),
        "registry": registry,
        "etcd": etcd_address,
        "addresses": {one.replica_id: ports.address(one.replica_id) for one in REPLICAS},
        "metrics_addresses": {one.replica_id: ports.metrics_address(one.replica_id) for one in REPLICAS},
        "logs": str(places.log("x").parent),
        "issue_command": _line("muster", "agents", "enroll", "NAME", "--home", places.directory),
        "grpcurl_command": _line(
            "grpcurl", "-cacert", certificates.ca, "-cert", certificate, "-key", key, registry, "list"
        ),
        "etcdctl_command": _line(
            "etcdctl", "--endpoints", etcd_address, "--cacert", etcd.ca, "--cert", etcd.certificate,
            "--key", etcd.key, "get", "--prefix", KEY_PREFIX,
        ),
    }  # fmt: skip


def _line(*words: str | Path) -> str:
    return shlex.join(str(word) for word in words)
