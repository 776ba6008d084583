"""`muster`: the command of operators and requesters."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import os
import sys
from pathlib import Path

from agent_client.cli import agents, audit, collaborations, demo, messages, plane
from agent_client.cli.output import FAILED, INTERRUPTED, OK, UNREACHABLE, USAGE, Output, complain
from agent_client.context import HOME_VARIABLE
from agent_client.errors import (
    CallTimeoutError,
    ContextError,
    InvalidRequestError,
    MusterError,
    UnavailableError,
)
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
--json prints one JSON value per line. Colours: only on a terminal, and not under NO_COLOR.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    options = parser().parse_args(arguments)
    if options.home is not None:
        os.environ[HOME_VARIABLE] = str(options.home)
    output = Output(as_json=options.json)
    try:
        code = options.run(options, output)
        return asyncio.run(code) if inspect.iscoroutine(code) else int(code)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # `muster ... | head` has seen enough; nothing more can be written, not even at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except VerificationError as error:
        complain(f"{type(error).__name__}: {error}; keep this log and what you hold of it as evidence")
        return FAILED
    except ContextError as error:
        complain(str(error))
        return UNREACHABLE
    except InvalidRequestError as error:
        complain(str(error))
        for violation in error.violations:
            sys.stderr.write(f"  {violation.field}: {violation.description}\n")
        return USAGE
    except (UnavailableError, CallTimeoutError) as error:
        complain(f"{error}; `muster status` shows what runs")
        return UNREACHABLE
    except MusterError as error:
        complain(str(error))
        return FAILED


def parser() -> argparse.ArgumentParser:
    """Return the whole command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON, one value per line")
    common.add_argument("--home", type=Path, metavar="DIR", help="the plane's folder (default $MUSTER_HOME)")
    top = argparse.ArgumentParser(
        prog="muster",
        description="Muster: a control plane for fleets of cooperating agents.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for group in (plane, demo, agents, collaborations, messages, audit):
        group.add(commands, common)
    return top


if __name__ == "__main__":
    sys.exit(main())
