"""Submit collaborations, watch them, and look at the plane.

async with Client() as client:
    collaboration = await client.submit({"tasks": [{"task_id": "a", "required_skills": ["greet"]}]})
    result = await collaboration.result()
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from muster.broker.v1 import broker_service_pb2 as broker
from muster.broker.v1.broker_service_pb2_grpc import BrokerServiceStub
from muster.common.v1 import page_pb2
from muster.registry.v1 import agent_pb2
from muster.registry.v1 import registry_service_pb2 as registry
from muster.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from muster.scheduler.v1 import collaboration_pb2, explanation_pb2, plan_pb2
from muster.scheduler.v1 import scheduler_service_pb2 as scheduler
from muster.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub

from agent_client.connection import Connection, Method
from agent_client.context import load_context
from agent_client.core.fields import is_count
from agent_client.errors import CallTimeoutError, bad_field
from agent_client.insight import Insight
from agent_client.loop import link_thread
from agent_client.spec import Spec, build_spec
from agent_client.texts import refuses_half_characters
from agent_client.tls import Dialer
from agent_client.views import CollaborationInfo, Result
from agent_client.watching import Event, Watch

# Items asked for in one page of a list.
PAGE_SIZE = 200
# Seconds that a call may take with all its retries, unless the client is made with another patience.
PATIENCE_S = 30.0


@refuses_half_characters
class Client:
    """A requester's or operator's connection to a plane.

    It speaks as the context's operator, or as `agent` when one is named. `patience` is how many seconds a
    call may take with all its retries. `home` is the directory of the plane's context ($MUSTER_HOME, else
    ./.muster).
    """

    def __init__(
        self,
        *,
        home: str | os.PathLike[str] | None = None,
        agent: str | None = None,
        patience: float = PATIENCE_S,
    ) -> None:
        context = load_context(home)
        identity = context.agent(agent) if agent else context.operator()
        self._thread = link_thread()
        self._connection = Connection(Dialer(context, identity), patience)
        # What the coordinator has learned and noticed.
        self.insight = Insight(self._call)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._thread.run(self._connection.close())

    # Collaborations.

    async def submit(self, spec: Mapping[str, Any] | Spec, *, request_id: str | None = None) -> Collaboration:
        """Submit a collaboration; when this returns, it is durable.

        The same `request_id` (made here unless given) with the same content is accepted once and answered
        the same. Raises InvalidRequestError naming every bad field.
        """
        request = scheduler.SubmitCollaborationRequest(
            request_id=request_id or f"r-{secrets.token_hex(12)}", collaboration=build_spec(spec)
        )
        answer = await self._call(
            "scheduler", lambda channel: SchedulerServiceStub(channel).SubmitCollaboration, request
        )
        return Collaboration(
            self, answer.collaboration_id, tuple(answer.warnings), already_accepted=answer.already_accepted
        )

    async def plan(
        self, spec: Mapping[str, Any] | Spec, *, budget: float = 1.0, most: int = 1
    ) -> plan_pb2.PlanCollaborationResponse:
        """Return how a collaboration would go if it were submitted now: at most `most` plans.

        The one that ends first comes first; with more of them, none is worse than another in end, quality,
        cost and fairness at once. `budget` is how many seconds may be spent on finding better ones. Nothing
        is submitted. Raises InvalidRequestError naming bad fields, PreconditionError when no agent is there.
        """
        request = plan_pb2.PlanCollaborationRequest(collaboration=build_spec(spec), plan_max=most)
        request.budget.FromTimedelta(timedelta(seconds=budget))
        answer: plan_pb2.PlanCollaborationResponse = await self._call(
            "scheduler", lambda channel: SchedulerServiceStub(channel).PlanCollaboration, request
        )
        return answer

    def collaboration(self, collaboration_id: str) -> Collaboration:
        """Return the handle of a collaboration that was submitted before."""
        return Collaboration(self, collaboration_id)

    async def get(self, collaboration_id: str) -> CollaborationInfo:
        """Return a collaboration with its tasks. Raises NotFoundError."""
        answer = await self._call(
            "scheduler",
            lambda channel: SchedulerServiceStub(channel).GetCollaboration,
            scheduler.GetCollaborationRequest(collaboration_id=collaboration_id),
        )
        return CollaborationInfo(answer.collaboration)

    async def collaborations(
        self, *, states: Iterable[str] = (), limit: int = 100
    ) -> list[CollaborationInfo]:
        """Return the newest collaborations, without their tasks, at most `limit`."""
        request = scheduler.ListCollaborationsRequest(states=[_state(state) for state in states])
        found = [
            CollaborationInfo(message)
            async for answer in self._pages(
                "scheduler", lambda channel: SchedulerServiceStub(channel).ListCollaborations, request, limit
            )
            for message in answer.collaborations
        ]
        return found[:limit]

    async def cancel(self, collaboration_id: str, reason: str = "") -> CollaborationInfo:
        """Cancel what has not ended of a collaboration; cancelling twice is harmless."""
        answer = await self._call(
            "scheduler",
            lambda channel: SchedulerServiceStub(channel).CancelCollaboration,
            scheduler.CancelCollaborationRequest(collaboration_id=collaboration_id, reason=reason),
        )
        return CollaborationInfo(answer.collaboration)

    async def pause(
        self, collaboration_id: str, reason: str = "", *, suspend_running: bool = False
    ) -> CollaborationInfo:
        """Let nothing new of a collaboration begin; pausing twice is harmless.

        What runs goes on, or with `suspend_running` is asked to save and stop. Deadlines go on. Raises
        PreconditionError when it has ended.
        """
        answer = await self._call(
            "scheduler",
            lambda channel: SchedulerServiceStub(channel).PauseCollaboration,
            scheduler.PauseCollaborationRequest(
                collaboration_id=collaboration_id, reason=reason, suspend_running=suspend_running
            ),
        )
        return CollaborationInfo(answer.collaboration)

    async def resume(self, collaboration_id: str, reason: str = "") -> CollaborationInfo:
        """Let a paused collaboration go on; resuming twice is harmless."""
        answer = await self._call(
            "scheduler",
            lambda channel: SchedulerServiceStub(channel).ResumeCollaboration,
            scheduler.ResumeCollaborationRequest(collaboration_id=collaboration_id, reason=reason),
        )
        return CollaborationInfo(answer.collaboration)

    async def watch(self, collaboration_id: str, *, from_generation: int = 0) -> AsyncGenerator[Event, None]:
        """Yield the changes after `from_generation` (0 starts with a snapshot) until it has ended.

        A broken stream is resumed where it was, as long as the plane comes back within the client's patience.
        """
        watch = Watch(self._connection, collaboration_id, from_generation)
        async with contextlib.aclosing(self._thread.relay(watch.run())) as events:
            async for event in events:
                yield event

    async def _end_of(self, collaboration_id: str) -> CollaborationInfo:
        """Return a collaboration as it is when it has ended: its last change says all of it but the tasks."""
        watch = Watch(self._connection, collaboration_id, 0, collaborations_only=True)
        return await self._thread.run(watch.end())

    async def locks(self, resource: str = "") -> list[scheduler.Lock]:
        """Return who holds and who waits for `resource`, or for every resource."""
        answer = await self._call(
            "scheduler",
            lambda channel: SchedulerServiceStub(channel).ListLocks,
            scheduler.ListLocksRequest(resource=resource),
        )
        return [*answer.locks]

    async def explain(self, collaboration_id: str, task_id: str) -> explanation_pb2.TaskExplanation:
        """Return why a task has the place, the agent or the wait that it has."""
        answer = await self._call(
            "scheduler",
            lambda channel: SchedulerServiceStub(channel).ExplainTask,
            scheduler.ExplainTaskRequest(collaboration_id=collaboration_id, task_id=task_id),
        )
        explanation: explanation_pb2.TaskExplanation = answer.explanation
        return explanation

    # Agents and services.

    async def agents(self, skill: str = "") -> list[agent_pb2.Agent]:
        """Return the known agents by name; only those with `skill` when it is given."""
        request = registry.ListAgentsRequest(skill=skill)
        return [
            agent
            async for answer in self._pages(
                "registry", lambda channel: RegistryServiceStub(channel).ListAgents, request, None
            )
            for agent in answer.agents
        ]

    async def agent(self, name: str) -> agent_pb2.Agent:
        """Return one agent. Raises NotFoundError when it never registered."""
        answer = await self._call(
            "registry",
            lambda channel: RegistryServiceStub(channel).GetAgent,
            registry.GetAgentRequest(agent_id=name),
        )
        agent: agent_pb2.Agent = answer.agent
        return agent

    async def watch_agents(self) -> AsyncGenerator[registry.WatchAgentsResponse, None]:
        """Yield frames of agents, for ever: everything known first, then each change.

        After a broken stream everything known comes again. Raises MusterError when the registry stays away
        for longer than the client's patience.
        """
        frames = self._connection.follow(
            "registry",
            lambda channel: RegistryServiceStub(channel).WatchAgents,
            registry.WatchAgentsRequest,
        )
        async with contextlib.aclosing(self._thread.relay(frames)) as relayed:
            async for frame in relayed:
                yield frame

    async def services(self) -> registry.ListServicesResponse:
        """Return the live replicas of every service, and who leads."""
        answer: registry.ListServicesResponse = await self._call(
            "registry",
            lambda channel: RegistryServiceStub(channel).ListServices,
            registry.ListServicesRequest(),
        )
        return answer

    # Messages.

    async def mailbox(self, agent: str) -> broker.GetMailboxResponse:
        """Return how full an agent's mailbox is."""
        answer: broker.GetMailboxResponse = await self._call(
            "broker",
            lambda channel: BrokerServiceStub(channel).GetMailbox,
            broker.GetMailboxRequest(agent_id=agent),
        )
        return answer

    async def subscribe(self, pattern: str, *, agent: str = "") -> None:
        """Have a mailbox get what is published to matching topics; the caller's own when none is named."""
        await self._call(
            "broker",
            lambda channel: BrokerServiceStub(channel).Subscribe,
            broker.SubscribeRequest(agent_id=agent, pattern=pattern),
        )

    async def unsubscribe(self, pattern: str, *, agent: str = "") -> None:
        """End a subscription, written as it was made."""
        await self._call(
            "broker",
            lambda channel: BrokerServiceStub(channel).Unsubscribe,
            broker.UnsubscribeRequest(agent_id=agent, pattern=pattern),
        )

    async def subscriptions(self, agent: str = "") -> list[str]:
        """Return the patterns that a mailbox is subscribed to."""
        answer = await self._call(
            "broker",
            lambda channel: BrokerServiceStub(channel).ListSubscriptions,
            broker.ListSubscriptionsRequest(agent_id=agent),
        )
        return list(answer.patterns)

    async def dead_letters(self, agent: str, *, limit: int | None = 100) -> list[broker.DeadLetter]:
        """Return messages to an agent that were given up, oldest first, at most `limit`; None for all."""
        request = broker.ListDeadLettersRequest(agent_id=agent)
        found = [
            letter
            async for answer in self._pages(
                "broker", lambda channel: BrokerServiceStub(channel).ListDeadLetters, request, limit
            )
            for letter in answer.dead_letters
        ]
        return found[:limit]

    async def replay_dead_letters(self, agent: str, ids: Sequence[int]) -> list[broker.DeadLetterOutcome]:
        """Send 1 to 1,000 dead letters of an agent once more; return what became of each, in order.

        Each becomes a new message of its sender, at the end of its lane. One that is no dead letter (any
        more) has an error in its outcome.
        """
        answer = await self._call(
            "broker",
            lambda channel: BrokerServiceStub(channel).ReplayDeadLetters,
            broker.ReplayDeadLettersRequest(agent_id=agent, dead_letter_ids=_letter_ids(ids)),
        )
        return list(answer.outcomes)

    async def drop_dead_letters(self, agent: str, ids: Sequence[int]) -> list[broker.DeadLetterOutcome]:
        """Forget 1 to 1,000 dead letters of an agent; return what became of each, in order."""
        answer = await self._call(
            "broker",
            lambda channel: BrokerServiceStub(channel).DropDeadLetters,
            broker.DropDeadLettersRequest(agent_id=agent, dead_letter_ids=_letter_ids(ids)),
        )
        return list(answer.outcomes)

    # From the caller's loop to the link loop.

    async def _call(self, service: str, method: Method, request: Any) -> Any:
        return await self._thread.run(self._connection.call(service, method, request))

    async def _pages(
        self, service: str, method: Method, request: Any, limit: int | None
    ) -> AsyncIterator[Any]:
        if limit is not None and not is_count(limit):
            raise bad_field("limit", "must be a whole number from 0 on, or None for all")
        asked, token = 0, ""
        while True:
            size = PAGE_SIZE if limit is None else min(PAGE_SIZE, limit - asked)
            request.page.CopyFrom(page_pb2.PageRequest(page_size=size, page_token=token))
            answer = await self._call(service, method, request)
            yield answer
            asked, token = asked + size, answer.page.next_page_token
            if not token or (limit is not None and asked >= limit):
                return


