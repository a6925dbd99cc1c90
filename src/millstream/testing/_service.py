"""From a request to the steps of its answer: key, start, rate limit, fault, checks, queue, generation. No I/O."""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import anyio
import msgspec

from millstream.testing._answers import (
    Answer,
    Refusal,
    error,
    loading,
    overloaded,
    rate_limited,
    scaled_to_zero,
    text_answer,
    unauthorized,
)
from millstream.testing._asked import Asked
from millstream.testing._behaviour import Api, Behaviour
from millstream.testing._engine import Engine, QueueFullError, Ticket
from millstream.testing._faults import Fault
from millstream.testing._http import RawRequest
from millstream.testing._produce import produce
from millstream.testing._rates import Rates
from millstream.testing._read_openai import read_chat, read_completions
from millstream.testing._read_text_generation import read_text_generation
from millstream.testing._replies import StreamEvent, text_generation_events, text_generation_whole
from millstream.testing._replies_openai import OpenAIReply
from millstream.testing._routes import Counters, Route, check_model, find_route, information
from millstream.testing._script import Step, Wire, answer_script, early_fault, generation_script, late_refusal
from millstream.testing._text import split_tokens

__all__ = ["Service", "decode_body"]

_PAYLOAD_LIMIT = 2_000_000  # tgi's default
Plan = tuple[list[Step], Ticket | None]


def decode_body(raw: bytes) -> Any:
    """The JSON of a body, None where it is none."""
    try:
        return msgspec.json.decode(raw) if raw else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


