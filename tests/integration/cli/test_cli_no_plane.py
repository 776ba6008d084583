"""Every command where no plane is known: exit code 3 and the next step, with and without --json."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from tests.integration.cli.cli_process import COMMAND, environment, muster

COMMANDS = """\
agents list
agents show nobody
agents watch
agents enroll somebody
submit -
watch c-1
collaborations list
task list c-1
task show c-1 a
cancel c-1
locks
services
status
message send somebody hi
message receive
message box
message deadletters
audit query
audit tail
audit verify
audit prove 0
""".splitlines()


@pytest.mark.parametrize("line", COMMANDS)
def test_it_is_said_what_to_do(line: str, tmp_path: Path) -> None:
    for arguments in (line.split(), ["--json", *line.split()]):
        done = muster(*arguments, home=tmp_path / "nowhere", given='{"tasks": []}')
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr.startswith("muster: ")
        assert done.stderr.count("\n") == 1
        assert "muster up" in done.stderr
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"registry": []}', "\xff"])
def test_a_spoilt_context_is_said(content: str, tmp_path: Path) -> None:
    (tmp_path / "context.json").write_bytes(content.encode("latin-1"))
    done = muster("agents", "list", home=tmp_path)
    assert done.returncode == 3
    assert "`muster up` to write it anew" in done.stderr


def test_no_colours_where_they_are_not_wanted() -> None:
    """On a terminal, NO_COLOR leaves no colour in what would else have some."""
    assert "\x1b[" in shown_on_terminal()
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", shown_on_terminal(no_color="1"))


def shown_on_terminal(no_color: str = "") -> str:
    code = (
        "from agent_client.cli.output import Output\n"
        "output = Output(as_json=False)\n"
        "output.line('COMPLETED', style='green bold')\n"
    )
    reader, writer = pty.openpty()
    with subprocess.Popen(
        [COMMAND[0], "-c", code], stdout=writer, env=environment(TERM="xterm-256color", NO_COLOR=no_color)
    ):
        os.close(writer)
        shown = b""
        # EIO is how Linux says that the last writer of a terminal has left.
        with contextlib.suppress(OSError):
            while part := os.read(reader, 4_096):
                shown += part
        os.close(reader)
    return shown.decode()
