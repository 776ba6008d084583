"""Run buf's STANDARD lint over `proto/muster`: `python proto/lint.py PATH/TO/buf`.

buf takes imports from a module beside ours; the one for google/rpc is laid out from the Python package
that carries the same files, because a linter should need no registry.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORKSPACE = "version: v2\nmodules:\n  - path: ours\n  - path: imports\nlint:\n  use: [STANDARD]\n"


def main() -> int:
    """Lint; returns buf's exit code."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python proto/lint.py PATH/TO/buf\n")
        return 2
    buf = Path(sys.argv[1]).resolve()
    site = Path(str(importlib.metadata.distribution("googleapis-common-protos").locate_file(""))).resolve()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "buf.yaml").write_text(WORKSPACE)
        shutil.copytree(HERE / "muster", root / "ours" / "muster")
        only_protos = shutil.ignore_patterns("*.py", "*.pyi", "__pycache__")
        shutil.copytree(site / "google" / "rpc", root / "imports" / "google" / "rpc", ignore=only_protos)
        return subprocess.run([str(buf), "lint", "ours"], cwd=root, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
