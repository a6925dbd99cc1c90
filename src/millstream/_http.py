"""A dialect spoken at a route over a transport: the one place where wire and transport meet."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from millstream import _clock, _headers
from millstream._assembly import ResultBuilder, chunks_of
from millstream._config import CallOptions, Deadlines
from millstream._errors import (
    AuthenticationError,
    DeadlineError,
    DeadlineName,
    MillstreamError,
    ModelLoadingError,
    ModelNotFoundError,
    ProtocolError,
    StatusError,
    UsageError,
)
from millstream._headers import provider, request_id
from millstream._prompts import BasePromptValue
from millstream._results import GenerationChunk, LLMResult, token_usage
from millstream._secret import Secret
from millstream._sse import is_event_stream, starts_like_events
from millstream._streams import ChunkSource, ResultSource, read_rest
from millstream._transport._seam import BodyStream, Request, Response, Route, Timeouts, Transport, collector_of
from millstream._wire import END_MARK, Dialect, StreamDecoder
from millstream._wire.errors import decode_error

if TYPE_CHECKING:
    from millstream._headers import StatedLimits

__all__ = ["Exchange", "ExchangeListener", "HttpChunkSource"]

_USUAL_DEADLINES = Deadlines()
_MAX_BODY_BYTES = 64 * 1024 * 1024
_SCALE_UP_SECONDS = 600.0
"""How long a request waits for a replica at the most: large models take minutes to load."""
_MADE_WHOLE = ("n", "logprobs", "response_format", "tools", "tool_choice")
"""Options with which some servers can't stream though they can without."""


class ExchangeListener(Protocol):
    """Whose requests they are."""

    def stated(self, limits: StatedLimits, /) -> None:
        """The headers of an answer tell how much the server will still take."""

    def explain(self, error: StatusError, /) -> None:
        """Add what may be the reason of a refusal: no such model, no access. It may be told the same one again."""


