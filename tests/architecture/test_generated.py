"""What is generated is fresh, and what is written twice says the same."""

from __future__ import annotations

import re
import subprocess
import sys

from muster.audit.v1 import entry_pb2
from muster.common.v1 import errors_pb2

from services.common.core.entries import Outcome
from services.common.core.errors import TABLE, Reason
from tests.architecture.source_tree import ROOT

PREFIX = "ERROR_REASON_"


def test_the_generated_code_is_fresh() -> None:
    command = [sys.executable, "proto/generate.py", "--check"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, f"run `make generate`:\n{checked.stderr}"


def test_reasons_are_those_of_the_proto() -> None:
    proto = {name.removeprefix(PREFIX) for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name}
    assert {reason.name for reason in Reason} == proto - {"UNSPECIFIED"}


def test_codes_are_those_that_the_proto_promises() -> None:
    """Clients read the comments of errors.proto; the table is what they get."""
    text = (ROOT / "proto/muster/common/v1/errors.proto").read_text("utf-8")
    rows = re.findall(r"// ([A-Z_]+): [^\n]*\n\s*ERROR_REASON_(\w+) = \d+;", text)
    promised = {name: code for code, name in rows}
    assert len(promised) == len(Reason), "every reason's comment starts with its gRPC code"
    assert {reason.name: TABLE[reason].code for reason in Reason} == promised


def test_indefinite_reasons_say_so() -> None:
    """Who reads "(indefinite)" in the proto builds a retry on it."""
    text = (ROOT / "proto/muster/common/v1/errors.proto").read_text("utf-8")
    said = set(re.findall(r"\(indefinite\)\.\n\s*ERROR_REASON_(\w+) = \d+;", text))
    indefinite = {reason.name for reason in Reason if not TABLE[reason].definite}
    assert said <= indefinite


def test_outcomes_are_those_of_the_proto() -> None:
    proto = {name.removeprefix("OUTCOME_"): number for name, number in entry_pb2.Outcome.items()}
    proto.pop("UNSPECIFIED")
    assert {outcome.name: outcome.value for outcome in Outcome} == proto
