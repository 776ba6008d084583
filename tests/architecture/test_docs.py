"""The documents keep their word: every test that they name exists, every link leads somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*/**/*.md")]
    if not any(part.startswith((".", "node_modules")) for part in path.relative_to(ROOT).parts)
)
NAMED_TEST = re.compile(r"`(tests/[a-z0-9_/]+\.py)(?:::(\w+))?(?:::(\w+))?`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")


def defined(path: Path) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {n.name for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, kinds)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_tests_exist(document: Path) -> None:
    for file, *names in NAMED_TEST.findall(document.read_text(encoding="utf-8")):
        assert (ROOT / file).is_file(), f"{document.name} names {file}, which does not exist"
        missing = {name for name in names if name} - defined(ROOT / file)
        assert not missing, f"{document.name} names {missing} in {file}, which has no such test"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), f"{document.name} links to {target}, which does not exist"


def test_every_promise_is_held_by_a_test() -> None:
    rows = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8").splitlines()
    promises = [row for row in rows if re.match(r"\| [A-Z]\d ", row)]
    assert len(promises) >= 24
    for row in promises:
        held, missing = row.split("|")[3], row.split("|")[4]
        assert NAMED_TEST.search(held) or missing.strip(), (
            f"nothing holds this promise, and nothing says so: {row}"
        )
