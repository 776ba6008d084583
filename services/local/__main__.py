"""`python -m services.local`: start, look at and stop a control plane on this machine."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from services.common import logs
from services.common.identity import TRUST_DOMAIN, Principal
from services.common.tls import TlsMaterialError
from services.local import control
from services.local.certs import CertificateError
from services.local.child import open_log
from services.local.etcd_server import EtcdMissingError
from services.local.events import Emit, PlaneEvent, printer
from services.local.launcher import Plane, PlaneError, PlaneSettings
from services.local.layout import Places
from services.local.lock import AlreadyRunningError
from services.local.ports import PortTakenError

DEFAULT_DIRECTORY = Path(".muster")
EXIT_OK = 0
EXIT_FAILED = 1
EXIT_FORCED = 130
# What a person can mend: said in one line, without a traceback.
_EXPECTED = (
    AlreadyRunningError,
    CertificateError,
    control.ControlError,
    EtcdMissingError,
    OSError,
    PlaneError,
    PortTakenError,
    TlsMaterialError,
    ValueError,
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    options = _parser().parse_args(arguments)
    emit = printer(sys.stdout, sys.stderr, as_json=options.json_events)
    try:
        code: int = options.run(options, emit)
    except _EXPECTED as error:
        emit(PlaneEvent("failed", {"message": str(error)}))
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_FORCED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.local", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = _command(commands, "up", _up, "start the plane and keep it running; Ctrl-C stops it")
    up.add_argument(
        "--port-base",
        type=int,
        default=7_400,
        metavar="N",
        help="first port; 0 takes free ones (default %(default)s)",
    )
    up.add_argument("--trust-domain", default=TRUST_DOMAIN, help="SPIFFE trust domain (default %(default)s)")
    up.add_argument(
        "--until-stdin-ends",
        action="store_true",
        help="stop also when standard input ends: for a program that starts the plane and may die",
    )

    issue = _command(commands, "issue-certificate", _issue, "issue a certificate for an agent or an operator")
    who = issue.add_mutually_exclusive_group(required=True)
    who.add_argument("--agent", metavar="NAME")
    who.add_argument("--operator", metavar="NAME")

    made = _command(
        commands, "certificates", _certificates, "make the certificates of a plane that runs elsewhere"
    )
    made.add_argument(
        "--etcd-name", nargs="+", default=[], metavar="DNS", help="names by which etcd's members are reached"
    )
    made.add_argument(
        "--trust-domain", default=TRUST_DOMAIN, help="SPIFFE trust domain (default %(default)s)"
    )

    _command(commands, "status", _status, "say what runs; exit code 0 when all of it serves")
    _command(commands, "down", _down, "stop the plane that runs in the folder")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, run: object, text: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    command.add_argument(
        "--directory",
        type=Path,
        default=DEFAULT_DIRECTORY,
        help="folder with the plane's certificates, data and logs (default %(default)s)",
    )
    command.add_argument(
        "--json-events", action="store_true", help="print one JSON object per event instead of text"
    )
    return command


def _up(options: argparse.Namespace, emit: Emit) -> int:
    options.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    plane = Plane(PlaneSettings(options.directory, options.port_base, options.trust_domain), emit)
    # What the libraries have to say is for the log; the events are for whoever started us.
    with os.fdopen(open_log(plane.places.log("launcher")), "w", encoding="utf-8") as stream:
        logs.configure("local", "launcher", stream=stream)
        return asyncio.run(_run_plane(plane, until_stdin_ends=options.until_stdin_ends))


async def _run_plane(plane: Plane, *, until_stdin_ends: bool) -> int:
    """Run the plane until the first signal; a second one kills everything at once."""
    loop = asyncio.get_running_loop()
    running = asyncio.create_task(_supervise(plane))
    asked = False

    def end() -> None:
        nonlocal asked
        if asked:
            plane.kill()
            os._exit(EXIT_FORCED)
        asked = True
        running.cancel()

    def on_stdin() -> None:
        if not os.read(sys.stdin.fileno(), 4_096):
            loop.remove_reader(sys.stdin.fileno())
            if not asked:
                end()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end)
    if until_stdin_ends:
        loop.add_reader(sys.stdin.fileno(), on_stdin)
    try:
        await running
    except asyncio.CancelledError:
        return EXIT_OK
    return EXIT_FAILED


async def _supervise(plane: Plane) -> None:
    async with plane:
        await plane.supervise()


def _issue(options: argparse.Namespace, emit: Emit) -> int:
    kind, name = ("agent", options.agent) if options.agent is not None else ("operator", options.operator)
    control.issue(Places(options.directory.absolute()), Principal(kind, name), emit)
    return EXIT_OK


def _certificates(options: argparse.Namespace, emit: Emit) -> int:
    control.make_certificates(
        options.directory.absolute(), options.trust_domain, tuple(options.etcd_name), emit
    )
    return EXIT_OK


def _status(options: argparse.Namespace, emit: Emit) -> int:
    serving = asyncio.run(control.tell_state(Places(options.directory.absolute()), emit))
    return EXIT_OK if serving else EXIT_FAILED


def _down(options: argparse.Namespace, emit: Emit) -> int:
    control.stop(Places(options.directory.absolute()), emit)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
