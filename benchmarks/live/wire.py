"""What happens on the wire, noted between the model and its transport: the same for every way of asking."""

from __future__ import annotations

import math
from time import monotonic

from millstream._transport._seam import BodyStream, Request, Response, Transport
from millstream._transport.pool import PoolTransport

_TEXT, _EMPTY = b'"content":"', b'"content":""'


class Exchange:
    """One request: when it was sent, when its tokens came, how it ended."""

    __slots__ = ("arrivals", "end", "ended_at", "sent_at", "status")

    def __init__(self, sent_at: float) -> None:
        self.sent_at = sent_at
        self.status: int | None = None
        """None: no answer yet."""
        self.arrivals: list[tuple[float, int]] = []
        """Times, and how many tokens came then."""
        self.end: str | None = None
        """``complete``, ``broken`` or ``left`` (by the client); None: under way."""
        self.ended_at = math.inf

    def finish(self, end: str) -> None:
        if self.end is None:
            self.end, self.ended_at = end, monotonic()


class NotedTransport:
    """Our own pool, with an `Exchange` for each request."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self._pool: Transport = PoolTransport()

    async def send(self, request: Request) -> Response:
        exchange = Exchange(monotonic())
        self.exchanges.append(exchange)
        try:
            response = await self._pool.send(request)
        except BaseException as error:
            exchange.finish("broken" if isinstance(error, Exception) else "left")
            raise
        exchange.status = response.status
        if response.stream is not None:
            response.stream = _NotedStream(response.stream, exchange)
        return response

    async def aclose(self) -> None:
        await self._pool.aclose()


class _NotedStream:
    def __init__(self, stream: BodyStream, exchange: Exchange) -> None:
        self._stream = stream
        self._exchange = exchange

    async def receive(self, deadline: float = math.inf) -> bytes:
        try:
            data = await self._stream.receive(deadline)
        except Exception:
            self._exchange.finish("broken")
            raise
        tokens = data.count(_TEXT) - data.count(_EMPTY)
        if tokens:
            self._exchange.arrivals.append((monotonic(), tokens))
        if not data:
            self._exchange.finish("complete")
        return data

    async def aclose(self) -> None:
        self._exchange.finish("complete")
        await self._stream.aclose()

    def abort(self) -> None:
        self._exchange.finish("left")
        self._stream.abort()
