"""An agent's subscriptions, changed by single calls: they are the mailbox's, not the stream's."""

from __future__ import annotations

from muster.broker.v1 import broker_service_pb2 as broker
from muster.broker.v1.broker_service_pb2_grpc import BrokerServiceStub

from agent_client.connection import Connection
from agent_client.errors import MusterError
from agent_client.pending import Pending
from agent_client.tls import Dialer

# Seconds that a change may take with all its retries.
PATIENCE_S = 30.0


class Subscriptions:
    """Everything here runs on the link loop."""

    def __init__(self, dialer: Dialer) -> None:
        self._connection = Connection(dialer, PATIENCE_S)

    async def change(self, pattern: str, done: Pending[None], *, wanted: bool) -> None:
        """Add or end a subscription; the same again changes nothing, so that it may be repeated."""
        try:
            if wanted:
                request = broker.SubscribeRequest(pattern=pattern)
                await self._connection.call("broker", lambda link: BrokerServiceStub(link).Subscribe, request)
            else:
                ended = broker.UnsubscribeRequest(pattern=pattern)
                await self._connection.call("broker", lambda link: BrokerServiceStub(link).Unsubscribe, ended)
        except MusterError as error:
            done.fail(error)
        else:
            done.resolve(None)

    async def list(self, found: Pending[list[str]]) -> None:
        """Tell what the mailbox is subscribed to."""
        request = broker.ListSubscriptionsRequest()
        try:
            answer = await self._connection.call(
                "broker", lambda link: BrokerServiceStub(link).ListSubscriptions, request
            )
        except MusterError as error:
            found.fail(error)
        else:
            found.resolve(list(answer.patterns))

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()
