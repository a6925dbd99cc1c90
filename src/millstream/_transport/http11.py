"""HTTP/1.1 without any I/O: a request becomes bytes, bytes become a response.

`ResponseParser` takes bytes as they come (`receive_data`, `receive_eof`) and tells what it has (`head_complete`,
`complete`, `take`). It raises `ProtocolError` for what is no legal HTTP or over a bound, and `ReadError` where the
bytes end too early; after that it is of no more use. Work is O(bytes), however they are cut.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from millstream._errors import ProtocolError, ReadError, excerpt
from millstream._transport._seam import Request

__all__ = ["MAX_BODY_BYTES", "MAX_HEADER_BYTES", "ResponseParser", "encode_request", "parse_keep_alive"]

MAX_HEADER_BYTES: Final = 64 * 1024
"""All header lines together; Node takes 16 KiB, nginx 32, Chrome 256."""
MAX_HEADERS: Final = 128
"""Header lines; Apache takes 100. The router of Hugging Face sends about 40."""
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
"""Of a body that is read whole, decoded."""
PIECE_BYTES: Final = 256 * 1024
"""The longest piece that `take` gives, and the most that asyncio reads at once."""

_MAX_INFORMATIONAL = 16  # 1xx answers before the real one; a proxy may send 102 now and then
_FREE_INFLATION = 1024 * 1024  # decoded bytes before the ratio counts: tiny bodies of zeros are no attack
_MAX_RATIO = 100  # text and JSON compress about 5:1, at the very most 30:1
_INFLATE_STEP = 64 * 1024

_WATCHED = frozenset({b"content-encoding", b"content-length", b"transfer-encoding", b"keep-alive"})
_NO_CODING = frozenset({b"", b"identity"})
_CODINGS_UNKNOWN_TO_US = frozenset({b"br", b"zstd", b"compress", b"x-compress", b"dcb", b"dcz"})
_BODILESS_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "DELETE"})


def encode_request(request: Request) -> bytes:
    """The whole request as one piece of bytes, so that it goes out in one write."""
    body = request.body
    if not body and request.route.method in _BODILESS_METHODS:
        return request.route.head + b"\r\n"
    return b"%bContent-Length: %d\r\n\r\n%b" % (request.route.head, len(body), body)


def parse_keep_alive(value: bytes) -> tuple[float | None, int | None]:
    """`timeout` in seconds and `max` (requests left) of a ``Keep-Alive`` header; None for what is absent or bad."""
    timeout: float | None = None
    left: int | None = None
    for part in value.lower().split(b","):
        name, _, figure = part.partition(b"=")
        figure = figure.strip(b' \t"')
        if not figure.isdigit() or len(figure) > 9:
            continue
        if name.strip() == b"timeout":
            timeout = float(figure)
        elif name.strip() == b"max":
            left = int(figure)
    return timeout, left


class _Stop(Exception):  # noqa: N818 - no error: ends the C parser's run from inside a callback
    pass


class ResponseParser:
    """The responses of one connection, one after the other: `start`, then bytes, then `complete`."""

    __slots__ = (
        "_bounded",
        "_decoder",
        "_fed_without_progress",
        "_head_only",
        "_informational",
        "_is_1_1",
        "_lines",
        "_max_body",
        "_max_header",
        "_parser",
        "_pieces",
        "_raw",
        "_refusal",
        "_size",
        "_until_close",
        "_watched",
        "buffered",
        "complete",
        "excess",
        "head_complete",
        "headers",
        "http_version",
        "keep_alive",
        "reason",
        "started",
        "status",
    )

    def __init__(self, max_header_bytes: int = MAX_HEADER_BYTES, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._max_header = max_header_bytes
        self._max_body = max_body_bytes
        self._parser: Any = HttpResponseParser(self)
        self.complete = False
        self.start()

    def start(self, *, head_only: bool = False, bounded: bool = True) -> None:
        """Begin with the next response.

        Args:
            head_only: the answer to a HEAD request: it has no body whatever its headers say.
            bounded: whether `max_body_bytes` holds for the sum of the body, as it does for one that is read whole.
        """
        self.headers: list[tuple[bytes, bytes]] = []
        self.status = 0
        self.reason = b""
        self.http_version = b"1.1"
        self.started = False
        """Whether any byte of this response has come."""
        self.head_complete = False
        self.complete = False
        self.keep_alive = False
        self.excess = False
        """Whether bytes came that belong to no response."""
        self.buffered = 0
        """Decoded bytes that `take` has not given yet."""
        self._pieces: list[bytes] = []
        self._raw: list[bytes] = []
        self._decoder: _Inflater | None = None
        self._size = 0
        self._lines: list[tuple[bytes, bytes]] = []
        self._is_1_1 = True
        self._fed_without_progress = 0
        self._informational = 0
        self._until_close = False
        self._watched: dict[bytes, bytes] = {}
        self._refusal: ProtocolError | None = None
        self._head_only = head_only
        self._bounded = bounded

    def header(self, name: bytes) -> bytes:
        """One of the headers that matter to the connection; empty where it is absent."""
        return self._watched.get(name, b"")

    def receive_data(self, data: bytes) -> None:
        """Take the next bytes from the connection.

        Raises:
            ProtocolError: they are no legal HTTP, or over a bound.
        """
        over = self.complete
        if over:
            self.excess = True
            return
        if not self.started:
            self.started = True
            self._is_1_1 = data.startswith(b"HTTP/1.1 ")
        size = self._size
        self._fed_without_progress += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            if not self.complete:
                raise self._refused(error, data) from error
            # Bytes after the end. The parser's state is that of a response nobody asked for: never used again.
            self.excess = not (self._head_only and data.endswith(b"\r\n\r\n"))
        if size != self._size:
            self._fed_without_progress = 0
        elif self._fed_without_progress > self._max_header and not self.complete:
            # A head, a trailer, or the framing of chunks: the C parser keeps as much of them as comes.
            raise self._error(f"over {self._max_header} bytes of headers or framing without an end")
        if self._raw or (self._decoder is not None and self.complete):
            self._inflate()
        if self._bounded and self._size > self._max_body:
            raise self._error(f"the body is over {self._max_body} bytes")

    def receive_eof(self) -> None:
        """Tell that the connection has ended. It completes a body that has no other end.

        Raises:
            ReadError: the response is not complete.
            ProtocolError: its compressed body is not complete.
        """
        if self.complete:
            return
        if not self.head_complete or not self._until_close:
            where = "in the body" if self.head_complete else "in the head" if self.started else "before"
            raise ReadError(f"the server closed the connection {where} of the answer", started=self.started)
        self.complete = True
        if self._decoder is not None:
            self._inflate()

    def take(self, limit: int | None = None) -> bytes:
        """The decoded body that has come since the last call, at most `limit` bytes; empty where nothing has."""
        pieces = self._pieces
        if not pieces:
            return b""
        if limit is not None and self.buffered > limit:
            whole = b"".join(pieces)
            self._pieces = [whole[limit:]]
            self.buffered -= limit
            return whole[:limit]
        self.buffered = 0
        if len(pieces) == 1:
            return pieces.pop()
        self._pieces = []
        return b"".join(pieces)

    # -- called by the C parser ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.complete:
            raise _Stop

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = status = self._parser.get_status_code()
        if status < 200:
            return
        self.head_complete = True
        if not self._is_1_1:
            self.http_version = self._parser.get_http_version().encode()
        lines, self._lines = self._lines, []  # what follows are trailers: nothing that we use may come so late
        headers = self.headers = [(name.lower(), value.rstrip()) for name, value in lines]
        watched = self._watched
        for name, value in headers:
            if name in _WATCHED:
                earlier = watched.get(name)
                watched[name] = value if earlier is None else earlier + b", " + value
        if len(headers) > MAX_HEADERS or self._fed_without_progress > self._max_header:
            self._check_head_size()
        self._fed_without_progress = 0
        if self._head_only:
            self._end()
            self._parser = HttpResponseParser(self)  # the old one waits for the body that was announced
            raise _Stop
        if status not in {204, 304}:
            self._prepare_body(watched)

    def _check_head_size(self) -> None:
        """The bytes that came may be the body's too: count exactly."""
        size = sum(len(name) + len(value) + 4 for name, value in self.headers)
        if len(self.headers) > MAX_HEADERS or size > self._max_header:
            self._refuse(f"over {MAX_HEADERS} lines or {self._max_header} bytes of headers")

    def _prepare_body(self, watched: dict[bytes, bytes]) -> None:
        if b"transfer-encoding" in watched:
            self._check_transfer(watched[b"transfer-encoding"])
        elif b"content-length" not in watched:
            self._until_close = True
        elif self._bounded and int(watched[b"content-length"]) > self._max_body:
            self._refuse(
                f"a body of {int(watched[b'content-length'])} bytes is announced; {self._max_body} is the most"
            )
        if b"content-encoding" in watched:
            self._set_decoder(watched[b"content-encoding"])

    def on_body(self, data: bytes) -> None:
        if self._decoder is not None:
            self._raw.append(data)
            self._size += 1  # progress; what counts is added when it is decoded
            return
        self._pieces.append(data)
        size = len(data)
        self._size += size
        self.buffered += size

    def on_message_complete(self) -> None:
        if self.status < 200:
            self._informational += 1
            if self.status == 101 or self._informational > _MAX_INFORMATIONAL:
                self._refuse(f"status {self.status} where an answer was due")
            self._lines = []
            self.reason = b""
            return
        self._end()

    # -- ours ------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        self.complete = True
        self.keep_alive = self._parser.should_keep_alive()

    def _check_transfer(self, coding: bytes) -> None:
        coding = coding.strip().lower()
        if coding not in {b"chunked", b"identity"}:
            self._refuse(f"transfer encoding {excerpt(coding, 40)!r} was not asked for")
        self._until_close = coding == b"identity"

    def _set_decoder(self, value: bytes) -> None:
        # "chunked" has been seen as a content encoding (Cerebras through the router), as other nonsense: no coding.
        codings = [c for c in (c.strip().lower() for c in value.split(b",")) if c not in _NO_CODING]
        if any(coding in _CODINGS_UNKNOWN_TO_US for coding in codings):
            self._refuse(f"content encoding {excerpt(value, 40)!r} was not asked for")
        known = [coding for coding in codings if coding in {b"gzip", b"x-gzip", b"deflate"}]
        if len(known) > 1:
            self._refuse("the body is compressed more than once")
        if known:
            self._decoder = _Inflater(gzip=known[0] != b"deflate")

    def _inflate(self) -> None:
        decoder = self._decoder
        assert decoder is not None
        raw, self._raw = b"".join(self._raw), []
        try:
            pieces = decoder.decode(raw, self._max_body if self._bounded else None)
        except zlib.error as error:
            raise self._error("the body is not what its content encoding says") from error
        for piece in pieces:
            self._pieces.append(piece)
            self.buffered += len(piece)
        if decoder.too_good:
            raise self._error(f"the body inflates over {_MAX_RATIO} times, or over the bound of {self._max_body} bytes")
        if self.complete and not decoder.finished:
            raise self._error("the compressed body has no end")

    def _refuse(self, message: str) -> None:
        self._refusal = self._error(message)
        raise _Stop

    def _refused(self, error: Exception, data: bytes) -> ProtocolError:
        if self._refusal is not None:
            return self._refusal
        if isinstance(error, HttpParserUpgrade):
            return self._error("the server changed the protocol, which was not asked for")
        return self._error(f"the answer is no HTTP: {error}", data)

    def _error(self, message: str, data: bytes = b"") -> ProtocolError:
        body = b"".join(self._pieces) if self.head_complete else data
        return ProtocolError(message, status_code=self.status or None, body=excerpt(body[:2048]))


