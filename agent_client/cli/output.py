"""What every subcommand prints, and how it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.cells import cell_len
from rich.console import Console

# Exit codes, as `muster --help` tells them.
OK = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130

GAP = "  "
# C0, DEL and C1, without the newline and the tab.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


# Seconds that a single question to the plane may take with all its retries: longer than a failover.
PATIENCE_S = 10.0


class Output:
    """Where a subcommand's answer goes: JSON lines for machines, tables and lines for people.

    rich leaves out colours when the output is no terminal or NO_COLOR is set.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(highlight=False, markup=False, emoji=False)

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
        if self.as_json:
            return
        if self.console.is_terminal:
            self.console.print(visible(text), style=style)
        else:
            # As it is: rich would wrap long lines and put blanks for tabs.
            sys.stdout.write(f"{visible(text)}\n")
            sys.stdout.flush()

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        items: Iterable[Any],
        empty: str,
        *,
        folds: Sequence[str] = (),
    ) -> None:
        """Print a table for people, `empty` when there is nothing, or one JSON line for each of `items`.

        On a terminal that is too narrow the columns `folds` go below the others; in a pipe a row is one line.
        """
        if self.as_json:
            for item in items:
                self.json(item)
            return
        cells = [[str(cell) for cell in row] for row in rows]
        if not cells:
            self.line(empty)
            return
        grid = [list(columns), *cells]
        lines = aligned(grid)
        if folds and self.console.is_terminal and max(map(cell_len, lines)) > self.console.width:
            lines = stacked(grid, [columns.index(name) for name in folds])
        for number, line in enumerate(lines):
            self.line(line, style=None if number else "bold")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines whose cells begin below each other; wide characters count twice."""
    widths = [max(cell_len(cell) for cell in column) for column in zip(*rows, strict=True)]

    def padded(row: Sequence[str]) -> Iterator[str]:
        return (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))

    return [GAP.join(padded(row)).rstrip() for row in rows]


def stacked(rows: Sequence[Sequence[str]], below: Sequence[int]) -> list[str]:
    """Return rows as lines like `aligned`, but with the cells of the columns `below` in a line below."""
    above = aligned([[cell for at, cell in enumerate(row) if at not in below] for row in rows])
    under = (GAP.join(row[at] for at in below if row[at]) for row in rows)
    return [f"{line}\n{GAP * 2}{rest}" if rest else line for line, rest in zip(above, under, strict=True)]


def visible(text: str) -> str:
    """Return text from elsewhere with its control characters written out, so that it moves no cursor."""
    return text.translate(_CONTROLS)


def complain(message: str) -> None:
    """Say on standard error what is wrong and what to do."""
    sys.stderr.write(f"muster: {visible(message)}\n")


def clock(moment: datetime | None) -> str:
    """Return a local time to the millisecond, with its date unless that is today; "-" for none."""
    if moment is None:
        return "-"
    local = moment.astimezone()
    time = local.strftime("%H:%M:%S.%f")[:-3]
    return time if local.date() == datetime.now().astimezone().date() else f"{local.date()} {time}"
