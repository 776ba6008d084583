"""Errors that are to be expected: the exit code, one line that says what is wrong, and the next step."""

from __future__ import annotations

import pytest

from agent_client.audit import TrustFileError
from agent_client.cli.endings import NEXT_STEPS, tell
from agent_client.cli.output import FAILED, UNREACHABLE, USAGE
from agent_client.errors import (
    AccessError,
    CallTimeoutError,
    ContextError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
    Violation,
)
from agent_client.verify import RootError, SignatureError


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ContextError("no plane is known here"), UNREACHABLE, "NO_CONTEXT: no plane is known here"),
        (UnavailableError("nobody answers"), UNREACHABLE, "`muster up` starts it"),
        (CallTimeoutError("too late"), UNREACHABLE, "`muster status` shows what runs here"),
        (NotFoundError("who?", reason="AGENT_NOT_FOUND"), FAILED, "who?; `muster agents list`"),
        (AccessError("not you"), FAILED, "not you; this needs an operator's certificate"),
        (RootError("the first 3 entries hash to ab"), FAILED, "keep this log and what you hold of it"),
        (SignatureError("the key is another"), FAILED, "SignatureError: the key is another\n"),
        (TrustFileError("audit.key was changed"), FAILED, "TrustFileError: audit.key was changed\n"),
        (PermissionError(13, "Permission denied", "/x/context.json"), FAILED, "/x/context.json: Permission"),
    ],
)
def test_it_is_told_in_one_line(
    error: Exception, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tell(error) == code
    complaint = capsys.readouterr().err
    assert complaint.startswith("muster: ")
    assert complaint.count("\n") == 1
    assert said in complaint


def test_bad_fields_are_listed_once(capsys: pytest.CaptureFixture[str]) -> None:
    violations = [Violation("name", "is too long"), Violation("tasks[3]", "is too many")]
    assert tell(InvalidRequestError("name is too long", violations=violations)) == USAGE
    assert capsys.readouterr().err.splitlines() == [
        "muster: INVALID_FIELD: name is too long",
        "  tasks[3]: is too many",
    ]


def test_a_defect_is_not_hidden() -> None:
    with pytest.raises(KeyError):
        tell(KeyError("a defect"))


def test_every_next_step_is_for_a_reason_that_exists() -> None:
    from muster.common.v1 import errors_pb2  # noqa: PLC0415

    known = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()}  # noqa: SIM118
    assert set(NEXT_STEPS) <= known
