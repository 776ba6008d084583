"""Who a call is from: the peer, or whom another replica of the broker passes it on for."""

from __future__ import annotations

from typing import Any

from services.common.core.errors import Reason, ServiceError
from services.common.core.ids import AGENT_ID
from services.common.identity import Principal
from services.common.rpc.interceptors import current_call

# The replicas trust each other to have checked a certificate; everybody else may not say this.
REPLICA = Principal("service", "broker")
ON_BEHALF_OF = "muster-on-behalf-of"
_KINDS = ("agent", "operator")


def is_relayed() -> bool:
    """Return whether another replica passes the present call on."""
    return current_call.get().principal == REPLICA


def caller(context: Any) -> Principal:
    """Return who the present call is from; raises ACCESS_DENIED when a replica does not say for whom."""
    principal = current_call.get().principal
    if principal != REPLICA:
        return principal
    named = [value for key, value in context.invocation_metadata() or () if key == ON_BEHALF_OF]
    kind, _, name = str(named[0]).partition("/") if len(named) == 1 else ("", "", "")
    if kind not in _KINDS or AGENT_ID.match(name) is None:
        raise ServiceError(
            Reason.ACCESS_DENIED,
            f"{principal} has no mailbox: a replica that passes a call on names its agent or operator in"
            f" {ON_BEHALF_OF}",
            metadata={"identity": str(principal), "method": "mailbox"},
        )
    return Principal(kind, name)
