"""Regenerate `proto/gen` from `proto/muster`, or check that it is fresh (`--check`).

The toolchain is pinned in `constraints.txt`; another one writes other bytes, so it is asserted first.
"""

from __future__ import annotations

import argparse
import filecmp
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOOLCHAIN = ("grpcio-tools", "mypy-protobuf")


def _assert_toolchain() -> None:
    pins = dict(
        line.split("==", 1)
        for line in (HERE.parent / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    for name in TOOLCHAIN:
        have, want = importlib.metadata.version(name), pins[name].strip()
        if have != want:
            raise SystemExit(f"{name} is {have}, constraints.txt pins {want}: run `make install`")


def generate(target: Path) -> None:
    """Write the generated packages below `target`."""
    _assert_toolchain()
    import grpc_tools  # noqa: PLC0415  # after the toolchain is known to be right

    include = Path(grpc_tools.__file__).parent / "_proto"
    site = Path(str(importlib.metadata.distribution("googleapis-common-protos").locate_file(""))).resolve()
    sources = sorted(str(p.relative_to(HERE)) for p in (HERE / "muster").rglob("*.proto"))
    outs = [f"--python_out={target}", f"--grpc_python_out={target}"]
    outs += [f"--mypy_out=quiet:{target}", f"--mypy_grpc_out=quiet:{target}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{HERE}", f"-I{include}", f"-I{site}", *outs]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    subprocess.run([*command, *sources], check=True, env={**os.environ, "PATH": path})
    for folder in [target / "muster", *(p for p in (target / "muster").rglob("*") if p.is_dir())]:
        (folder / "__init__.py").write_text('"""Generated from proto/muster; never edited."""\n')
    (target / "muster" / "py.typed").touch()


def _differences(left: Path, right: Path) -> list[str]:
    def names(root: Path) -> set[str]:
        return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.suffix != ".pyc"}

    ours, theirs = names(left), names(right)
    changed = {n for n in ours & theirs if not filecmp.cmp(left / n, right / n, shallow=False)}
    return sorted((ours ^ theirs) | changed)


def main() -> int:
    """Generate, or compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a file is stale")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as temporary:
        fresh = Path(temporary)
        generate(fresh)
        stale = _differences(fresh, HERE / "gen") if (HERE / "gen").exists() else ["everything"]
        if check:
            for name in stale:
                sys.stderr.write(f"stale: proto/gen/{name}: run `make generate`\n")
            return 1 if stale else 0
        shutil.rmtree(HERE / "gen", ignore_errors=True)
        shutil.copytree(fresh, HERE / "gen")
    return 0


if __name__ == "__main__":
    sys.exit(main())
