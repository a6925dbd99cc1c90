"""The text-generation task: TGI's ``/``, ``/generate`` and ``/generate_stream``, and what answers in its shape.

Sampling: TGI samples for a request without parameters but not for one with any, unless it says ``do_sample``. It is
always said here, and true unless the temperature is 0, as on the chat route of the same server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import msgspec

from millstream._config import CallOptions
from millstream._errors import OptionValueError, ProtocolError
from millstream._prompts import BasePromptValue
from millstream._results import Generation, GenerationChunk, LLMResult, TokenLogprob, TopLogprob, Usage
from millstream._sse import ServerSentEvent
from millstream._wire._common import (
    cut_at_stop,
    decode_body,
    encode_body,
    finish_reason,
    refuse_body,
    row_of,
    told_logprob,
    wants_logprobs,
)
from millstream._wire._dialect import DialectName
from millstream._wire._schema import grammar
from millstream._wire._stream import BaseStreamDecoder, Output, Piece

__all__ = ["TextGeneration", "TextGenerationStreamDecoder"]

_UNUSED = re.compile(r"`model_kwargs` are not used by the model: \[([^\]]*)\]")
_QUOTED = re.compile(r"'([^']*)'")


class _Token(msgspec.Struct, gc=False):
    text: str | None = ""
    id: int | None = None
    logprob: float | None = None
    special: bool | None = False


class _Details(msgspec.Struct):
    finish_reason: str | None = None
    generated_tokens: int | None = None
    seed: int | None = None
    input_length: int | None = None
    prefill: list[msgspec.Raw] | None = None


class _TokenDetails(_Details):
    """With the tokens, which are by far the largest part of an answer: read only where they are needed."""

    tokens: list[_Token] | None = None
    top_tokens: list[list[_Token]] | None = None


class _Answer(msgspec.Struct):
    generated_text: str | None = None
    details: _Details | None = None
    error: Any = None


class _TokenAnswer(msgspec.Struct):
    generated_text: str | None = None
    details: _TokenDetails | None = None
    error: Any = None


class _Event(msgspec.Struct, gc=False):
    token: _Token | None = None
    generated_text: str | None = None
    details: _Details | None = None
    top_tokens: list[_Token] | None = None
    error: Any = None


_answer_decoder = msgspec.json.Decoder(list[_Answer] | _Answer | None)
_token_answer_decoder = msgspec.json.Decoder(list[_TokenAnswer] | _TokenAnswer | None)
_event_decoder = msgspec.json.Decoder(_Event | None)


class TextGeneration:
    """The dialect ``"text-generation"``."""

    name: ClassVar[DialectName] = "text-generation"

    def encode(self, prompt: BasePromptValue, options: CallOptions, *, model: str | None, stream: bool) -> bytes:
        """The body ``{"inputs", "parameters", "stream"?}``; ``extra_body["parameters"]`` is merged key by key.

        Raises:
            OptionValueError: tools, several outputs, or a presence penalty, which this dialect does not have.
            OptionTypeError: a value that can't be written as JSON.
        """
        _refuse_options(options)
        parameters = _parameters(options)
        body: dict[str, Any] = {} if model is None else {"model": model}
        body["inputs"] = prompt.to_string()
        body["parameters"] = parameters
        if stream:
            body["stream"] = True
        extra = options.extra_body
        if extra and isinstance(more := extra.get("parameters"), Mapping):
            extra = {**extra, "parameters": {**parameters, **more}}
        return encode_body(body, extra)

    def can_stream(self, options: CallOptions) -> bool:
        """TGI refuses ``best_of`` and ``decoder_input_details`` with a stream; several sequences come at once."""
        parameters = (options.extra_body or {}).get("parameters")
        if not isinstance(parameters, Mapping):
            return True
        given = cast("Mapping[str, Any]", parameters)
        return not (
            given.get("decoder_input_details")
            or any(given.get(name) not in (None, 1) for name in ("best_of", "num_return_sequences"))
        )

    def decode(self, body: bytes, prompt: BasePromptValue, options: CallOptions) -> LLMResult:
        """The result in an object, or a list of them (several outputs for the prompt).

        Raises:
            StatusError: the body is an error.
            ProtocolError: the body can't be understood.
        """
        try:
            decoded = decode_body(_token_answer_decoder if wants_logprobs(options) else _answer_decoder, body)
        except ProtocolError as error:
            refuse_body(body, error)
        answers = decoded if isinstance(decoded, list) else [] if decoded is None else [decoded]
        if not answers:
            refuse_body(body, "there is no generated_text in it")
        text = prompt.to_string()
        usage: Usage | None = None
        generations: list[Generation] = []
        for number, answer in enumerate(answers):
            if answer.error or answer.generated_text is None:
                refuse_body(body, "there is no generated_text in it")
            if text and answer.generated_text.startswith(text) and not _wants_prompt(options):
                answer.generated_text = _without_prompt(answer.generated_text, text, body, number)
            generations.append(_generation(answer.generated_text, answer.details, options))
            told = _usage(answer.details)
            if told is not None:
                usage = told if usage is None else usage + Usage(None, told.output_tokens)
        return row_of(generations, usage)

    def amend(self, body: bytes, status: int, answer: bytes) -> bytes | None:
        """The request without the parameters that are refused by name.

        Servers that run transformers' ``generate`` do not know all of TGI's own.
        """
        unused = _UNUSED.search(answer.decode("utf-8", "replace")) if status == 400 else None
        if unused is None:
            return None
        request = msgspec.json.decode(body)
        for name in _QUOTED.findall(unused[1]):
            request["parameters"].pop(name, None)
        return encode_body(request, None)

    def stream_decoder(self, prompt: BasePromptValue, options: CallOptions) -> TextGenerationStreamDecoder:
        """A new decoder for one streamed answer."""
        return TextGenerationStreamDecoder(prompt, options)


def _refuse_options(options: CallOptions) -> None:
    if options.tools or options.tool_choice is not None:
        raise OptionValueError('a text-generation endpoint has no tools; use api="chat"')
    if options.n is not None and options.n > 1:
        raise OptionValueError(
            f'a text-generation endpoint gives one output for a prompt, not n={options.n}; use api="completions" or '
            '"chat", or repeat the prompt'
        )
    if options.presence_penalty:
        raise OptionValueError(
            "a text-generation endpoint has no presence_penalty; use frequency_penalty or repetition_penalty"
        )


def _parameters(options: CallOptions) -> dict[str, Any]:
    """Only what the server takes: it refuses null, and values that switch something off (``top_p: 1``)."""
    parameters: dict[str, Any] = {"return_full_text": False, "details": True, **_sampling(options)}
    if options.max_tokens is not None:
        parameters["max_new_tokens"] = options.max_tokens
    if options.repetition_penalty is not None and options.repetition_penalty != 1:
        parameters["repetition_penalty"] = options.repetition_penalty
    if options.frequency_penalty:
        parameters["frequency_penalty"] = options.frequency_penalty
    if options.stops:
        parameters["stop"] = options.stops
    if wants_logprobs(options) and options.logprobs is not True and options.logprobs:
        parameters["top_n_tokens"] = options.logprobs
    if options.response_format is not None:
        wanted = grammar(options.response_format)
        if wanted is not None:
            parameters["grammar"] = wanted
    return parameters


def _sampling(options: CallOptions) -> dict[str, Any]:
    if options.temperature == 0:
        return {"do_sample": False}  # any other of these would make the server sample
    sampling: dict[str, Any] = {"do_sample": True}
    if options.temperature is not None:
        sampling["temperature"] = options.temperature
    if options.top_p is not None and options.top_p < 1:
        sampling["top_p"] = options.top_p
    if options.top_k is not None and options.top_k > 0:
        sampling["top_k"] = options.top_k
    if options.seed is not None:
        sampling["seed"] = options.seed
    return sampling


def _wants_prompt(options: CallOptions) -> bool:
    parameters = (options.extra_body or {}).get("parameters")
    return isinstance(parameters, Mapping) and bool(parameters.get("return_full_text"))


def _without_prompt(text: str, prompt: str, body: bytes, number: int) -> str:
    """`text`, which begins with the prompt, without it where that is an echo and not what the model said.

    The prompt was asked not to come back. A server that tells the tokens, as it was asked to, shows by them whether it
    did; one that doesn't tell any (a pipeline of transformers) has ignored this wish as well, and echoes.
    """
    decoded = decode_body(_token_answer_decoder, body)
    answer = decoded[number] if isinstance(decoded, list) else decoded
    details = answer.details if answer is not None else None
    rest = text[len(prompt) :]
    if details is None:
        return rest
    said = "".join(token.text or "" for token in details.tokens or () if not token.special)
    # Tokenizers with a space at the beginning of words drop it at the beginning of a text.
    return rest if said.lstrip() == rest.lstrip() and said.lstrip() != text.lstrip() else text


def _generation(text: str, details: _Details | None, options: CallOptions) -> Generation:
    logprobs: tuple[TokenLogprob, ...] | None = None
    if isinstance(details, _TokenDetails) and details.tokens:
        tops = details.top_tokens or []
        logprobs = tuple(
            _token_logprob(token, tops[at] if at < len(tops) else None) for at, token in enumerate(details.tokens)
        )
    text, logprobs, stopped = cut_at_stop(text, logprobs, options.stops)
    raw = details.finish_reason or None if details is not None else None
    return Generation(
        text,
        _info(details),
        "stop" if stopped else finish_reason(raw, calls=False),
        raw,
        logprobs=logprobs,
    )


def _info(details: _Details | None) -> dict[str, Any] | None:
    return {"seed": details.seed} if details is not None and details.seed is not None else None


def _usage(details: _Details | None) -> Usage | None:
    """The prompt's length is told as a number (streams, since TGI 2.3) or by its tokens (``decoder_input_details``)."""
    if details is None or details.generated_tokens is None:
        return None
    prompt_tokens = details.input_length
    if prompt_tokens is None and details.prefill:
        prompt_tokens = len(details.prefill)
    return Usage(prompt_tokens, details.generated_tokens)


