"""The part of a stream's decoding that all dialects share: bytes to events, outputs and their ends, stop texts, errors.

A dialect's decoder reads one event (`_receive_events`); for plain text tokens, which are nearly all of a stream, it
appends the chunk itself, and gives everything else to `_add`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import msgspec

from millstream._config import CallOptions
from millstream._errors import MillstreamError, ProtocolError, TruncatedStreamError, excerpt
from millstream._results import FinishReason, GenerationChunk, TokenLogprob, ToolCallDelta, Usage
from millstream._sse import ServerSentEvent, SSEDecoder
from millstream._wire._common import any_json, finish_reason
from millstream._wire._runs import TextRuns
from millstream._wire._stop import StopTrimmer
from millstream._wire.errors import error_in_body

__all__ = ["END_MARK", "BaseStreamDecoder", "Output", "Piece"]

MAX_STREAM_BYTES = 256 * 1024 * 1024
"""Of one streamed answer. The longest outputs of today (some 100 000 tokens) are about 30 MiB with their framing."""

END_MARK = b"[DONE]"
"""The data of the last event of the OpenAI-compatible dialects."""

_END_TOKEN = re.compile(r"<[^<>\s]{1,64}>\Z")
"""TGI 2.0 streamed the end token (``</s>``, ``<|eot_id|>``) as the content of the chunk that it finishes."""


class Piece(msgspec.Struct, gc=False):
    """What one event says about one output."""

    text: str = ""
    index: int = 0
    raw_finish_reason: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    generation_info: dict[str, Any] | None = None
    refused: bool = False


class Output:
    """One of the outputs of a stream."""

    __slots__ = ("calls", "ended", "finished", "info", "refused", "stopped", "trimmer")

    def __init__(self, stops: Sequence[str]) -> None:
        self.trimmer = StopTrimmer(stops) if stops else None
        self.ended = False  # the server said so
        self.finished = False  # it said so, or a stop text did
        self.stopped = False
        self.calls = False
        self.refused = False
        self.info: dict[str, Any] | None = None  # goes with the first chunk that says something: a role is no token

    def receive(self, text: str, raw_finish_reason: str | None) -> tuple[str, bool]:
        """What of a chunk's text can be given out (all, with its finish reason), and whether a stop text ended it."""
        if raw_finish_reason == "eos_token" and text:
            text = _END_TOKEN.sub("", text)
        if self.trimmer is None:
            return text, False
        text = self.trimmer.receive(text)
        if raw_finish_reason is not None:
            text += self.trimmer.flush()
        self.stopped = self.trimmer.stopped
        return text, self.stopped


