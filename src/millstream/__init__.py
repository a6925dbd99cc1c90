"""Async-native, streaming LLM inference on Hugging Face and OpenAI-compatible endpoints.

from millstream import HuggingFaceInference

async with HuggingFaceInference(model="HuggingFaceTB/SmolLM3-3B", max_tokens=128) as llm:
    text = await llm.call("Why is the sky blue?")
    async for chunk in llm.stream("Tell me a story"):
        print(chunk.text, end="")

One prompt: `HuggingFaceInference.call` and `stream`; many: `generate`, `map`, `stream_many`. What can be set:
`HuggingFaceParams` for a model, `CallOptions` for a call, `Deadlines`, `RetryPolicy` and `AsyncCaller` for when and how
often. A model of your own: `LLM`. Errors are `MillstreamError`; their tree is ``help(millstream._errors)``.
Without a server: `millstream.testing`.
"""

from typing import TYPE_CHECKING, Any

# Models
from millstream._huggingface import HuggingFaceInference, HuggingFaceParams
from millstream._language_model import BaseLanguageModel, TokenCount
from millstream._llm import LLM, BaseLLM, BaseLLMParams
from millstream._site import Endpoint
from millstream._streams import LLMStream

# Results and prompts
from millstream._prompts import BasePromptValue, ChatMessage, ChatPromptValue, PromptInput, StringPromptValue
from millstream._results import (
    FinishReason,
    Generation,
    GenerationChunk,
    LLMResult,
    Outcome,
    SerializedLLM,
    StreamEvent,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    TopLogprob,
    Usage,
)

# Options
from millstream._config import AdaptiveConcurrency, CallOptions, CallOverrides, Deadlines, RetryPolicy

# Calling
from millstream._backoff import Verdict, classify
from millstream._caller import AsyncCaller, CallObserver, CallerOptions, CallerOutcome, CallerStatistics, Lease, Permit
from millstream._control import WindowChange, WindowStatistics
from millstream.limiters import Limiter, LocalLimiter, Reservation

# Callbacks and events
from millstream._events import (
    AttemptEvent,
    CacheHitEvent,
    LLMEndEvent,
    LLMErrorEvent,
    LLMNewTokenEvent,
    LLMStartEvent,
    RateLimitEvent,
    RetryEvent,
    RunEvent,
    TextEvent,
    WindowEvent,
)
from millstream.callbacks import (
    BaseCallbackHandler,
    CallbackManager,
    CallbackManagerForLLMRun,
    Callbacks,
    ConsoleCallbackHandler,
    LoggingCallbackHandler,
)

# Caches
from millstream.caches import BaseCache, InMemoryCache

# Errors
from millstream._errors import (
    AuthenticationError,
    BadRequestError,
    CertificateError,
    ClosedError,
    ConnectError,
    ContextLengthError,
    DeadlineError,
    DeserializationError,
    GenerationError,
    LocalProtocolError,
    MillstreamError,
    MissingExtraError,
    MissingKeyError,
    ModelLoadingError,
    ModelNotFoundError,
    NotFoundError,
    OptionTypeError,
    OptionValueError,
    OverloadedError,
    PaymentRequiredError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitError,
    ReadError,
    ServerError,
    StatusError,
    StreamInterruptedError,
    TransportError,
    TruncatedStreamError,
    UnknownOptionError,
    UntrustedEndpointError,
    UsageError,
    WriteError,
)
from millstream._version import __version__

__all__ = [
    "AdaptiveConcurrency",
    "AsyncCaller",
    "AttemptEvent",
    "AuthenticationError",
    "BadRequestError",
    "BaseCache",
    "BaseCallbackHandler",
    "BaseLLM",
    "BaseLLMParams",
    "BaseLanguageModel",
    "BasePromptValue",
    "CacheHitEvent",
    "CallObserver",
    "CallOptions",
    "CallOverrides",
    "CallbackManager",
    "CallbackManagerForLLMRun",
    "Callbacks",
    "CallerOptions",
    "CallerOutcome",
    "CallerStatistics",
    "CertificateError",
    "ChatMessage",
    "ChatPromptValue",
    "ClosedError",
    "ConnectError",
    "ConsoleCallbackHandler",
    "ContextLengthError",
    "DeadlineError",
    "Deadlines",
    "DeserializationError",
    "Endpoint",
    "FinishReason",
    "Generation",
    "GenerationChunk",
    "GenerationError",
    "HuggingFaceInference",
    "HuggingFaceParams",
    "InMemoryCache",
    "LLM",
    "LLMEndEvent",
    "LLMErrorEvent",
    "LLMNewTokenEvent",
    "LLMResult",
    "LLMStartEvent",
    "LLMStream",
    "Lease",
    "Limiter",
    "LocalLimiter",
    "LocalProtocolError",
    "LoggingCallbackHandler",
    "MillstreamError",
    "MissingExtraError",
    "MissingKeyError",
    "ModelLoadingError",
    "ModelNotFoundError",
    "NotFoundError",
    "OptionTypeError",
    "OptionValueError",
    "Outcome",
    "OverloadedError",
    "PaymentRequiredError",
    "Permit",
    "PermissionDeniedError",
    "PooledTransport",
    "PromptInput",
    "ProtocolError",
    "RateLimitError",
    "RateLimitEvent",
    "ReadError",
    "RetryEvent",
    "Reservation",
    "RetryPolicy",
    "RunEvent",
    "SerializedLLM",
    "ServerError",
    "StatusError",
    "StreamEvent",
    "StreamInterruptedError",
    "StringPromptValue",
    "TextEvent",
    "TokenCount",
    "TokenLogprob",
    "ToolCall",
    "ToolCallDelta",
    "TopLogprob",
    "TransportError",
    "TruncatedStreamError",
    "UnknownOptionError",
    "UntrustedEndpointError",
    "Usage",
    "UsageError",
    "Verdict",
    "WindowChange",
    "WindowEvent",
    "WindowStatistics",
    "WriteError",
    "__version__",
    "classify",
]

if TYPE_CHECKING:
    from millstream._transport.httpx_pooled import PooledTransport


def __getattr__(name: str) -> Any:
    # httpx takes a third of the import's time, and only this name needs it.
    if name == "PooledTransport":
        from millstream._transport.httpx_pooled import PooledTransport  # noqa: PLC0415

        return PooledTransport
    raise AttributeError(f"module 'millstream' has no attribute {name!r}")
