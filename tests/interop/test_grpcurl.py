"""The plane through grpcurl: what an operator sees who has nothing of ours but a certificate."""

from __future__ import annotations

import asyncio
import base64
import json
import shlex
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent_client import Agent, Task
from services.common.certificates import create_authority, write_credential
from services.common.identity import Principal, spiffe_id
from tests.harness.launched import Launched, launched_plane

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]

Eventually = Callable[..., Awaitable[None]]

SERVICES = {
    "registry-1": "muster.registry.v1.RegistryService",
    "broker-1": "muster.broker.v1.BrokerService",
    "scheduler-1": "muster.scheduler.v1.SchedulerService",
    "scheduler-2": "muster.scheduler.v1.SchedulerService",
    "audit-1": "muster.audit.v1.AuditService",
}
ON_EVERY_SERVER = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What grpcurl printed. It exits with 64 plus the status' code when a call fails."""

    code: int
    output: str
    errors: str

    @property
    def message(self) -> Any:
        assert self.code == 0, self.errors
        return json.loads(self.output)

    @property
    def lines(self) -> set[str]:
        assert self.code == 0, self.errors
        return set(self.output.split("\n")) - {""}


class Grpcurl:
    """grpcurl as one identity, or as nobody."""

    def __init__(self, plane: Launched, principal: str = "") -> None:
        self._plane = plane
        self._files = ["-cacert", str(plane.home / "ca.crt")]
        if principal:
            kind, _, name = principal.partition("/")
            plane.tls(principal)
            folder = plane.home / f"{kind}s"
            self._files += ["-cert", str(folder / f"{name}.crt"), "-key", str(folder / f"{name}.key")]

    def __call__(self, replica: str, *words: str, data: Mapping[str, Any] | None = None) -> Answer:
        given = [] if data is None else ["-d", json.dumps(data)]
        address = self._plane.addresses[replica]
        return run(["grpcurl", "-max-time", "20", *self._files, *given, address, *words])


def run(command: list[str]) -> Answer:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    assert shutil.which("grpcurl"), "run this by `make interop`"
    with launched_plane(tmp_path_factory.mktemp("plane")) as launched:
        yield launched


@pytest.fixture
def operator(plane: Launched) -> Grpcurl:
    return Grpcurl(plane, "operator/admin")


@pytest.fixture
def leader(operator: Grpcurl) -> str:
    found = operator("registry-1", "muster.registry.v1.RegistryService/GetCoordinator").message
    replica: str = found["coordinator"]["replica_id"]
    return replica


def test_the_command_line_that_the_launcher_prints_works_as_printed(plane: Launched) -> None:
    answer = run(shlex.split(plane.facts["grpcurl_command"]))
    assert answer.lines == {SERVICES["registry-1"], *ON_EVERY_SERVER}


@pytest.mark.parametrize(("replica", "service"), SERVICES.items())
def test_an_operator_needs_no_proto_files(operator: Grpcurl, replica: str, service: str) -> None:
    assert operator(replica, "list").lines == {service, *ON_EVERY_SERVER}
    methods = operator(replica, "list", service).lines
    assert methods
    described = operator(replica, "describe", service).output
    for method in methods:
        assert f"rpc {method.removeprefix(service + '.')} (" in described


def test_messages_are_described_with_their_parts(operator: Grpcurl, leader: str) -> None:
    described = operator(leader, "describe", "muster.scheduler.v1.TaskSpec").output
    assert "repeated string dependencies = 9;" in described
    # From a file that the service only imports.
    assert ".muster.common.v1.Payload payload = 13;" in described


@pytest.mark.parametrize(("replica", "service"), SERVICES.items())
def test_every_server_says_that_it_serves(operator: Grpcurl, replica: str, service: str) -> None:
    for name in ("", service):
        answer = operator(replica, "grpc.health.v1.Health/Check", data={"service": name})
        assert answer.message == {"status": "SERVING"}


