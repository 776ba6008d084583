"""Checkpoints in the form of C2SP: written, read back, and refused after any change."""

import base64

import pytest

from services.audit.core.checkpoint import (
    MalformedCheckpointError,
    TreeHead,
    open_own,
    sign,
    valid_origin,
    verifier_key,
)
from services.audit.core.merkle import EMPTY_ROOT
from tests.unit.audit.audit_reference import FixedSigner

ORIGIN = "muster.internal/audit"
SIGNER = FixedSigner(b"one")
HEAD = TreeHead(42, bytes(range(32)))


def test_the_note_has_the_form_of_the_specification() -> None:
    lines = sign(ORIGIN, HEAD, SIGNER).decode().split("\n")
    assert lines[:4] == [ORIGIN, "42", base64.b64encode(HEAD.root).decode(), ""]
    assert lines[4].startswith(f"— {ORIGIN} ")
    assert lines[5:] == [""]
    key_id = base64.b64decode(lines[4].rpartition(" ")[2])[:4]
    assert verifier_key(ORIGIN, SIGNER.public_key).split("+")[1] == key_id.hex()


def test_the_published_key_hash_of_the_note_format() -> None:
    # The example key in the documentation of golang.org/x/mod/sumdb/note.
    published = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    public_key = base64.b64decode(published.split("+", 2)[2])[1:]
    assert verifier_key("PeterNeumann", public_key) == published


@pytest.mark.parametrize("head", [HEAD, TreeHead(0, EMPTY_ROOT), TreeHead(2**62, HEAD.root)])
def test_its_own_checkpoint_is_read_back(head: TreeHead) -> None:
    assert open_own(sign(ORIGIN, head, SIGNER), ORIGIN, SIGNER) == head


def test_every_changed_byte_is_refused() -> None:
    note = sign(ORIGIN, HEAD, SIGNER)
    for at in range(len(note)):
        for bit in range(8):
            changed = note[:at] + bytes([note[at] ^ 1 << bit]) + note[at + 1 :]
            with pytest.raises(MalformedCheckpointError):
                open_own(changed, ORIGIN, SIGNER)


def test_every_shortened_checkpoint_is_refused() -> None:
    note = sign(ORIGIN, HEAD, SIGNER)
    for length in range(len(note)):
        with pytest.raises(MalformedCheckpointError):
            open_own(note[:length], ORIGIN, SIGNER)
    with pytest.raises(MalformedCheckpointError):
        open_own(note + b"\n", ORIGIN, SIGNER)


def test_a_checkpoint_of_another_log_or_key_is_named_as_such() -> None:
    note = sign(ORIGIN, HEAD, SIGNER)
    with pytest.raises(MalformedCheckpointError, match=r"of the log 'muster\.internal/audit', not 'other'"):
        open_own(note, "other", SIGNER)
    with pytest.raises(MalformedCheckpointError, match="another key"):
        open_own(note, ORIGIN, FixedSigner(b"two"))


def test_a_size_has_one_spelling() -> None:
    root = base64.b64encode(HEAD.root).decode()
    for size in ("042", "+42", "4_2", "-1", " 42", "٤٢", ""):
        text = f"{ORIGIN}\n{size}\n{root}\n".encode()
        blob = base64.b64encode(bytes(4) + SIGNER.sign(text)).decode()
        with pytest.raises(MalformedCheckpointError, match=r"canonical|three lines"):
            open_own(text + f"\n— {ORIGIN} {blob}\n".encode(), ORIGIN, SIGNER)


@pytest.mark.parametrize(
    ("origin", "valid"),
    [("muster.internal/audit", True), ("", False), ("a b", False), ("a+b", False), ("a\nb", False)],
)
def test_an_origin_can_be_a_key_name(origin: str, valid: bool) -> None:
    assert valid_origin(origin) is valid