class Exchange:
    """Requests of one dialect at one route.

    Args:
        dialect: what is spoken.
        plain: where, for a whole answer.
        streamed: where, for a streamed one.
        transport: what carries the requests.
        model: the ``model`` of the body; None: none.
        key: what must be in no error.
        listener: whose requests they are; None: nobody listens.
        scales_to_zero: whether the server may have no replica up (dedicated endpoints). After a 503 that may come of
            it, requests ask to be held until one is up, and have the time for it; until an answer comes.
    """

    __slots__ = (
        "_host",
        "_key",
        "_listener",
        "_model",
        "_patient",
        "_plain",
        "_scales_to_zero",
        "_streamed",
        "_timeouts",
        "_transport",
        "_unstreamed",
        "_waking",
        "_wanted",
        "_watch",
        "dialect",
    )

    def __init__(
        self,
        dialect: Dialect,
        plain: Route,
        streamed: Route,
        transport: Transport,
        *,
        model: str | None,
        key: Secret | None = None,
        listener: ExchangeListener | None = None,
        scales_to_zero: bool = False,
    ) -> None:
        self.dialect = dialect
        self._plain = plain
        self._streamed = streamed
        self._transport = transport
        self._model = model
        self._key = key
        self._listener = listener
        self._timeouts = _USUAL_DEADLINES, Timeouts(_USUAL_DEADLINES.connect, _USUAL_DEADLINES.write)
        self._unstreamed: set[tuple[str, ...]] = set()  # what the server refused to stream, as `_made_of` has it
        self._scales_to_zero = scales_to_zero
        self._waking = False  # a replica is being started, as far as is known
        self._patient: dict[tuple[Route, int], Route] = {}
        self._host = plain.origin.host
        self._wanted: tuple[int, bytes] | None = None
        self._watch = _clock.Watch()

    @property
    def url(self) -> str:
        """Where it asks, for messages."""
        return f"{self._plain.origin}{self._plain.target}"

    async def ask(self, prompt: BasePromptValue, options: CallOptions) -> LLMResult:
        """Send a prompt and give the whole answer.

        Raises:
            StatusError: the server refused, by status or by an error in a 200 answer.
            ProtocolError: the answer is none of this dialect's.
            DeadlineError, TransportError: the way there failed.
        """
        deadlines = options.deadlines or _USUAL_DEADLINES
        body = self.dialect.encode(prompt, options, model=self._model, stream=False)
        if self._wanted is not None:
            body = self.dialect.amend(body, *self._wanted) or body
        route = self._patient_route(self._plain, deadlines) if self._waking else self._plain
        request = Request(route, body, timeouts=self._timeouts_of(deadlines))
        response: Response | None = None
        try:
            answer = await self._transport.send(request)  # as by `_send`, whose frame each answer would wake
            response = answer if self._takes(answer) else await self._send_amended(request, answer)
            return _with_prompt_tokens(self._decode(response.body, prompt, options), response)
        except MillstreamError as error:
            self.add_facts(error, response)
            raise

    async def open(self, prompt: BasePromptValue, options: CallOptions) -> HttpChunkSource:
        """Send a prompt and give its chunks as they come. Raises what `ask` raises."""
        deadlines = options.deadlines or _USUAL_DEADLINES
        body = self.dialect.encode(prompt, options, model=self._model, stream=True)
        route = self._streamed
        if self._waking:
            route = self._patient_route(route, deadlines)
            if deadlines.first_token is not None:
                first = max(deadlines.first_token, _patience(deadlines))
                deadlines = msgspec.structs.replace(deadlines, first_token=first)
        loop = _clock.event_loop()
        sent_at = _clock.time_of(loop)
        try:
            response = await self._send_streamed(loop, sent_at, route, body, deadlines)
        except DeadlineError as error:
            named = _named(error, "first_token", deadlines.first_token)
            self.add_facts(named, None)
            raise named from error.__cause__
        except MillstreamError as error:
            self.add_facts(error, None)
            raise
        stream = response.stream
        assert stream is not None
        try:
            source = HttpChunkSource(self, response, stream, deadlines, sent_at, _clock.clock_of(loop))
            if is_event_stream(response.header(b"content-type")):
                source.decoder = self.dialect.stream_decoder(prompt, options)
            else:
                source.whole(self._decode_whole(response, await _whole(stream), prompt, options))
        except BaseException:
            stream.abort()
            raise
        return source

    async def open_or_ask(self, prompt: BasePromptValue, options: CallOptions) -> ChunkSource:
        """The same for whoever does not need the chunks, with the first of them there already.

        What can't be streamed is asked for plainly, and comes as a `ResultSource`: from then on at once, for requests
        of the kind that the server refused to stream.
        """
        if not self.dialect.can_stream(options) or (self._unstreamed and _made_of(options) in self._unstreamed):
            return ResultSource(await self.ask(prompt, options))
        try:
            source = await self.open(prompt, options)
            await source.read_first()
        except StatusError as error:
            if not _refuses_streams(error):
                raise
        else:
            return source
        result = await self.ask(prompt, options)
        self._unstreamed.add(_made_of(options))
        return ResultSource(result)

    async def _send_streamed(
        self, loop: Any, sent_at: float, route: Route, body: bytes, deadlines: Deadlines
    ) -> Response:
        # A transport has one timeout for the head and for each piece after it: the longer one, since `HttpChunkSource`
        # keeps both. Only the head needs a bound of its own then.
        first, idle = deadlines.first_token, deadlines.idle
        read = None if first is None or idle is None else max(first, idle)
        timeouts = Timeouts(deadlines.connect, deadlines.write, read, None)
        if self._wanted is not None:
            body = self.dialect.amend(body, *self._wanted) or body
        request = Request(route, body, stream=True, timeouts=timeouts)
        if first is None or first == read:
            return await self._send(request)
        with suppress(_clock.Expired):
            return await self._watch.run_until(loop, sent_at + first, self._send(request))
        raise DeadlineError(deadline="read")

    async def _send(self, request: Request) -> Response:
        """Send a request. Raises: `StatusError`, the answer is a refusal."""
        answer = await self._transport.send(request)
        return answer if self._takes(answer) else await self._send_amended(request, answer)

    async def _send_amended(self, request: Request, refusal: Response) -> Response:
        """Where the server wants a request in other words, say it so, and so from then on.

        Raises:
            StatusError: the answer is a refusal again, or there are no other words.
        """
        status, answer = refusal.status, await _body_of(refusal)
        amended = self.dialect.amend(request.body, status, answer)
        if amended is not None and amended != request.body:
            self._wanted = (status, answer)
            again = Request(request.route, amended, stream=request.stream, timeouts=request.timeouts)
            response = await self._transport.send(again)
            if self._takes(response):
                return response
            refusal, answer = response, await _body_of(response)
        if self._key is not None:
            answer = self._key.hide_in_bytes(answer)  # a server may send it back, and errors are shown
        error = decode_error(refusal.status, refusal.header, answer, host=self._host, now=_clock.wall_time())
        raise self._starting(error) if self._scales_to_zero and refusal.status == 503 else error

    def _starting(self, error: StatusError) -> StatusError:
        """What a 503 is where it may come of there being no replica: then the next requests wait for one to be up."""
        # A proxy has few words for it; a server that is up and full has a kind of error, or says when to come back.
        if not isinstance(error, ModelLoadingError) and (error.retry_after is not None or error.kind is not None):
            return error
        self._waking = True
        return ModelLoadingError(
            str(error.args[0]),
            status_code=error.status_code,
            kind="scaling",
            request_id=error.request_id,
            provider=error.provider,
            retry_after=error.retry_after,
            body=error.body,
        )

    def _patient_route(self, route: Route, deadlines: Deadlines) -> Route:
        """The same with the header by which a proxy of Hugging Face holds a request until a replica is up."""
        key = route, int(_patience(deadlines))
        patient = self._patient.get(key)
        if patient is None:
            line = (b"x-scale-up-timeout", b"%d" % key[1])
            own = () if any(name.lower() == line[0] for name, _ in route.headers) else (line,)
            # Never a local variable: tools that print tracebacks show those, and a key is among the headers.
            patient = self._patient[key] = Route(
                route.method,
                route.origin,
                route.target,
                ((name.decode("ascii"), value.decode("ascii")) for name, value in (*route.headers, *own)),
            )
        return patient

    def _timeouts_of(self, deadlines: Deadlines) -> Timeouts:
        """For a whole answer. Nearly always those of the call before."""
        known, timeouts = self._timeouts
        if deadlines is not known:
            timeouts = Timeouts(deadlines.connect, deadlines.write)
            self._timeouts = deadlines, timeouts
        return timeouts

    def _takes(self, response: Response) -> bool:
        """Whether it is no refusal. What it says of limits is told in any case."""
        if self._listener is not None and response.mentions(b"ratelimit"):
            self._tell_limits(self._listener, response)
        if not 200 <= response.status < 300:
            return False
        self._waking = False
        return True

    @staticmethod
    def _tell_limits(listener: ExchangeListener, response: Response) -> None:
        if response.header(b"retry-after") is not None:
            return  # comes first: what the answer says of its limits would only make the wait longer
        limits = _headers.stated_limits(response.headers, now=_clock.wall_time())
        if limits is not None:
            listener.stated(limits)

    def _decode_whole(
        self, response: Response, body: bytes, prompt: BasePromptValue, options: CallOptions
    ) -> LLMResult:
        """A server that does not stream answers at once: take it as it is."""
        try:
            return self._decode(body, prompt, options)
        except MillstreamError as error:
            self.add_facts(error, response)
            raise

    def _decode(self, body: bytes, prompt: BasePromptValue, options: CallOptions) -> LLMResult:
        """A whole answer; events are read too, from a server that always streams or does not say that it does."""
        try:
            return self.dialect.decode(body, prompt, options)
        except ProtocolError:
            if not starts_like_events(body):
                raise
        decoder = self.dialect.stream_decoder(prompt, options)
        builder = ResultBuilder()
        for chunk in (*decoder.receive_data(body), *decoder.receive_eof()):
            builder.add(chunk)
        if decoder.error is not None:
            raise decoder.error
        return builder.build()

    def add_facts(self, error: MillstreamError, response: Response | None) -> None:
        """Tell in `error` whom it is about; and see that no key is in it, which a server may have sent back."""
        if self._key is not None:
            _hide_in(error, self._key)
        if isinstance(error, UsageError):
            return
        if self._listener is not None and isinstance(error, ModelNotFoundError | AuthenticationError):
            self._listener.explain(error)
        if response is not None:
            error.request_id = error.request_id or request_id(response.header)
            error.provider = error.provider or provider(response.header)
            if isinstance(error, ProtocolError) and error.status_code is None:
                error.status_code = response.status
        error.provider = error.provider or self._host


