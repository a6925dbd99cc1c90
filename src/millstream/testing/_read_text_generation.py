"""Reads and checks the body of the text-generation task, as tgi does. Pure."""

from __future__ import annotations

from typing import Any

from millstream.testing._asked import Asked, Reader
from millstream.testing._behaviour import Behaviour
from millstream.testing._text import split_tokens

__all__ = ["read_text_generation"]

_MAX_STOP = 4
_MAX_TOP_TOKENS = 5
_MAX_BEST_OF = 2


def read_text_generation(behaviour: Behaviour, model: str, body: dict[str, Any], size: int, route: str) -> Asked:
    """Check a body that came to `route`: "/", "/generate" or "/generate_stream".

    Raises:
        Refusal: tgi would not accept it.
    """
    top = Reader("tgi", body, size)
    inputs = top.get("inputs", str, nullable=False)
    if inputs is None:
        raise top.missing("inputs")
    given = top.get("parameters", dict, nullable=False)
    read = Reader("tgi", given or {}, size, path="parameters.")
    stream = bool(top.get("stream", bool, nullable=False)) if route == "/" else route == "/generate_stream"
    asked = Asked(
        api="text-generation",
        model=model,
        prompts=[inputs],
        stream=stream,
        as_list=route == "/",
        details=bool(read.get("details", bool, nullable=False)),
        prefill=bool(read.get("decoder_input_details", bool, nullable=False)),
        do_sample=bool(read.get("do_sample", bool, nullable=False)) or given is None,
        max_tokens=read.get("max_new_tokens", int),
        stop=_stop(read),
        seed=read.get("seed", int),
        best_of=read.get("best_of", int) or 1,
        top_logprobs=read.get("top_n_tokens", int) or 0,
    )
    asked.details = asked.details or asked.prefill
    full = read.get("return_full_text", bool)
    asked.full_text = full if full is not None else route == "/"
    read.get("watermark", bool, nullable=False)
    asked.sampling = _sampling(read)
    _check(read, asked)
    _truncate(read, asked, behaviour)
    return asked


def _stop(read: Reader) -> list[str]:
    stop = read.get("stop", list, nullable=False) or []
    for sequence in stop:
        if not isinstance(sequence, str):
            raise read.wrong_type("stop[0]", sequence, str)
    if len(stop) > _MAX_STOP:
        raise read.invalid(f"`stop` supports up to {_MAX_STOP} stop sequences. Given: {len(stop)}")
    return stop


def _sampling(read: Reader) -> tuple[Any, ...]:
    temperature = read.get("temperature", float)
    if temperature is not None and temperature <= 0:
        raise read.invalid("`temperature` must be strictly positive")
    for name in ("top_p", "typical_p"):
        value = read.get(name, float)
        if value is not None and not 0 < value < 1:
            raise read.invalid(f"`{name}` must be > 0.0 and < 1.0")
    top_k = read.get("top_k", int)
    if top_k is not None and top_k <= 0:
        raise read.invalid("`top_k` must be strictly positive")
    penalty = read.get("repetition_penalty", float)
    if penalty is not None and penalty <= 0:
        raise read.invalid("`repetition_penalty` must be strictly positive")
    frequency = read.get("frequency_penalty", float)
    if frequency is not None and not -2 <= frequency <= 2:
        raise read.invalid("`frequency_penalty` must be between -2.0 and 2.0")
    grammar = read.get("grammar", dict)
    if grammar is not None and "value" not in grammar:
        raise read.undecodable("parameters.grammar: missing field `value`")
    return (temperature, read.body.get("top_p"), read.body.get("typical_p"), top_k, penalty, frequency)


def _check(read: Reader, asked: Asked) -> None:
    if not asked.prompts[0]:
        raise read.invalid("`inputs` cannot be empty")
    if asked.seed is not None and asked.seed < 0:
        raise read.undecodable(f"parameters.seed: invalid value: integer `{asked.seed}`, expected u64")
    if asked.max_tokens is not None and asked.max_tokens <= 0:
        raise read.invalid("`max_new_tokens` must be strictly positive")
    if asked.top_logprobs > _MAX_TOP_TOKENS:
        raise read.invalid(f"`top_n_tokens` must be >= 0 and <= {_MAX_TOP_TOKENS}. Given: {asked.top_logprobs}")
    _check_best_of(read, asked)
    if asked.prefill and asked.stream:
        raise read.invalid("`decoder_input_details` == true is not supported when streaming tokens")


def _check_best_of(read: Reader, asked: Asked) -> None:
    if asked.best_of <= 1:
        return
    if asked.best_of > _MAX_BEST_OF:
        raise read.invalid(f"`best_of` must be > 0 and <= {_MAX_BEST_OF}. Given: {asked.best_of}")
    if not (asked.do_sample or any(value is not None for value in asked.sampling[:4])):
        raise read.invalid("you must use sampling when `best_of` is > 1")
    if asked.seed is not None:
        raise read.invalid("`seed` must not be set when `best_of` > 1")
    if asked.stream:
        raise read.invalid("`best_of` != 1 is not supported when streaming tokens")


def _truncate(read: Reader, asked: Asked, behaviour: Behaviour) -> None:
    truncate = read.get("truncate", int)
    tokens = split_tokens(asked.prompts[0])
    if truncate is not None:
        if not 1 <= truncate < behaviour.max_total_tokens:
            limit = behaviour.max_total_tokens - 1
            raise read.invalid(f"`truncate` must be strictly positive and less than {limit}. Given: {truncate}")
        tokens = tokens[-truncate:]
        asked.prompts[0] = "".join(tokens)
    wanted = asked.max_tokens or 1
    if len(tokens) + wanted > behaviour.max_total_tokens:
        raise read.invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {behaviour.max_total_tokens}."
            f" Given: {len(tokens)} `inputs` tokens and {wanted} `max_new_tokens`"
        )
