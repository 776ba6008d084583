"""The real link: an agent's three streams, run on the link loop."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from functools import partial

from agent_client.core.inbox import Key, Verdict
from agent_client.core.records import AttemptRef, Outcome, Payload
from agent_client.link import Delivered, Envelope, LockWish, Profile, Receipt, Sink
from agent_client.loop import inlet_of, link_thread
from agent_client.pending import Pending
from agent_client.streams.discovery import Discovery
from agent_client.streams.load import LoadMeter
from agent_client.streams.mailbox import MailboxStream
from agent_client.streams.session import SessionStream
from agent_client.streams.subscriptions import Subscriptions
from agent_client.streams.work import WorkStream
from agent_client.tls import Dialer

log = logging.getLogger("agent_client")

# Seconds that leaving waits for the broker to take what was sent and decided.
MAILBOX_FLUSH_S = 5.0


class AgentLink:
    """One agent's presence in the plane; implements `Link`.

    Made in any thread. Everything but the methods of `Link`, `begin`, `drain` and `leave` belongs to the
    link loop.
    """

    def __init__(self, dialer: Dialer, profile: Profile) -> None:
        self._dialer, self._profile = dialer, profile
        self._thread = link_thread()
        self._inlet = inlet_of(self._thread.loop)

    def __repr__(self) -> str:
        return f"AgentLink({self._profile.name}/{self._profile.instance})"

    def begin(self, sink: Sink) -> None:
        """Open the streams; `finished` ends when `leave` was called, or with the error that ended them."""
        self._discovery = Discovery(self._dialer)
        self._load = LoadMeter(self._profile.slots)
        self._session = SessionStream(
            self._dialer, self._discovery, self._profile, load=self._load, on_incarnation=self._restart
        )
        self._work = WorkStream(
            self._dialer,
            self._discovery,
            self._profile,
            session=self._session,
            load=self._load,
            sink=sink,
        )
        self._mailbox = MailboxStream(
            self._dialer, self._discovery, self._profile, session=self._session, sink=sink
        )
        self._subscriptions = Subscriptions(self._dialer)
        self._leaving = asyncio.Event()
        self.finished = self._thread.start(self._live())

    def ready(self) -> Future[None]:
        """Return a future that ends when work and messages reach this agent for the first time."""
        return self._thread.start(self._wait_ready())

    def drain(self) -> Future[None]:
        """Take nothing new; the future ends when everything held is done and its result is acked."""
        return self._thread.start(self._drain())

    def flush(self) -> Future[None]:
        """Return a future that ends when the broker has taken what was sent, or `MAILBOX_FLUSH_S` later."""
        return self._thread.start(self._flush())

    def leave(self) -> None:
        """Say farewell and end the streams, whatever is still held."""
        self._inlet.post(self._leaving.set)

    # The link, called from any thread.

    def started(self, attempt: AttemptRef) -> None:
        """The handler of an attempt runs."""
        self._inlet.post(partial(self._work.started, attempt))

    def progressed(self, attempt: AttemptRef, fraction: float, stage: str) -> None:
        """The handler of an attempt reported."""
        self._inlet.post(partial(self._work.progressed, attempt, fraction, stage))

    def saved(self, attempt: AttemptRef, savepoint: Payload, durable: Pending[None]) -> None:
        """The handler of an attempt saved."""
        self._inlet.post(partial(self._work.saved, attempt, savepoint, durable))

    def ended(self, attempt: AttemptRef, outcome: Outcome) -> None:
        """The handler of an attempt returned."""
        self._inlet.post(partial(self._work.ended, attempt, outcome))

    def lock(self, wish: LockWish) -> None:
        """Ask for locks."""
        self._inlet.post(partial(self._work.lock, wish))

    def unlock(self, handle: int) -> None:
        """Give locks back, or withdraw a wish."""
        self._inlet.post(partial(self._work.unlock, handle))

    def send(self, envelope: Envelope, accepted: Pending[Receipt]) -> None:
        """Send an envelope."""
        self._inlet.post(partial(self._mailbox.send, envelope, accepted))

    def subscribe(self, pattern: str, done: Pending[None], *, wanted: bool) -> None:
        """Add or end a subscription."""
        self._thread.start(self._subscriptions.change(pattern, done, wanted=wanted))

    def subscriptions(self, found: Pending[list[str]]) -> None:
        """Tell the patterns that this agent is subscribed to."""
        self._thread.start(self._subscriptions.list(found))

    def want_messages(self) -> None:
        """Somebody takes deliveries from now on."""
        self._inlet.post(self._mailbox.want)

    def taken(self, key: Key, *, kept: bool) -> None:
        """A delivery left the line."""
        self._inlet.post(partial(self._mailbox.taken, key, kept=kept))

    def recall_answered(self, key: Key, *, dropped: bool) -> None:
        """Whether a recalled delivery was still in line."""
        self._inlet.post(partial(self._mailbox.recall_answered, key, dropped=dropped))

    def settle(self, delivered: Delivered, verdict: Verdict, *, delay: float | None, reason: str) -> None:
        """The code decided about a delivery."""
        self._inlet.post(partial(self._mailbox.settle, delivered, verdict, delay, reason))

    def extend(self, key: Key, seconds: float) -> None:
        """The code needs more time for a delivery."""
        self._inlet.post(partial(self._mailbox.extend, key, seconds))

    # On the link loop.

    def _restart(self) -> None:
        self._work.restart()
        self._mailbox.restart()

    async def _live(self) -> None:
        streams = {
            asyncio.create_task(stream.run(), name=f"muster {self._profile.name} {type(stream).__name__}")
            for stream in (self._session, self._work, self._mailbox)
        }
        leaving = asyncio.create_task(self._leaving.wait())
        try:
            done, _ = await asyncio.wait({*streams, leaving}, return_when=asyncio.FIRST_COMPLETED)
            for ended in done - {leaving}:
                # A stream ends by itself only when there is no use in going on.
                ended.result()
            await self._session.leave()
            log.info("agent %s left", self._profile.name)
        finally:
            for task in {*streams, leaving}:
                task.cancel()
            await asyncio.gather(*streams, leaving, return_exceptions=True)
            self._work.leave()
            self._mailbox.leave()
            await self._subscriptions.close()
            await self._discovery.close()

    async def _wait_ready(self) -> None:
        await self._session.open.wait()
        await self._work.open.wait()
        await self._mailbox.open.wait()

    async def _drain(self) -> None:
        self._work.drain()
        self._session.drain()
        await self._work.idle.wait()

    async def _flush(self) -> None:
        try:
            async with asyncio.timeout(MAILBOX_FLUSH_S):
                await self._mailbox.idle.wait()
        except TimeoutError:
            log.warning("left before the broker had taken everything: %r", self._mailbox)
