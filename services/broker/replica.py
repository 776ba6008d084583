"""One of several brokers on one store: it leads with a driver of its own, or waits and knows who does.

One replica at a time has all mailboxes, because what it decides spans them: a message_id is remembered, and
a quota counted, per sender over all receivers, and one envelope for many is one commit. Who leads is decided
by an election; that only the leader writes is checked in the store, at each commit, by its epoch.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.broker.core.events import AgentsSeen
from services.broker.driver import Driver
from services.broker.roster import Roster
from services.broker.store import taken_over
from services.common import logs
from services.common.candidate import Candidate
from services.common.clock import Clock
from services.common.core.entries import EntryDraft
from services.common.core.errors import Reason, ServiceError
from services.common.election import Election, Leader, Leadership
from services.common.outbox import Outbox
from services.common.rpc.interceptors import shutting_down

_log = logs.get("broker.replica")


@dataclass(frozen=True, slots=True)
class Seat:
    """The leader's place in this process."""

    driver: Driver
    # A BrokerServiceServicer on that driver.
    servicer: Any


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Another replica leads."""

    address: str
    epoch: int


class Replica:
    """Owned by the event loop. `make_seat` gives the driver of a leadership and its servicer."""

    def __init__(
        self,
        election: Election,
        make_seat: Callable[[Leadership], Seat],
        outbox: Outbox,
        clock: Clock,
        *,
        replica_id: str,
        leader_wait_ms: int,
    ) -> None:
        self._election, self._candidate, self._make_seat = election, Candidate(election), make_seat
        self._outbox, self._clock, self._replica_id = outbox, clock, replica_id
        self._leader_wait_ms = leader_wait_ms
        # Set before `run`: where the other replicas find this one.
        self.address = ""
        # Called with who leads elsewhere, None for nobody, whenever that changes.
        self.on_leader: Callable[[Elsewhere | None], None] = lambda _: None
        self._seat: Seat | None = None
        self._elsewhere: Elsewhere | None = None
        self._roster = Roster()
        self._changed = asyncio.Event()

    @property
    def leads(self) -> bool:
        """Whether this replica serves the mailboxes."""
        return self._seat is not None and not self._seat.driver.retired

    async def place(self, *, here: bool) -> Seat | Elsewhere:
        """Return where calls are served, waiting a while for a leader; with `here` only this process counts.

        Raises NOT_COORDINATOR when nobody leads for that long.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._leader_wait_ms / 1_000):
                while not self._candidate.withdrawn:
                    if self._seat is not None and not self._seat.driver.retired:
                        return self._seat
                    if self._elsewhere is not None and not here:
                        return self._elsewhere
                    await self._changed.wait()
        raise self._refusal()

    def see_agents(self, seen: AgentsSeen) -> None:
        """Take the registry's news, also for a leadership to come."""
        self._roster.take(seen)
        if self._seat is not None:
            self._seat.driver.see_agents(seen)

    async def open(self) -> None:
        """See `sole.Broker`: a store is opened by who leads."""

    async def close(self) -> None:
        """See `sole.Broker`: what a leadership had open, it has closed."""

    async def run(self) -> None:
        """Campaign and lead, and follow who else does, until cancelled; a defect comes out."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(), name="broker-watch-leader")
            value = json.dumps({"replica_id": self._replica_id, "address": self.address}).encode()
            group.create_task(self._candidate.run(value, self._lead), name="broker-campaign")

    async def settle(self) -> None:
        """Give the lead up, when everything that came is answered, and do not campaign again."""
        self._candidate.withdraw()
        if self._seat is not None:
            driver = self._seat.driver
            driver.begin_drain()
            try:
                await driver.wait_idle()
            finally:
                # Also when the caller's patience ends first: a store that does not answer is not waited for.
                driver.retire(shutting_down())
        self._tell()
        await self._candidate.wait_idle()

    async def _watch(self) -> None:
        async with contextlib.aclosing(self._election.observe()) as leaders:
            async for leader in leaders:
                self._elsewhere = self._read(leader)
                self.on_leader(self._elsewhere)
                self._tell()

    async def _lead(self, leadership: Leadership) -> None:
        """Serve until the leadership is over; raises STORE_UNAVAILABLE when it can not begin."""
        seat = self._make_seat(leadership)
        driver = seat.driver
        losing = asyncio.create_task(self._retire_when_lost(leadership, driver), name="broker-lease")
        try:
            await driver.open()
            await self._outbox.record([self._entry("leadership.win", leadership)])
            _log.info("leads the brokers", epoch=leadership.epoch)
            if not self._candidate.withdrawn:
                # In one go, so that no news of the registry falls between the two.
                self._seat = seat
                if (seen := self._roster.all()) is not None:
                    driver.see_agents(seen)
                self._tell()
                await driver.run()
        finally:
            self._seat = None
            driver.retire(taken_over())
            losing.cancel()
            await asyncio.gather(losing, return_exceptions=True)
            await driver.close()
            _log.warning("leads the brokers no longer", epoch=leadership.epoch)
        await self._outbox.record([self._entry("leadership.lose", leadership)])

    async def _retire_when_lost(self, leadership: Leadership, driver: Driver) -> None:
        await leadership.wait_lost()
        driver.retire(taken_over())

    def _read(self, leader: Leader | None) -> Elsewhere | None:
        """Return who leads if it is not this replica."""
        if leader is None:
            return None
        try:
            address = str(json.loads(leader.value)["address"])
        except (ValueError, KeyError, TypeError):
            _log.warning("the leading broker's election key is malformed", epoch=leader.epoch)
            return None
        return None if address == self.address else Elsewhere(address, leader.epoch)

    def _tell(self) -> None:
        # Wake those who wait now; those who come later wait for the next change.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _entry(self, operation: str, leadership: Leadership) -> EntryDraft:
        facts = {"epoch": str(leadership.epoch)}
        subject = f"replica/{self._replica_id}"
        return EntryDraft(self._clock.now(), "service/broker", operation, subject, attributes=facts)

    def _refusal(self) -> ServiceError:
        if self._candidate.withdrawn:
            return shutting_down()
        return ServiceError(
            Reason.NOT_COORDINATOR,
            f"no broker replica led within {self._leader_wait_ms} ms: try again",
            metadata={"coordinator": "" if self._elsewhere is None else self._elsewhere.address},
            retry_after_ms=500,
        )
