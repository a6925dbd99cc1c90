"""The parser: every response whole, byte by byte and with bytes after its end, and every way of being none."""

from __future__ import annotations

import gzip
import itertools
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream._errors import ProtocolError, ReadError
from millstream._transport import Origin, Request, Route
from millstream._transport.http11 import ResponseParser, encode_request, parse_keep_alive

from ..support.servers import answer, chunked

BIG = b"0123456789abcdef" * 200

COMPLETE = {
    "length": (answer(b"abc"), 200, b"abc"),
    "empty": (answer(b""), 200, b""),
    "no reason": (b"HTTP/1.1 200\r\ncontent-length: 1\r\n\r\na", 200, b"a"),
    "chunked": (chunked(b"abc", b"defg", BIG), 200, b"abcdefg" + BIG),
    "chunk extensions and trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nx-length: 7\r\nx: y\r\n\r\n",
        200,
        b"abc",
    ),
    "continue": (b"HTTP/1.1 100 Continue\r\nx: y\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + answer(b"abc"), 200, b"abc"),
    "no content": (b"HTTP/1.1 204 No Content\r\ncontent-encoding: gzip\r\n\r\n", 204, b""),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 10\r\n\r\n", 304, b""),
    "error": (answer(b"no", status=b"429 Too Many Requests"), 429, b"no"),
    "gzip": (answer(gzip.compress(BIG), b"content-encoding: gzip"), 200, BIG),
    "gzip, two members": (answer(gzip.compress(b"ab") + gzip.compress(b"cd"), b"content-encoding: gzip"), 200, b"abcd"),
    "gzip, nothing": (answer(b"", b"content-encoding: gzip"), 200, b""),
    "gzip, chunked": (chunked(gzip.compress(BIG)[:20], gzip.compress(BIG)[20:], headers=[b"content-encoding: GZip"]), 200, BIG),
    "deflate": (answer(zlib.compress(BIG), b"content-encoding: deflate"), 200, BIG),
    "raw deflate": (answer(zlib.compress(BIG)[2:-4], b"content-encoding: deflate"), 200, BIG),
    "bogus encodings": (answer(b"abc", b"content-encoding: chunked, identity, utf-8"), 200, b"abc"),
    "empty lines before": (b"\r\n\r\n" + answer(b"abc"), 200, b"abc"),
}  # fmt: skip


def parse(pieces, *, eof=False, **options):
    parser = ResponseParser()
    parser.start(**options)
    body = b""
    for piece in pieces:
        parser.receive_data(piece)
        body += parser.take()
    if eof:
        parser.receive_eof()
        body += parser.take()
    return parser, body


def bytewise(data):
    return [data[i : i + 1] for i in range(len(data))]


@pytest.mark.parametrize(("raw", "status", "body"), COMPLETE.values(), ids=COMPLETE.keys())
def test_a_response_whole_bytewise_and_with_trailing_data(raw, status, body):
    for pieces in ([raw], bytewise(raw)):
        parser, got = parse(pieces)
        assert (parser.status, got) == (status, body)
        assert parser.complete
        assert parser.keep_alive
        assert not parser.excess
    for more in (b"HTTP/1.1 200 OK\r\n", b"H", b"garbage\r\n\r\n", answer(b"second")):
        for pieces in ([raw + more], [raw, more]):
            parser, got = parse(pieces)
            assert (parser.status, got) == (status, body)
            assert parser.complete
            assert parser.excess


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(COMPLETE)), st.lists(st.integers(0, 4000), max_size=12))
def test_how_the_bytes_are_cut_makes_no_difference(name, cuts):
    raw, status, body = COMPLETE[name]
    edges = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    parser, got = parse([raw[a:b] for a, b in itertools.pairwise(edges) if a < b])
    assert (parser.status, got, parser.complete) == (status, body, True)
    again = ResponseParser()
    again.receive_data(raw)
    assert again.headers == parser.headers


@pytest.mark.parametrize("name", ["length", "chunked", "gzip", "chunk extensions and trailers", "continue"])
def test_the_end_of_the_connection_at_every_byte_is_an_error(name):
    raw = COMPLETE[name][0]
    for cut in range(len(raw)):
        with pytest.raises(ReadError) as caught:
            parse([raw[:cut]] if cut else [], eof=True)
        assert caught.value.started == (cut > 0)


def test_a_body_may_end_with_the_connection():
    for raw in (b"HTTP/1.1 200 OK\r\n\r\nabc", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: identity\r\n\r\nabc"):
        for pieces in ([raw], bytewise(raw)):
            parser, body = parse(pieces)
            assert body == b"abc"
            assert not parser.complete
            parser.receive_eof()
            assert parser.complete
            assert not parser.keep_alive


def test_a_head_request_has_no_body():
    for raw in (
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
    ):
        parser, body = parse([raw], head_only=True)
        assert parser.complete
        assert body == b""
        assert parser.keep_alive
        parser.start()
        parser.receive_data(answer(b"next"))
        assert parser.take() == b"next"
    assert parse([raw + b"poison"], head_only=True)[0].excess


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        (answer(b"", b"connection: close"), False),
        (answer(b"", b"Connection: foo, Close"), False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive\r\n\r\n", True),
        (answer(b"", b"connection: keep-alive"), True),
    ],
)
def test_whether_the_connection_may_be_used_again(raw, kept):
    assert parse([raw])[0].keep_alive is kept