class Service:
    """Answers requests; has the engine, the queue of faults and the counters, but no socket."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self.engine = Engine(behaviour)
        self._turns = itertools.count()
        self._generation_number = 0
        self._draw = random.Random(behaviour.seed)  # noqa: S311 - no secret
        self._queued: deque[tuple[Fault, int]] = deque()
        self._outage: tuple[float, Fault] = (-math.inf, Fault.status(503))
        self._replica = _Start()
        self._weights = _Start()
        self._rates = Rates(behaviour)
        if not callable(behaviour.faults) and not behaviour.fault_rate:
            self.fail(behaviour.faults)

    def fail(self, faults: Iterable[Fault]) -> None:
        """Queue faults."""
        self._queued.extend((fault, fault.times) for fault in faults)

    def begin_outage(self, seconds: float, fault: Fault | None) -> None:
        """See `FakeEndpoint.outage`."""
        self._outage = (anyio.current_time() + seconds, fault or Fault.status(503))

    def _outage_now(self) -> Fault | None:
        until, fault = self._outage
        return fault if anyio.current_time() < until else None

    def hold(self, raw: RawRequest) -> float:
        """Seconds for which the proxy holds a request before it is planned, because the replica is not up yet."""
        behaviour = self._behaviour
        if behaviour.scale_up is None or self._outage_now() is not None:
            return 0.0
        told = _seconds(raw.headers.get("x-scale-up-timeout", ""))
        if told is None:
            return 0.0
        try:
            route = find_route(behaviour, raw.method, raw.target)
            self._authorize(raw, route)
        except Refusal:
            return 0.0
        return 0.0 if route.api is None else min(told, self._replica.left(behaviour.scale_up))

    def plan(self, raw: RawRequest, body: Any) -> Plan:
        """The steps of the answer; and, of a generation, its place in the queue, to be given back by `Engine.leave`."""
        behaviour = self._behaviour
        wire = Wire(
            server=behaviour.server,
            extra=tuple(behaviour.headers.items()),
            keep_alive=raw.keep_alive and behaviour.keep_alive,
        )
        try:
            route = find_route(behaviour, raw.method, raw.target)
            self._authorize(raw, route)
            if route.api is None:
                counters = Counters(self.engine.running, self.engine.waiting, self.engine.finished)
                return self._answer(raw, wire, information(behaviour, route, body, counters)), None
            return self._plan_generation(raw, body, route, route.api, wire)
        except Refusal as refusal:
            return self._answer(raw, wire, refusal.answer), None

    def _answer(self, raw: RawRequest, wire: Wire, answer: Answer) -> list[Step]:
        if raw.method == "HEAD":
            answer.body = b""
        return answer_script(answer, wire)

    def _authorize(self, raw: RawRequest, route: Route) -> None:
        behaviour = self._behaviour
        public = route.path == "/health"
        if behaviour.server == "tgi":
            public = public or route.path in {"/info", "/metrics"}
        elif behaviour.server == "vllm":
            public = not route.path.startswith("/v1")
        if behaviour.api_key is None or public:
            return
        if raw.headers.get("authorization") != f"Bearer {behaviour.api_key}":
            raise unauthorized(behaviour.server)

    def _plan_generation(self, raw: RawRequest, body: Any, route: Route, api: Api, wire: Wire) -> Plan:
        fault = self._outage_now()
        if fault is None:
            self._start(_model_named(self._behaviour, body, route, api))
            passes = self._rates.admit()
            wire.extra = (*wire.extra, *self._rates.headers(passes=passes))
            if not passes:
                raise rate_limited(wire.server)
            fault = self._next_fault()
        if fault is not None:
            early = early_fault(wire.server, fault)
            if early is not None:
                return self._answer(raw, wire, early), None
        try:
            asked = self._read(raw, body, route, api)
            try:
                ticket = self.engine.enter()
            except QueueFullError:
                raise overloaded(wire.server) from None
        except Refusal as refusal:
            if refusal.late and isinstance(body, dict) and (body.get("stream") is True or "stream" in route.path):
                steps = late_refusal(api, wire, refusal.answer.status, refusal.message, refusal.error_type)
                return steps, None
            raise
        return self._generate(asked, wire, fault), ticket

    def _start(self, model: str) -> None:
        """Have the replica and the model started.

        Raises:
            Refusal: one is not up yet.
        """
        behaviour = self._behaviour
        if self._replica.left(behaviour.scale_up):
            raise scaled_to_zero()
        left = self._weights.left(behaviour.loading)
        if left:
            raise loading(behaviour.server, model, left)

    def _next_fault(self) -> Fault | None:
        behaviour = self._behaviour
        self._generation_number += 1
        if callable(behaviour.faults):
            fault = behaviour.faults(self._generation_number)
            if fault is not None:
                return fault
        elif behaviour.fault_rate and self._draw.random() < behaviour.fault_rate:
            return self._draw.choice(list(behaviour.faults) or [Fault.status(503)])
        if not self._queued:
            return None
        fault, times = self._queued.popleft()
        if times > 1:
            self._queued.appendleft((fault, times - 1))
        return fault

    def _read(self, raw: RawRequest, body: Any, route: Route, api: Api) -> Asked:
        behaviour = self._behaviour
        # the text-generation task is tgi's, whoever offers it
        server = "tgi" if api == "text-generation" else behaviour.server
        _check_content(server, raw, body)
        model = _model_named(behaviour, body, route, api)
        check_model(behaviour, model)
        size = len(raw.body)
        if api == "text-generation":
            return read_text_generation(behaviour, model, body, size, route.path)
        reader: Callable[[Behaviour, str, dict[str, Any], int], Asked]
        reader = read_completions if api == "completions" else read_chat
        return reader(behaviour, model, body, size)

    def _generate(self, asked: Asked, wire: Wire, fault: Fault | None) -> list[Step]:
        outputs = produce(self._behaviour, asked, self._turns)
        prompts = asked.prompts
        self._rates.spend(lambda: sum(len(split_tokens(one)) for one in prompts) + sum(one.count for one in outputs))
        wire.extra = (*wire.extra, *self._rates.headers(passes=True))
        whole: Any = None
        events: list[StreamEvent] = []
        if asked.api == "text-generation":
            if asked.stream:
                events = text_generation_events(asked, outputs[0])
            else:
                whole = text_generation_whole(asked, outputs)
        else:
            reply = OpenAIReply(self._behaviour.server, asked, outputs, self._generation_number)
            if asked.stream:
                events = reply.events()
            else:
                whole = reply.whole()
        return generation_script(asked, wire, fault, whole, events, max(output.count for output in outputs))


class _Start:
    """Something that the first who asks for it has started."""

    def __init__(self) -> None:
        self._up_at: float | None = None

    def left(self, seconds: float | None) -> float:
        """Seconds until it is up, 0 if it is; it takes `seconds`, None: none."""
        if seconds is None:
            return 0.0
        now = anyio.current_time()
        if self._up_at is None:
            self._up_at = now + seconds
        left = self._up_at - now
        return left if left > _TIMER else 0.0


_TIMER = 0.002  # who waited until it is up may have been woken that much too early


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _model_named(behaviour: Behaviour, body: Any, route: Route, api: Api) -> str:
    """The model that a request is for: by its body, its path, or the one that is there."""
    named = body.get("model") if isinstance(body, dict) and api != "text-generation" else None
    return named if isinstance(named, str) else route.model or behaviour.model


def _check_content(server: str, raw: RawRequest, body: Any) -> None:
    """Look at the body as a whole.

    Raises:
        Refusal: the body is no JSON object, is not said to be one, or is too long.
    """
    kind = raw.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    if server == "tgi":
        if len(raw.body) > _PAYLOAD_LIMIT:
            raise Refusal(text_answer(413, "Failed to buffer the request body: length limit exceeded"))
        if not is_json:
            raise Refusal(text_answer(415, "Expected request with `Content-Type: application/json`"))
        if body is None:
            raise Refusal(
                text_answer(400, "Failed to parse the request body as JSON: expected value at line 1 column 1")
            )
        if not isinstance(body, dict):
            why = "Failed to deserialize the JSON body into the target type: invalid type, expected a struct"
            raise Refusal(text_answer(422, why))
        return
    if server == "vllm":
        if not is_json:
            raise error("vllm", 400, "Unsupported Media Type: Only 'application/json' is allowed", "Bad Request")
        if not isinstance(body, dict):
            raise error("vllm", 400, "1 validation error: JSON decode error", "Bad Request", param="body")
    elif not isinstance(body, dict):
        where = "parse error at line 1, column 1: attempting to parse an empty input or something that is no object"
        raise error("llamacpp", 400, f"[json.exception.parse_error.101] {where}")
