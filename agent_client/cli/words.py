"""How subcommands are declared."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

Commands = Any  # argparse's own type of subparsers is private
Run = Callable[..., Any]


def command(
    commands: Commands, common: argparse.ArgumentParser, name: str, run: Run, *texts: str
) -> argparse.ArgumentParser:
    """Add a subcommand that calls `run(options, output)`; a second text teaches in its --help."""
    text, more = texts[0], "\n".join(texts[1:])
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=more,
        parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(run=run)
    return made


def group(commands: Commands, name: str, text: str) -> Commands:
    """Add a subcommand that has subcommands."""
    made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    return made.add_subparsers(required=True, metavar="COMMAND")