async def test_a_collaboration_from_submission_to_result(
    plane: Launched, operator: Grpcurl, leader: str, eventually: Eventually
) -> None:
    plane.tls("agent/curled")
    agent = Agent("curled", home=plane.home)

    @agent.handler("greet")
    def greet(task: Task) -> dict[str, str]:
        return {"greeting": f"hello {task.payload['name']}"}

    task = {
        "task_id": "greet",
        "required_skills": ["greet"],
        "estimated_duration": "0.5s",
        "payload": json_payload({"name": "chang"}),
    }
    request = {"request_id": "by-hand-1", "collaboration": {"name": "by hand", "tasks": [task]}}

    def call(method: str, data: Mapping[str, Any]) -> Any:
        return operator(leader, f"{SERVICES[leader]}/{method}", data=data).message

    def look() -> Any:
        return call("GetCollaboration", {"collaboration_id": submitted["collaboration_id"]})["collaboration"]

    async def completed() -> object:
        return (await asyncio.to_thread(look))["state"] == "COLLABORATION_STATE_COMPLETED"

    async with agent:
        await agent.wait_ready()
        found = operator("registry-1", f"{SERVICES['registry-1']}/ListAgents").message
        assert [(one["agent_id"], one["skills"]) for one in found["agents"]] == [
            ("curled", [{"name": "greet", "level": 1}])
        ]
        submitted = call("SubmitCollaboration", request)
        assert call("SubmitCollaboration", request)["already_accepted"]
        await eventually(completed)
    collaboration = look()
    assert collaboration["requester"] == "operator/admin"
    assert collaboration["result"]["outputs"] == {"greet": json_payload({"greeting": "hello chang"})}


def json_payload(value: object) -> dict[str, str]:
    data = base64.b64encode(json.dumps(value, separators=(",", ":")).encode()).decode()
    return {"content_type": "application/json", "data": data}


def test_a_bad_submission_is_explained(operator: Grpcurl, leader: str) -> None:
    tasks = [
        {"task_id": "a", "required_skills": ["greet"], "dependencies": ["b"]},
        {"task_id": "b", "required_skills": ["NOT ALLOWED"], "dependencies": ["a"]},
    ]
    answer = operator(
        leader,
        "muster.scheduler.v1.SchedulerService/SubmitCollaboration",
        data={"request_id": "bad", "collaboration": {"tasks": tasks}},
    )
    assert answer.code == 64 + 3
    assert "Code: InvalidArgument" in answer.errors
    assert '"@type": "type.googleapis.com/google.rpc.BadRequest"' in answer.errors
    assert '"field": "collaboration.tasks[1].required_skills[0]"' in answer.errors
    assert '"reason": "INVALID_FIELD"' in answer.errors
    # All that is wrong at once.
    assert "the tasks wait for each other, a -\\u003e b -\\u003e a" in answer.errors


@pytest.mark.parametrize("replica", SERVICES)
def test_an_agent_gets_no_reflection(plane: Launched, replica: str) -> None:
    answer = Grpcurl(plane, "agent/curious")(replica, "list")
    assert answer.code != 0
    assert "PermissionDenied" in answer.errors + answer.output
    assert "muster." not in answer.output


def test_nothing_works_without_a_certificate(plane: Launched) -> None:
    everything_is_refused(plane, [])


def test_nothing_works_with_a_certificate_of_another_authority(plane: Launched, tmp_path: Path) -> None:
    foreign = create_authority("somebody else").issue(spiffe_id(Principal("operator", "admin")))
    certificate, key = write_credential(tmp_path, "admin", foreign)
    everything_is_refused(plane, ["-cert", str(certificate), "-key", str(key)])


def everything_is_refused(plane: Launched, identity: Sequence[str]) -> None:
    """The handshake fails; grpcurl tries it again and again until its time is over."""
    commands = [
        ["grpcurl", "-max-time", "2", "-cacert", str(plane.home / "ca.crt"), *identity, address, method]
        for address in plane.addresses.values()
        for method in ("list", "grpc.health.v1.Health/Check")
    ]
    with ThreadPoolExecutor(len(commands)) as pool:
        answers = list(pool.map(run, commands))
    for answer in answers:
        assert (answer.code, answer.output) == (1, "")
        assert "Failed to dial" in answer.errors
