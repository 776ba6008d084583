"""Every service's command line: help, settings, exit codes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.common import command_line, lifecycle, logs
from services.common.config import knob
from services.common.service_config import ServiceConfig


@dataclass(frozen=True, kw_only=True)
class ToyConfig(ServiceConfig):
    pace_ms: int = knob(10, "How often it does it.", unit="ms")


class Toy:
    """A service that stops by itself: its only loop crashes when told so, or is told to stop."""

    def __init__(self, config: ToyConfig) -> None:
        self.config = config
        self.supervisor = lifecycle.TaskSupervisor()

    async def start(self) -> None:
        async def crash() -> None:
            raise RuntimeError(f"pace was {self.config.pace_ms}")

        self.supervisor.spawn("toy", crash())

    async def drain(self) -> None:
        pass


async def build(config: ToyConfig) -> Toy:
    return Toy(config)


def write_settings(folder: Path, extra: str = "") -> str:
    path = folder / "toy.toml"
    required = {
        name: name for name in ("replica_id", "ca", "certificate", "key", "etcd_ca", "data_directory")
    }
    required |= {"etcd_certificate": "c", "etcd_key": "k", "listen": "127.0.0.1:0"}
    lines = [f"{name} = {json.dumps(value)}" for name, value in required.items()]
    path.write_text("\n".join([*lines, 'etcd_endpoints = ["127.0.0.1:1"]', extra]))
    return str(path)


@pytest.fixture(autouse=True)
def _restore_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "configure", lambda *_: None)


def run(*arguments: str, **environ: str) -> int:
    return command_line.run("toy", "A toy.", ToyConfig, build, arguments=arguments, environ=environ)


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        run("--help")
    assert raised.value.code == 0
    said = capsys.readouterr().out
    assert "pace_ms (whole number, default 10 ms): How often it does it." in said
    assert "MUSTER_TOY_<SETTING>" in said


def test_bad_settings_end_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--config", str(tmp_path / "nowhere.toml")) == 2
    assert "nowhere.toml" in capsys.readouterr().err
    assert run("--config", write_settings(tmp_path, "pace = 5")) == 2
    assert "unknown key 'pace': did you mean 'pace_ms'?" in capsys.readouterr().err


def test_the_service_runs_with_its_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = run("--config", write_settings(tmp_path), MUSTER_TOY_PACE_MS="77")
    assert code == 1
    _, fields, error = caplog.records[0].muster  # type: ignore[attr-defined]
    assert fields == {"loop": "toy"}
    assert str(error) == "pace was 77"