class HttpChunkSource:
    """The chunks of one answer that is still arriving."""

    __slots__ = (
        "_cutting",
        "_deadline",
        "_deadlines",
        "_ended",
        "_exchange",
        "_held",
        "_idle",
        "_ready",
        "_receive",
        "_response",
        "_stream",
        "_time",
        "_total_at",
        "_total_seconds",
        "_waits_for",
        "decoder",
    )

    def __init__(
        self,
        exchange: Exchange,
        response: Response,
        stream: BodyStream,
        deadlines: Deadlines,
        sent_at: float,
        time: Callable[[], float],
    ) -> None:
        self._exchange = exchange
        self._response = response
        self._stream = stream
        self._receive: Callable[[float], Awaitable[bytes]] = stream.receive
        self._cutting = True  # until what came with the first token was given out
        self._deadlines = deadlines
        self._time = time
        self._waits_for: DeadlineName = "first_token"
        self._deadline = sent_at + deadlines.first_token if deadlines.first_token is not None else math.inf
        self._ready: Sequence[GenerationChunk] = ()
        self._held = b""  # what came with the first token, and may be wanted joined
        self._ended = False
        self._idle: float | None = None  # once there was a token
        self._total_at = self._total_seconds = math.inf
        self.decoder: StreamDecoder | None = None

    def whole(self, result: LLMResult) -> None:
        """Use a result that came in one piece."""
        self._ready = chunks_of(result)

    async def read_first(self) -> None:
        """Have the first chunks ready. Raises what `receive` does; the connection is closed then."""
        try:
            self._ready = await self.receive()
        except BaseException:
            self.abort()
            raise

    async def rest(self, first: Sequence[GenerationChunk]) -> LLMResult:
        """See `ChunkSource.rest`."""
        if self.decoder is not None:
            self.decoder.joins = True
            self._receive = collector_of(self._stream, END_MARK)
        return _with_prompt_tokens(await read_rest(self, first), self._response)

    async def receive(self) -> Sequence[GenerationChunk]:
        """The next chunks, none at the end.

        Raises:
            StatusError: the server told an error inside the stream.
            TruncatedStreamError: the stream ended without its end.
            DeadlineError: no token in time (``first_token`` or ``idle``); comments are no tokens.
            ReadError, ProtocolError: as for every answer.
        """
        decoder = self.decoder
        if self._ready or decoder is None:
            ready, self._ready = self._ready, ()
            return ready
        deadline = self._deadline
        if self._idle is not None:
            # From now, not from the last token: what the reader did meanwhile is no silence of the server.
            deadline = self._time() + self._idle
        total_at = self._total_at
        while not self._ended and decoder.error is None and not decoder.done:
            try:
                until = deadline if deadline < total_at else total_at  # noqa: FURB136 - no call for each token
                data = await (self._receive_cut(until) if self._cutting else self._receive(until))
            except DeadlineError as error:
                is_total = total_at <= deadline
                name, seconds = ("total", self._total_seconds) if is_total else (self._waits_for, self._seconds())
                named = _named(error, name, seconds)
                self._exchange.add_facts(named, self._response)
                raise named from error.__cause__
            except MillstreamError as error:
                self._exchange.add_facts(error, self._response)
                raise
            if data:
                chunks = decoder.receive_data(data)
            else:
                self._ended = True
                chunks = decoder.receive_eof()
            if chunks:
                if self._waits_for != "idle":
                    self._waits_for, self._deadline, self._idle = "idle", math.inf, self._deadlines.idle
                return chunks
        if decoder.error is not None:
            self._exchange.add_facts(decoder.error, self._response)
            raise decoder.error
        return ()

    def end_at(self, deadline: float, seconds: float) -> None:
        """The call's total deadline, on the event loop's clock."""
        self._total_at, self._total_seconds = deadline, seconds

    async def _receive_cut(self, deadline: float) -> bytes:
        """The first events, and after them those that came in the same piece."""
        data, self._held = (self._held, b"") if self._held else _cut(await self._receive(deadline))
        self._cutting = bool(self._held)
        return data

    def _seconds(self) -> float | None:
        return self._deadlines.first_token if self._waits_for == "first_token" else self._deadlines.idle

    async def aclose(self) -> None:
        """Give the connection back: the end was seen, so there is next to nothing left to read."""
        await self._stream.aclose()

    async def leave(self) -> None:
        """Close the connection at once: the server stops working."""
        self._stream.abort()

    def abort(self) -> None:
        """The same."""
        self._stream.abort()


