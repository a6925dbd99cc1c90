"""The OpenAI-compatible answers, with each server's habits. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from millstream.testing._asked import Asked
from millstream.testing._behaviour import Server
from millstream.testing._replies import DONE, StreamEvent, data
from millstream.testing._text import Output, draw_words, logprob, split_tokens, token_id

__all__ = ["OpenAIReply"]

CREATED = 1_700_000_000
_FINGERPRINTS = {"tgi": "3.3.6-dev0-native", "vllm": None, "llamacpp": "b0-unknown"}
_TGI_FINISH = {"length": "length", "eos": "eos_token", "stop": "stop_sequence"}


@dataclasses.dataclass(slots=True)
class OpenAIReply:
    """One answer of ``/v1/completions`` or ``/v1/chat/completions``, whole or as a stream."""

    server: Server
    asked: Asked
    outputs: list[Output]
    number: int
    """Of the request; the answer's id comes from it."""

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is no stream."""
        choice = self._whole_chat if self.asked.api == "chat" else self._whole_completion
        choices = [choice(index, output) for index, output in enumerate(self.outputs)]
        if self.server == "tgi" and self.asked.api == "completions":
            choices.reverse()  # it lists them as they finish
        counted = self.outputs[-1:] if self.server == "llamacpp" else self.outputs
        body = {**self._frame("chat.completion"), "choices": choices, "usage": self._usage(counted)}
        return self._timed(body, counted)

    def events(self) -> list[StreamEvent]:
        """The events of a stream, ``[DONE]`` included."""
        single = self._chat_events if self.asked.api == "chat" else self._completion_events
        streams = [list(single(index, output)) for index, output in enumerate(self.outputs)]
        events = [event for stream in streams for event in stream]
        if len(streams) > 1:
            events.sort(key=lambda event: event.step)
            if self.server == "llamacpp" and len(self.asked.prompts) > 1:
                events.insert(0, StreamEvent(b"data: null\n\n", 1, text=False))
        last = events[-1].step
        if self.asked.usage and (self.asked.api == "chat" or self.server == "vllm"):
            frame = {**self._frame("chat.completion.chunk"), "choices": [], "usage": self._usage(self.outputs)}
            events.append(StreamEvent(data(self._timed(frame, self.outputs)), last, text=False))
        events.append(StreamEvent(DONE, last, text=False))
        return events

    # what every piece has

    def _frame(self, chat_object: str) -> dict[str, Any]:
        chat = self.asked.api == "chat"
        kind = chat_object if chat else "text_completion"
        prefix = "chatcmpl-" if chat or self.server == "llamacpp" else "cmpl-"
        identity = "" if self.server == "tgi" else f"{prefix}{self.number:032x}"
        frame: dict[str, Any] = {"id": identity, "object": kind, "created": CREATED, "model": self.asked.model}
        if _FINGERPRINTS[self.server] is not None:
            frame["system_fingerprint"] = _FINGERPRINTS[self.server]
        return frame

    def _usage(self, outputs: list[Output]) -> dict[str, Any]:
        prompts = self.asked.prompts[-1:] if len(outputs) < len(self.outputs) else self.asked.prompts
        asked = sum(len(split_tokens(prompt)) for prompt in prompts)
        return self._usage_of(asked, sum(output.count for output in outputs))

    def _usage_of(self, asked: int, made: int) -> dict[str, Any]:
        usage: dict[str, Any] = {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}
        if self.server == "llamacpp":
            usage["prompt_tokens_details"] = {"cached_tokens": 0}
        return usage

    def _prompt_of(self, index: int) -> str:
        return self.asked.prompts[index // self.asked.n]

    def _timed(self, body: dict[str, Any], outputs: list[Output]) -> dict[str, Any]:
        if self.server == "llamacpp":
            made = sum(output.count for output in outputs)
            body["timings"] = {"cache_n": 0, "prompt_n": 1, "prompt_ms": 1.0, "predicted_n": made, "predicted_ms": 1.0}
        return body

    def _finish(self, output: Output, *, raw: bool = False) -> str:
        if self.server == "tgi":
            if output.finish == "eos":
                return "eos_token" if raw else "stop"
            return _TGI_FINISH[output.finish]
        if output.tool_calls:
            return "tool_calls"
        return "length" if output.finish == "length" else "stop"

    def _choice(self, index: int, finish: str | None, logprobs: Any, output: Output, **content: Any) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, **content, "finish_reason": finish}
        if self.server != "llamacpp" or logprobs is not None or self.asked.api == "completions":
            choice["logprobs"] = logprobs
        if self.server == "vllm" and finish is not None:
            choice["stop_reason"] = output.stop
        return choice

    # completions

    def _whole_completion(self, index: int, output: Output) -> dict[str, Any]:
        text = self._prompt_of(index) + output.text if self.asked.echo else output.text
        logprobs = self._logprobs(output.tokens, 0)
        return self._choice(index, self._finish(output, raw=True), logprobs, output, text=text)

    def _completion_events(self, index: int, output: Output) -> Iterator[StreamEvent]:
        prompt_tokens = len(split_tokens(self._prompt_of(index)))
        usage = self._usage_of(prompt_tokens, output.count)
        offset = 0
        for step, piece in enumerate(output.pieces, start=1):
            spoken = step <= len(output.tokens)
            last = step == len(output.pieces)
            if self.server == "llamacpp" and not spoken:
                break  # the end has a chunk of its own
            shown = self._prompt_of(index) + piece if self.asked.echo and step == 1 else piece
            logprobs = self._logprobs(output.tokens[step - 1 : step], offset) if spoken else None
            finish = self._finish(output, raw=True) if last and self.server != "llamacpp" else None
            if self.server == "tgi" and not last:
                finish = ""
            chunk = self._frame("")
            chunk["choices"] = [self._choice(index, finish, logprobs, output, text=shown)]
            self._put_usage(chunk, usage if last else None, prompt_tokens, step)
            offset += len(piece)
            yield StreamEvent(data(chunk), step)
        if self.server == "llamacpp":
            end = {**self._frame(""), "choices": [self._choice(index, self._finish(output), None, output, text="")]}
            end["usage"] = usage
            yield StreamEvent(data(self._timed(end, [output])), max(1, output.count), text=False)

    def _put_usage(self, chunk: dict[str, Any], usage: Any, prompt_tokens: int, made: int) -> None:
        if self.server == "tgi":
            chunk["usage"] = usage if self.asked.api == "completions" else None
        elif self.asked.continuous_usage:
            chunk["usage"] = self._usage_of(prompt_tokens, made)

    # chat

    def _whole_chat(self, index: int, output: Output) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant"}
        if output.tool_calls:
            if self.server != "tgi":
                message["content"] = "" if self.server == "llamacpp" else None
            message["tool_calls"] = [self._tool_call(i, name, args) for i, (name, args) in enumerate(output.tool_calls)]
        else:
            message["content"] = output.text
        if output.reasoning:
            message[self._reasoning_key] = "".join(output.reasoning)
        logprobs = self._chat_logprobs(output.tokens) if self.asked.logprobs else None
        return self._choice(index, self._finish(output), logprobs, output, message=message)

    @property
    def _reasoning_key(self) -> str:
        return "reasoning" if self.server == "vllm" else "reasoning_content"

    def _tool_call(self, number: int, name: str | None, arguments: str) -> dict[str, Any]:
        function: dict[str, Any] = {"name": name, "arguments": arguments}
        if self.server == "tgi":
            return {"id": "0", "type": "function", "function": {"description": None, **function}}
        prefix = "chatcmpl-tool-" if self.server == "vllm" else ""
        return {"id": f"{prefix}{self.number * 100 + number:032x}", "type": "function", "function": function}

    def _chat_events(self, index: int, output: Output) -> Iterator[StreamEvent]:
        if self.server != "tgi":
            opening = {"role": "assistant", "content": "" if self.server == "vllm" else None}
            yield self._chunk(index, opening, output, 1, text=False)
        deltas = list(self._deltas(output))
        for step, (delta, token) in enumerate(deltas, start=1):
            last = step == len(deltas)
            if self.server == "llamacpp" and last and output.finish == "eos":
                break  # the end has a chunk of its own
            finish = self._finish(output) if last and self.server != "llamacpp" else None
            yield self._chunk(index, delta, output, step, finish=finish, token=token)
        if self.server == "llamacpp":
            yield self._chunk(index, {}, output, max(1, len(deltas)), finish=self._finish(output), text=False)

    def _deltas(self, output: Output) -> Iterator[tuple[dict[str, Any], str | None]]:
        """One delta a token, with the token where it is one of the text; the last is that of the end of sequence."""
        for token in output.reasoning:
            yield {self._reasoning_key: token}, None
        if output.tool_calls:
            for number, (name, arguments) in enumerate(output.tool_calls):
                yield from ((delta, None) for delta in self._tool_deltas(number, name, split_tokens(arguments)))
            yield {} if self.server != "tgi" else {"content": ""}, None
            return
        for piece, token in zip(output.pieces, output.tokens, strict=False):
            yield {"content": piece}, token
        if output.finish == "eos":
            yield {"content": output.pieces[-1]}, None

    def _tool_deltas(self, number: int, name: str, fragments: list[str]) -> Iterator[dict[str, Any]]:
        for position, fragment in enumerate(fragments):
            if self.server == "tgi":  # all of it again and again, but the name
                call = self._tool_call(number, name if position == 0 else None, fragment)
                del call["function"]["description"]
                yield {"content": None, "tool_calls": [{"index": number, **call}]}
            elif position == 0:
                yield {"tool_calls": [{"index": number, **self._tool_call(number, name, fragment)}]}
            else:
                yield {"tool_calls": [{"index": number, "function": {"arguments": fragment}}]}

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        output: Output,
        step: int,
        *,
        finish: str | None = None,
        token: str | None = None,
        text: bool = True,
    ) -> StreamEvent:
        logprobs = self._chat_logprobs([token]) if token is not None and self.asked.logprobs else None
        chunk = self._frame("chat.completion.chunk")
        if self.server == "tgi":
            delta = {"role": "assistant", **delta}
        chunk["choices"] = [self._choice(index, finish, logprobs, output, delta=delta)]
        self._put_usage(chunk, None, len(split_tokens(self.asked.prompts[0])), step if text else 0)
        return StreamEvent(data(chunk), step, text)

    # log probabilities

    def _logprobs(self, tokens: list[str], offset: int) -> Any:
        if not self.asked.logprobs:
            return None
        if self.server == "llamacpp":
            return self._chat_logprobs(tokens)
        offsets: list[int] = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        top = [{entry[0]: entry[1] for entry in self._ranked(token)} for token in tokens]
        return {
            "text_offset": offsets,
            "token_logprobs": [logprob(token) for token in tokens],
            "tokens": tokens,
            "top_logprobs": top,
        }

    def _ranked(self, token: str) -> list[tuple[str, float]]:
        others = draw_words(token, max(0, self.asked.top_logprobs - 1))
        ranked = [
            (token, logprob(token)),
            *((word, logprob(token) - rank) for rank, word in enumerate(others, start=1)),
        ]
        return ranked[: max(1, self.asked.top_logprobs)]

    def _chat_logprobs(self, tokens: list[str]) -> Any:
        content: list[dict[str, Any]] = []
        for token in tokens:
            entry = self._entry(token, logprob(token))
            top = self._ranked(token) if self.asked.top_logprobs else []
            content.append({**entry, "top_logprobs": [self._entry(text, value) for text, value in top]})
        return {"content": content}

    def _entry(self, token: str, value: float) -> dict[str, Any]:
        entry: dict[str, Any] = {"token": token, "logprob": value}
        if self.server != "tgi":
            entry["bytes"] = list(token.encode())
        if self.server == "llamacpp":
            entry["id"] = token_id(token)
        return entry