def _letter_ids(ids: Sequence[int]) -> Sequence[int]:
    if not all(is_count(one) for one in ids):
        raise bad_field("dead_letter_ids", "must be whole numbers, as `dead_letters` has them")
    return ids


class Collaboration:
    """A submitted collaboration."""

    def __init__(
        self,
        client: Client,
        collaboration_id: str,
        warnings: tuple[str, ...] = (),
        *,
        already_accepted: bool = False,
    ) -> None:
        self._client = client
        self.id, self.warnings, self.already_accepted = collaboration_id, warnings, already_accepted

    def __repr__(self) -> str:
        return f"Collaboration({self.id})"

    async def info(self) -> CollaborationInfo:
        """Return it with its tasks as they are now."""
        return await self._client.get(self.id)

    def watch(self, *, from_generation: int = 0) -> AsyncGenerator[Event, None]:
        """Yield its changes until it has ended; see `Client.watch`."""
        return self._client.watch(self.id, from_generation=from_generation)

    async def result(self, timeout: float | None = None) -> Result:
        """Wait for its end and return the result.

        Raises CollaborationFailedError when it fails or is cancelled, CallTimeoutError after `timeout`
        seconds; the collaboration itself goes on then.
        """
        try:
            async with asyncio.timeout(timeout):
                return (await self._client._end_of(self.id)).result()
        except TimeoutError:
            raise CallTimeoutError(
                f"collaboration {self.id} has not ended within {timeout} s; it goes on"
            ) from None

    async def cancel(self, reason: str = "") -> CollaborationInfo:
        """Cancel what has not ended of it."""
        return await self._client.cancel(self.id, reason)


def _state(name: str) -> collaboration_pb2.CollaborationState.ValueType:
    known = {
        key.removeprefix("COLLABORATION_STATE_"): value
        for key, value in collaboration_pb2.CollaborationState.items()
        if value
    }
    state = known.get(name.upper())
    if state is None:
        raise bad_field("states", f"{name!r} is none of {', '.join(known)}")
    return state
