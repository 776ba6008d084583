"""`muster`: the command of operators and requesters."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import io
import os
import signal
import sys

from agent_client.cli import agents, audit, collaborations, demo, messages, plane, plans, policies, profiles
from agent_client.cli.endings import tell
from agent_client.cli.output import INTERRUPTED, OK, Output
from agent_client.cli.words import common_options
from agent_client.context import HOME_VARIABLE
from agent_client.errors import MusterError
from agent_client.verify import VerificationError

EPILOG = """\
exit codes:
  0    done
  1    the operation failed, or was refused
  2    the command line or the request is wrong
  3    the plane can not be reached
  130  interrupted

examples:
  muster up                                   start a plane here and keep it running
  muster agents enroll greeter                a certificate for an agent of yours
  muster submit greeting.json --wait          submit a collaboration, show it, print its result
  muster audit query --collaboration c-...    what happened in it
  muster audit verify                         that nobody changed the record

A plane is found through the folder $MUSTER_HOME (default ./.muster) or --home.
--json and --home may stand before or after the command.
--json prints one JSON value per line. Colours: only on a terminal, and not under NO_COLOR.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    options = parser().parse_args(arguments)
    if options.home is not None:
        os.environ[HOME_VARIABLE] = str(options.home)
    for stream in (sys.stdout, sys.stderr):
        # Names and payloads may hold what the terminal's encoding can not show.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = options.run(options, Output(as_json=options.json))
        return asyncio.run(code) if inspect.iscoroutine(code) else int(code)
    except KeyboardInterrupt:
        # Only the end of the process is left; one more Ctrl-C would but show a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return INTERRUPTED
    except BrokenPipeError:
        # `muster ... | head` has seen enough; nothing more can be written, not even at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (MusterError, VerificationError, OSError, UnicodeEncodeError) as error:
        return tell(error)


def parser() -> argparse.ArgumentParser:
    """Return the whole command line."""
    top = argparse.ArgumentParser(
        prog="muster",
        description="Muster: a control plane for fleets of cooperating agents.",
        epilog=EPILOG,
        parents=[common_options(top=True)],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for group in (plane, demo, agents, collaborations, plans, policies, profiles, messages, audit):
        group.add(commands, common_options(top=False))
    return top


if __name__ == "__main__":
    sys.exit(main())
