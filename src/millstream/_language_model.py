"""What every language model can do, whatever it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, TypeAlias, Unpack

import msgspec

from millstream._config import CallOptions, CallOverrides
from millstream._errors import DeserializationError, OptionTypeError
from millstream._prompts import BasePromptValue, ChatMessage
from millstream._results import LLMResult, SerializedLLM
from millstream._secret import Secret
from millstream.callbacks import Callbacks

__all__ = ["BaseLanguageModel", "Stop", "TokenCount"]

Stop: TypeAlias = str | Sequence[str] | CallOptions | None
"""Texts that end the output, or whole options for the call; None for neither."""

_BYTES_A_TOKEN = 4
"""English text in the vocabularies of Llama, Qwen and GPT has about four bytes a token; other languages have fewer."""


class TokenCount(int):
    """A number of tokens that says how it was found."""

    exact: bool
    """Whether the model's own tokenizer counted; False for an estimate."""

    def __new__(cls, value: int, *, exact: bool = False) -> Self:
        count = super().__new__(cls, value)
        count.exact = exact
        return count

    def __repr__(self) -> str:
        return f"TokenCount({int(self)}, exact={self.exact})"


def estimate_tokens(text: str) -> TokenCount:
    """UTF-8 bytes divided by four, rounded up: an estimate for text whose tokenizer is not at hand."""
    return TokenCount(-(-len(text.encode("utf-8", "replace")) // _BYTES_A_TOKEN), exact=False)


class BaseLanguageModel(ABC):
    """The least that a model offers: prompts in, results out, and a description that it can be made of again."""

    _loaders: ClassVar[dict[str, type[BaseLanguageModel]]] = {}

    def __init_subclass__(cls, *, serialized_as: Sequence[str] = (), **kwargs: Any) -> None:
        """Classes that `deserialize` can make say by ``serialized_as`` which ``_type`` they answer to."""
        super().__init_subclass__(**kwargs)
        for name in serialized_as:
            BaseLanguageModel._loaders[name] = cls

    @abstractmethod
    async def generate_prompt(
        self,
        prompts: Sequence[BasePromptValue],
        stop: Stop = None,
        *,
        callbacks: Callbacks = None,
        **overrides: Unpack[CallOverrides],
    ) -> LLMResult:
        """The outputs for prompt values, in their order."""

    @abstractmethod
    async def predict(
        self, text: str, stop: Stop = None, *, callbacks: Callbacks = None, **overrides: Unpack[CallOverrides]
    ) -> str:
        """The output for one text."""

    @abstractmethod
    async def predict_messages(
        self,
        messages: Sequence[ChatMessage | Mapping[str, Any]],
        stop: Stop = None,
        *,
        callbacks: Callbacks = None,
        **overrides: Unpack[CallOverrides],
    ) -> ChatMessage:
        """The model's next message in a chat."""

    @property
    @abstractmethod
    def _llm_type(self) -> str:
        """The name of the implementation, ``_type`` where it is serialized."""

    @property
    @abstractmethod
    def _model_type(self) -> str:
        """The kind of model, ``_model`` where it is serialized."""

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """Every parameter that tells this model from another: what can change its answers, never a key."""
        return {}

    async def get_num_tokens(self, text: str) -> TokenCount:
        """How many tokens `text` has: here an estimate (``exact`` is False), UTF-8 bytes divided by four."""
        if not isinstance(text, str):
            raise OptionTypeError(f"tokens are counted of text (str), not of {type(text).__name__}")
        return estimate_tokens(text)

    def serialize(self) -> SerializedLLM:
        """``{"_type", "_model", ...every identifying parameter}``: plain JSON values, never a key."""
        return {"_type": self._llm_type, "_model": self._model_type, **self._identifying_params}

    @classmethod
    def deserialize(
        cls,
        data: SerializedLLM | str | bytes,
        *,
        allowed_hosts: Sequence[str] = (),
        api_key: str | None = None,
    ) -> BaseLanguageModel:
        """The model that `data` describes, as `serialize` or LangChain.js wrote it. The data is not trusted.

        Args:
            data: the mapping, or its JSON.
            allowed_hosts: hosts (``"llm.example.com"``) that an endpoint named in the data may have; none by default.
            api_key: the key to use. Without one, data that names an endpoint gets no key from the environment either.

        Raises:
            UntrustedEndpointError: the data names an endpoint whose host is not allowed.
            DeserializationError: anything else that is not understood; nothing is made then.
        """
        held = [] if api_key is None else [api_key]
        del api_key  # tools that print tracebacks show local variables too
        key = Secret(held.pop()) if held else None
        if isinstance(allowed_hosts, str) or not all(isinstance(host, str) for host in allowed_hosts):
            raise OptionTypeError('allowed_hosts is a list of hosts: ["llm.example.com"]')
        fields = dict(_mapping(data))
        kind, model = fields.pop("_type", None), fields.pop("_model", None)
        if model is not None and model != "base_llm":
            raise DeserializationError(f"Cannot load LLM with model {model}")
        loader = BaseLanguageModel._loaders.get(kind) if isinstance(kind, str) else None
        if loader is None or not issubclass(loader, cls):
            raise DeserializationError(f"Cannot load LLM with type {kind}")
        return loader._from_serialized(fields, allowed_hosts=allowed_hosts, api_key=key)

    @classmethod
    def _from_serialized(
        cls, fields: dict[str, Any], *, allowed_hosts: Sequence[str], api_key: Secret | None
    ) -> BaseLanguageModel:
        """Make one of the fields that `_identifying_params` gave. For classes with ``serialized_as``."""
        raise NotImplementedError


def _mapping(data: SerializedLLM | str | bytes) -> Mapping[str, Any]:
    if isinstance(data, Mapping):
        return data
    if not isinstance(data, str | bytes):
        raise DeserializationError(f"a serialized model is a mapping or its JSON, not {type(data).__name__}")
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DeserializationError(f"a serialized model is a JSON object; this is not: {error}") from None
