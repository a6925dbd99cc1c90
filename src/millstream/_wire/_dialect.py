"""What a dialect is: how a prompt and its options become a request body, and how an answer's bytes become results."""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol

from millstream._config import CallOptions
from millstream._errors import MillstreamError
from millstream._prompts import BasePromptValue
from millstream._results import GenerationChunk, LLMResult

__all__ = ["Dialect", "DialectName", "StreamDecoder"]

DialectName = Literal["text-generation", "completions", "chat"]


class Dialect(Protocol):
    """One of the three ways that text-generation servers speak. Stateless: one instance serves all calls."""

    name: ClassVar[DialectName]
    """What it is called in the configuration."""

    def encode(self, prompt: BasePromptValue, options: CallOptions, *, model: str | None, stream: bool) -> bytes:
        """The request body, JSON.

        ``model`` comes first, for routers that read only the beginning; None leaves it out. `options.extra_body` is put
        over everything else.

        Raises:
            OptionValueError: an option that this dialect does not have.
            OptionTypeError: a value that can't be written as JSON.
        """
        ...

    def can_stream(self, options: CallOptions) -> bool:
        """Whether servers stream an answer to these options at all; for some they give only a whole one."""
        ...

    def decode(self, body: bytes, prompt: BasePromptValue, options: CallOptions) -> LLMResult:
        """The result of one prompt (one row) from the whole body of a 2xx answer.

        Raises:
            StatusError: the body is an error.
            ProtocolError: the body can't be understood; it has an excerpt.
        """
        ...

    def amend(self, body: bytes, status: int, answer: bytes) -> bytes | None:
        """The same request in the words that a server of another kind wants, None where there are no others.

        Args:
            body: the request that was refused.
            status: the refusal's.
            answer: its body.
        """
        ...

    def stream_decoder(self, prompt: BasePromptValue, options: CallOptions) -> StreamDecoder:
        """A new decoder for one streamed answer."""
        ...


class StreamDecoder(Protocol):
    """Turns the body of one streamed answer into chunks. Nothing here raises.

    Attributes:
        done: nothing more needs to be waited for: the end mark was seen, or every output reached a stop text that the
            server goes on after. The rest of the body may be drained, or given to `receive_data` for the usage. (Where
            the server itself ends at the stop text but leaves it in, its usage and end mark are waited for.)
        error: why no more chunks come, None while all is well. Chunks returned together with it came before it.
        joins: set by whoever wants the sum of the chunks only: then the tokens of one piece may come as one chunk.
    """

    done: bool
    error: MillstreamError | None
    joins: bool

    def receive_data(self, data: bytes) -> list[GenerationChunk]:
        """The chunks that are complete with this piece of the body, cut anywhere."""
        ...

    def receive_eof(self) -> list[GenerationChunk]:
        """The last chunks. Sets `error` to a `TruncatedStreamError` for a stream that ended before its end."""
        ...
