"""The log as verifiers see it that others wrote: Go's sumdb packages, and the fsck of Tessera.

The log is made by the running service through its API; the verifiers get its directory and its key.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from muster.audit.v1 import audit_service_pb2 as pb

from agent_client.verify import VerifierKey, hash_leaf, verify_checkpoint
from services.audit.stores.files import FilesLog
from tests.conftest import Certificates
from tests.integration.audit.conftest import Audit, frame

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

HERE = Path(__file__).parent
FSCK = "github.com/transparency-dev/tessera/cmd/fsck@v1.0.4"


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Return `verify(directory, key, proofs=None)`: what Go's packages say about a log."""
    assert shutil.which("go"), "the interop checks need Go"
    binary = tmp_path_factory.mktemp("go") / "audit"
    subprocess.run(["go", "build", "-o", str(binary), "."], cwd=HERE, check=True)

    def verify(*arguments: object) -> str:
        given = [str(binary), *map(str, arguments)]
        return subprocess.run(given, capture_output=True, text=True, check=False).stdout.strip()

    return verify


@pytest.fixture(scope="module")
def fsck(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], bool]:
    """Return `check(directory, key)`: whether Tessera's fsck accepts a log."""
    folder = tmp_path_factory.mktemp("tessera")
    subprocess.run(["go", "install", FSCK], env=os.environ | {"GOBIN": str(folder)}, check=True)

    def check(directory: Path, key: str) -> bool:
        key_path = folder / "key"
        key_path.write_text(key + "\n")
        given = [
            str(folder / "fsck"),
            "-ui=false",
            f"-storage_url=file://{directory}/",
            f"-public_key={key_path}",
        ]
        try:
            said = subprocess.run(given, capture_output=True, text=True, check=False, timeout=10).stderr
        except subprocess.TimeoutExpired:
            # Having found a fault in a log of several tiles, it waits for itself.
            return False
        return "Successfully fsck'd log" in said

    return check


class Logged:
    """A finished log: its directory, its key, and proofs that the service gave."""

    def __init__(self, directory: Path, key: str, size: int, proofs: Path) -> None:
        self.directory, self.key, self.size, self.proofs = directory, key, size, proofs


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest_asyncio.fixture(params=[3, 256, 1_500])
async def logged(request: pytest.FixtureRequest, certificates: Certificates, tmp_path: Path) -> Logged:
    audit = Audit(certificates, tmp_path / "audit")
    audit.folder.mkdir()
    await audit.start()
    try:
        stub = audit.stub()
        heads = []
        proofs: dict[str, list[dict[str, Any]]] = {"Inclusion": [], "Consistency": []}
        for begin in range(0, request.param, 500):
            await audit.append(frame(begin + 1, min(500, request.param - begin)))
            await audit.entries(page={"page_size": 1_000})
            response = await stub.GetCheckpoint(pb.GetCheckpointRequest())
            heads.append(verify_checkpoint(response.checkpoint, VerifierKey.parse(response.verifier_key)))
            for index in {0, begin, heads[-1].size - 1}:
                proof = await stub.GetInclusionProof(
                    pb.GetInclusionProofRequest(leaf_index=index, tree_size=heads[-1].size)
                )
                proofs["Inclusion"].append(
                    {
                        "Index": index,
                        "Size": proof.tree_size,
                        "Root": text(heads[-1].root),
                        "Leaf": text(hash_leaf(proof.entry.leaf)),
                        "Hashes": [text(one) for one in proof.hashes],
                    }
                )
        for old in heads:
            for new in heads:
                if old.size < new.size:
                    answer = await stub.GetConsistencyProof(
                        pb.GetConsistencyProofRequest(old_tree_size=old.size, new_tree_size=new.size)
                    )
                    proofs["Consistency"].append(
                        {
                            "Old": old.size,
                            "New": new.size,
                            "OldRoot": text(old.root),
                            "NewRoot": text(new.root),
                            "Hashes": [text(one) for one in answer.hashes],
                        }
                    )
        key = response.verifier_key
    finally:
        await audit.stop()
    (tmp_path / "proofs.json").write_text(json.dumps(proofs))
    store = FilesLog(audit.folder, audit.config.log_origin)
    size = store.open(first_start=False).recovered.tree.size
    store.close()
    return Logged(audit.folder / "log", key, size, tmp_path / "proofs.json")


def damaged(directory: Path) -> Iterator[Path]:
    """Change one byte of each file in turn; yield the file."""
    for path in sorted(directory.rglob("*")):
        if not path.is_file() or path.stat().st_size == 0:
            continue
        content = path.read_bytes()
        at = len(content) // 2
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        yield path
        path.write_bytes(content)


def test_go_accepts_the_log_and_its_proofs(verifier: Callable[..., str], logged: Logged) -> None:
    said = verifier(logged.directory, logged.key, logged.proofs)
    assert said.startswith(f"accepted: {logged.size} entries")
    count = sum(len(one) for one in json.loads(logged.proofs.read_text()).values())
    assert f"{count} proofs" in said


def test_go_refuses_every_damaged_file(verifier: Callable[..., str], logged: Logged) -> None:
    read = 0
    for path in damaged(logged.directory):
        said = verifier(logged.directory, logged.key)
        # Partial tiles of older sizes are not read for this one.
        if path.parent.suffix == ".p" and said.startswith("accepted"):
            continue
        read += 1
        assert said.startswith("refused"), path
    assert read >= 3
    assert verifier(logged.directory, logged.key).startswith("accepted")


def test_go_refuses_another_key(verifier: Callable[..., str], logged: Logged, tmp_path: Path) -> None:
    other = FilesLog(tmp_path / "other", "muster.internal/audit")
    opened = other.open(first_start=False)
    other.close()
    key = VerifierKey.parse(logged.key)
    forged = VerifierKey(key.name, key.key_id, opened.signer.public_key)
    assert verifier(logged.directory, forged).startswith("refused")


def test_tessera_accepts_the_log_and_refuses_a_damaged_one(
    fsck: Callable[[Path, str], bool], logged: Logged
) -> None:
    assert fsck(logged.directory, logged.key)
    for path in damaged(logged.directory):
        if path.name == "checkpoint" or path == logged.directory / "tile/entries/000":
            assert not fsck(logged.directory, logged.key), path
    assert fsck(logged.directory, logged.key)