_STREAMING = re.compile(r"\b(?:streaming|streamed|streams?|stream_options)\b", re.IGNORECASE)


def _refuses_streams(error: StatusError) -> bool:
    return error.status_code in (400, 422, 501) and bool(_STREAMING.search(f"{error} {error.body}"))


def _made_of(options: CallOptions) -> tuple[str, ...]:
    """What of a request may be the reason that it can't be streamed."""
    return (*(name for name in _MADE_WHOLE if getattr(options, name)), *sorted(options.extra_body or ()))


def _cut(data: bytes) -> tuple[bytes, bytes]:
    """The first events, which tell the role and the first token; and those that follow."""
    end = data.find(b"\n\n", data.find(b"\n\n") + 2) + 2
    return (data[:end], data[end:]) if end > 1 else (data, b"")


def _patience(deadlines: Deadlines) -> float:
    return max(1.0, min(_SCALE_UP_SECONDS, deadlines.total or _SCALE_UP_SECONDS))


def _hide_in(error: MillstreamError, key: Secret) -> None:
    error.args = tuple(key.hide_in(each) if isinstance(each, str) else each for each in error.args)
    for name in ("body", "kind", "request_id", "provider"):
        text = getattr(error, name, None)
        if isinstance(text, str):
            setattr(error, name, key.hide_in(text))


