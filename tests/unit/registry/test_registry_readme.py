"""The README shows the states as they are in the table."""

from __future__ import annotations

from pathlib import Path

from services.registry.core.machine import TABLE, Input
from services.registry.core.model import AgentState

README = Path(__file__).parents[3] / "services" / "registry" / "README.md"
BEGIN, END = "<!-- states -->\n", "<!-- /states -->"


def states_table() -> str:
    """Return the transition table as Markdown: a row for each state, a column for each input."""
    rows = {(state, given): target.name for state, given, target in TABLE.rows()}
    lines = [
        "| state | " + " | ".join(f"`{given.name}`" for given in Input) + " |",
        "|---" * (len(Input) + 1) + "|",
    ]
    for state in AgentState:
        cells = (rows.get((state, given), "") for given in Input)
        lines.append(f"| **{state.name}** | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def test_the_readme_has_the_table() -> None:
    text = README.read_text(encoding="utf-8")
    shown = text.partition(BEGIN)[2].partition(END)[0]
    assert shown == states_table(), f"put this between the marks in {README}:\n\n{states_table()}"
