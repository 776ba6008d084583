"""gRPC in and out: decode, hand to the driver, encode. Streams have files of their own."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from muster.scheduler.v1 import collaboration_pb2 as collaboration_pb
from muster.scheduler.v1 import plan_pb2 as plan_pb
from muster.scheduler.v1 import scheduler_service_pb2 as pb
from muster.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceServicer

from services.common.clock import Clock
from services.common.core.entries import EntryDraft
from services.common.core.errors import Reason, ServiceError, invalid
from services.common.core.ids import AGENT_ID, AgentId, CollaborationId, ResourceName, TaskId
from services.common.identity import Principal
from services.common.outbox import Outbox
from services.common.rpc.interceptors import current_call
from services.scheduler import pages
from services.scheduler.core.book import Book
from services.scheduler.core.course import Collaboration
from services.scheduler.core.effects import Accepted
from services.scheduler.core.events import (
    AssessRequested,
    CancelRequested,
    Event,
    PauseRequested,
    PolicyAction,
    PolicyOrdered,
    ReplyId,
    ResumeRequested,
)
from services.scheduler.core.explain import explain
from services.scheduler.core.intake.outlook import outlook
from services.scheduler.core.intake.validation import validate
from services.scheduler.core.policies import adapting
from services.scheduler.core.policies.bandit import PolicyCell
from services.scheduler.core.profiles import profile
from services.scheduler.core.queries import find, find_task, newest_first
from services.scheduler.driver import Driver
from services.scheduler.inbox import Reply
from services.scheduler.planner import Planner
from services.scheduler.replica import Replica
from services.scheduler.submit_stream import SubmitStream, submission_event
from services.scheduler.watch_stream import WatchStream
from services.scheduler.wire import answers, plans, profiles, views
from services.scheduler.wire.explanations import explanation_message
from services.scheduler.work_stream import WorkStream

SERVICE = "scheduler"
SERVICE_NAME = "muster.scheduler.v1.SchedulerService"
_REQUESTERS = frozenset({"agent", "operator"})
_READERS = frozenset({"agent", "operator", "service"})
#: Who may call what; what is not here is denied. Beyond it, agents see and cancel what they submitted only.
ACCESS = {
    f"{SERVICE_NAME}/SubmitCollaboration": _REQUESTERS,
    f"{SERVICE_NAME}/Submit": _REQUESTERS,
    f"{SERVICE_NAME}/GetCollaboration": _READERS,
    f"{SERVICE_NAME}/ListCollaborations": _READERS,
    f"{SERVICE_NAME}/GetMembers": frozenset({"service/broker"}),
    f"{SERVICE_NAME}/CancelCollaboration": _REQUESTERS,
    f"{SERVICE_NAME}/PauseCollaboration": _REQUESTERS,
    f"{SERVICE_NAME}/ResumeCollaboration": _REQUESTERS,
    f"{SERVICE_NAME}/WatchCollaborations": _READERS,
    f"{SERVICE_NAME}/PlanCollaboration": _REQUESTERS,
    f"{SERVICE_NAME}/Work": frozenset({"agent"}),
    f"{SERVICE_NAME}/ListLocks": _READERS,
    f"{SERVICE_NAME}/GetAgentProfile": _READERS,
    f"{SERVICE_NAME}/GetAdaptivePolicy": frozenset({"operator", "service"}),
    f"{SERVICE_NAME}/ChangeAdaptivePolicy": frozenset({"operator"}),
    f"{SERVICE_NAME}/AssessTask": _READERS,
    f"{SERVICE_NAME}/ListAlerts": frozenset({"operator", "service"}),
    f"{SERVICE_NAME}/ExplainTask": _READERS,
}
_Order = pb.CancelCollaborationRequest | pb.PauseCollaborationRequest | pb.ResumeCollaborationRequest
_REASON_BYTES_MAX = 1_024
#: Claims in one answer.
_LOCKS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Bounds of the streams; `services.scheduler.config` explains them."""

    submissions_max: int = 4_096
    watcher_events_max: int = 4_096
    watchers_max: int = 1_024