class BaseStreamDecoder:
    """See `millstream._wire._dialect.StreamDecoder`."""

    def __init__(self, options: CallOptions) -> None:
        self.done = False
        self.error: MillstreamError | None = None
        self.joins = False
        self._runs: TextRuns | None = None  # where tokens may differ in nothing but their text
        self._plain_next = False  # whether a plain token needs no looking after
        self._sse = SSEDecoder()
        self._received = 0
        self._ended = False  # by the end mark: what comes after it is nothing
        self._stops = options.stops
        self._plain = not self._stops
        self._expected = _expected_outputs(options)
        self._outputs: dict[int, Output] = {}
        self._ready: dict[int, Output] = {}  # those with a chunk: their further tokens need no looking after
        self._usage: Usage | None = None  # told before there was a chunk to put it on
        self._chunks: list[GenerationChunk] = []

    def receive_data(self, data: bytes) -> list[GenerationChunk]:
        """The chunks that are complete with this piece of the body."""
        self._received += len(data)
        if self._plain_next and self._received <= MAX_STREAM_BYTES:
            text = self._runs.single(data) if self._runs is not None else None
            if text:  # one token, as nearly every piece of nearly every stream
                return [GenerationChunk(text)]
        if self._ended or self.error is not None:
            return []
        try:
            if self._received > MAX_STREAM_BYTES:
                raise ProtocolError(f"the stream is longer than {MAX_STREAM_BYTES} bytes", status_code=200)
            if self._runs is not None and self._runs.tries:
                self._receive_runs(self._runs, data)
            else:
                self._receive_events(self._sse.receive_data(data))
        except MillstreamError as error:
            self._fail(error)
        return self._taken()

    def receive_eof(self) -> list[GenerationChunk]:
        """The last chunks; see `error` for whether the stream had come to its end."""
        if self._ended or self.error is not None:
            return []
        try:
            last = self._sse.flush()
            if last is not None and (whole := _whole_part(last.data)):
                self._receive_events([ServerSentEvent(last.event, whole, last.id)])
        except MillstreamError as error:
            self._fail(error)
        if self.error is None:
            self._finish()
        return self._taken()

    # -- for the dialects

    def _receive_events(self, events: list[ServerSentEvent]) -> None:
        raise NotImplementedError

    def _receive_document(self, data: bytes) -> None:
        """A JSON object that is no error."""
        raise NotImplementedError

    def _receive_unusual(self, event: ServerSentEvent) -> None:
        """An event that is no ordinary chunk: an end mark, nothing, an error, or something to be looked at again.

        Raises:
            StatusError: it is an error.
            ProtocolError: it is no JSON.
        """
        data = event.data.strip()
        if data == END_MARK:
            self._end()
            return
        if not data:
            return
        try:
            value = any_json(data)
        except ProtocolError as refusal:
            self._receive_no_document(event, data, refusal)
            return
        error = error_in_body(value)
        if error is None and event.event == "error":
            error = error_in_body({"error": value}) or error_in_body({"error": excerpt(data)})
        if error is not None:
            raise error
        if isinstance(value, dict):
            self._receive_document(data)

    def _receive_no_document(self, event: ServerSentEvent, data: bytes, refusal: ProtocolError) -> None:
        if event.event == "error":  # in plain words
            raise error_in_body({"error": excerpt(data)}) or refusal from None
        if event.event != "message":  # a ping, or whatever else a proxy puts between
            return
        lines = data.split(b"\n")
        if len(lines) == 1:
            raise refusal
        for line in lines:  # TGI 1.4 left out the empty line before the last event: two documents in one event
            if not self._ended:
                self._receive_unusual(ServerSentEvent(event.event, line, event.id))

    def _add(self, piece: Piece) -> None:
        """Append the chunk of `piece`, unless nothing is in it."""
        output = self._outputs.get(piece.index)
        if output is None:
            output = self._outputs[piece.index] = Output(self._stops)
        raw = piece.raw_finish_reason or None
        output.ended = output.ended or raw is not None
        if output.stopped:
            if raw or piece.generation_info:  # facts about the output, though its text has ended
                chunk = GenerationChunk("", piece.index, None, raw, generation_info=piece.generation_info)
                self._chunks.append(chunk)
            return
        text, stopped = output.receive(piece.text, raw)
        output.calls = output.calls or bool(piece.tool_calls)
        output.refused = output.refused or piece.refused
        finish = "stop" if stopped else finish_reason(raw, calls=output.calls, refused=output.refused)
        if finish is not None:
            if output.finished and not stopped:
                finish = raw = None  # said again, with the usage
            output.finished = True
        if piece.generation_info:
            output.info = piece.generation_info
        if text or finish or piece.reasoning or piece.tool_calls or piece.logprobs:
            info, output.info = output.info, None
            self._ready[piece.index] = output
            chunk = GenerationChunk(
                text,
                piece.index,
                finish,
                raw,
                piece.reasoning or None,
                piece.tool_calls,
                piece.logprobs or None,
                None,
                info,
            )
            self._chunks.append(chunk)
        if stopped:
            self._check_stopped()

    def _trimmed(self, output: Output, index: int, text: str) -> str:
        """What of a plain token can be given out; if a stop text ends with it, that is appended here."""
        if output.stopped or output.trimmer is None:
            return "" if output.stopped else text
        text = output.trimmer.receive(text)
        if not output.trimmer.stopped:
            return text
        self._chunks.append(GenerationChunk(text, index, "stop"))
        output.stopped = output.finished = True
        self._check_stopped()
        return ""

    def _add_usage(self, usage: Usage, first_of_event: int) -> None:
        """Put `usage` on the last chunk of its event; without one it has its own, once the outputs are complete."""
        chunks = self._chunks
        if len(chunks) > first_of_event:
            chunks[-1] = msgspec.structs.replace(chunks[-1], usage=usage)
            self._usage = None
        elif self.done or self._is_complete():
            chunks.append(GenerationChunk(usage=usage))
            self._usage = None
        else:
            self._usage = usage

    def _end(self) -> None:
        """The end mark was seen."""
        self._release_held()
        self._ended = self.done = True

    # -- for this class

    def _receive_runs(self, runs: TextRuns, data: bytes) -> None:
        """As for any piece, but plain tokens are read by what they have in common."""
        self._plain_next = False
        while runs.tries and not self._ended:
            output = self._ready.get(0)
            if output is not None and self._sse.between_events and len(data) <= self._sse.max_event_bytes:
                texts, size = runs.take(data)
                if texts:
                    self._add_plain(output, texts)
                    data = data[size:]
            end = data.find(b"\n\n") + 2
            if end < 2:
                break
            event = data[:end]
            self._receive_events(self._sse.receive_data(event))
            runs.learn(event)
            data = data[end:]
        if data and not self._ended:
            self._receive_events(self._sse.receive_data(data))
        self._plain_next = (
            self._plain and not self._ended and runs.tries > 0 and 0 in self._ready and self._sse.between_events
        )

    def _add_plain(self, output: Output, texts: list[str]) -> None:
        """Append the chunks of plain tokens, or the one that they make together."""
        if self.joins:
            texts = ["".join(texts)]
        if self._plain:
            self._chunks += map(GenerationChunk, filter(None, texts))
            return
        for text in texts:
            given = self._trimmed(output, 0, text)
            if given:
                self._chunks.append(GenerationChunk(given))

    def _taken(self) -> list[GenerationChunk]:
        chunks, self._chunks = self._chunks, []
        return chunks

    def _finish(self) -> None:
        if self._ended:
            return
        self._release_held()
        if self._is_complete():
            self._ended = self.done = True
        else:
            self.error = TruncatedStreamError(
                "the stream ended early: without a finish reason for every output and without an end mark",
                status_code=200,
            )

    def _fail(self, error: MillstreamError) -> None:
        self._release_text()  # text that had arrived belongs to what the caller may keep
        self.error = error

    def _release_text(self) -> None:
        """What might have begun a stop text is text, since nothing more comes."""
        if self._plain:
            return
        for index, output in self._outputs.items():
            text, stopped = output.receive("", "")
            finish: FinishReason | None = "stop" if stopped and not output.finished else None
            output.finished = output.finished or stopped
            if text or finish is not None:
                self._chunks.append(GenerationChunk(text, index, finish))

    def _release_held(self) -> None:
        """All that waited for something to go with."""
        self._release_text()
        for index, output in self._outputs.items():
            if output.info is not None:
                self._chunks.append(GenerationChunk(index=index, generation_info=output.info))
                output.info = None
        if self._usage is not None:
            self._chunks.append(GenerationChunk(usage=self._usage))
            self._usage = None

    def _check_stopped(self) -> None:
        """A server that goes on past the stop texts is not waited for; one that ends by itself sends usage then."""
        outputs = self._outputs.values()
        if len(outputs) >= self._expected and all(output.stopped for output in outputs):
            self.done = not all(output.ended for output in outputs)

    def _is_complete(self) -> bool:
        outputs = self._outputs
        return len(outputs) >= self._expected and all(output.finished for output in outputs.values())


def _expected_outputs(options: CallOptions) -> int:
    n = (options.extra_body or {}).get("n", options.n)
    return n if isinstance(n, int) and n > 1 else 1


def _whole_part(data: bytes) -> bytes:
    """As much of an event that lost its last line ends as is complete: all, some lines, or nothing."""
    if _is_whole(data):
        return data
    lines = data.split(b"\n")
    whole = list(takewhile(_is_whole, lines)) if len(lines) > 1 else []
    return b"\n".join(whole)


def _is_whole(data: bytes) -> bool:
    if data.strip() == END_MARK:
        return True
    try:
        any_json(data)
    except ProtocolError:
        return False
    return True
