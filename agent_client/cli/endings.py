"""How an error that was to be expected is told: what is wrong, what to do next, which exit code."""

from __future__ import annotations

import sys
from types import MappingProxyType

from agent_client.audit import TrustFileError
from agent_client.cli.output import FAILED, UNREACHABLE, USAGE, complain, visible
from agent_client.errors import (
    CallTimeoutError,
    ContextError,
    InvalidRequestError,
    MusterError,
    UnavailableError,
)
from agent_client.verify import SignatureError, VerificationError

# Reason -> the command that helps on.
NEXT_STEPS = MappingProxyType(
    {
        "ACCESS_DENIED": "this needs an operator's certificate of the plane",
        "AGENT_NOT_FOUND": "`muster agents list` shows who is known",
        "COLLABORATION_NOT_FOUND": "`muster collaborations list` shows what is",
        "ENTRY_NOT_FOUND": "`muster audit query` shows the entries with their indices",
        "INCARNATION_FENCED": "another `muster message receive` took over",
        "UNKNOWN_SKILL": "`muster agents list` shows who can do what",
    }
)


def tell(error: Exception) -> int:
    """Say what went wrong on standard error; return the exit code. Anything unexpected is raised again."""
    match error:
        case TrustFileError() | SignatureError():
            complain(f"{type(error).__name__}: {error}")
            return FAILED
        case VerificationError():
            complain(f"{type(error).__name__}: {error}; keep this log and what you hold of it as evidence")
            return FAILED
        case ContextError():
            complain(str(error))
            return UNREACHABLE
        case InvalidRequestError():
            complain(_with_next_step(error))
            for violation in error.violations:
                if violation.description not in error.message:
                    sys.stderr.write(visible(f"  {violation.field}: {violation.description}\n"))
            return USAGE
        case UnavailableError() | CallTimeoutError():
            complain(f"{error}; `muster status` shows what runs here, `muster up` starts it")
            return UNREACHABLE
        case MusterError():
            complain(_with_next_step(error))
            return FAILED
        case UnicodeEncodeError():
            # Bytes of the command line that are no UTF-8, or half a character in a file of JSON.
            complain(f"{error.object:.80} can not be written as UTF-8, which names and texts must be")
            return USAGE
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            complain(f"{where}{error.strerror or error}")
            return FAILED
        case _:
            raise error


def _with_next_step(error: MusterError) -> str:
    step = NEXT_STEPS.get(error.reason)
    return f"{error}; {step}" if step else str(error)