def _with_prompt_tokens(result: LLMResult, response: Response) -> LLMResult:
    """TGI tells the length of the prompt in a header where its body does not."""
    usage = result.usage
    if usage is None or usage.input_tokens is not None:
        return result
    told = response.header(b"x-prompt-tokens") or ""
    if not (told.isascii() and told.isdigit() and len(told) < _MANY_DIGITS):
        return result
    usage = msgspec.structs.replace(usage, input_tokens=int(told))
    return msgspec.structs.replace(result, usage=usage, llm_output=token_usage(usage))


_MANY_DIGITS = 16


def _named(error: DeadlineError, name: DeadlineName, seconds: float | None) -> DeadlineError:
    """The transport knows of reading; what it was waited for is known here."""
    return DeadlineError(deadline=name, seconds=seconds) if error.deadline == "read" else error


async def _body_of(response: Response) -> bytes:
    if response.stream is None:
        return response.body
    try:
        return await _whole(response.stream)
    except BaseException:
        response.stream.abort()
        raise


async def _whole(stream: BodyStream) -> bytes:
    parts: list[bytes] = []
    size = 0
    while data := await stream.receive():
        parts.append(data)
        size += len(data)
        if size > _MAX_BODY_BYTES:
            raise ProtocolError(f"the answer is larger than {_MAX_BODY_BYTES} bytes")
    await stream.aclose()
    return b"".join(parts)
