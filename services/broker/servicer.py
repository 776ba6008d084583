"""gRPC in and out: who may ask for what, and the answers for people."""

from __future__ import annotations

from typing import Any

import grpc
from muster.broker.v1 import broker_service_pb2 as pb
from muster.broker.v1.broker_service_pb2_grpc import BrokerServiceServicer

from services.broker.caller import REPLICA, caller
from services.broker.core.addresses import is_mailbox
from services.broker.core.model import Subscription
from services.broker.core.topics import is_pattern
from services.broker.core.views import view_mailbox
from services.broker.entries import SubscriptionChanged
from services.broker.mailbox_stream import MailboxStream, StreamHost, address_of
from services.broker.wire import responses
from services.common.core.errors import Reason, ServiceError, invalid
from services.common.identity import Principal

SERVICE_NAME = "muster.broker.v1.BrokerService"
_PEOPLE = frozenset({"agent", "operator"})
# Who may call what; what is not here may be called by nobody. Services have no mailboxes.
ACCESS = {
    f"{SERVICE_NAME}/Mailbox": _PEOPLE,
    f"{SERVICE_NAME}/GetMailbox": _PEOPLE,
    f"{SERVICE_NAME}/ListDeadLetters": _PEOPLE,
    f"{SERVICE_NAME}/ReplayDeadLetters": _PEOPLE,
    f"{SERVICE_NAME}/DropDeadLetters": _PEOPLE,
    f"{SERVICE_NAME}/Subscribe": _PEOPLE,
    f"{SERVICE_NAME}/Unsubscribe": _PEOPLE,
    f"{SERVICE_NAME}/ListSubscriptions": _PEOPLE,
}
# The same where replicas pass calls on to each other.
ACCESS_OF_REPLICAS = {method: allowed | {str(REPLICA)} for method, allowed in ACCESS.items()}
PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000
# A page of dead letters ends here, whatever its number of rows: well below gRPC's 4 MiB.
PAGE_BYTES_MAX = 2 * 1024 * 1024


