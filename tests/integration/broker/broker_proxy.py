"""A TCP proxy between clients and a broker that can delay, freeze and cut what runs through it."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field


@dataclass(eq=False)
class Link:
    """One connection: the client's socket and the broker's."""

    client: asyncio.StreamWriter
    broker: asyncio.StreamWriter
    pumps: list[asyncio.Task[None]] = field(default_factory=list)


class Proxy:
    """Listens for clients; owned by the event loop."""

    def __init__(self, target: str) -> None:
        self.lead_to(target)
        self._server: asyncio.Server | None = None
        self._links: set[Link] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.delay_s = 0.0
        self.count = 0

    def lead_to(self, target: str) -> None:
        """Bring new connections to `target`, "host:port"."""
        self._host, _, port = target.rpartition(":")
        self._port = int(port)

    async def start(self) -> str:
        """Return the address that clients use instead of the broker's."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """End everything."""
        self.thaw()
        if self._server is not None:
            self._server.close()
        await self.cut()

    def freeze(self) -> None:
        """Let nothing through any more; every socket stays open, and nobody is told."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Let everything through again."""
        self._flowing.set()

    async def cut(self) -> None:
        """Close every connection on both sides."""
        await self._end(list(self._links), both=True)

    async def cut_clients(self) -> None:
        """Close the clients' side only: to the broker the links look alive."""
        await self._end(list(self._links), both=False)

    async def _end(self, links: list[Link], *, both: bool) -> None:
        for link in links:
            for pump in link.pumps:
                pump.cancel()
            await asyncio.gather(*link.pumps, return_exceptions=True)
            link.client.transport.abort()
            if both:
                self._links.discard(link)
                link.broker.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        try:
            back, forth = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        link = Link(writer, forth)
        self._links.add(link)
        link.pumps = [
            asyncio.create_task(self._pump(reader, forth), name="proxy-in"),
            asyncio.create_task(self._pump(back, writer), name="proxy-out"),
        ]

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(65_536):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)  # sleeps: the delay is what this proxy adds
                await self._flowing.wait()
                target.write(chunk)
                await target.drain()
            target.close()
