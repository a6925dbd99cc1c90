"""A model without an endpoint, for tests of what is built on models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Unpack

import anyio

from millstream._config import CallOptions
from millstream._llm import LLM, BaseLLMParams
from millstream._prompts import BasePromptValue
from millstream._results import FinishReason, GenerationChunk, LLMResult, Usage
from millstream.callbacks import CallbackManagerForLLMRun
from millstream.testing._faults import Latency
from millstream.testing._text import Output, draw_words, generate, split_tokens

__all__ = ["FakeLLM"]

_DEFAULT_MAX_TOKENS = 16


class FakeLLM(LLM):
    """A model that answers from memory: no network, no key, and the same every time.

        llm = FakeLLM("Hello world", errors=[ConnectionError()])
        assert await llm.call("Hi") == "Hello world"      # after one retry
        assert llm.prompts == ["Hi", "Hi"]

    Args:
        reply: the answer; or several, cycled through by attempt; or a function of the prompt. None: words drawn by a
            hash of the prompt and the options, ``max_tokens`` (16) of them. Tokens are words with the white space
            before them; ``max_tokens`` and ``stop`` hold.
        errors: what the first attempts raise, in order; None in it lets an attempt pass.
        latency: how long tokens take, in seconds; None: no time.
        **params: what every model takes (`BaseLLMParams`).
    """

    def __init__(
        self,
        reply: str | Sequence[str] | Callable[[str], str] | None = None,
        *,
        errors: Iterable[Exception | None] = (),
        latency: Latency | None = None,
        **params: Unpack[BaseLLMParams],
    ) -> None:
        super().__init__(**params)
        self.prompts: list[str] = []
        """The prompt of every attempt."""
        self._reply = reply
        self._errors = iter(list(errors))
        self._latency = latency or Latency()

    @property
    def _llm_type(self) -> str:
        return "fake"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"reply": repr(self._reply) if callable(self._reply) else self._reply}

    async def _call(self, prompt: str, options: CallOptions, run: CallbackManagerForLLMRun | None) -> str:
        output = await self._attempt(prompt, options)
        await self._wait(output.count - 1)
        return output.text

    async def _generate(
        self, prompt: BasePromptValue, options: CallOptions, run: CallbackManagerForLLMRun | None
    ) -> LLMResult:
        text = prompt.to_string()
        output = await self._attempt(text, options)
        await self._wait(output.count - 1)
        return LLMResult.of(output.text, finish_reason=_finish(output), usage=_usage(text, output))

    async def _stream(
        self, prompt: str, options: CallOptions, run: CallbackManagerForLLMRun | None
    ) -> AsyncIterator[GenerationChunk]:
        output = await self._attempt(prompt, options)
        for number, piece in enumerate(output.pieces):
            await self._wait(number > 0)
            if piece:
                yield GenerationChunk(piece)
        yield GenerationChunk(finish_reason=_finish(output), usage=_usage(prompt, output))

    async def _attempt(self, prompt: str, options: CallOptions) -> Output:
        """Up to the first token."""
        turn = len(self.prompts)
        self.prompts.append(prompt)
        await anyio.sleep(self._latency.first_token)
        error = next(self._errors, None)
        if error is not None:
            raise error
        stop = [options.stop] if isinstance(options.stop, str) else list(options.stop or ())
        reply = self._reply
        if reply is None:
            budget = options.max_tokens or _DEFAULT_MAX_TOKENS
            return generate(draw_words((prompt, repr(options)), budget), budget, stop)
        if callable(reply):
            return generate(split_tokens(reply(prompt)), options.max_tokens, stop)
        text = reply if isinstance(reply, str) else reply[turn % len(reply)]
        return generate(split_tokens(text), options.max_tokens, stop)

    async def _wait(self, tokens: int) -> None:
        if tokens and self._latency.inter_token:
            await anyio.sleep(tokens * self._latency.inter_token)


def _finish(output: Output) -> FinishReason:
    return "length" if output.finish == "length" else "stop"


def _usage(prompt: str, output: Output) -> Usage:
    return Usage(len(split_tokens(prompt)), output.count)