class _Inflater:
    """gzip (of several members) or deflate (with and without zlib's header), in steps and with a bound on the ratio."""

    __slots__ = ("_given", "_gzip", "_inflate", "_start", "_taken", "too_good")

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._inflate = zlib.decompressobj(31) if gzip else None
        self._start = b""
        self._taken = 0
        self._given = 0
        self.too_good = False
        """Whether so much came out of so little that it can only be an attack; nothing more is decoded."""

    @property
    def finished(self) -> bool:
        return self._taken == 0 or (self._inflate is not None and self._inflate.eof)

    def decode(self, data: bytes, bound: int | None) -> list[bytes]:
        pieces: list[bytes] = []
        self._taken += len(data)
        inflate = self._inflate
        if inflate is None:
            data = self._start = self._start + data
            if len(data) < 2:
                return pieces
            # RFC 9110 means zlib's format by "deflate"; servers that send the raw one have always been about.
            wrapped = data[0] & 15 == 8 and int.from_bytes(data[:2], "big") % 31 == 0
            inflate = self._inflate = zlib.decompressobj(15 if wrapped else -15)
        more = False
        while (data or more) and not self.too_good:
            if inflate.eof:
                if not self._gzip or not data.strip(b"\0"):
                    break  # padding after the end is harmless
                inflate = self._inflate = zlib.decompressobj(31)
            piece = inflate.decompress(data, _INFLATE_STEP)
            data = inflate.unconsumed_tail or inflate.unused_data
            more = len(piece) == _INFLATE_STEP  # all of the input may be taken while output still waits inside
            if piece:
                pieces.append(piece)
                self._given += len(piece)
                beyond = self._given > _FREE_INFLATION and self._given > _MAX_RATIO * self._taken
                self.too_good = beyond or (bound is not None and self._given > bound)
        return pieces
