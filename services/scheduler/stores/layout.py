"""Where things are in etcd; `muster/scheduler/v1/record.proto` says what they are."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.core.ids import CollaborationId, ResourceName, TaskId
from services.scheduler.core.prediction.cells import LearnedKey


@dataclass(frozen=True, slots=True)
class Layout:
    """The keys below one plane's prefix."""

    prefix: str

    @property
    def collaborations(self) -> str:
        """Begins the key of every collaboration."""
        return f"{self.prefix}/collaborations/"

    @property
    def tasks(self) -> str:
        """Begins the key of everything below a collaboration."""
        return f"{self.prefix}/tasks/"

    @property
    def locks(self) -> str:
        """Begins the key of every lock."""
        return f"{self.prefix}/locks/"

    @property
    def learned(self) -> str:
        """Begins the key of everything that was learned."""
        return f"{self.prefix}/learned/"

    def collaboration(self, collaboration_id: CollaborationId) -> str:
        """Return a collaboration's own key."""
        return f"{self.prefix}/collaborations/{collaboration_id}"

    def below(self, collaboration_id: CollaborationId) -> str:
        """Return what begins every key below a collaboration."""
        return f"{self.prefix}/tasks/{collaboration_id}/"

    def spec(self, collaboration_id: CollaborationId, number: int) -> str:
        """Return the key of one part of a specification; parts sort by number."""
        return f"{self.prefix}/tasks/{collaboration_id}/spec/{number:05}"

    def task(self, collaboration_id: CollaborationId, task_id: TaskId) -> str:
        """Return a task's key."""
        return f"{self.prefix}/tasks/{collaboration_id}/state/{task_id}"

    def resource(self, resource: ResourceName) -> str:
        """Return what begins every key of a resource: the prefix to give to `etcdctl lock`, plus a slash."""
        return f"{self.prefix}/locks/{resource}/"

    def lock(self, resource: ResourceName, claim_id: str) -> str:
        """Return the key of one claim."""
        return f"{self.prefix}/locks/{resource}/{claim_id}"

    def learned_record(self, key: LearnedKey) -> str:
        """Return the key of one record of what was learned."""
        return f"{self.prefix}/learned/{key.kind}/{key.name}"

    def parse_learned(self, key: str) -> LearnedKey | None:
        """Return what a key below `learned` names, None when it is not one of ours."""
        kind, _, name = key.removeprefix(self.learned).partition("/")
        if kind == "agents":
            return LearnedKey("agents", name)
        if kind == "policies":
            return LearnedKey("policies", name)
        return LearnedKey("types", name) if kind == "types" else None

    def parse_task(self, key: str) -> tuple[CollaborationId, str, str] | None:
        """Return (collaboration, "spec" or "state", rest) of a key below a collaboration."""
        parts = key.removeprefix(self.tasks).split("/", 2)
        return (CollaborationId(parts[0]), parts[1], parts[2]) if len(parts) == 3 else None

    def parse_lock(self, key: str) -> tuple[ResourceName, str] | None:
        """Return (resource, claim) of a lock's key; whatever follows the resource names the claim."""
        resource, slash, claim_id = key.removeprefix(self.locks).partition("/")
        return (ResourceName(resource), claim_id) if slash else None