def _token_logprob(token: _Token, tops: list[_Token] | None) -> TokenLogprob:
    return TokenLogprob(
        token.text or "",
        told_logprob(token.logprob),
        token.id,
        bool(token.special),
        tuple(TopLogprob(top.text or "", told_logprob(top.logprob), top.id) for top in tops or ()),
    )


class TextGenerationStreamDecoder(BaseStreamDecoder):
    """The end is marked by ``generated_text``, which repeats what the tokens said: the tokens are the text."""

    def __init__(self, prompt: BasePromptValue, options: CallOptions) -> None:
        super().__init__(options)
        self._prompt = prompt
        self._whole = _wants_prompt(options)
        self._expected = 1
        self._logprobs = wants_logprobs(options)
        self._any_token = False
        self._output = self._outputs[0] = Output(self._stops)

    def _receive_events(self, events: list[ServerSentEvent]) -> None:  # noqa: C901 - the hot loop, not to be split
        chunks, plain, logprobs, decode = self._chunks, self._plain, self._logprobs, _event_decoder.decode
        for event in events:
            try:
                decoded = decode(event.data)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                decoded = None
            if decoded is None:
                self._receive_unusual(event)
            elif decoded.generated_text is None and decoded.error is None and (token := decoded.token) is not None:
                self._any_token = True
                if logprobs:
                    self._receive_token(token, decoded)
                elif not token.special:
                    text = token.text
                    if text and not plain:
                        text = self._trimmed(self._output, 0, text)
                    if text:
                        chunks.append(GenerationChunk(text))
            elif decoded.generated_text is not None and decoded.error is None:
                self._receive_end(decoded, decoded.generated_text)
            else:
                self._receive_unusual(event)
            if self._ended:
                return

    def _receive_document(self, data: bytes) -> None:
        decoded = decode_body(_event_decoder, data)
        if decoded is None:
            return
        if decoded.generated_text is not None:
            self._receive_end(decoded, decoded.generated_text)
        elif decoded.token is not None:
            self._any_token = True
            self._receive_token(decoded.token, decoded)

    def _receive_token(self, token: _Token, event: _Event) -> None:
        self._add(Piece("" if token.special else token.text or "", logprobs=self._token_logprobs(token, event)))

    def _receive_end(self, event: _Event, whole: str) -> None:
        first = len(self._chunks)
        token, details = event.token, event.details
        text = "" if token is None or token.special else token.text or ""
        if token is None and not self._any_token:  # a server that has no tokens to tell sends the text at once
            text = whole if self._whole else whole.removeprefix(self._prompt.to_string())
        piece = Piece(
            text,
            raw_finish_reason=details.finish_reason if details is not None else None,
            logprobs=self._token_logprobs(token, event) if token is not None else None,
            generation_info=_info(details),
        )
        self._add(piece)
        usage = _usage(details)
        if usage is not None:
            self._add_usage(usage, first)
        self._end()

    def _token_logprobs(self, token: _Token, event: _Event) -> tuple[TokenLogprob, ...] | None:
        return (_token_logprob(token, event.top_tokens),) if self._logprobs else None