class BrokerServicer(BrokerServiceServicer):
    """Serves `muster.broker.v1.BrokerService`."""

    def __init__(self, host: StreamHost) -> None:
        self._host, self._driver = host, host.driver

    async def Mailbox(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # it writes to the context
        """Serve one stream of an agent or operator."""
        del request_iterator  # the duplex reads from the context
        await MailboxStream(context, caller(context), self._host).run()

    async def GetMailbox(self, request: pb.GetMailboxRequest, context: Any) -> pb.GetMailboxResponse:
        """Return what a mailbox holds."""
        owner = self._known_owner(request.agent_id, caller(context))
        view = view_mailbox(self._driver.machine.state, owner)
        return responses.mailbox(view, await self._driver.letters.count(owner))

    async def ListDeadLetters(
        self, request: pb.ListDeadLettersRequest, context: Any
    ) -> pb.ListDeadLettersResponse:
        """Return one page of a mailbox's dead letters, oldest first."""
        owner = self._known_owner(request.agent_id, caller(context))
        size, after = _page(request)
        # One more than wanted tells whether there is a next page.
        found = await self._driver.letters.list_after(owner, after, size + 1)
        response = pb.ListDeadLettersResponse()
        total = 0
        for stored in found[:size]:
            total += len(stored.letter.envelope.draft.body)
            if response.dead_letters and total > PAGE_BYTES_MAX:
                break
            response.dead_letters.append(responses.dead_letter(stored))
            after = stored.number
        if len(response.dead_letters) < len(found):
            response.page.next_page_token = str(after)
        return response

    async def ReplayDeadLetters(
        self, request: pb.ReplayDeadLettersRequest, context: Any
    ) -> pb.ReplayDeadLettersResponse:
        """Send dead letters to their receiver once more."""
        owner, numbers = await self._letters_asked(request, context, "dead_letter.replay")
        outcomes = await self._driver.letters.replay(owner, numbers)
        return pb.ReplayDeadLettersResponse(outcomes=responses.letter_outcomes(numbers, outcomes))

    async def DropDeadLetters(
        self, request: pb.DropDeadLettersRequest, context: Any
    ) -> pb.DropDeadLettersResponse:
        """Forget dead letters."""
        owner, numbers = await self._letters_asked(request, context, "dead_letter.drop")
        outcomes = await self._driver.letters.drop(owner, numbers)
        return pb.DropDeadLettersResponse(outcomes=responses.letter_outcomes(numbers, outcomes))

    async def Subscribe(self, request: pb.SubscribeRequest, context: Any) -> pb.SubscribeResponse:
        """Have a mailbox get what is published to matching topics."""
        await self._subscribe(request, context, wanted=True)
        return pb.SubscribeResponse()

    async def Unsubscribe(self, request: pb.UnsubscribeRequest, context: Any) -> pb.UnsubscribeResponse:
        """End a subscription."""
        await self._subscribe(request, context, wanted=False)
        return pb.UnsubscribeResponse()

    async def ListSubscriptions(
        self, request: pb.ListSubscriptionsRequest, context: Any
    ) -> pb.ListSubscriptionsResponse:
        """Return the patterns of a mailbox."""
        owner = self._known_owner(request.agent_id, caller(context))
        return pb.ListSubscriptionsResponse(patterns=self._driver.machine.state.topics.patterns(owner))

    async def _subscribe(
        self, request: pb.SubscribeRequest | pb.UnsubscribeRequest, context: Any, *, wanted: bool
    ) -> None:
        principal = caller(context)
        owner, pattern = _owner(request.agent_id, principal), request.pattern
        if not is_pattern(pattern):
            raise invalid(
                "pattern",
                'segments of [A-Za-z0-9_-] with dots between, at most 8 and 128 bytes; "*" for one segment,'
                ' "**" at the end for one or more',
            )
        own = owner == address_of(principal)
        if not own:
            # Somebody else's mailbox: recorded before it is done, or not done.
            operation = "mailbox.subscribe" if wanted else "mailbox.unsubscribe"
            facts = {"pattern": pattern}
            await self._host.recorder.record_request(str(principal), operation, owner, facts)
        await self._driver.subscribe(Subscription(owner, pattern), wanted=wanted, own=own)
        if own:
            self._host.recorder.note(SubscriptionChanged(str(principal), pattern, wanted))

    async def _letters_asked(
        self,
        request: pb.ReplayDeadLettersRequest | pb.DropDeadLettersRequest,
        context: Any,
        operation: str,
    ) -> tuple[str, list[int]]:
        """Return whose and which dead letters are meant, once the request is recorded."""
        principal = caller(context)
        owner = self._known_owner(request.agent_id, principal)
        numbers = list(dict.fromkeys(request.dead_letter_ids))
        if not 1 <= len(request.dead_letter_ids) <= PAGE_SIZE_MAX or max(numbers) >= 2**63:
            raise invalid("dead_letter_ids", f"1 to {PAGE_SIZE_MAX} ids of dead letters")
        await self._host.recorder.record_letters(str(principal), operation, owner, numbers)
        return owner, numbers

    def _known_owner(self, agent_id: str, principal: Principal) -> str:
        """Return whose mailbox is asked about; one's own is there, and empty, before it was ever used."""
        owner = _owner(agent_id, principal)
        if owner not in self._driver.machine.state.known and owner != address_of(principal):
            raise _unknown(owner)
        return owner


def add_to_server(servicer: Any, server: grpc.aio.Server) -> None:
    """Add the servicer; unlike the generated function without a serializer for Mailbox: it writes bytes."""
    handlers = {
        "Mailbox": grpc.stream_stream_rpc_method_handler(
            servicer.Mailbox, request_deserializer=pb.MailboxRequest.FromString
        ),
        "GetMailbox": grpc.unary_unary_rpc_method_handler(
            servicer.GetMailbox,
            request_deserializer=pb.GetMailboxRequest.FromString,
            response_serializer=pb.GetMailboxResponse.SerializeToString,
        ),
        "ListDeadLetters": grpc.unary_unary_rpc_method_handler(
            servicer.ListDeadLetters,
            request_deserializer=pb.ListDeadLettersRequest.FromString,
            response_serializer=pb.ListDeadLettersResponse.SerializeToString,
        ),
        "ReplayDeadLetters": grpc.unary_unary_rpc_method_handler(
            servicer.ReplayDeadLetters,
            request_deserializer=pb.ReplayDeadLettersRequest.FromString,
            response_serializer=pb.ReplayDeadLettersResponse.SerializeToString,
        ),
        "DropDeadLetters": grpc.unary_unary_rpc_method_handler(
            servicer.DropDeadLetters,
            request_deserializer=pb.DropDeadLettersRequest.FromString,
            response_serializer=pb.DropDeadLettersResponse.SerializeToString,
        ),
        "Subscribe": grpc.unary_unary_rpc_method_handler(
            servicer.Subscribe,
            request_deserializer=pb.SubscribeRequest.FromString,
            response_serializer=pb.SubscribeResponse.SerializeToString,
        ),
        "Unsubscribe": grpc.unary_unary_rpc_method_handler(
            servicer.Unsubscribe,
            request_deserializer=pb.UnsubscribeRequest.FromString,
            response_serializer=pb.UnsubscribeResponse.SerializeToString,
        ),
        "ListSubscriptions": grpc.unary_unary_rpc_method_handler(
            servicer.ListSubscriptions,
            request_deserializer=pb.ListSubscriptionsRequest.FromString,
            response_serializer=pb.ListSubscriptionsResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))


def _owner(agent_id: str, principal: Principal) -> str:
    """Return whose mailbox is asked about; an agent may ask about its own only."""
    own = address_of(principal)
    if not agent_id or agent_id == own:
        return own
    if not is_mailbox(agent_id):
        raise invalid("agent_id", "an agent's name, operator/<name>, or empty for your own mailbox")
    if principal.kind != "operator":
        raise ServiceError(
            Reason.ACCESS_DENIED,
            f"{principal} may not look into the mailbox of {agent_id}: ask an operator",
            metadata={"identity": str(principal), "method": "mailbox"},
        )
    return agent_id


def _unknown(owner: str) -> ServiceError:
    return ServiceError(
        Reason.AGENT_NOT_FOUND,
        f"no agent {owner!r} is registered: check the name, or start that agent once",
        metadata={"agent_id": owner},
    )


def _page(request: pb.ListDeadLettersRequest) -> tuple[int, int]:
    """Return the size of the page and the number after which it begins."""
    size = request.page.page_size or PAGE_SIZE_DEFAULT
    if size > PAGE_SIZE_MAX:
        raise invalid("page.page_size", f"at most {PAGE_SIZE_MAX}")
    token = request.page.page_token
    if token and not (token.isascii() and token.isdecimal() and len(token) < 19):
        raise invalid("page.page_token", "the next_page_token of the page before, or empty")
    return size, int(token or 0)
