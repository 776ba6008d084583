"""What was measured case by case, kept in a file, so that a long figure can be stopped and taken up again.

A line of the file is one case: `[key, values]`. A key names the case, its budget and the code that was
measured (`fingerprint`): what other code gave is never mixed in, it is measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

Value = float | int | bool | None
Values = Mapping[str, Value]


class Kept:
    """Cases by their keys. Owned by one process; without a path it forgets when that ends."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._cases: dict[tuple[object, ...], Values] = {}
        if path is not None and path.exists():
            text = path.read_text(encoding="utf-8")
            if text and not text.endswith("\n"):
                # A run was killed while it wrote: what comes next begins a line of its own.
                path.write_text(text + "\n", encoding="utf-8")
            for line in text.splitlines():
                try:
                    key, values = json.loads(line)
                except ValueError:
                    continue
                self._cases[tuple(key)] = values

    def find(self, key: Iterable[object]) -> Values | None:
        """Return what a case gave; None when it has not been measured."""
        return self._cases.get(tuple(key))

    def keep(self, key: Iterable[object], values: Values) -> Values:
        """Keep what a case gave, on disk when this returns; return it."""
        case = tuple(key)
        self._cases[case] = values
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([case, values]) + "\n")
        return values

    def once(self, key: Iterable[object], measure: Callable[[], Values]) -> Values:
        """Return what a case gave, and measure it only if nobody has."""
        case = tuple(key)
        known = self.find(case)
        return self.keep(case, measure()) if known is None else known


def fingerprint(*sources: Path) -> str:
    """Return eight digits that change with the files named, or with any Python file of the folders named."""
    digest = hashlib.sha256()
    for source in sources:
        for path in sorted(source.glob("*.py")) if source.is_dir() else [source]:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]
