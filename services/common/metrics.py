"""Prometheus metrics of one service, and their exposition over mutual TLS."""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from services.common.identity import Principal, parse_spiffe_id
from services.common.tls import TlsIdentity

# From a local call to a slow takeover: 0.5 ms to 10 s.
LATENCY_BUCKETS_SECONDS = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
# Items in a frame, a batch, a commit.
SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_BYTES_MAX = 8_192
REQUEST_SECONDS_MAX = 10.0


class Metrics:
    """A registry whose metrics are named `muster_<service>_<noun>_<unit>[_total]`.

    One per service, not per process: tests run several services in one.
    """

    def __init__(self, service: str) -> None:
        self.service = service
        self.registry = CollectorRegistry()
        # CPU, memory and open files of the process, read at each scrape.
        ProcessCollector(registry=self.registry)

    def counter(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Counter:
        """Return a new counter; Prometheus adds `_total` to its name."""
        return Counter(f"muster_{self.service}_{name}", help_text, labels, registry=self.registry)

    def gauge(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Gauge:
        """Return a new gauge."""
        return Gauge(f"muster_{self.service}_{name}", help_text, labels, registry=self.registry)

    def histogram(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = LATENCY_BUCKETS_SECONDS,
    ) -> Histogram:
        """Return a new histogram."""
        return Histogram(
            f"muster_{self.service}_{name}", help_text, labels, registry=self.registry, buckets=buckets
        )

    def tally(self, name: str, help_text: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Tally:
        """Return a new histogram for what is counted several times for each task or message."""
        made = Tally(f"muster_{self.service}_{name}", help_text, buckets, labels)
        self.registry.register(made)
        return made

    def value(self, name: str, **labels: str) -> float:
        """Return a sample by its exposed name without the prefix; 0 when there is none."""
        return self.registry.get_sample_value(f"muster_{self.service}_{name}", labels) or 0.0


class Tally(Collector):
    """A histogram without locks: owned by the thread that counts, which must also be the one that exposes it.

    What `prometheus_client` locks and searches for one value costs as much as deciding about it.
    """

    def __init__(self, name: str, help_text: str, buckets: Sequence[float], labels: Sequence[str]) -> None:
        self._name, self._help, self._labels = name, help_text, tuple(labels)
        self._bounds = tuple(buckets)
        self._words = [*(str(float(bound)) for bound in buckets), "+Inf"]
        #: By values of the labels: values in each bucket, and their sum.
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def observe(self, value: float, *labels: str) -> None:
        """Count one value."""
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * len(self._words)
            self._sums[labels] = 0.0
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[labels] += value

    def collect(self) -> Iterator[Metric]:
        """Yield what the registry exposes."""
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        for labels, counts in self._counts.items():
            buckets = [*zip(self._words, itertools.accumulate(counts), strict=True)]
            family.add_metric(labels, buckets, self._sums[labels])
        yield family


class Exposition:
    """Answers `GET /metrics` over TLS 1.3 to operators and services; everybody else gets 403.

    A few lines of HTTP/1.1 instead of prometheus_client's own server, because that one does the TLS
    handshake in its accept loop (one silent client stops it) and can not tell an agent from an operator.
    """

    def __init__(self, metrics: Metrics, tls: TlsIdentity) -> None:
        self._metrics, self._tls = metrics, tls
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()

    async def start(self, listen: str) -> str:
        """Listen on "host:port" (port 0: a free one) and return the bound "host:port"."""
        host, _, port = listen.rpartition(":")
        self._server = await asyncio.start_server(
            self._serve,
            host.strip("[]"),
            int(port),
            ssl=self._tls.server_ssl_context(),
            ssl_handshake_timeout=REQUEST_SECONDS_MAX,
            limit=REQUEST_BYTES_MAX,
        )
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Stop listening and end what is open."""
        if self._server is None:
            return
        self._server.close()
        for handler in list(self._handlers):
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        current = asyncio.current_task()
        assert current is not None  # noqa: S101  # asyncio runs this callback in a task
        self._handlers.add(current)
        try:
            async with asyncio.timeout(REQUEST_SECONDS_MAX):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(request, _peer(writer, self._tls.trust_domain)))
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, OSError):
            # A scraper that goes away, stalls or talks nonsense is answered by closing.
            pass
        finally:
            self._handlers.discard(current)
            writer.close()

    def _answer(self, request: bytes, principal: Principal | None) -> bytes:
        line = request.split(b"\r\n", 1)[0].split(b" ")
        if len(line) != 3 or line[0] != b"GET":
            return _response("405 Method Not Allowed", b"only GET is served\n")
        if principal is None or principal.kind == "agent":
            return _response("403 Forbidden", b"metrics are for operators and services\n")
        if line[1].split(b"?", 1)[0] != b"/metrics":
            return _response("404 Not Found", b"only /metrics is served\n")
        return _response("200 OK", generate_latest(self._metrics.registry))


async def start_exposition(metrics: Metrics, listen: str, tls: TlsIdentity) -> tuple[Exposition, str]:
    """Serve `metrics` at "host:port"; return the server (stop it with `stop`) and the bound address."""
    exposition = Exposition(metrics, tls)
    return exposition, await exposition.start(listen)


def _peer(writer: asyncio.StreamWriter, trust_domain: str) -> Principal | None:
    certificate = writer.get_extra_info("peercert") or {}
    uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    return parse_spiffe_id(uris[0], trust_domain) if len(uris) == 1 else None


def _response(state: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {state}\r\nContent-Type: {CONTENT_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
