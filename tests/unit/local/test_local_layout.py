"""Ports, settings, files and words of the local plane, without starting anything."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.local import describe
from services.local.certs import PlaneCertificates
from services.local.child import ending, tail
from services.local.config_files import Setting, write_toml
from services.local.events import TEXTS, PlaneEvent
from services.local.layout import PORT_BASE_MAX, PORT_COUNT, REPLICAS, SERVICES, STAGES, Places, Ports
from services.local.lock import AlreadyRunningError, FolderLock, holder
from services.local.ports import BLOCK, PortTakenError, free_ports, is_free


def test_the_documented_ports() -> None:
    ports = Ports.from_base(7_400)
    assert (ports.etcd_client, ports.etcd_peer) == (7_400, 7_409)
    assert ports.grpc == {
        "registry-1": 7_401,
        "scheduler-1": 7_402,
        "scheduler-2": 7_412,
        "broker-1": 7_403,
        "audit-1": 7_404,
    }
    assert ports.metrics_address("audit-1") == "127.0.0.1:7454"


@pytest.mark.parametrize("ports", [Ports.from_base(PORT_BASE_MAX), Ports.from_free(range(1, PORT_COUNT + 1))])
def test_every_part_has_a_port_of_its_own(ports: Ports) -> None:
    assert len(ports.purposes()) == PORT_COUNT
    assert max(ports.purposes()) <= 65_535


@pytest.mark.parametrize("base", [-1, 80, PORT_BASE_MAX + 1])
def test_a_base_that_does_not_fit_is_refused(base: int) -> None:
    with pytest.raises(ValueError, match=str(base)):
        Ports.from_base(base)


def test_audit_ends_last_and_every_service_is_there() -> None:
    assert [replica.service for replica in STAGES[0]] == ["audit"]
    assert set(SERVICES) == {"audit", "registry", "broker", "scheduler"}
    assert len({replica.replica_id for replica in REPLICAS}) == len(REPLICAS)


def test_a_taken_port_is_seen_and_said() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not is_free(port)
        assert str(port) in str(PortTakenError(port, "etcd"))
        assert "--port-base" in str(PortTakenError(port, "etcd"))


def test_free_ports_are_free_and_different() -> None:
    ports = free_ports(PORT_COUNT)
    assert len(set(ports)) == PORT_COUNT
    assert all(is_free(port) for port in ports)


def test_two_processes_never_draw_the_same_free_port() -> None:
    # More than a block holds, with none of them bound meanwhile.
    mine = free_ports(2 * BLOCK)
    script = f"from services.local.ports import free_ports; print(*free_ports({BLOCK // 2})); input()"
    command = [sys.executable, "-c", script]
    others: set[int] = set()
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            other = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            assert other.stdout is not None
            drawn = {int(port) for port in other.stdout.readline().split()}
            assert len(drawn) == BLOCK // 2
            assert not drawn & others
            assert not drawn & set(mine[-BLOCK // 2 :])
            others |= drawn
            # Its end of input lets it end.
            stack.callback(other.communicate, "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings")


texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.dictionaries(
        st.sampled_from("abcdef"), st.one_of(texts, st.integers(), st.booleans(), st.lists(texts))
    )
)
def test_settings_survive_toml(
    tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Setting]
) -> None:
    path = tmp_path_factory.getbasetemp() / "settings.toml"
    write_toml(path, settings, "comment")
    assert tomllib.loads(path.read_text(encoding="utf-8")) == settings
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_context_is_what_agents_read(tmp_path: Path) -> None:
    places, ports = Places(tmp_path), Ports.from_base(7_400)
    context = describe.context(places, ports, PlaneCertificates(tmp_path), "muster.internal")
    assert context == {
        "registry": ["127.0.0.1:7401"],
        "trust_domain": "muster.internal",
        "ca": "ca.crt",
        "operator": {"certificate": "operators/admin.crt", "key": "operators/admin.key"},
        "agents_directory": "agents",
    }


def test_every_event_can_be_said_both_ways(tmp_path: Path) -> None:
    ports = Ports.from_base(7_400)
    facts: dict[str, dict[str, object]] = {
        "starting": {"directory": "/d"},
        "serving": {"name": "etcd", "pid": 1, "address": "127.0.0.1:1", "took_ms": 5},
        "coordinator": {"replica_id": "scheduler-1", "address": "127.0.0.1:1", "epoch": 5},
        "ready": describe.ready_facts(Places(tmp_path), ports, PlaneCertificates(tmp_path)),
        "crashed": {"name": "etcd", "story": "it was {odd}", "retry_ms": 5},
        "restarted": {"name": "etcd", "pid": 1},
        "asked": {"pid": 1},
        "stopping": {},
        "killed": {"name": "etcd"},
        "stopped": {},
        "failed": {"message": "why"},
        "certified": {"directory": "/d"},
        "issued": {"name": "agent/a", "certificate": "a.crt", "key": "a.key"},
        "part": {"name": "etcd", "pid": 1, "address": "127.0.0.1:1", "state": "serving"},
    }
    assert set(facts) == set(TEXTS)
    for kind, said in facts.items():
        event = PlaneEvent(kind, said)
        assert json.loads(event.to_json()) == {"event": kind, **said}
        assert "{" not in event.to_text().replace("{odd}", "")


def test_a_folder_is_locked_once(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path / "lock"), FolderLock(tmp_path / "lock")
    assert holder(tmp_path / "lock") is None
    first.acquire()
    with pytest.raises(AlreadyRunningError, match=f"pid {holder(tmp_path / 'lock')}"):
        second.acquire()
    first.release()
    assert holder(tmp_path / "lock") is None
    second.acquire()
    second.release()
    second.release()


def test_endings_in_words(tmp_path: Path) -> None:
    assert ending(None) == "is running"
    assert ending(3) == "ended with exit code 3"
    assert ending(-9) == "was ended by SIGKILL"
    log = tmp_path / "log"
    assert "nothing" in tail(log)
    log.write_bytes(b"".join(b"%d\xff\n" % number for number in range(100)))
    assert tail(log, 2).split() == ["98\ufffd", "99\ufffd"]
