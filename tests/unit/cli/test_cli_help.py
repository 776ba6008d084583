"""Every subcommand's --help: it is there, and it teaches what each word means."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from agent_client.cli.__main__ import main, parser


def subcommands(top: argparse.ArgumentParser, *names: str) -> Iterator[tuple[str, ...]]:
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield (*names, name)
                yield from subcommands(below, *names, name)


def find(names: tuple[str, ...]) -> argparse.ArgumentParser:
    found = parser()
    for name in names:
        (choices,) = [a.choices for a in found._actions if isinstance(a, argparse._SubParsersAction)]
        found = choices[name]
    return found


ALL = list(subcommands(parser()))


def test_all_groups_are_there() -> None:
    promised = "up demo agents submit watch task message audit collaborations cancel locks services"
    assert {name for name, *_ in ALL} >= set(promised.split())
    assert len(ALL) > 25


@pytest.mark.parametrize("names", ALL, ids=" ".join)
def test_its_help_explains_every_word(names: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*names, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: muster {' '.join(names)}")
    described = find(names)
    assert described.description
    assert described.description.endswith(".")
    silent = [
        action.dest
        for action in described._actions
        if not action.help and not isinstance(action, argparse._SubParsersAction)
    ]
    assert not silent, f"what are {silent}?"


def test_the_first_help_tells_exit_codes_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for word in ("exit codes:", "130", "examples:", "muster agents enroll", "$MUSTER_HOME", "NO_COLOR"):
        assert word in text


def test_common_options_stand_before_or_after_the_command() -> None:
    for line in ("--json --home x agents list", "agents --json list --home x", "agents list --home x --json"):
        options = parser().parse_args(line.split())
        assert options.json is True
        assert str(options.home) == "x"
    assert parser().parse_args(["agents", "list"]).home is None
