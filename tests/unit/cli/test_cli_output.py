"""Tables, times and JSON lines, in a pipe and on a terminal."""

from __future__ import annotations

import io
import json
import re
from datetime import datetime, timedelta

import pytest
from rich.console import Console

from agent_client.cli.output import Output, aligned, clock, complain, stacked

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
COLUMNS = ("INDEX", "SUBJECT", "OUTCOME")
ROWS = [(7, "task/c-1234567890/" + "x" * 60, "OK"), (12, "", "REFUSED")]


def on_terminal(width: int) -> tuple[Output, io.StringIO]:
    output, shown = Output(as_json=False), io.StringIO()
    output.console = Console(file=shown, force_terminal=True, width=width, highlight=False)
    return output, shown


def test_in_a_pipe_a_row_is_one_line_without_codes(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).table(COLUMNS, ROWS, (), "nothing", folds=("SUBJECT",))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].split() == list(COLUMNS)
    assert lines[1].split() == [str(cell) for cell in ROWS[0]]
    assert "\x1b" not in "".join(lines)


def test_on_a_wide_terminal_too_and_the_head_is_bold() -> None:
    output, shown = on_terminal(120)
    output.table(COLUMNS, ROWS, (), "nothing", folds=("SUBJECT",))
    lines = shown.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("\x1b[1mINDEX")


def test_on_a_narrow_terminal_long_cells_go_below() -> None:
    output, shown = on_terminal(84)
    output.table(COLUMNS, ROWS, (), "nothing", folds=("SUBJECT",))
    head, head_below, row, below, last = ESCAPE.sub("", shown.getvalue()).splitlines()
    assert (head.split(), head_below) == (["INDEX", "OUTCOME"], "    SUBJECT")
    assert (row.split(), below) == (["7", "OK"], f"    {ROWS[0][1]}")
    assert last.split() == ["12", "REFUSED"]


def test_markup_and_emoji_codes_in_names_are_only_text(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).line("[red]alert[/red] :smile: [/]")
    assert capsys.readouterr().out == "[red]alert[/red] :smile: [/]\n"


def test_what_agents_say_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).line("stage \x1b[2J\r\x9b1m\x07 done\tnow")
    complain("\x1b]0;title\x07")
    assert capsys.readouterr() == (
        "stage \\x1b[2J\\x0d\\x9b1m\\x07 done\tnow\n",
        "muster: \\x1b]0;title\\x07\n",
    )


def test_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).table(COLUMNS, (), (), "nothing yet")
    assert capsys.readouterr().out == "nothing yet\n"


def test_json_is_one_value_per_line_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=True)
    output.table(COLUMNS, ROWS, [{"桥": 1}, {"b": "line\nbreak"}], "nothing")
    output.line("for people")
    output.item({"c": 3}, "for people")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"桥": 1},
        {"b": "line\nbreak"},
        {"c": 3},
    ]


def test_wide_characters_count_twice() -> None:
    assert aligned([["桥", "a"], ["xyz", "b"]]) == ["桥   a", "xyz  b"]
    assert stacked([["1", "long", "x"]], [1]) == ["1  x\n    long"]


def test_the_date_is_shown_unless_it_is_today() -> None:
    now = datetime.now().astimezone()
    assert re.fullmatch(r"(\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d\.\d{3}", clock(now))
    before = now - timedelta(days=2)
    assert clock(before) == f"{before.date()} {before:%H:%M:%S}.{before.microsecond // 1000:03}"
    assert clock(None) == "-"
