"""A client's surroundings in which everything can be counted, and comes out the same each time.

The client runs on asyncio's own event loop, whose steps are Python. Everything beyond its sockets happens in `Outside`,
where the loop asks the system what is new: nothing comes earlier or later than the last time, the clock jumps to the
next event. None of that counts, and nothing that is in this folder.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import re
import selectors
import socket
import sys
import sysconfig
from collections import Counter
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from .answers import ANSWER, STREAM_HEAD, STREAM_PIECES, TOKENS

Counts = Counter[tuple[str, Any]]
"""How often, by what is counted (`counts.COUNTED`) and by who did it: a code object, or a name."""

_MONITORING: Any = vars(sys).get("monitoring")  # None before Python 3.12

NOT_COUNTED = frozenset(str(file) for file in Path(__file__).parent.glob("*.py"))


@functools.cache
def is_of_python(file: str) -> bool:
    """Whether a file is the standard library's, which has its own way in each release."""
    return file.startswith(sysconfig.get_path("stdlib")) and "site-packages" not in file


class _ByCode:
    """Counts by code objects. These are slow to hash, so what is counted is where they are."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._codes: dict[int, CodeType] = {}

    def add(self, code: CodeType) -> None:
        key = id(code)
        if key in self._numbers:
            self._numbers[key] += 1
        else:
            self._numbers[key] = 1
            self._codes[key] = code

    def counts(self, kind: str) -> Counts:
        return Counter({(kind, self._codes[key]): number for key, number in self._numbers.items()})


class Recorder:
    """Counts, between `start` and `stop`; `instructions` too, which takes most of the time."""

    def __init__(self, *, instructions: bool) -> None:
        self.on = False
        self._counts: Counts = Counter()
        self._calls = _ByCode()
        self._c_calls = _ByCode()
        self._instructions = _ByCode()
        if not instructions:
            self._watch = self._unwatch = lambda: None
        elif _MONITORING is not None:
            self._watch, self._unwatch = self._start_monitoring, self._stop_monitoring
        else:
            self._watch, self._unwatch = self._start_tracing, self._stop_tracing

    def start(self) -> None:
        self._counts = Counter()
        self._calls, self._c_calls, self._instructions = _ByCode(), _ByCode(), _ByCode()
        self.on = True
        self._watch()
        sys.setprofile(self._called)

    def stop(self) -> None:
        sys.setprofile(None)
        self._unwatch()
        self.on = False

    def counts(self) -> Counts:
        """Everything; functions of C by the code that called them."""
        calls = self._calls.counts("calls") + self._c_calls.counts("C-calls")
        return self._counts + calls + self._instructions.counts("instructions")

    def add(self, kind: str, who: Any, number: int = 1) -> None:
        if self.on:
            self._counts[kind, who] += number

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:
        if not self.on or frame.f_code.co_filename in NOT_COUNTED:
            return
        if event == "call":
            self._calls.add(frame.f_code)
        elif event == "c_call" and not is_of_python(frame.f_code.co_filename):
            self._c_calls.add(frame.f_code)

    # -- instructions, on Python 3.12 and newer --------------------------------------------------------------------

    def _start_monitoring(self) -> None:
        _MONITORING.use_tool_id(_MONITORING.PROFILER_ID, "counts")
        _MONITORING.register_callback(_MONITORING.PROFILER_ID, _MONITORING.events.INSTRUCTION, self._monitored)
        _MONITORING.set_events(_MONITORING.PROFILER_ID, _MONITORING.events.INSTRUCTION)

    def _stop_monitoring(self) -> None:
        _MONITORING.set_events(_MONITORING.PROFILER_ID, _MONITORING.events.NO_EVENTS)
        _MONITORING.free_tool_id(_MONITORING.PROFILER_ID)

    def _monitored(self, code: CodeType, _: int) -> Any:
        if code.co_filename in NOT_COUNTED:
            return _MONITORING.DISABLE
        if self.on:
            self._instructions.add(code)
        return None

    # -- and before, where there is but tracing --------------------------------------------------------------------

    def _start_tracing(self) -> None:
        sys.settrace(self._entered)

    def _stop_tracing(self) -> None:
        sys.settrace(None)

    def _entered(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not self.on or frame.f_code.co_filename in NOT_COUNTED:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._traced

    def _traced(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            self._instructions.add(frame.f_code)
        return self._traced


class _Socket(socket.socket):
    recorder: Recorder

    def send(self, data: Any, *flags: int) -> int:
        sent = super().send(data, *flags)
        self._sent(sent)
        return sent

    def sendmsg(self, buffers: Iterable[Any], *rest: Any) -> int:
        sent = super().sendmsg(buffers, *rest)
        self._sent(sent)
        return sent

    def recv(self, size: int, *flags: int) -> bytes:
        self.recorder.add("receives", "socket.recv")
        return super().recv(size, *flags)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        self.recorder.add("receives", "socket.recv_into")
        return super().recv_into(buffer, nbytes, flags)

    def _sent(self, size: int) -> None:
        self.recorder.add("sends", "socket.send")
        self.recorder.add("bytes-sent", "socket.send", size)


class _Steps(Coroutine[Any, Any, Any]):
    """A task's coroutine, which tells how often it gives way, and where."""

    def __init__(self, coroutine: Any, recorder: Recorder) -> None:
        self._coroutine = coroutine
        self._recorder = recorder

    def send(self, value: Any) -> Any:
        return self._gave_way(self._coroutine.send(value))

    def throw(self, *error: Any) -> Any:
        return self._gave_way(self._coroutine.throw(*error))

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Any:
        return self._coroutine.__await__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)

    def _gave_way(self, awaited: Any) -> Any:
        if self._recorder.on:
            inner = outer = self._coroutine
            while inner is not None and hasattr(inner, "__qualname__"):
                outer = inner
                inner = getattr(inner, "cr_await", None) or getattr(inner, "gi_yieldfrom", None)
            self._recorder.add("suspensions", outer.__qualname__)
        return awaited


