"""Writing the settings of the plane's processes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from services.common.certificates import write_private

# What a service's settings may hold.
Setting = str | int | float | bool | Path | Sequence[str]


def write_toml(path: Path, settings: Mapping[str, Setting], comment: str) -> None:
    """Replace `path` with `settings` as TOML; readable by the owner only."""
    lines = [f"# {comment}", *(f"{key} = {_toml(value)}" for key, value in settings.items())]
    write_private(path, ("\n".join(lines) + "\n").encode())


def write_json(path: Path, content: object) -> None:
    """Replace `path` with `content` as JSON; readable by the owner only."""
    write_private(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _toml(value: Setting) -> str:
    if isinstance(value, bool | int | float):
        return str(value).lower()
    if isinstance(value, str | Path):
        # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"[{', '.join(_toml(item) for item in value)}]"
