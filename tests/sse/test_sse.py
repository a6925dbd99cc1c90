"""Event streams: the vectors, every way to cut them, the bounds, and a slow decoder that is plainly right."""

from __future__ import annotations

import base64
import json
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from millstream._errors import ProtocolError
from millstream._sse import MAX_EVENT_BYTES, ServerSentEvent, SSEDecoder, is_event_stream

DATA = Path(__file__).parent.parent / "data"
SSE = json.loads((DATA / "sse.json").read_bytes())
STREAMS = sorted((DATA / "llamacpp").glob("*.sse"))


def vector_input(vector) -> bytes:
    return base64.b64decode(vector["input_base64"]) if "input_base64" in vector else vector["input"].encode()


def decode(pieces, max_event_bytes: int = MAX_EVENT_BYTES):
    """As the standard: what is unfinished at the end is thrown away."""
    decoder = SSEDecoder(max_event_bytes)
    events = [event for piece in pieces for event in decoder.receive_data(piece)]
    return events, decoder


def told(pieces):
    events, decoder = decode(pieces)
    return events, decoder.last_event_id, decoder.retry


def bytewise(data: bytes):
    return [data[i : i + 1] for i in range(len(data))]


def two_way_cuts(data: bytes):
    return ([data[:i], data[i:]] for i in range(len(data) + 1))


@pytest.mark.parametrize("vector", SSE["vectors"], ids=lambda vector: vector["name"])
def test_vectors_whole_byte_by_byte_and_at_every_cut(vector):
    data = vector_input(vector)
    given_cut = [base64.b64decode(piece) for piece in vector.get("chunks_base64", [])] or [data]
    assert b"".join(given_cut) == data
    expected = [(event["event"], event["data"], event["id"]) for event in vector["events"]]

    for cut in ([data], given_cut, bytewise(data), *two_way_cuts(data)):
        events, decoder = decode(cut)
        assert [(event.event, event.text, event.id) for event in events] == expected, cut
        assert decoder.retry == vector.get("retry"), cut
        assert decoder.last_event_id == vector.get("last_event_id", ""), cut


@pytest.mark.parametrize("case", SSE["content_type_cases"], ids=lambda case: case["name"])
def test_content_types(case):
    assert is_event_stream(case["content_type"]) == case["expect"].startswith("accept")


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (None, False),
        ("", False),
        ("text/event-stream", True),
        (" TEXT/EVENT-STREAM ; charset=utf-8", True),
        ("text/event-stream, text/event-stream", True),
        ("text/event-streams", False),
    ],
)
def test_more_content_types(content_type, expected):
    assert is_event_stream(content_type) is expected


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_recorded_streams_are_the_same_however_cut(path):
    data = path.read_bytes()
    whole = told([data])
    assert whole[0]
    assert sum(len(event.data) for event in whole[0]) > len(data) / 2
    assert told(bytewise(data)) == whole
    for step in (7, 100, 1000):
        assert told(data[i : i + step] for i in range(0, len(data), step)) == whole


# A second decoder, slow and plain: decode all, normalise the line ends, walk the lines.


def reference(data: bytes):
    text = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events, kind, lines, id_buffer, last_id, retry = [], "", [], "", "", None
    for line in text.split(b"\n")[:-1]:
        name, colon, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            last_id = id_buffer
            if lines:
                events.append(ServerSentEvent(kind or "message", b"\n".join(lines), last_id))
            kind, lines = "", []
        elif name == b"data":
            lines.append(value)
        elif name == b"event":
            kind = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            id_buffer = value.decode("utf-8", "replace")
        elif name == b"retry" and value and set(value) <= set(b"0123456789"):
            retry = int(value)
        del colon
    return events, last_id, retry


FRAGMENTS = st.sampled_from(
    [
        b"data: ", b"data:", b"data", b"event: ", b"event:e", b"id: ", b"id", b"retry: 5", b"retry:x", b": ping", b":",
        b"\n", b"\n\n", b"\r\n", b"\r", b"\r\n\r\n", b" ", b"\0", b"7", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xff",
        b'data: {"a":1}\n\n', b'data: {"b":"\xc2\x85"}\n\n', b"data: [DONE]\n\n", b"other: x\n", b"data : y\n",
    ]
)  # fmt: skip
STREAM = st.lists(FRAGMENTS | st.binary(max_size=5), max_size=25).map(b"".join)


@st.composite
def cut_streams(draw):
    data = draw(STREAM)
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(cut_streams())
@example([b"data: a\n\ndata: b\nevent: c\n\ndata: d\n\n"])
@example([b"data: a\n\n\ndata: b\n\n", b"\ndata: c\n\n"])
@example([b"data: a\n", b"\ndata: b\n\n"])
def test_random_streams_agree_with_the_reference_however_cut(pieces):
    expected = reference(b"".join(pieces))
    assert told(pieces) == expected
    assert told(bytewise(b"".join(pieces))) == expected


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cut_streams(), st.integers(0, 30))
def test_the_bound_does_not_depend_on_the_cut(pieces, bound):
    def outcome(cut):
        decoder, events = SSEDecoder(bound), []
        try:
            for piece in cut:
                events += decoder.receive_data(piece)
            events.append(decoder.flush())
        except ProtocolError as error:
            return events, str(error)
        return events, None

    data = b"".join(pieces)
    assert outcome(pieces) == outcome([data]) == outcome(bytewise(data))


