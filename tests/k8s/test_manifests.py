"""The manifests, offline: schemas, hardening, and that their configuration is one the services accept."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

BASE = Path(__file__).parents[2] / "k8s" / "base"
SERVICES = ("registry", "scheduler", "broker", "audit")
KUBERNETES = "1.33"


def documents(folder: Path = BASE) -> list[dict[str, Any]]:
    return [
        document
        for path in sorted(folder.glob("*.yaml"))
        if path.name != "kustomization.yaml"
        for document in yaml.safe_load_all(path.read_text())
    ]


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {d["metadata"]["name"]: d for d in documents() if d["kind"] == kind}


@pytest.mark.parametrize("document", documents(), ids=lambda d: f"{d['kind']}/{d['metadata']['name']}")
def test_every_manifest_fits_its_schema(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_base_lists_every_file() -> None:
    listed = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(p.name for p in BASE.glob("*.yaml") if p.name != "kustomization.yaml")


@pytest.mark.parametrize("name", [*SERVICES, "etcd"])
def test_containers_run_unprivileged_and_are_probed(name: str) -> None:
    pod = of_kind("StatefulSet")[name]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
        assert "memory" in container["resources"]["limits"]


def test_etcd_has_three_members_with_client_and_peer_tls() -> None:
    etcd = of_kind("StatefulSet")["etcd"]["spec"]
    args = etcd["template"]["spec"]["containers"][0]["args"]
    assert etcd["replicas"] == 3
    assert {"--client-cert-auth", "--peer-client-cert-auth"} <= set(args)
    cluster = next(a for a in args if a.startswith("--initial-cluster="))
    assert cluster.count("https://") == 3


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_s_ports_agree_with_its_configuration(service: str) -> None:
    config = tomllib.loads(of_kind("ConfigMap")[service]["data"][f"{service}.toml"])
    container = of_kind("StatefulSet")[service]["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert config["listen"].endswith(f":{ports['grpc']}")
    assert config["metrics_listen"].endswith(f":{ports['metrics']}")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert f"127.0.0.1:{ports['grpc']}" in container[probe]["exec"]["command"]
    policy = of_kind("NetworkPolicy")[service]
    assert ports["grpc"] in [p["port"] for rule in policy["spec"]["ingress"] for p in rule["ports"]]


@pytest.mark.parametrize("service", ["scheduler", "broker"])
def test_replicas_that_watch_or_relay_reach_each_other(service: str) -> None:
    [calls, _] = of_kind("NetworkPolicy")[service]["spec"]["ingress"]
    callers = [
        each["podSelector"]["matchLabels"].get("app.kubernetes.io/component") for each in calls["from"]
    ]
    assert service in callers


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_accepts_its_configuration(service: str, tmp_path: Path) -> None:
    text = of_kind("ConfigMap")[service]["data"][f"{service}.toml"]
    path = tmp_path / f"{service}.toml"
    path.write_text(text)
    container = of_kind("StatefulSet")[service]["spec"]["template"]["spec"]["containers"][0]
    variables = {v["name"]: v.get("value", "10.0.0.1") for v in container["env"] if v["name"] != "POD_IP"}
    module = importlib.import_module(f"services.{service}.config")
    load = importlib.import_module("services.common.config").load
    config_class = getattr(module, f"{service.capitalize()}Config")
    config = load(config_class, path, variables, f"MUSTER_{service.upper()}_")
    assert config.listen == tomllib.loads(text)["listen"]
