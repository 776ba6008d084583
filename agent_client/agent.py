"""An agent: skills, handlers, and a life in the plane."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from concurrent.futures import Future
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

from agent_client.context import load_context
from agent_client.core.vocabulary import MessageType, Priority
from agent_client.driver import AgentLink
from agent_client.errors import ContextError, MusterError
from agent_client.handlers import Function, Handler
from agent_client.link import Link, Profile
from agent_client.locks import Lock
from agent_client.mailbox import Delivery, Mailbox, Reply
from agent_client.pending import Pending
from agent_client.runner import Runner
from agent_client.task import make_lock
from agent_client.tls import Dialer

log = logging.getLogger("agent_client")

HandlerT = TypeVar("HandlerT", bound=Function)

SLOTS_DEFAULT = 4
INSTANCE_VARIABLE = "MUSTER_INSTANCE"


class Agent:
    """A program that takes part in collaborations.

    `name` is the name in its certificate. `skills` are what it offers, as names or as {name: level} with
    0 < level <= 1; when left out, the names of its handlers are its skills. At most `slots` handlers run at
    once. `instance` tells copies of one agent apart ($MUSTER_INSTANCE, else "0"): a second process with the
    same name and instance takes the first one's place. `home` is the directory of the plane's context
    ($MUSTER_HOME, else ./.muster).
    """

    def __init__(
        self,
        name: str,
        skills: Iterable[str] | Mapping[str, float] | None = None,
        *,
        slots: int = SLOTS_DEFAULT,
        instance: str | None = None,
        labels: Mapping[str, str] | None = None,
        home: str | os.PathLike[str] | None = None,
    ) -> None:
        if slots < 1:
            raise ValueError("an agent needs at least one slot")
        self.name, self.slots = name, slots
        self.instance = instance or os.environ.get(INSTANCE_VARIABLE) or "0"
        self._skills, self._labels, self._home = skills, dict(labels or {}), home
        self._handlers: dict[str | None, Handler] = {}
        self._message_handlers: dict[MessageType | None, Handler] = {}
        self._life: _Life | None = None
        # Asked for before the life began, for example by a signal while the process starts.
        self._drain_asked = False

    def __repr__(self) -> str:
        state = "running" if self._life is not None else "not running"
        return f"Agent({self.name}/{self.instance}, {state})"

    # What it can do.

    @property
    def skills(self) -> dict[str, float]:
        """The declared skills with their levels."""
        if self._skills is None:
            return {name: 1.0 for name in self._handlers if name is not None}
        if isinstance(self._skills, Mapping):
            return dict(self._skills)
        return dict.fromkeys(self._skills, 1.0)

    def handler(self, *task_types: str) -> Callable[[HandlerT], HandlerT]:
        """Make a function the handler of tasks of these types; of all others when none is named.

        A task without a type has its first required skill as its type. The function gets a `Task` and
        returns the result: anything that JSON can hold, str or bytes. A coroutine function runs in the
        agent's loop, a plain function in a thread.
        """

        def register(function: HandlerT) -> HandlerT:
            for name in task_types or (None,):
                if name in self._handlers:
                    raise ValueError(f"agent {self.name} has two handlers for {name or 'all other tasks'}")
                self._handlers[name] = Handler(function)
            return function

        return register

    def on_message(self, *types: MessageType | str) -> Callable[[HandlerT], HandlerT]:
        """Make a function the handler of messages of these types; of all others when none is named.

        It gets a `Delivery`, which is acked when it returns, given again when it raises, and rejected when
        it raises PermanentFailure. What it returns, unless None, is sent back as the reply. Messages of one
        sender in one lane come one after the other, in order.
        """

        def register(function: HandlerT) -> HandlerT:
            kinds: list[MessageType | None] = [MessageType(kind) for kind in types]
            for kind in kinds or [None]:
                if kind in self._message_handlers:
                    raise ValueError(f"agent {self.name} has two handlers for {kind or 'all other messages'}")
                self._message_handlers[kind] = Handler(function)
            return function

        return register

    # What it does of its own accord.

    def messages(self) -> AsyncGenerator[Delivery, None]:
        """Yield the messages that no handler takes: `async for delivery in agent.messages():`."""
        return self._running.mailbox.messages()

    def send(
        self,
        to: str,
        payload: Any,
        *,
        type: MessageType | str = MessageType.STATUS_UPDATE,  # noqa: A002  # the story's own word for it
        priority: Priority | str = Priority.NORMAL,
        correlation_id: str = "",
        ttl: float | None = None,
    ) -> Pending[int]:
        """Send a message; `await` it to know that it is stored durably.

        The answer is its sequence number among this agent's messages to `to` in this lane. `ttl` is how many
        seconds it may wait for its receiver (default 300). Messages are kept in order and sent again after a
        lost link. Raises NotFoundError for an unknown receiver, LimitError when a mailbox or quota is full.
        """
        return self._running.mailbox.send(
            to, payload, type=type, priority=priority, correlation_id=correlation_id, ttl=ttl
        )

    def request(
        self,
        to: str,
        payload: Any,
        *,
        timeout: float = 30.0,
        type: MessageType | str = MessageType.COLLABORATION_REQUEST,  # noqa: A002  # as in send
        priority: Priority | str = Priority.NORMAL,
    ) -> Reply:
        """Send a message and `await` the payload of its reply; CallTimeoutError after `timeout` seconds."""
        return self._running.mailbox.request(to, payload, timeout=timeout, type=type, priority=priority)

    def lock(self, *resources: str, shared: bool = False, wait: float | None = None) -> Lock:
        """Return locks on `resources`, to be entered with `async with` or `with`; see `Task.lock`."""
        return make_lock(self._running.link, resources, shared=shared, wait=wait, attempt=None)

    # Its life.

    def run(self) -> int:
        """Take part until SIGTERM or Ctrl-C, then finish what is held and leave. Returns the exit code.

        A second signal leaves at once; what was held is then given to other agents. Call it from the main
        thread.
        """
        if not logging.getLogger().handlers:
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        signals = _Signals(self)
        try:
            with signals:
                asyncio.run(self.serve())
        except MusterError as error:
            sys.stderr.write(f"agent {self.name}: {error}\n")
            return 1
        return 0

    async def serve(self) -> None:
        """Take part until `drain` is called. Raises MusterError when there is no use in going on."""
        async with self as agent:
            await agent._running.wait_end()

    def drain(self) -> None:
        """Take nothing new, finish what is held, then leave. Thread-safe; `serve` returns when it is done."""
        self._drain_asked = True
        if self._life is not None:
            self._life.drain()

    async def wait_ready(self) -> None:
        """Wait until work and messages reach this agent."""
        await self._running.wait_ready()

    async def __aenter__(self) -> Self:
        context = load_context(self._home)
        link = AgentLink(Dialer(context, context.agent(self.name)), self.profile())
        self.attach(link)
        self._running.presence = link
        if self._drain_asked:
            self._running.drain()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        life = self._running
        try:
            await life.leave()
        finally:
            self._life, self._drain_asked = None, False

    # For what stands in for the plane, such as `agent_client.testing`.

    def profile(self) -> Profile:
        """Return what the registry is told. Raises ContextError when the agent can do nothing at all."""
        skills = self.skills
        if not skills and not self._message_handlers and self._skills is None:
            raise ContextError(
                f"agent {self.name} has neither skills nor handlers: add @agent.handler(...)",
                reason="NO_SKILLS",
            )
        return Profile(self.name, self.instance, skills, self._labels, self.slots)

    def attach(self, link: Link) -> None:
        """Join handlers and `link` in the running loop."""
        if self._life is not None:
            raise RuntimeError(f"agent {self.name} runs already")
        mailbox = Mailbox(link, self._message_handlers)
        loop = asyncio.get_running_loop()
        runner = Runner(self.name, self._handlers, link, mailbox, slots=self.slots, loop=loop)
        self._life = _Life(link, mailbox, runner, loop)
        link.begin(runner)
        mailbox.open()

    async def detach(self) -> None:
        """Undo `attach`; handlers that still run are cancelled."""
        life, self._life = self._life, None
        if life is not None:
            await life.end_handlers()

    @property
    def _running(self) -> _Life:
        if self._life is None:
            raise RuntimeError(f"agent {self.name} is not running: use agent.run() or `async with agent:`")
        return self._life


class _Life:
    """One run of an agent."""

    def __init__(self, link: Link, mailbox: Mailbox, runner: Runner, loop: asyncio.AbstractEventLoop) -> None:
        self.link, self.mailbox, self.runner = link, mailbox, runner
        # The link again, when it is the real one.
        self.presence: AgentLink | None = None
        self._loop = loop
        # Guards `_drained` against two threads that ask for the drain.
        self._lock = threading.Lock()
        self._drained: Future[None] | None = None
        self._drain_asked = asyncio.Event()

    def drain(self) -> None:
        """Begin to drain; also when the loop is blocked, so that the scheduler knows at once."""
        with self._lock:
            if self.presence is None or self._drained is not None:
                return
            self._drained = self.presence.drain()
        self._loop.call_soon_threadsafe(self._drain_asked.set)

    async def wait_ready(self) -> None:
        if self.presence is not None:
            ready = asyncio.wrap_future(self.presence.ready())
            finished = asyncio.wrap_future(self.presence.finished)
            await asyncio.wait({ready, finished}, return_when=asyncio.FIRST_COMPLETED)
            if finished.done():
                ready.cancel()
                finished.result()

    async def wait_end(self) -> None:
        """Wait until the drain is over. Raises MusterError when the link gave up."""
        assert self.presence is not None  # noqa: S101  # `__aenter__` has set it
        finished = asyncio.wrap_future(self.presence.finished)
        asked = asyncio.create_task(self._drain_asked.wait())
        try:
            waits: set[asyncio.Future[Any]] = {finished, asked}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if self._drained is not None:
                drained = asyncio.wrap_future(self._drained)
                await asyncio.wait({finished, drained}, return_when=asyncio.FIRST_COMPLETED)
            if finished.done():
                finished.result()
        finally:
            asked.cancel()

    async def end_handlers(self) -> None:
        """Cancel every handler that still runs, and let it clean up."""
        await self.mailbox.close()
        await self.runner.abandon()

    async def leave(self) -> None:
        """Leave the plane; handlers that still run are cancelled, and others do their tasks."""
        await self.end_handlers()
        if self.presence is None or self.presence.finished.done():
            return
        await asyncio.wrap_future(self.presence.flush())
        self.presence.leave()
        await asyncio.wrap_future(self.presence.finished)


class _Signals:
    """SIGTERM and SIGINT: the first drains, the second leaves at once."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._before: dict[int, Any] = {}
        self._asked = False

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        # Not loop.add_signal_handler: its callback would wait for a handler that blocks the loop.
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._signalled)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        if self._asked:
            # Handlers in threads can not be stopped, so the process ends under them. What they hold is given
            # to others as soon as the plane sees the links break.
            os._exit(128 + number)
        self._asked = True
        sys.stderr.write(f"agent {self._agent.name}: finishing what it holds; once more to leave at once\n")
        self._agent.drain()
