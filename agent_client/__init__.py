"""The client of Muster: write an agent, submit a collaboration, check the log."""

from agent_client.agent import Agent
from agent_client.client import Client, Collaboration
from agent_client.context import Context, load_context
from agent_client.core.records import FencingToken, Payload
from agent_client.core.vocabulary import MessageType, Priority
from agent_client.delivery import Delivery, Reply
from agent_client.errors import (
    AccessError,
    AgentLeftError,
    CallTimeoutError,
    CancelledBySuspend,
    CollaborationFailedError,
    ContextError,
    FencedError,
    HistoryGoneError,
    InternalError,
    InvalidRequestError,
    LimitError,
    LockLostError,
    MusterError,
    NotFoundError,
    PermanentFailure,
    PreconditionError,
    RequestReusedError,
    ResourceHeldError,
    StaleTokenError,
    TaskCancelled,
    TransientFailure,
    UnavailableError,
    Violation,
)
from agent_client.link import Envelope, Receipt
from agent_client.locks import Held, Lock
from agent_client.pending import Pending
from agent_client.task import Task
from agent_client.views import (
    CollaborationInfo,
    Contribution,
    DeadlineWarning,
    Gap,
    Progress,
    Result,
    TaskInfo,
)
from agent_client.watching import Event

__all__ = [
    "AccessError",
    "Agent",
    "AgentLeftError",
    "CallTimeoutError",
    "CancelledBySuspend",
    "Client",
    "Collaboration",
    "CollaborationFailedError",
    "CollaborationInfo",
    "Context",
    "ContextError",
    "Contribution",
    "DeadlineWarning",
    "Delivery",
    "Envelope",
    "Event",
    "FencedError",
    "FencingToken",
    "Gap",
    "Held",
    "HistoryGoneError",
    "InternalError",
    "InvalidRequestError",
    "LimitError",
    "Lock",
    "LockLostError",
    "MessageType",
    "MusterError",
    "NotFoundError",
    "Payload",
    "Pending",
    "PermanentFailure",
    "PreconditionError",
    "Priority",
    "Progress",
    "Receipt",
    "Reply",
    "RequestReusedError",
    "ResourceHeldError",
    "Result",
    "StaleTokenError",
    "Task",
    "TaskCancelled",
    "TaskInfo",
    "TransientFailure",
    "UnavailableError",
    "Violation",
    "load_context",
]
