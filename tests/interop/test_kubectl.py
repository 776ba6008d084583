"""kubectl builds the development overlay from certificates that our own command makes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

pytestmark = pytest.mark.interop

ROOT = Path(__file__).parents[2]
ETCD_NAMES = ("etcd-0.etcd", "etcd-1.etcd", "etcd-2.etcd", "etcd-client")


def test_the_development_overlay_builds_and_fits_the_schemas(tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    assert kubectl is not None, "kubectl is missing: install it (Debian: kubernetes-client)"
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    overlay = tmp_path / "k8s" / "overlays" / "development"
    command = [sys.executable, "-m", "services.local", "certificates"]
    command += ["--directory", str(overlay / "certificates"), "--etcd-name", *ETCD_NAMES]
    subprocess.run(command, check=True, cwd=ROOT, timeout=60)
    built = subprocess.run(
        [kubectl, "kustomize", str(overlay)], capture_output=True, text=True, timeout=60, check=False
    )
    assert built.returncode == 0, built.stderr
    documents = list(yaml.safe_load_all(built.stdout))
    for document in documents:
        kubernetes_validate.validate(document, "1.33", strict=True)
    secrets = {d["metadata"]["name"] for d in documents if d["kind"] == "Secret"}
    wanted = {
        volume["secret"]["secretName"]
        for d in documents
        if d["kind"] == "StatefulSet"
        for volume in d["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    }
    assert wanted == secrets
    assert all(d["metadata"].get("namespace") == "muster" for d in documents if d["kind"] != "Namespace")