ILLEGAL = {
    "no http": b"SSH-2.0-OpenSSH_9.6\r\n",
    "tls alert": b"\x15\x03\x01\x00\x02\x02\x50",
    "html": b"<html>nginx</html>",
    "http/2": b"HTTP/2 200\r\ncontent-length: 0\r\n\r\n",
    "status": b"HTTP/1.1 2000 OK\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nab",
    "no number": b"HTTP/1.1 200 OK\r\ncontent-length: one\r\n\r\nab",
    "huge length": b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\nab",
    "over the bound": b"HTTP/1.1 200 OK\r\ncontent-length: 67108865\r\n\r\n",
    "length and chunked": b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "chunk size": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n",
    "chunk end": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n",
    "transfer coding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "header name": b"HTTP/1.1 200 OK\r\nfoo bar: x\r\n\r\n",
    "nul": b"HTTP/1.1 200 OK\r\nfoo: a\x00b\r\n\r\n",
    "switching": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\nPRI",
    "endless informational": b"HTTP/1.1 102 Processing\r\n\r\n" * 40,
    "brotli": answer(b"abc", b"content-encoding: br"),
    "twice compressed": answer(b"abc", b"content-encoding: gzip, gzip"),
    "no gzip": answer(b"abcdefghijklmnop", b"content-encoding: gzip"),
    "gzip cut": answer(gzip.compress(BIG)[:-9], b"content-encoding: gzip"),
    "many headers": answer(b"", *[b"x-%d: y" % i for i in range(200)]),
    "long headers": answer(b"", *[b"x-%d: " % i + b"y" * 1000 for i in range(70)]),
    "one long header": answer(b"", b"x: " + b"y" * 70_000),
}  # fmt: skip


@pytest.mark.parametrize("raw", ILLEGAL.values(), ids=ILLEGAL.keys())
def test_what_is_no_legal_response(raw):
    for pieces in (
        ([raw], bytewise(raw)) if len(raw) < 3000 else ([raw], [raw[i : i + 500] for i in range(0, len(raw), 500)])
    ):
        with pytest.raises(ProtocolError) as caught:
            parse(pieces)
        assert len(str(caught.value)) < 300
        assert len(caught.value.body) < 600


def test_the_error_shows_what_came_instead():
    with pytest.raises(ProtocolError) as caught:
        parse([b"<html>nginx</html>"])
    assert "nginx" in caught.value.body


def test_framing_without_an_end_is_bounded():
    start = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"
    for endless in (b"0\r\nx: ", b"1;"):
        parser = ResponseParser()
        parser.start(bounded=False)
        parser.receive_data(start + endless)
        with pytest.raises(ProtocolError):
            for _ in range(100):
                parser.receive_data(b"y" * 1000)


def test_a_whole_body_is_bounded_and_a_stream_is_not():
    piece = b"x" * 1000
    endless = [b"HTTP/1.1 200 OK\r\n\r\n"] + [piece] * 50
    parser = ResponseParser(max_body_bytes=10_000)
    with pytest.raises(ProtocolError, match="10000"):
        for data in endless:
            parser.receive_data(data)
    parser = ResponseParser(max_body_bytes=10_000)
    parser.start(bounded=False)
    assert sum(len(parser.take()) for data in endless if parser.receive_data(data) is None) == 50_000


@pytest.mark.parametrize("stream", [False, True])
def test_a_bomb_is_refused_early(stream):
    bomb = gzip.compress(b"\0" * (16 * 1024 * 1024), compresslevel=6)
    parser = ResponseParser()
    parser.start(bounded=not stream)
    with pytest.raises(ProtocolError, match="inflates"):
        parser.receive_data(answer(bomb, b"content-encoding: gzip"))
    assert parser.buffered < 6 * 1024 * 1024


def test_a_decoded_body_counts_decoded():
    body = bytes(range(256)) * 100
    parser = ResponseParser(max_body_bytes=20_000)
    with pytest.raises(ProtocolError):
        parser.receive_data(answer(gzip.compress(body), b"content-encoding: gzip"))


def test_take_gives_no_more_than_asked_for():
    parser = ResponseParser()
    parser.receive_data(chunked(b"abc", b"def", b"g"))
    assert [parser.take(5), parser.take(5), parser.take(5)] == [b"abcde", b"fg", b""]


def test_trailers_are_no_headers():
    parser, _ = parse([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx-late: 1\r\n\r\n"])
    assert parser.headers == [(b"transfer-encoding", b"chunked")]


def test_header_lines_keep_their_order_and_lose_their_case_and_padding():
    parser, _ = parse([b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nX:  b c \t\r\nset-cookie: d\r\ncontent-length: 0\r\n\r\n"])
    assert parser.headers[:3] == [(b"set-cookie", b"a"), (b"x", b"b c"), (b"set-cookie", b"d")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"timeout=5, max=100", (5.0, 100)),
        (b"Timeout=5", (5.0, None)),
        (b"max=0", (None, 0)),
        (b'timeout="7"', (7.0, None)),
        (b"", (None, None)),
        (b"timeout=soon, max=-1", (None, None)),
        (b"timeout=99999999999999", (None, None)),
    ],
)
def test_keep_alive(value, expected):
    assert parse_keep_alive(value) == expected


def test_a_request_is_one_piece():
    origin = Origin("http", "example.test", 8080)
    post = Route("POST", origin, "/x", [("Content-Type", "application/json")])
    head = b"POST /x HTTP/1.1\r\nHost: example.test:8080\r\nContent-Type: application/json\r\n"
    assert encode_request(Request(post, b"{}")) == head + b"Content-Length: 2\r\n\r\n{}"
    assert encode_request(Request(post)) == head + b"Content-Length: 0\r\n\r\n"
    assert encode_request(Request(Route("GET", origin, "/x"))) == b"GET /x HTTP/1.1\r\nHost: example.test:8080\r\n\r\n"
