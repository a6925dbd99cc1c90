"""Server-sent events: bytes in, events out, exactly as the WHATWG standard has it, and bounded.

    decoder = SSEDecoder()
    for event in decoder.receive_data(piece):    # as often as bytes arrive, cut anywhere
        ...
    last = decoder.flush()                       # once, where the bytes end

Only CR, LF and CRLF end a line. U+2028, U+2029 and U+0085 are text (servers leave them unescaped inside JSON), which is
why lines are split before anything is decoded.
"""

from __future__ import annotations

import msgspec

from millstream._errors import ProtocolError

__all__ = ["MAX_EVENT_BYTES", "SSEDecoder", "ServerSentEvent", "is_event_stream", "starts_like_events"]

MAX_EVENT_BYTES = 1024 * 1024

_BOM = b"\xef\xbb\xbf"
_COLON = 0x3A
_LF = 0x0A
_SHORT_LINE = 4096
_MAX_RETRY_DIGITS = 100  # int() is quadratic in the digits, and refuses some thousands of them


class ServerSentEvent(msgspec.Struct, frozen=True, gc=False):
    """One event, as it was dispatched."""

    event: str
    """Its type, ``message`` where the server named none."""
    data: bytes
    """Its data lines, joined with line feeds; for a model's server a JSON document or ``[DONE]``."""
    id: str
    """The last event id of the stream at this event, empty without one."""

    @property
    def text(self) -> str:
        """The data as text; bytes that are not UTF-8 become U+FFFD."""
        return self.data.decode("utf-8", "replace")


def is_event_stream(content_type: str | None) -> bool:
    """Whether a ``Content-Type`` says event stream, whatever its parameters and case; without one it does not."""
    if content_type is None:
        return False
    return content_type.partition(";")[0].partition(",")[0].strip().lower() == "text/event-stream"


def starts_like_events(data: bytes) -> bool:
    """Whether a body looks like an event stream: it starts with a field or a comment, as no JSON does."""
    return data[:100].removeprefix(_BOM).lstrip().startswith((b"data:", b"event:", b"id:", b"retry:", b":"))


