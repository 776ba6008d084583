"""What every subcommand prints, and how it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

# Exit codes, as `muster --help` tells them.
OK = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130


class Output:
    """Where a subcommand's answer goes: JSON lines for machines, tables and lines for people.

    rich leaves out colours when the output is no terminal or NO_COLOR is set.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())

    @property
    def live(self) -> bool:
        """Whether a display that redraws itself is wanted."""
        return self.console.is_terminal and not self.as_json

    def item(self, plain: Mapping[str, Any], text: str) -> None:
        """Print one thing: the JSON object, or the line for people."""
        if self.as_json:
            self.json(plain)
        else:
            self.line(text)

    def json(self, plain: Any) -> None:
        """Print one JSON value on one line."""
        sys.stdout.write(json.dumps(plain, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def line(self, text: str, style: str | None = None) -> None:
        """Print a line for people; nothing under --json."""
        if not self.as_json:
            self.console.print(text, style=style, markup=False)

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[object]], items: Iterable[Any], empty: str
    ) -> None:
        """Print a table for people, `empty` when there is nothing, or one JSON line for each of `items`."""
        if self.as_json:
            for item in items:
                self.json(item)
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        self.console.print(table if table.row_count else empty, markup=False)


def complain(message: str) -> None:
    """Say on standard error what is wrong and what to do."""
    sys.stderr.write(f"muster: {message}\n")


def clock(moment: datetime | None) -> str:
    """Return a time of day, local, to the millisecond; "-" for none."""
    return "-" if moment is None else moment.astimezone().strftime("%H:%M:%S.%f")[:-3]
