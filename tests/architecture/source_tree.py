"""The project's own Python files, parsed once for all architecture tests."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("services", "agent_client", "tests", "benchmarks", "examples", "docs", "proto")


@dataclass(frozen=True)
class Source:
    """One file: its path below the root, its dotted module name, its text and its tree."""

    path: str
    module: str
    text: str
    tree: ast.Module

    def imports(self) -> list[tuple[int, str]]:
        """Return (line, dotted name) of each import; `from a import b` gives a.b when that is a module."""
        found: list[tuple[int, str]] = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(node.lineno, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                for alias in node.names:
                    deeper = f"{node.module}.{alias.name}"
                    found.append((node.lineno, deeper if _is_module(deeper) else node.module))
        return found

    def calls(self) -> list[tuple[int, str]]:
        """Return (line, dotted name as written) of each call, for example (12, "time.time")."""
        return [
            (node.lineno, ast.unparse(node.func))
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
        ]


@cache
def sources() -> tuple[Source, ...]:
    """Return every file of the project but the generated ones."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if name.startswith("proto/gen/") or "__pycache__" in name:
                continue
            text = path.read_text("utf-8")
            module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            found.append(Source(name, module, text, ast.parse(text, name)))
    return tuple(found)


def below(*prefixes: str) -> list[Source]:
    """Return the files whose path starts with one of `prefixes`."""
    return [source for source in sources() if source.path.startswith(prefixes)]


@cache
def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()
