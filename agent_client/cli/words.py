"""How subcommands are declared, and the kinds of words on a command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

Commands = Any  # argparse's own type of subparsers is private
Run = Callable[..., Any]

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?\Z")
# The largest leaf index and generation that the protos can hold.
_NUMBER_MAX = 2**63 - 1


def common_options(*, top: bool) -> argparse.ArgumentParser:
    """Return what may stand before a subcommand (`top`) and after it."""

    def unless_given(value: object) -> Any:
        # A subcommand's parser must not put its default over what stood before the subcommand.
        return value if top else argparse.SUPPRESS

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--json",
        action="store_true",
        default=unless_given(False),
        help="print JSON, one value per line",
    )
    common.add_argument(
        "--home",
        type=Path,
        metavar="DIR",
        default=unless_given(None),
        help="the plane's folder (default $MUSTER_HOME, else ./.muster)",
    )
    return common


def command(
    commands: Commands, common: argparse.ArgumentParser, name: str, run: Run, *texts: str
) -> argparse.ArgumentParser:
    """Add a subcommand that calls `run(options, output)`; further texts teach in its --help."""
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


def group(commands: Commands, common: argparse.ArgumentParser, name: str, text: str) -> Commands:
    """Add a subcommand that has subcommands."""
    made = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", parents=[common]
    )
    return made.add_subparsers(required=True, metavar="COMMAND")


def natural(text: str) -> int:
    """Return a whole number from 0 on."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    # By its length first: a very long one takes long to read.
    if len(text) > len(str(_NUMBER_MAX)) or int(text) > _NUMBER_MAX:
        raise argparse.ArgumentTypeError(f"{text:.40} is too large: at most {_NUMBER_MAX}")
    return int(text)


def positive(text: str) -> int:
    """Return a whole number from 1 on."""
    number = natural(text)
    if not number:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def port(text: str) -> int:
    """Return a port number; 0 stands for any free one."""
    number = natural(text)
    if number > 65_535:
        raise argparse.ArgumentTypeError(f"{text} is no port: 0 to 65535")
    return number


def seconds(text: str) -> float:
    """Return a number of seconds, more than 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds greater than 0")
    return number


def name(text: str) -> str:
    """Return an agent's name."""
    if not _NAME.match(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name: 1 to 64 of a-z, 0-9 and '-', not at the ends")
    return text


def instant(text: str) -> datetime:
    """Return an aware time; without a zone it is meant as local time."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time such as 2026-07-01T12:00:00Z or 2026-07-01T12:00"
        ) from None