class SSEDecoder:
    """Turns the bytes of one stream into its events.

    Time is linear in the bytes however they are cut, comments are dropped as they arrive, and what is held is never
    more than one unfinished event.

    Args:
        max_event_bytes: how long one event may be, in bytes as received, comments left out.

    Attributes:
        last_event_id: the last event id that the stream has set.
        retry: the last reconnection time that it asked for, in milliseconds as sent; None where it asked for none.
    """

    __slots__ = (
        "_after_cr",
        "_at_start",
        "_data",
        "_data_lines",
        "_event",
        "_failure",
        "_id",
        "_line",
        "_size",
        "last_event_id",
        "max_event_bytes",
        "retry",
    )

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.max_event_bytes = max_event_bytes
        self.last_event_id = ""
        self.retry: int | None = None
        self._at_start: bytes | None = b""  # what may become the byte order mark; None when that is decided
        self._after_cr = False  # a line feed that comes next belongs to the line end before it
        self._line = bytearray()  # the unfinished line
        self._size = 0  # of the unfinished event's whole lines
        self._data = bytearray()  # of the unfinished event
        self._data_lines = 0
        self._event = ""
        self._id = ""
        self._failure: ProtocolError | None = None

    def receive_data(self, data: bytes) -> list[ServerSentEvent]:
        """The events that are complete with this piece of the stream.

        Raises:
            ProtocolError: an event is longer than `max_event_bytes`. The events before it have been given out by then.
        """
        if self._failure is not None:
            raise self._failure
        if self._at_start is not None:
            data = self._without_bom(data)
        if self._after_cr or data.find(b"\r") >= 0:  # `in` takes twice as long for bytes
            data = self._with_line_feeds(data)
        events: list[ServerSentEvent] = []
        if not self._line and not self._size and data.startswith(b"data: "):
            # Nearly every piece of nearly every server is a run of one-line events, most often of one.
            first = data.find(b"\n")
            if first == len(data) - 2 <= self.max_event_bytes and data[-1] == _LF:
                return [ServerSentEvent("message", data[6:-2], self._id)]
            end = data.rfind(b"\n\n")
            if 0 < end <= self.max_event_bytes:
                payloads = data[6:end].split(b"\n\ndata: ")
                if data.count(b"\n", 0, end) == 2 * len(payloads) - 2:
                    last_id = self._id
                    events = [ServerSentEvent("message", payload, last_id) for payload in payloads]
                    data = data[end + 2 :]
        if data:
            self._receive_lines(data, events)
        return events

    @property
    def between_events(self) -> bool:
        """Whether nothing of an unfinished event is held: the next byte is the first of another."""
        return not (self._line or self._size or self._after_cr or self._at_start)

    def flush(self) -> ServerSentEvent | None:
        """Ends the stream: the event that it left unfinished, None where there is none with data.

        The standard throws such an event away. Some servers and proxies lose the last line end, though: whoever knows
        what the data must look like may take it if it is complete as it stands (``[DONE]``, a whole JSON document).
        Anything else is the sign of a stream that was cut.

        Raises:
            ProtocolError: an event is longer than `max_event_bytes`.
        """
        if self._failure is not None:
            raise self._failure
        if self._line:
            line, self._line = self._line, bytearray()
            self._receive_line(line)
        event = self._unfinished()
        self._reset()
        return event

    def _without_bom(self, data: bytes) -> bytes:
        assert self._at_start is not None
        data = self._at_start + data
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._at_start = data
            return b""
        self._at_start = None
        return data.removeprefix(_BOM)

    def _with_line_feeds(self, data: bytes) -> bytes:
        """Each line end becomes one line feed, at once: an event that ends with CR must not wait for a possible LF."""
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if data.endswith(b"\r"):
            self._after_cr = True
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _receive_lines(self, data: bytes, events: list[ServerSentEvent]) -> None:
        try:
            start, end = 0, data.find(b"\n")
            if end >= 0 and self._line:
                line, self._line = self._line, bytearray()
                self._check_size(len(line) + end)
                line += data[:end]
                self._receive_line(line)
                start, end = end + 1, data.find(b"\n", end + 1)
            while end >= 0:
                if end > start:
                    self._receive_line(data[start:end])
                else:
                    self._dispatch(events)
                start, end = end + 1, data.find(b"\n", end + 1)
            self._hold(data, start)
        except ProtocolError as failure:
            self._failure = failure
            self._reset()
            if not events:
                raise

    def _hold(self, data: bytes, start: int) -> None:
        """Keep the beginning of a line; of a comment only that it is one."""
        line = self._line
        if start == len(data) or (line and line[0] == _COLON):
            return
        if not line and data[start] == _COLON:
            line.append(_COLON)
            return
        self._check_size(len(line) + len(data) - start)
        line += data[start:] if start else data

    def _check_size(self, line_bytes: int) -> None:
        if self._size + line_bytes > self.max_event_bytes:
            raise ProtocolError(f"an event of the stream is longer than {self.max_event_bytes} bytes")

    def _receive_line(self, line: bytes | bytearray) -> None:
        """A line that is complete and not empty."""
        if line[0] == _COLON:
            return
        self._check_size(len(line))
        self._size += len(line) + 1
        colon = line.find(b":")
        end = colon if colon >= 0 else len(line)
        start = end + 2 if line.startswith(b" ", end + 1) else end + 1
        if end == 4 and line.startswith(b"data"):
            if self._data_lines:
                self._data.append(_LF)
            self._data_lines += 1
            if len(line) <= _SHORT_LINE:
                self._data += line[start:]
            else:
                with memoryview(line) as view:  # not one more copy of what may be as long as the bound
                    self._data += view[start:]
        elif end <= 5:
            self._receive_field(bytes(line[:end]), bytes(line[start:]))

    def _receive_field(self, name: bytes, value: bytes) -> None:
        if name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id":
            if b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
            self.retry = int(value)  # bytes.isdigit knew ASCII digits only

    def _dispatch(self, events: list[ServerSentEvent]) -> None:
        """A blank line. An event without a data line is none, but its id counts."""
        self.last_event_id = self._id
        event = self._unfinished()
        if event is not None:
            events.append(event)
        if self._size:
            self._reset()

    def _unfinished(self) -> ServerSentEvent | None:
        return ServerSentEvent(self._event or "message", bytes(self._data), self._id) if self._data_lines else None

    def _reset(self) -> None:
        self._line = bytearray()
        self._size = 0
        self._data = bytearray()
        self._data_lines = 0
        self._event = ""