@dataclass
class Behaviour:
    tokens: int = len(TOKENS)
    gap: float = 0.0
    """Seconds between two tokens; 0: all in one write."""
    held: bool = False
    """Nothing after the first token."""

    def writes(self) -> list[tuple[float, bytes]]:
        """What a stream is: after how many seconds what is written."""
        pieces = [STREAM_PIECES[number % len(TOKENS)] for number in range(self.tokens)]
        if self.held:
            return [(0.0, STREAM_HEAD + pieces[0])]
        end = STREAM_PIECES[len(TOKENS) :]
        if not self.gap:
            return [(0.0, b"".join((STREAM_HEAD, *pieces, *end)))]
        return [(0.0, STREAM_HEAD), *((self.gap * number, each) for number, each in enumerate((*pieces, *end), 1))]


class Outside(selectors.DefaultSelector):
    """The rest of the world: time, and the other ends of the sockets."""

    LATENCIES = (0.010, 0.011, 0.0125, 0.0145)
    """Seconds to the first byte of an answer, one after the other."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder
        self.now = 0  # nanoseconds, since sums of seconds would not be exact
        self.behaviour = Behaviour()
        self._arrivals = selectors.DefaultSelector()
        self._received: dict[socket.socket, bytes] = {}
        self._due: list[tuple[int, int, socket.socket, bytes]] = []
        self._written = 0
        self._requests = 0

    def connect(self) -> socket.socket:
        """The client's end of a connection. What is sent to a socket pair is there at once, unlike with TCP."""
        near, far = socket.socketpair()
        far.setblocking(False)
        self._arrivals.register(far, selectors.EVENT_READ)
        self._received[far] = b""
        return near

    def begin(self) -> None:
        """Answer the next batch just as the last."""
        self._requests = 0

    def skip(self, seconds: float) -> None:
        """Let time pass in which nothing happens."""
        self.now += _nanoseconds(seconds)

    def close(self) -> None:
        for far in self._received:
            far.close()
        self._arrivals.close()
        super().close()

    def select(self, timeout: float | None = None) -> Any:
        on, self._recorder.on = self._recorder.on, False
        try:
            return self._next(timeout)
        finally:
            self._recorder.on = on

    def _next(self, timeout: float | None) -> Any:
        until = _NEVER if timeout is None else self.now + _nanoseconds(max(timeout, 0))
        while True:
            self._serve()
            ready = super().select(0)
            if ready or self.now >= until:
                return sorted(ready, key=lambda event: event[0].fd)
            self.now = min(until, self._due[0][0]) if self._due else until
            if self.now == _NEVER:
                raise RuntimeError("the client waits for what will never come")

    def _serve(self) -> None:
        for key, _ in sorted(self._arrivals.select(0), key=lambda event: event[0].fd):
            self._receive(key.fileobj)
        while self._due and self._due[0][0] <= self.now:
            _, _, far, data = heapq.heappop(self._due)
            if far in self._received and far.send(data) != len(data):
                raise RuntimeError("the client reads too little for an answer to fit in")

    def _receive(self, far: Any) -> None:
        data = far.recv(1 << 20)
        if not data:
            self._arrivals.unregister(far)
            del self._received[far]
            far.close()
            return
        head, found, body = (self._received[far] + data).partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        if not found or length is None or len(body) < int(length[1]):
            self._received[far] = head + found + body
            return
        self._received[far] = b""
        streamed = re.search(rb'"stream": *true', body)
        latency = self.LATENCIES[self._requests % len(self.LATENCIES)]
        self._requests += 1
        for after, data in self.behaviour.writes() if streamed else [(0.0, ANSWER)]:
            self._written += 1
            heapq.heappush(self._due, (self.now + _nanoseconds(latency + after), self._written, far, data))


_NEVER = 1 << 62


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


class Loop(asyncio.SelectorEventLoop):
    def __init__(self, recorder: Recorder) -> None:
        self.outside = Outside(recorder)
        super().__init__(self.outside)
        self._clock_resolution = 1e-9
        self._recorder = recorder
        self.set_debug(False)
        self.set_task_factory(self._task)

    def time(self) -> float:
        return self.outside.now / 1e9

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        near = _Socket(fileno=self.outside.connect().detach())
        near.recorder = self._recorder
        return await super().create_connection(protocol_factory, sock=near)

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        self._recorder.add("handles", _name(callback))
        return super().call_soon(callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        self._recorder.add("timers", _name(callback))
        return super().call_at(when, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        self._recorder.add("futures", sys._getframe(1).f_code)
        return super().create_future()

    @staticmethod
    def _task(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        loop._recorder.add("tasks", coroutine.__qualname__)
        return asyncio.Task(_Steps(coroutine, loop._recorder), loop=loop, **options)


def _name(callback: Any) -> str:
    return getattr(callback, "__qualname__", None) or type(callback).__qualname__
