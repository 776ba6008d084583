"""What goes to the store and what comes from it: changes and questions in groups, answers as events."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable

from services.common import logs
from services.common.core.backoff import backoff_ms
from services.common.core.errors import ServiceError
from services.common.lifecycle import TaskSupervisor
from services.registry.core import events
from services.registry.core.effects import Commit, Reload
from services.registry.core.model import NO_LEASE
from services.registry.metrics import RegistryMetrics
from services.registry.store import Applied, FleetSnapshot, FleetStore

# Changes in one call of the store, and agents read again at a time.
_COMMIT_CHANGES_MAX = 1_024
_RELOADS_MAX = 64
# Pause after failures of the store, in milliseconds.
_RETRY_BASE_MS = 50
_RETRY_MAX_MS = 2_000

_log = logs.get("registry.exchange")


class StoreRewoundError(Exception):
    """The store went back in time (restored from a backup): what this process remembers is worth nothing."""


class StoreExchange:
    """Owned by the driver; `post` gives it events."""

    def __init__(
        self, store: FleetStore, metrics: RegistryMetrics, post: Callable[[events.Event], None]
    ) -> None:
        self._store, self._metrics, self._post = store, metrics, post
        self._commits: list[Commit] = []
        self._commits_stirred = asyncio.Event()
        self._reloads: list[Reload] = []
        self._reloads_stirred = asyncio.Event()
        # Changes that failed one after the other.
        self._failures = 0
        self._loaded = asyncio.Event()
        self._leased = asyncio.Event()

    def start(self, supervisor: TaskSupervisor) -> None:
        """Start the loops."""
        supervisor.spawn("registry-commits", self._run_commits())
        supervisor.spawn("registry-reloads", self._run_reloads())
        supervisor.spawn("registry-follow", self._run_follow())
        supervisor.spawn("registry-leases", self._run_leases())

    async def wait_ready(self) -> None:
        """Return when the fleet was loaded and a lease was granted once."""
        await self._loaded.wait()
        await self._leased.wait()

    def commit(self, commit: Commit) -> None:
        """Send a change on its way; it shares the next call of the store with all that wait."""
        self._commits.append(commit)
        self._commits_stirred.set()

    def reload(self, reload: Reload) -> None:
        """Ask for an agent until the store answers."""
        self._reloads.append(reload)
        self._reloads_stirred.set()

    async def _run_commits(self) -> None:
        while True:
            await self._commits_stirred.wait()
            self._commits_stirred.clear()
            while self._commits:
                commits = self._commits[:_COMMIT_CHANGES_MAX]
                del self._commits[:_COMMIT_CHANGES_MAX]
                await self._commit(commits)

    async def _commit(self, commits: list[Commit]) -> None:
        self._metrics.commit_changes.observe(len(commits))
        with self._metrics.commit_seconds.time():
            # Commit point. After it a crash of this process loses nothing that anybody was told: the records
            # are loaded at the next start, and an agent that was not welcomed asks again.
            outcomes = await self._store.commit([commit.change for commit in commits])
        for commit, outcome in zip(commits, outcomes, strict=True):
            agent_id = commit.change.agent_id
            if isinstance(outcome, Applied):
                self._failures = 0
                self._metrics.changes.labels("applied").inc()
                self._post(events.Committed(commit.cause, agent_id, outcome.revision))
            elif isinstance(outcome, ServiceError):
                if self._failures == 0:
                    _log.warning("the store failed", cause_id=commit.cause, agent=agent_id, why=str(outcome))
                self._failures += 1
                self._metrics.changes.labels("failed").inc()
                self._post(events.CommitFailed(commit.cause, agent_id, outcome.message))
            else:
                self._metrics.changes.labels("conflicted").inc()
                self._post(events.Conflicted(commit.cause, outcome))

    async def _run_reloads(self) -> None:
        while True:
            await self._reloads_stirred.wait()
            self._reloads_stirred.clear()
            while self._reloads:
                # Also the brake for a store that refuses every write and answers every read.
                await _pause(self._failures)
                reloads = self._reloads[:_RELOADS_MAX]
                del self._reloads[:_RELOADS_MAX]
                await asyncio.gather(*(self._reload(reload) for reload in reloads))

    async def _reload(self, reload: Reload) -> None:
        failures = 0
        while True:
            try:
                snapshot = await self._store.load(reload.agent_id)
            except ServiceError:
                failures += 1
                await _pause(failures)
                continue
            self._post(events.Reloaded(reload.cause, snapshot))
            return

    async def _run_follow(self) -> None:
        followed = 0
        async with contextlib.aclosing(self._store.follow()) as steps:
            async for step in steps:
                if isinstance(step, FleetSnapshot):
                    if step.revision < followed:
                        raise StoreRewoundError(
                            f"the store is at revision {step.revision}, it was at {followed}: restored from "
                            "a backup? This process stops, so that it starts from what is there"
                        )
                    self._post(events.Loaded(f"load-{step.revision}", step.revision, step.agents))
                    self._loaded.set()
                else:
                    self._post(events.Observed(f"watch-{step.revision}", step.changes))
                followed = step.revision

    async def _run_leases(self) -> None:
        async with contextlib.aclosing(self._store.leases()) as leases:
            async for lease_id in leases:
                if lease_id == NO_LEASE:
                    self._metrics.present.set(0)
                    _log.warning("lost the lease of this replica's presence keys; they are written again")
                    self._post(events.LeaseEnded("lease"))
                else:
                    self._metrics.present.set(1)
                    self._post(events.LeaseGranted("lease", lease_id))
                    self._leased.set()


async def _pause(failures: int) -> None:
    delay_ms = backoff_ms(
        failures, base_ms=_RETRY_BASE_MS, max_ms=_RETRY_MAX_MS, jitter=random.uniform(0.5, 1)
    )
    await asyncio.sleep(delay_ms / 1_000)