class SchedulerServicer(SchedulerServiceServicer):
    """See `muster/scheduler/v1/scheduler_service.proto`."""

    def __init__(
        self, replica: Replica, planner: Planner, outbox: Outbox, clock: Clock, limits: StreamLimits
    ) -> None:
        self._replica, self._planner = replica, planner
        self._outbox, self._clock, self._limits = outbox, clock, limits
        self._watchers = 0

    async def SubmitCollaboration(
        self, request: pb.SubmitCollaborationRequest, context: Any
    ) -> pb.SubmitCollaborationResponse:
        """Accept one DAG; the answer follows its commit."""
        del context
        driver = await self._replica.driver()
        reply = await _ask(driver, submission_event(request, str(_caller())))
        if isinstance(reply, Accepted):
            return answers.accepted(reply)
        raise _unexpected(reply)

    async def Submit(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # it writes to the context
        """Accept frames of many DAGs."""
        del request_iterator  # the duplex reads from the context
        driver = await self._replica.driver()
        await SubmitStream(driver, current_call.get(), context, self._limits.submissions_max).run()

    async def GetCollaboration(
        self, request: pb.GetCollaborationRequest, context: Any
    ) -> pb.GetCollaborationResponse:
        """Return one collaboration with its tasks."""
        del context
        driver = await self._replica.driver()
        caller = _caller()

        def ask(book: Book) -> collaboration_pb.Collaboration:
            return views.whole_collaboration(book, _permit(book, request.collaboration_id, caller))

        return pb.GetCollaborationResponse(collaboration=await driver.query(ask))

    async def GetMembers(self, request: pb.GetMembersRequest, context: Any) -> pb.GetMembersResponse:
        """Return who belongs to a collaboration."""
        del context
        driver = await self._replica.driver()
        wanted = CollaborationId(request.collaboration_id)
        return await driver.query(lambda book: views.members_message(find(book, wanted)))

    async def ListCollaborations(
        self, request: pb.ListCollaborationsRequest, context: Any
    ) -> pb.ListCollaborationsResponse:
        """Return collaborations without tasks, newest first."""
        del context
        driver = await self._replica.driver()
        caller = _caller()
        size, states = pages.size_of(request), pages.states(request)
        before = pages.before(request.page.page_token)
        requester = str(caller) if caller.kind == "agent" else None

        def ask(book: Book) -> pb.ListCollaborationsResponse:
            found = newest_first(book, requester=requester, states=states, before=before)
            return pages.page(found, size)

        return await driver.query(ask)

    async def CancelCollaboration(
        self, request: pb.CancelCollaborationRequest, context: Any
    ) -> pb.CancelCollaborationResponse:
        """Cancel what has not ended."""
        del context

        def event(cause: str, name: CollaborationId, actor: str, reply: ReplyId) -> Event:
            return CancelRequested(cause, name, actor, request.reason, reply)

        return pb.CancelCollaborationResponse(collaboration=await self._order(request, "cancel", event))

    async def PauseCollaboration(
        self, request: pb.PauseCollaborationRequest, context: Any
    ) -> pb.PauseCollaborationResponse:
        """Let nothing new of a collaboration begin."""
        del context

        def event(cause: str, name: CollaborationId, actor: str, reply: ReplyId) -> Event:
            return PauseRequested(cause, name, actor, request.reason, request.suspend_running, reply)

        return pb.PauseCollaborationResponse(collaboration=await self._order(request, "pause", event))

    async def ResumeCollaboration(
        self, request: pb.ResumeCollaborationRequest, context: Any
    ) -> pb.ResumeCollaborationResponse:
        """Let a paused collaboration go on."""
        del context

        def event(cause: str, name: CollaborationId, actor: str, reply: ReplyId) -> Event:
            return ResumeRequested(cause, name, actor, request.reason, reply)

        return pb.ResumeCollaborationResponse(collaboration=await self._order(request, "resume", event))

    async def _order(
        self, request: _Order, verb: str, event: Callable[[str, CollaborationId, str, ReplyId], Event]
    ) -> collaboration_pb.Collaboration:
        """Carry out what somebody who may wants of a collaboration; return it as it is then."""
        driver = await self._replica.driver()
        call, caller = current_call.get(), _caller()
        if len(request.reason.encode()) > _REASON_BYTES_MAX:
            raise invalid("reason", f"is too long: at most {_REASON_BYTES_MAX} bytes")
        name = CollaborationId(request.collaboration_id)
        requester = await driver.query(lambda book: _permit(book, name, caller).requester)
        if requester != str(caller):
            # Ordering somebody else's work about is for operators, and does not happen unrecorded (A3).
            entry = EntryDraft(
                self._clock.now(),
                str(caller),
                f"collaboration.{verb}.order",
                f"collaboration/{name}",
                cause_id=call.cause_id,
                collaboration_id=name,
                attributes={"why": request.reason} if request.reason else {},
            )
            await self._outbox.record([entry], privileged=True)
        reply = await _ask(driver, partial(event, call.cause_id, name, str(caller)))
        if not isinstance(reply, Collaboration):
            raise _unexpected(reply)
        return await driver.query(lambda book: views.whole_collaboration(book, find(book, name)))

    async def WatchCollaborations(  # type: ignore[override]  # frames are put together as bytes
        self, request: pb.WatchCollaborationsRequest, context: Any
    ) -> AsyncGenerator[bytes, None]:
        """Send changes in frames of many events."""
        del context
        driver = await self._replica.driver()
        caller = _caller()
        if self._watchers >= self._limits.watchers_max:
            raise ServiceError(
                Reason.QUOTA_EXCEEDED,
                f"{self._watchers} watch streams are open: close one, or watch all that you submitted",
                metadata={"limit": "watchers_max"},
                retry_after_ms=1_000,
            )
        watch = WatchStream(driver, request, str(caller), self._limits.watcher_events_max)
        self._watchers += 1
        try:
            async with aclosing(watch.frames(lambda book, name: _permit(book, name, caller))) as frames:
                async for frame in frames:
                    yield frame
        finally:
            self._watchers -= 1

    async def PlanCollaboration(
        self, request: plan_pb.PlanCollaborationRequest, context: Any
    ) -> plan_pb.PlanCollaborationResponse:
        """Say how a collaboration would go."""
        del context
        driver = await self._replica.driver()
        spec, budget_ms, most = plans.plan_request(request)
        now = self._clock.now()
        validate(spec, now, driver.settings.limits)
        view = await driver.query(lambda book: outlook(book, spec, now))
        found = await self._planner.find(view.problem, view.worth, most=most, budget_ms=budget_ms)
        return plans.plan_response(spec, view, found)

    async def Work(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # as Submit
        """Serve one agent instance."""
        del request_iterator  # the duplex reads from the context
        driver = await self._replica.driver()
        await WorkStream(driver, current_call.get(), context).run()

    async def ListLocks(self, request: pb.ListLocksRequest, context: Any) -> pb.ListLocksResponse:
        """Return who holds and who waits for each resource."""
        del context
        driver = await self._replica.driver()
        resource = ResourceName(request.resource) if request.resource else None

        def ask(book: Book) -> pb.ListLocksResponse:
            locks = (views.lock_message(book, view) for view in book.locks.snapshot(resource))
            return pb.ListLocksResponse(locks=itertools.islice(locks, _LOCKS_MAX))

        return await driver.query(ask)

    async def ExplainTask(self, request: pb.ExplainTaskRequest, context: Any) -> pb.ExplainTaskResponse:
        """Return why a task has the place, the agent or the wait that it has."""
        del context
        driver = await self._replica.driver()
        caller, now = _caller(), self._clock.now()

        def ask(book: Book) -> pb.ExplainTaskResponse:
            collaboration = _permit(book, request.collaboration_id, caller)
            task = find_task(book, collaboration.collaboration_id, TaskId(request.task_id))
            return pb.ExplainTaskResponse(explanation=explanation_message(explain(book, task, now)))

        return await driver.query(ask)

    async def GetAgentProfile(
        self, request: pb.GetAgentProfileRequest, context: Any
    ) -> pb.GetAgentProfileResponse:
        """Return what was learned about an agent."""
        del context
        driver = await self._replica.driver()
        caller, agent_id = _caller(), AgentId(request.agent_id)
        if AGENT_ID.match(agent_id) is None:
            raise invalid("agent_id", "is no agent's name: 1 to 64 of a-z, 0-9 and '-', not at the ends")
        if caller.kind == "agent" and caller.name != agent_id:
            raise ServiceError(
                Reason.ACCESS_DENIED,
                "agents see their own profile only: ask an operator for others'",
                metadata={"identity": str(caller)},
            )

        def ask(book: Book) -> pb.GetAgentProfileResponse:
            return pb.GetAgentProfileResponse(profile=profiles.profile_message(profile(book, agent_id)))

        return await driver.query(ask)

    async def AssessTask(self, request: pb.AssessTaskRequest, context: Any) -> pb.AssessTaskResponse:
        """Let a result be judged by who asked for it, an operator or a service."""
        del context
        driver = await self._replica.driver()
        call, caller = current_call.get(), _caller()
        if not 0.0 <= request.score <= 1.0:
            raise invalid("score", "must be a number from 0 to 1")
        if len(request.comment.encode()) > _REASON_BYTES_MAX:
            raise invalid("comment", f"is too long: at most {_REASON_BYTES_MAX} bytes")
        assessed, task_id = CollaborationId(request.collaboration_id), TaskId(request.task_id)
        await driver.query(lambda book: _permit(book, assessed, caller).requester)

        def event(reply: ReplyId) -> Event:
            return AssessRequested(
                call.cause_id, assessed, task_id, request.score, request.comment, str(caller), reply
            )

        reply = await _ask(driver, event)
        if not isinstance(reply, Collaboration):
            raise _unexpected(reply)
        newest = reply.tasks[task_id].newest
        return pb.AssessTaskResponse(agent_id="" if newest is None else newest.instance.agent_id)

    async def GetAdaptivePolicy(
        self, request: pb.GetAdaptivePolicyRequest, context: Any
    ) -> pb.GetAdaptivePolicyResponse:
        """Return how the policy of collaborations that name none is chosen."""
        del request, context
        driver = await self._replica.driver()
        message = await driver.query(lambda book: profiles.policy_message(adapting.view(book)))
        return pb.GetAdaptivePolicyResponse(policy=message)

    async def ChangeAdaptivePolicy(
        self, request: pb.ChangeAdaptivePolicyRequest, context: Any
    ) -> pb.ChangeAdaptivePolicyResponse:
        """Freeze that choice, let it go on, or forget what was learned."""
        del context
        driver = await self._replica.driver()
        cause, actor = current_call.get().cause_id, str(_caller())
        if request.action not in {*PolicyAction}:
            raise invalid("action", "must be POLICY_ACTION_FREEZE, _UNFREEZE or _RESET")
        if len(request.reason.encode()) > _REASON_BYTES_MAX:
            raise invalid("reason", f"is too long: at most {_REASON_BYTES_MAX} bytes")
        action = PolicyAction(request.action)
        # It changes how everybody's work is placed: not without a record (guarantee A3).
        entry = EntryDraft(
            self._clock.now(),
            actor,
            f"policy.{action.name.lower()}.order",
            "policy/adaptive",
            cause_id=cause,
            attributes={"why": request.reason} if request.reason else {},
        )
        await self._outbox.record([entry], privileged=True)
        reply = await _ask(driver, lambda reply: PolicyOrdered(cause, action, actor, request.reason, reply))
        if not isinstance(reply, PolicyCell):
            raise _unexpected(reply)
        message = await driver.query(lambda book: profiles.policy_message(adapting.view(book)))
        return pb.ChangeAdaptivePolicyResponse(policy=message)

    async def ListAlerts(self, request: pb.ListAlertsRequest, context: Any) -> pb.ListAlertsResponse:
        """Return what is out of the ordinary."""
        del context
        driver = await self._replica.driver()

        def ask(book: Book) -> pb.ListAlertsResponse:
            found = book.observed.alerts.newest_first(include_cleared=request.include_cleared)
            return pb.ListAlertsResponse(alerts=map(profiles.alert_message, found))

        return await driver.query(ask)


async def _ask(driver: Driver, make: Callable[[ReplyId], Event]) -> Reply:
    """Return what the driver answers to an event, errors included."""
    answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def settle(reply: Reply) -> None:
        # The caller may have gone away meanwhile.
        if not answer.done():
            answer.set_result(reply)

    driver.request(make, settle)
    return await answer


def _caller() -> Principal:
    return current_call.get().principal


def _permit(book: Book, collaboration_id: str, caller: Principal) -> Collaboration:
    """Return a collaboration that `caller` may see; raises COLLABORATION_NOT_FOUND or ACCESS_DENIED."""
    collaboration = find(book, CollaborationId(collaboration_id))
    if caller.kind == "agent" and collaboration.requester != str(caller):
        raise ServiceError(
            Reason.ACCESS_DENIED,
            f"collaboration {collaboration_id} was submitted by another: ask its requester or an operator",
            metadata={"identity": str(caller)},
        )
    return collaboration


def _unexpected(reply: Reply) -> ServiceError:
    if isinstance(reply, ServiceError):
        return reply
    return ServiceError(Reason.INTERNAL, f"an answer of the wrong kind: {type(reply).__name__}")
