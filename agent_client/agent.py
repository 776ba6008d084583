"""An agent: skills, handlers, and a life in the plane."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from agent_client.context import load_context
from agent_client.core.addresses import address_of
from agent_client.core.vocabulary import MessageType, Priority
from agent_client.delivery import Delivery, Reply
from agent_client.driver import AgentLink
from agent_client.errors import ContextError, MusterError
from agent_client.handlers import Function, Handler
from agent_client.life import Life, Signals
from agent_client.link import Link, Profile, Receipt
from agent_client.locks import Lock
from agent_client.mailbox import Mailbox
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
        self._topic_handlers: dict[str, Handler] = {}
        self._life: Life | None = None
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
        it raises PermanentFailure. What it returns, unless None, is sent back as the reply, but for what was
        published to a topic. Messages of one
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

    def on_topic(self, *patterns: str) -> Callable[[HandlerT], HandlerT]:
        """Make a function the handler of what is published to topics that match one of `patterns`.

        The agent subscribes when it starts, and stays subscribed when it leaves: what is published meanwhile
        waits for it. Everything else is as with `on_message`, but nothing is sent back.
        """
        if not patterns:
            raise ValueError("name at least one topic or pattern, for example roads.*")

        def register(function: HandlerT) -> HandlerT:
            for pattern in patterns:
                if pattern in self._topic_handlers:
                    raise ValueError(f"agent {self.name} has two handlers for {pattern}")
                self._topic_handlers[pattern] = Handler(function)
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
        instance: str = "",
        **fields: Any,
    ) -> Pending[Receipt]:
        """Send a message; `await` it to know that it is stored durably.

        `to` is an agent (any instance of it, or the one that `instance` names), "operator/<name>",
        "skill/<skill>" (the least loaded agent that has it), "collaboration/<id>" (a copy to each other
        member) or "topic/<topic>" (see `publish`). What is for one instance waits for it, and it must have
        received messages before; nobody else gets it, and its order is its own. The receipt says who gets
        it and its sequence number there. `ttl` is how many seconds it may wait for its receiver (default
        300). Further fields are those of `muster.common.v1.Envelope` that a sender sets: collaboration_id,
        causation_id, requires_ack, retry_max, requires_receiver, reply_instance, traceparent, tracestate.
        Messages are kept in order and sent again after a lost link. Raises NotFoundError for an unknown
        receiver, LimitError when a mailbox or quota is full.
        """
        return self._running.mailbox.send(
            address_of(to, instance),
            payload,
            type=type,
            priority=priority,
            correlation_id=correlation_id,
            ttl=ttl,
            **fields,
        )

    def publish(
        self,
        topic: str,
        payload: Any,
        *,
        type: MessageType | str = MessageType.STATUS_UPDATE,  # noqa: A002  # as in send
        priority: Priority | str = Priority.NORMAL,
        requires_receiver: bool = False,
        **fields: Any,
    ) -> Pending[Receipt]:
        """Send a copy to each other subscriber of a topic; the receipt says how many there are.

        With none it is accepted all the same, unless `requires_receiver`: then NotFoundError. All copies are
        stored, or none: LimitError when one of the mailboxes is full. Otherwise as `send`.
        """
        return self._running.mailbox.publish(
            topic,
            payload,
            type=type,
            priority=priority,
            requires_receiver=requires_receiver,
            **fields,
        )

    def subscribe(self, pattern: str) -> Pending[None]:
        """Get a copy of what is published to matching topics from now on, also while this agent is away.

        "*" stands for exactly one segment of a topic, "**" at the end for one or more: "roads.*". `await` it
        to know that it is durable. It lasts until `unsubscribe`, over restarts of everything.
        """
        return self._running.mailbox.subscribe(pattern)

    def unsubscribe(self, pattern: str) -> Pending[None]:
        """End a subscription, written as it was made; what was published before still comes."""
        return self._running.mailbox.unsubscribe(pattern)

    def subscriptions(self) -> Pending[list[str]]:
        """Return the patterns that this agent is subscribed to; `await` it."""
        return self._running.mailbox.subscriptions()

    def request(
        self,
        to: str,
        payload: Any,
        *,
        timeout: float = 30.0,
        type: MessageType | str = MessageType.COLLABORATION_REQUEST,  # noqa: A002  # as in send
        priority: Priority | str = Priority.NORMAL,
        instance: str = "",
        **fields: Any,
    ) -> Reply:
        """Send a message and `await` the payload of its reply; CallTimeoutError after `timeout` seconds.

        `to` is one agent (any instance of it, or the one that `instance` names) or "skill/<skill>". The
        request, and the reply of an agent that uses this package, expire when the time is over; a reply that
        comes later all the same is an ordinary message with `is_late_reply`. The reply comes to this
        instance, whatever others of the same agent there are.
        """
        return self._running.mailbox.request(
            address_of(to, instance), payload, timeout=timeout, type=type, priority=priority, **fields
        )

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
        signals = Signals(self)
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
        listens = self._message_handlers or self._topic_handlers
        if not skills and not listens and self._skills is None:
            raise ContextError(
                f"agent {self.name} has neither skills nor handlers: add @agent.handler(...)",
                reason="NO_SKILLS",
            )
        return Profile(self.name, self.instance, skills, self._labels, self.slots)

    def attach(self, link: Link) -> None:
        """Join handlers and `link` in the running loop."""
        if self._life is not None:
            raise RuntimeError(f"agent {self.name} runs already")
        mailbox = Mailbox(link, self._message_handlers, self._topic_handlers, instance=self.instance)
        loop = asyncio.get_running_loop()
        runner = Runner(self.name, self._handlers, link, mailbox, slots=self.slots, loop=loop)
        self._life = Life(link, mailbox, runner, loop)
        link.begin(runner)
        mailbox.open()

    async def detach(self) -> None:
        """Undo `attach`; handlers that still run are cancelled."""
        life, self._life = self._life, None
        if life is not None:
            await life.end_handlers()

    @property
    def _running(self) -> Life:
        if self._life is None:
            raise RuntimeError(f"agent {self.name} is not running: use agent.run() or `async with agent:`")
        return self._life
