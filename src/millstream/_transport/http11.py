"""HTTP/1.1 without any I/O: a request becomes bytes, bytes become a response.

`ResponseParser` takes bytes as they come (`receive_data`, `receive_eof`) and tells what it has (`head_complete`,
`complete`, `take`). It raises `ProtocolError` for what is no legal HTTP or over a bound, and `ReadError` where the
bytes end too early; after that it is of no more use. Work is O(bytes), however they are cut.
"""

from __future__ import annotations

import re
import zlib
from typing import Any, Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from millstream._errors import ProtocolError, ReadError, excerpt
from millstream._transport._head import Head
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

_WATCHED = re.compile(
    rb"\n([CcTtKk](?:ontent-(?:length|encoding)|ransfer-encoding|eep-alive)):[ \t]*([^\r]*)", re.IGNORECASE
)
"""The header lines that matter to the connection."""
_SURELY_FEW_HEADERS = 4 * MAX_HEADERS  # bytes of so many of the shortest: not worth counting
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
        "_head_only",
        "_head_pieces",
        "_informational",
        "_max_body",
        "_max_header",
        "_parser",
        "_pieces",
        "_refusal",
        "_size",
        "_until_close",
        "_watched",
        "_without_progress",
        "buffered",
        "complete",
        "excess",
        "head",
        "keep_alive",
        "on_body",
        "status",
    )

    def __init__(self, max_header_bytes: int = MAX_HEADER_BYTES, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._max_header = max_header_bytes
        self._max_body = max_body_bytes
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append
        self._parser: Any = HttpResponseParser(self)
        self.start()

    def start(self, *, head_only: bool = False, bounded: bool = True) -> None:
        """Begin with the next response.

        Args:
            head_only: the answer to a HEAD request: it has no body whatever its headers say.
            bounded: whether `max_body_bytes` holds for the sum of the body, as it does for one that is read whole.
        """
        self.status = 0
        self.head: Head | None = None
        """None until it is complete."""
        self.complete = False
        self.keep_alive = False
        self.excess = False
        """Whether bytes came that belong to no response."""
        self.buffered = 0
        """Decoded bytes that `take` has not given yet."""
        self._pieces.clear()
        self._head_pieces: list[bytes] = []
        self._decoder: _Inflater | None = None
        self._size = 0  # of a body that is bounded
        self._without_progress = 0  # bytes since the last piece of a body
        self._informational = 0
        self._until_close = False
        self._watched: dict[bytes, bytes] = {}
        self._refusal: ProtocolError | None = None
        self._head_only = head_only
        self._bounded = bounded

    @property
    def started(self) -> bool:
        """Whether any byte of this response has come."""
        return self.head is not None or bool(self._head_pieces) or self._informational > 0

    @property
    def head_complete(self) -> bool:
        return self.head is not None

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The header lines of a head that is complete."""
        return [] if self.head is None else list(self.head.headers)

    def header(self, name: bytes) -> bytes:
        """One of the headers that matter to the connection; empty where it is absent."""
        return self._watched.get(name, b"")

    def receive_data(self, data: bytes) -> None:
        """Take the next bytes from the connection.

        Raises:
            ProtocolError: they are no legal HTTP, or over a bound.
        """
        if self.complete:
            self.excess = True
            return
        in_head = self.head is None
        if in_head:
            self._head_pieces.append(data)
        pieces = self._pieces
        before = len(pieces)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._end_early(error, data, before)
        new = len(pieces) - before
        if not new or self._decoder is not None:
            self._receive_other(data, before, in_head=in_head)
            return
        self._without_progress = 0
        size = len(pieces[-1]) if new == 1 else sum(map(len, pieces[before:]))
        self.buffered += size
        if self._bounded:
            self._check_body_size(size)

    def _end_early(self, error: Exception, data: bytes, before: int) -> None:
        """The C parser has stopped: because of what came, or of what came after the end."""
        if not self.complete:
            if self._decoder is not None:
                del self._pieces[before:]
            self.buffered = sum(map(len, self._pieces))  # what came before is given out
            raise self._refused(error, data) from error
        # Its state is that of a response nobody asked for: never used again.
        self.excess = not (self._head_only and data.endswith(b"\r\n\r\n"))

    def _receive_other(self, data: bytes, before: int, *, in_head: bool) -> None:
        """What came is no body as it stands: compressed pieces (those from `before` on), or none."""
        pieces = self._pieces
        raw = pieces[before:]
        if self._decoder is not None and (raw or self.complete):
            del pieces[before:]
            self._inflate(b"".join(raw))
        if raw:
            self._without_progress = 0
        elif not (self.complete or (in_head and self.head is not None)):
            # A head, a trailer, or the framing of chunks: the C parser keeps as much of them as comes.
            self._without_progress += len(data)
            if self._without_progress > self._max_header:
                raise self._error(f"over {self._max_header} bytes of headers or framing without an end")

    def receive_eof(self) -> None:
        """Tell that the connection has ended. It completes a body that has no other end.

        Raises:
            ReadError: the response is not complete.
            ProtocolError: its compressed body is not complete.
        """
        if self.complete:
            return
        if self.head is None or not self._until_close:
            where = "in the body" if self.head is not None else "in the head" if self.started else "before"
            raise ReadError(f"the server closed the connection {where} of the answer", started=self.started)
        self.complete = True
        if self._decoder is not None:
            self._inflate(b"")

    def take(self, limit: int | None = None) -> bytes:
        """The decoded body that has come since the last call, at most `limit` bytes; empty where nothing has."""
        pieces = self._pieces
        if len(pieces) == 1:
            whole = pieces.pop()
        elif not pieces:
            return b""
        else:
            whole = b"".join(pieces)
            pieces.clear()  # not a new list: `on_body` is this one's
        self.buffered = 0
        if limit is not None and len(whole) > limit:
            pieces.append(whole[limit:])
            self.buffered = len(whole) - limit
            whole = whole[:limit]
        return whole

    # -- called by the C parser, as is `on_body` -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.complete:
            raise _Stop

    def on_headers_complete(self) -> None:
        self.status = status = self._parser.get_status_code()
        received = b"".join(self._head_pieces).lstrip(b"\r\n")
        size = received.find(b"\r\n\r\n") + 2  # the C parser takes no other line end
        if status < 200:
            self._head_pieces = [received[size + 2 :]]
            return
        raw = received[:size]
        self._head_pieces.clear()
        self.head = Head(raw)
        if size > self._max_header or (size > _SURELY_FEW_HEADERS and raw.count(b"\n") > MAX_HEADERS + 1):
            self._refuse(f"over {MAX_HEADERS} lines or {self._max_header} bytes of headers")
        watched = self._watched
        for line in _WATCHED.findall(raw):
            name, value = line[0].lower(), line[1].rstrip()
            watched[name] = watched[name] + b", " + value if name in watched else value
        if self._head_only:
            self._end()
            self._parser = HttpResponseParser(self)  # the old one waits for the body that was announced
            raise _Stop
        if status not in {204, 304}:
            self._prepare_body(watched)

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

    def on_message_complete(self) -> None:
        if self.status < 200:
            self._informational += 1
            if self.status == 101 or self._informational > _MAX_INFORMATIONAL:
                self._refuse(f"status {self.status} where an answer was due")
            return
        self._end()

    # -- ours ------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        self.complete = True
        self.keep_alive = self._parser.should_keep_alive()

    def _check_body_size(self, size: int) -> None:
        self._size += size
        if self._size > self._max_body:
            raise self._error(f"the body is over {self._max_body} bytes")

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

    def _inflate(self, raw: bytes) -> None:
        decoder = self._decoder
        assert decoder is not None
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
        body = b"".join(self._pieces) if self.head is not None else data
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
