"""Every command that a message, a help text or a comment names is one that there is."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from agent_client.cli.__main__ import parser
from agent_client.cli.endings import NEXT_STEPS

ROOT = Path(__file__).parents[3]
# `muster agents list`, and lines of examples such as "  muster up      start a plane".
NAMED = re.compile(r"`muster ([^`\n]+)`|^\s*[\"']?muster ([a-z][^\n]*?)(?:\s{2,}|$)", re.MULTILINE)
WORD = re.compile(r"[a-z][a-z|-]*")


def named(text: str) -> list[str]:
    return [one or other for one, other in NAMED.findall(text)]


def commands_of(words: str) -> Iterator[list[str]]:
    """Yield each command line that is meant: `a|b c` are two; what follows the first argument is none."""
    leading: list[list[str]] = []
    for word in words.split():
        if not WORD.fullmatch(word):
            break
        leading.append(word.split("|"))
    for one in product(*leading):
        yield [*one]


@cache
def top() -> argparse.ArgumentParser:
    return parser()


def subcommands(command: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def unknown(words: str) -> list[str]:
    """Return the first word of each meant command line that is no command where it stands."""
    found = []
    for line in commands_of(words):
        below = subcommands(top())
        for word in line:
            if not below:
                break
            if word not in below:
                found.append(word)
                break
            below = subcommands(below[word])
    return found


def options_of(words: str) -> set[str]:
    return set(re.findall(r"(?<!\S)--[a-z-]+", words))


def known_options(words: str) -> set[str]:
    command = top()
    line = next(commands_of(words), [])
    options = {option for action in command._actions for option in action.option_strings}
    for word in line:
        if word not in (below := subcommands(command)):
            break
        command = below[word]
        options |= {option for action in command._actions for option in action.option_strings}
    return options


def sources() -> list[Path]:
    folders = ("agent_client", "services", "examples")
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py")]


def test_every_command_that_is_named_exists() -> None:
    wrong, seen = [], 0
    for path in sources():
        for words in named(path.read_text("utf-8")):
            seen += 1
            wrong += [f"{path.relative_to(ROOT)}: muster {words}: {word}" for word in unknown(words)]
            if lost := options_of(words.partition(" | ")[0]) - known_options(words):
                wrong.append(f"{path.relative_to(ROOT)}: muster {words}: no option {lost}")
    assert not wrong, "\n".join(wrong)
    assert seen >= 60


@pytest.mark.parametrize("reason", NEXT_STEPS)
def test_every_next_step_names_a_command_that_exists(reason: str) -> None:
    for words in named(NEXT_STEPS[reason]):
        assert not unknown(words)


@pytest.mark.parametrize("words", ["agents lst", "collaboration list", "submit|wach", "message deadletter"])
def test_a_command_that_does_not_exist_is_noticed(words: str) -> None:
    assert unknown(words)