# What is unfinished at the end


@pytest.mark.parametrize(
    ("data", "left"),
    [
        (b"", None),
        (b"data: x\n\n", None),
        (b"data: [DONE]\n", b"[DONE]"),
        (b"data: [DONE]", b"[DONE]"),
        (b'data: {"a":1}\r', b'{"a":1}'),
        (b'data: {"a":', b'{"a":'),
        (b'data: {"a":1}\nda', b'{"a":1}'),
        (b'data: {"a":\ndata: 1}', b'{"a":\n1}'),
        (b"data", b""),
        (b"dat", None),
        (b": comment", None),
        (b"event: error\n", None),
        (b"id: 7\n", None),
    ],
)
def test_flush_gives_what_is_unfinished_and_then_nothing(data, left):
    for cut in ([data], bytewise(data)):
        _, decoder = decode(cut)
        event = decoder.flush()
        assert (event and event.data) == left
        assert decoder.flush() is None


def test_an_unfinished_event_does_not_change_the_last_event_id():
    events, decoder = decode([b"id: 1\ndata: x\n\nid: 2\ndata: y\n"])
    assert [event.id for event in events] == ["1"]
    assert decoder.flush() == ServerSentEvent("message", b"y", "2")
    assert decoder.last_event_id == "1"


def test_an_absurd_reconnection_time_is_ignored():
    _, decoder = decode([b"retry: 5\nretry: " + b"9" * 5000 + b"\n\n"])
    assert decoder.retry == 5


# Bounds


def endless(case: str, size: int) -> bytes:
    return {
        "limit/infinite-line": b"x" * size,
        "limit/infinite-data-lines": b"data: x\n" * (size // 8),
        "field": b"id: 1\n" * (size // 6),
    }[case]


@pytest.mark.parametrize("case", ["limit/infinite-line", "limit/infinite-data-lines", "field"])
@pytest.mark.parametrize("piece_bytes", [1000, 64 * 1024])
def test_an_event_without_end_is_an_error_and_takes_no_more_than_twice_the_bound(case, piece_bytes):
    bound = 256 * 1024
    piece = endless(case, piece_bytes)
    decoder = SSEDecoder(bound)
    assert decoder.receive_data(b"data: 1\n\ndata: ")
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="longer than 262144 bytes"):
            for _ in range(2 * bound // len(piece)):
                assert decoder.receive_data(piece) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * bound
    with pytest.raises(ProtocolError):
        decoder.receive_data(b"data: 2\n\n")
    with pytest.raises(ProtocolError):
        decoder.flush()


def test_events_before_the_one_that_is_too_long_are_given_out_first():
    decoder = SSEDecoder(20)
    assert [event.data for event in decoder.receive_data(b"data: 1\n\ndata: 2\n\ndata: " + b"x" * 20)] == [b"1", b"2"]
    with pytest.raises(ProtocolError):
        decoder.receive_data(b"x")


@pytest.mark.parametrize("cut", [lambda data: [data], bytewise], ids=["whole", "bytewise"])
def test_an_event_of_exactly_the_bound_passes(cut):
    events, _ = decode(cut(b"data: " + b"x" * 14 + b"\n\n"), max_event_bytes=20)
    assert len(events) == 1
    with pytest.raises(ProtocolError):
        decode(cut(b"data: " + b"x" * 15 + b"\n\n"), max_event_bytes=20)


def test_many_small_events_in_one_piece_are_not_one_long_event():
    events, _ = decode([b"data: 1\n\n" * 100], max_event_bytes=20)
    assert len(events) == 100


def test_comments_are_not_kept_and_do_not_count():
    decoder = SSEDecoder(1000)
    tracemalloc.start()
    try:
        assert decoder.receive_data(b"data: 1\n:") == []
        for _ in range(1000):
            assert decoder.receive_data(b"y" * 1000) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000
    assert [event.data for event in decoder.receive_data(b"\n: ping\n\n")] == [b"1"]


def test_time_is_linear_in_a_long_event():
    data = b"data: " + b"x" * (8 * 1024 * 1024) + b"\n\n"
    decoder = SSEDecoder(9 * 1024 * 1024)
    started = time.process_time()
    events = [event for i in range(0, len(data), 64) for event in decoder.receive_data(data[i : i + 64])]
    spent = time.process_time() - started
    assert [len(event.data) for event in events] == [8 * 1024 * 1024]
    assert spent < 15  # 0.2 s when linear; copying what has arrived with every piece would move 500 GB


def test_one_byte_pieces_of_a_long_event():
    size = 256 * 1024
    events, _ = decode(bytewise(b"data: " + b"x" * size + b"\n\n"))
    assert [len(event.data) for event in events] == [size]
