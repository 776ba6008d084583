"""The stream that renews a lease."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

from aetcd import rpc
from grpc.aio import AioRpcError, UsageError

from services.common.etcd.channel import END_OF_STREAM, METADATA, cancelled_from_outside
from services.common.etcd.errors import LeaseGoneError, closed, from_rpc_error, unavailable


class KeepAlive:
    """Renews one lease over one stream; the stream is opened anew after it broke."""

    def __init__(self, stub: Any, lease_id: int) -> None:
        self._stub = stub
        self._request = rpc.LeaseKeepAliveRequest(ID=lease_id)
        self._lease_id = lease_id
        self._call: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the stream; the lease is not touched."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    async def renew(self, timeout_s: float) -> int:
        """Renew once and return the TTL in seconds that etcd gave.

        Raises `LeaseGoneError` when the lease has ended, STORE_UNAVAILABLE when no answer came in
        `timeout_s` seconds or the link broke.
        """
        try:
            async with asyncio.timeout(timeout_s):
                if self._call is None:
                    self._call = self._stub.LeaseKeepAlive(metadata=METADATA, wait_for_ready=True)
                await self._call.write(self._request)
                response = await self._call.read()
        except AioRpcError as error:
            self.close()
            raise from_rpc_error(error, doing="renew a lease", lease_id=self._lease_id) from error
        except UsageError as error:
            raise closed("renew a lease") from error
        except asyncio.CancelledError as error:
            self.close()
            if cancelled_from_outside():
                raise
            raise closed("renew a lease") from error
        except (TimeoutError, asyncio.InvalidStateError) as error:
            # InvalidStateError: gRPC refuses to write on a stream that has ended in the meantime.
            self.close()
            raise unavailable("etcd: renew a lease: no answer in time") from error
        if response is END_OF_STREAM:
            self.close()
            raise unavailable("etcd: renew a lease: the member closed the stream")
        if response.TTL <= 0:
            raise LeaseGoneError(self._lease_id)
        return int(response.TTL)
