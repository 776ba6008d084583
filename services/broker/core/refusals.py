"""The errors with which envelopes are refused."""

from __future__ import annotations

from services.broker.core import flow
from services.broker.core.addresses import instance_of, owner_of
from services.broker.core.state import Domain, Sender, State
from services.common.core.errors import Reason, ServiceError
from services.common.core.instants import Instant

# After this a sender that met a full mailbox or quota may try again, in milliseconds.
RETRY_AFTER_MS = 1_000


def shutting_down() -> ServiceError:
    """Return the error of a broker that leaves."""
    return ServiceError(
        Reason.SHUTTING_DOWN,
        "this broker is leaving: send it again on a new stream",
        retry_after_ms=RETRY_AFTER_MS,
    )


def unknown(state: State, receiver: str) -> ServiceError | None:
    """Return why nothing may be sent to a receiver or an instance of it; None: it is known."""
    if receiver in state.known:
        return None
    owner, instance = owner_of(receiver), instance_of(receiver)
    if instance is None or owner not in state.known:
        return unknown_agent(owner)
    mailbox = state.mailboxes.get(owner)
    if mailbox is None or instance not in mailbox.incarnations:
        return ServiceError(
            Reason.RECEIVER_NOT_FOUND,
            f"{owner} has had no instance {instance!r} here: check the name, or write to {owner!r} for any",
            metadata={"address": receiver},
        )
    return None


def unknown_agent(receiver: str) -> ServiceError:
    """Return the error for a receiver that nobody has heard of."""
    return ServiceError(
        Reason.AGENT_NOT_FOUND,
        f"no agent {receiver!r} is registered: check the name, or start that agent once",
        metadata={"receiver": receiver},
    )


def over_limit(limit: str, domain: Domain, now: Instant) -> ServiceError:
    """Return the error for a limit that `flow.limit_met` named."""
    if limit in flow.MAILBOX_LIMITS:
        receiver = domain.mailbox.owner
        return ServiceError(
            Reason.MAILBOX_FULL,
            f"the mailbox of {receiver} is full ({limit}): send again when its owner has caught up",
            metadata={"receiver": receiver, "limit": limit},
            retry_after_ms=RETRY_AFTER_MS,
        )
    return over_quota(limit, domain.sender, now)


def over_quota(limit: str, sender: Sender, now: Instant) -> ServiceError:
    """Return the error for a bound that is no mailbox's."""
    wait_ms = RETRY_AFTER_MS
    end = sender.window.next_expiry()
    if limit in flow.WINDOW_LIMITS and end is not None:
        wait_ms = max(wait_ms, end - now)
    return quota(limit, "the broker keeps as much for you, or in all, as it may", wait_ms)


def reused(message_id: str) -> ServiceError:
    """Return the error for an id under which something else was accepted."""
    return ServiceError(
        Reason.REQUEST_ID_REUSED,
        f"message_id {message_id} was used for other content: give each envelope an id of its own",
        metadata={"message_id": message_id},
    )


def quota(limit: str, why: str, retry_after_ms: int) -> ServiceError:
    """Return the error for a bound that was reached."""
    return ServiceError(
        Reason.QUOTA_EXCEEDED,
        f"{why} ({limit}): send again later",
        metadata={"limit": limit},
        retry_after_ms=retry_after_ms,
    )


def over_window(send_window: int) -> ServiceError:
    """Return the error for more unanswered envelopes than a stream may have."""
    why = f"more than {send_window} envelopes unanswered: wait for send_credits"
    return quota("send_window", why, RETRY_AFTER_MS)


def over_fanout(count: int, fanout_max: int) -> ServiceError:
    """Return the error for an address that means too many."""
    why = f"{count} mailboxes would get a copy, at most {fanout_max} may"
    return quota("fanout_max", why, RETRY_AFTER_MS)
