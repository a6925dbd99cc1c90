"""Reads and checks the bodies of the OpenAI-compatible APIs, as each server does. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from millstream.testing._asked import Asked, Reader
from millstream.testing._behaviour import Behaviour
from millstream.testing._text import split_tokens

__all__ = ["read_chat", "read_completions"]

_MAX_STOP = 4
_MAX_BATCH = 4
_VLLM_DEFAULT_MAX_TOKENS = 16


def read_completions(behaviour: Behaviour, model: str, body: dict[str, Any], size: int) -> Asked:
    """Check the body of ``/v1/completions``.

    Raises:
        Refusal: the server would not accept it.
    """
    read = Reader(behaviour.server, body, size)
    if body.get("prompt") is None:
        raise read.missing("prompt")
    asked = Asked(api="completions", model=model, prompts=_prompts(read, body["prompt"]))
    if behaviour.server == "tgi":
        if body.get("suffix") is not None:
            raise read.invalid("Suffix is not supported and can be achieved by preprocessing", "suffix not supported")
        if len(asked.prompts) > _MAX_BATCH:
            raise read.invalid(f"batch size {len(asked.prompts)} exceeds maximum {_MAX_BATCH}", "batch size exceeded")
    else:
        count = read.get("logprobs", int)
        asked.logprobs = count is not None
        asked.top_logprobs = count or 0
        asked.echo = behaviour.server == "vllm" and bool(read.get("echo", bool))
    _common(behaviour, read, asked)
    if behaviour.server == "vllm" and asked.max_tokens is None:
        asked.max_tokens = _VLLM_DEFAULT_MAX_TOKENS
    return asked


def read_chat(behaviour: Behaviour, model: str, body: dict[str, Any], size: int) -> Asked:
    """Check the body of ``/v1/chat/completions``.

    Raises:
        Refusal: the server would not accept it.
    """
    read = Reader(behaviour.server, body, size)
    messages = body.get("messages")
    if messages is None:
        raise read.missing("messages")
    if not isinstance(messages, list):
        if behaviour.server == "llamacpp":
            raise read.invalid("Expected 'messages' to be an array")
        raise read.wrong_type("messages", messages, list)
    if not behaviour.chat_template:
        raise _no_template(behaviour, read)
    asked = Asked(api="chat", model=model, prompts=["\n".join(_message_text(read, message) for message in messages)])
    asked.logprobs = bool(read.get("logprobs", bool))
    asked.top_logprobs = read.get("top_logprobs", int) or 0
    asked.tools = bool(read.get("tools", list)) and body.get("tool_choice") != "none"
    if behaviour.server == "tgi":
        if asked.top_logprobs > 5:
            raise read.invalid(f"`top_n_tokens` must be >= 0 and <= 5. Given: {asked.top_logprobs}")
        if asked.tools and body.get("response_format") is not None:
            raise read.invalid("Grammar and tools are mutually exclusive", "tool_error")
    _common(behaviour, read, asked)
    return asked


def _no_template(behaviour: Behaviour, read: Reader) -> Exception:
    if behaviour.server == "tgi":
        return read.invalid("Template error: template not found", "template_error")
    return read.invalid("As of transformers v4.44, default chat template is no longer allowed: the model has none.")


def _message_text(read: Reader, message: Any) -> str:
    if not isinstance(message, dict):
        raise read.wrong_type("messages[0]", message, dict)
    if "role" not in message:
        raise read.missing("role")
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def _prompts(read: Reader, prompt: Any) -> list[str]:
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise read.wrong_type("prompt", prompt, str)
    if all(isinstance(item, str) for item in prompt):
        return list(prompt)
    if read.server == "tgi":
        raise read.undecodable("data did not match any variant of untagged enum Prompt")
    if all(isinstance(item, int) for item in prompt):
        return [_from_ids(prompt)]
    return [item if isinstance(item, str) else _from_ids(item) for item in prompt]


def _from_ids(ids: Any) -> str:
    return " ".join(f"<{number}>" for number in ids) if isinstance(ids, list) else str(ids)


def _common(behaviour: Behaviour, read: Reader, asked: Asked) -> None:
    asked.stream = bool(read.get("stream", bool))
    asked.max_tokens = _max_tokens(read)
    asked.stop = _stop(read)
    asked.seed = read.get("seed", int)
    _read_n(behaviour, read, asked)
    _stream_options(read, asked)
    asked.sampling = _sampling(read)
    _response_format(read)
    if read.server == "tgi" and read.body.get("logit_bias") is not None:
        read.get("logit_bias", list)
    _context(behaviour, read, asked)


def _max_tokens(read: Reader) -> int | None:
    value: int | None = read.get("max_tokens", int)
    alias: int | None = read.get("max_completion_tokens", int)
    if read.server == "tgi" and value is not None and alias is not None:
        raise read.undecodable("duplicate field `max_tokens`")
    value = value if value is not None else alias
    if read.server == "llamacpp":
        return None if value is None or value < 0 else max(1, value)
    if value is not None and value <= 0:
        if read.server == "tgi":
            raise read.invalid("`max_new_tokens` must be strictly positive")
        raise read.invalid(f"max_tokens must be at least 1, got {value}.", param="max_tokens")
    return value


def _stop(read: Reader) -> list[str]:
    stop = read.body.get("stop")
    if isinstance(stop, str) and read.server != "tgi":
        return [stop]
    stop = read.get("stop", list) or []
    if not all(isinstance(sequence, str) for sequence in stop):
        raise read.wrong_type("stop", stop, str)
    if read.server == "tgi" and len(stop) > _MAX_STOP:
        raise read.invalid(f"`stop` supports up to {_MAX_STOP} stop sequences. Given: {len(stop)}")
    return stop


def _read_n(behaviour: Behaviour, read: Reader, asked: Asked) -> None:
    n = read.get("n", int)
    if n is None or read.server == "tgi":
        return
    limit = (behaviour.slots or 4) if read.server == "llamacpp" else 16_384
    if not 1 <= n <= limit:
        raise read.invalid(f"n must be between 1 and {limit}, got {n}.", param="n")
    asked.n = n


def _stream_options(read: Reader, asked: Asked) -> None:
    nullable = not (read.server == "tgi" and asked.api == "chat")
    options = read.get("stream_options", dict, nullable=nullable)
    if options:
        asked.usage = bool(options.get("include_usage"))
        asked.continuous_usage = read.server == "vllm" and bool(options.get("continuous_usage_stats"))


def _sampling(read: Reader) -> tuple[Any, ...]:
    temperature, top_p = read.get("temperature", float), read.get("top_p", float)
    frequency, presence = read.get("frequency_penalty", float), read.get("presence_penalty", float)
    if temperature is not None and temperature < 0:
        raise read.invalid(f"temperature must be non-negative, got {temperature}.", param="temperature")
    if read.server == "tgi":
        if top_p is not None and not 0 < top_p < 1:
            raise read.invalid("`top_p` must be > 0.0 and < 1.0")
        if presence is not None and presence <= -2:  # it becomes a repetition penalty of presence + 2
            raise read.invalid("`repetition_penalty` must be strictly positive")
    elif read.server == "vllm" and top_p is not None and not 0 < top_p <= 1:
        raise read.invalid(f"top_p must be in (0, 1], got {top_p}.", param="top_p")
    for name, value in (("frequency_penalty", frequency), ("presence_penalty", presence)):
        if value is not None and not -2 <= value <= 2 and read.server != "llamacpp":
            raise read.invalid(f"{name} must be in [-2, 2], got {value}.", param=name)
    others = tuple(read.body.get(name) for name in ("top_k", "min_p", "repetition_penalty"))
    return (temperature, top_p, frequency, presence, *others)


def _response_format(read: Reader) -> None:
    wanted: Mapping[str, Any] | None = read.get("response_format", dict)
    if wanted is None:
        return
    kind = wanted.get("type")
    if read.server == "tgi":
        if kind not in {"json", "json_object", "json_schema", "regex"}:
            raise read.undecodable(f"response_format: unknown variant `{kind}`")
        if "value" not in wanted:
            raise read.undecodable("response_format: missing field `value`")
    elif kind not in {"text", "json_object", "json_schema"}:
        raise read.invalid('response_format type must be one of "text" or "json_object", but got: ' + str(kind))


def _context(behaviour: Behaviour, read: Reader, asked: Asked) -> None:
    limit = behaviour.max_total_tokens
    longest = max(len(split_tokens(prompt)) for prompt in asked.prompts)
    wanted = asked.max_tokens or 1
    if longest + wanted <= limit:
        return
    if read.server == "tgi":
        raise read.invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {limit}."
            f" Given: {longest} `inputs` tokens and {wanted} `max_new_tokens`"
        )
    if read.server == "vllm":
        raise read.invalid(
            f"This model's maximum context length is {limit} tokens. However, you requested {longest + wanted} tokens"
            f" ({longest} in the messages, {wanted} in the completion)."
        )
    if longest > limit:  # llama.cpp only minds the prompt
        raise read.invalid(
            "the request exceeds the available context size, try increasing it", "exceed_context_size_error"
        )
