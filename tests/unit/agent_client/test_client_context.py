"""The context file: where the plane is, and what to do when nobody knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent_client.context import find_home, load_context
from agent_client.errors import ContextError

DOCUMENT: dict[str, Any] = {
    "registry": ["127.0.0.1:7401"],
    "trust_domain": "muster.internal",
    "ca": "ca.crt",
    "operator": {"certificate": "operators/admin.crt", "key": "operators/admin.key"},
    "agents_directory": "agents",
}


def write(folder: Path, document: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "context.json").write_text(json.dumps(document))
    return folder


def test_paths_are_relative_to_the_folder_unless_absolute(tmp_path: Path) -> None:
    context = load_context(write(tmp_path, DOCUMENT | {"ca": "/etc/ca.crt"}))
    assert context.registry == ("127.0.0.1:7401",)
    assert context.ca == Path("/etc/ca.crt")
    assert context.operator_key == tmp_path / "operators/admin.key"
    assert context.agents_directory == tmp_path / "agents"


def test_the_folder_is_given_or_in_the_environment_or_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MUSTER_HOME", raising=False)
    assert find_home() == tmp_path / ".muster"
    monkeypatch.setenv("MUSTER_HOME", "/srv/plane")
    assert find_home() == Path("/srv/plane")
    assert find_home("elsewhere") == tmp_path / "elsewhere"


def test_a_missing_context_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ContextError, match="run `muster up` in another terminal, or set MUSTER_HOME"):
        load_context(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "can not be read"), ("[]", "is not a JSON object"), ("{}", "lacks 'registry'")],
)
def test_a_damaged_context_says_what_to_do(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "context.json").write_text(text)
    with pytest.raises(ContextError, match=words) as caught:
        load_context(tmp_path)
    assert "muster up" in str(caught.value)


def test_a_missing_certificate_says_how_to_get_one(tmp_path: Path) -> None:
    context = load_context(write(tmp_path, DOCUMENT))
    with pytest.raises(ContextError, match="muster agents enroll field-1") as caught:
        context.agent("field-1")
    assert caught.value.reason == "NO_CERTIFICATE"
    with pytest.raises(ContextError, match="muster up"):
        context.operator()
    (tmp_path / "agents").mkdir()
    for suffix in ("crt", "key"):
        (tmp_path / "agents" / f"field-1.{suffix}").touch()
    assert context.agent("field-1").principal == "agent/field-1"
