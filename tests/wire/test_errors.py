"""Every error that servers send, in every shape, becomes the right one of ours."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream._errors import (
    AuthenticationError,
    BadRequestError,
    ContextLengthError,
    GenerationError,
    ModelLoadingError,
    ModelNotFoundError,
    NotFoundError,
    OverloadedError,
    PaymentRequiredError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    StatusError,
)
from millstream._sse import SSEDecoder
from millstream._wire.errors import ENDPOINT_PAUSED, ROUTE_NOT_FOUND, decode_error, error_in_body, without_keys

DATA = Path(__file__).parent.parent / "data"
HOST = "endpoint.example"
NOW = 1_795_361_653.0


def read(name: str):
    return json.loads((DATA / name).read_bytes())


def headers(lines):
    joined = {
        name.lower().encode(): ", ".join(value) if isinstance(value, list) else value for name, value in lines.items()
    }
    return joined.get


def error_of(status: int, body, lines=None) -> StatusError:
    raw = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else msgspec.json.encode(body)
    return decode_error(status, headers(lines or {}), raw, host=HOST, now=NOW)


# Recordings

RECORDED = {
    "hfhub-009": (AuthenticationError, "Invalid username or password."),
    "hfhub-027": (BadRequestError, "The following `model_kwargs` are not used by the model"),
    "hfhub-041": (ContextLengthError, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 1024."),
    "hfhub-047": (BadRequestError, "Failed to deserialize the JSON body into the target type: messages"),
    "hfhub-050": (BadRequestError, "The following `model_kwargs` are not used by the model"),
    "hfhub-075": (BadRequestError, "Error in `inputs.context`: field required"),
    "hfhub-076": (RateLimitError, "Rate limit reached. Please log in or use a HF access token"),
    "hfhub-078": (BadRequestError, "Failed to deserialize the JSON body"),
    "hfhub-095": (BadRequestError, "Failed to deserialize the JSON body into the target type: inputs"),
    "hfhub-099": (BadRequestError, "The following `model_kwargs` are not used by the model"),
    "hfhub-101": (BadRequestError, "The following `model_kwargs` are not used by the model"),
    "hfjs-000": (ModelNotFoundError, "Model this-model-does-not-exist-123 does not exist"),
    "hfjs-019": (BadRequestError, "Template error: template not found"),
    "hfjs-020": (BadRequestError, "Failed to deserialize the JSON body"),
    "hfjs-036": (BadRequestError, "Failed to deserialize the JSON body"),
    "hfjs-037": (BadRequestError, "Failed to deserialize the JSON body"),
    "hfjs-052": (BadRequestError, "you must provide a model parameter"),
    "hfjs-060": (ModelNotFoundError, "Not Found: Model not found"),
    "hfjs-075": (BadRequestError, "body.messages: Field required"),
    "hfjs-078": (BadRequestError, "Only Qwen/Qwen2.5-72B-Instruct"),
}
ANSWERS = [entry for name in ("hf_hub_cassettes.json", "hf_js_tapes.json") for entry in read(name)]
REFUSED = [entry for entry in ANSWERS if entry["response"]["status"] != 200]


@pytest.mark.parametrize("entry", REFUSED, ids=lambda entry: entry["id"])
def test_recorded_errors(entry):
    response = entry["response"]
    error = error_of(response["status"], response["body"], response["headers"])
    expected, beginning = RECORDED[entry["id"]]
    assert type(error) is expected
    assert str(error).startswith(beginning)
    assert error.status_code == response["status"]
    assert error.provider == HOST
    assert error.body.startswith(response["body"][:40])
    assert error.retry_after is None
    given_ids = {name.lower(): value for name, value in response["headers"].items()}
    assert error.request_id == (given_ids.get("x-request-id") or given_ids.get("x-amz-cf-id"))


def documents(entry):
    """What a 200 answer consists of, as JSON values: one, or one an event."""
    body = entry["response"]["body"]
    if body.startswith("data:"):
        events = SSEDecoder().receive_data(body.encode())
        return [json.loads(event.data) for event in events if event.data.strip() not in {b"[DONE]", b""}]
    return [json.loads(body)]


@pytest.mark.parametrize("entry", [entry for entry in ANSWERS if entry not in REFUSED], ids=lambda entry: entry["id"])
def test_recorded_answers_are_no_errors_unless_they_are(entry):
    expected = {"hfjs-058": ContextLengthError, "hfjs-088": BadRequestError}.get(entry["id"])
    errors = [error_in_body(document) for document in documents(entry)]
    if expected is None:
        assert errors
        assert set(errors) == {None}
    else:
        assert [type(error) for error in errors] == [expected]
        assert errors[0].status_code == 422
        assert errors[0].kind == "validation"


def test_recorded_server_snapshots_are_no_errors():
    for name, snapshot in read("tgi_snapshots.json").items():
        assert error_in_body(snapshot) is None, name


LLAMACPP = {
    "err_404_path": (NotFoundError, ROUTE_NOT_FOUND, "File Not Found"),
    "err_tgi_generate_404": (NotFoundError, ROUTE_NOT_FOUND, "File Not Found"),
    "err_bad_grammar": (BadRequestError, "invalid_request_error", "Failed to initialize samplers"),
    "err_bad_json": (BadRequestError, "invalid_request_error", "[json.exception.parse_error.101]"),
    "err_bad_json_schema": (BadRequestError, "invalid_request_error", "Unable to generate parser"),
    "err_completions_context_overflow": (ContextLengthError, "exceed_context_size_error", "request (6001 tokens)"),
    "err_context_overflow_stream": (ContextLengthError, "exceed_context_size_error", "request (6031 tokens)"),
    "err_empty_body": (BadRequestError, "invalid_request_error", "[json.exception.parse_error.101]"),
    "err_max_tokens_wrong_type": (BadRequestError, "invalid_request_error", "Field 'max_tokens'"),
    "err_messages_wrong_type": (BadRequestError, "invalid_request_error", "Expected 'messages' to be an array"),
    "err_missing_prompt": (BadRequestError, "invalid_request_error", "[json.exception.out_of_range.403]"),
    "err_stream_n_probs_negative": (BadRequestError, "invalid_request_error", "Field 'n'"),
}


@pytest.mark.parametrize("path", sorted((DATA / "llamacpp").glob("err_*.http")), ids=lambda path: path.stem)
def test_captured_llamacpp_errors(path):
    head, _, body = path.read_bytes().partition(b"\r\n\r\n")
    error = error_of(int(head.split()[1]), body)
    expected, kind, beginning = LLAMACPP[path.stem]
    assert (type(error), error.kind) == (expected, kind)
    assert str(error).startswith(beginning)


REPORTED = [
    PaymentRequiredError,
    PermissionDeniedError,
    ModelNotFoundError,
    ModelNotFoundError,
    ModelNotFoundError,
    AuthenticationError,
    OverloadedError,
    ServerError,
    AuthenticationError,
    OverloadedError,
    ModelNotFoundError,
]


@pytest.mark.parametrize(
    ("entry", "expected"), list(zip(read("reported_errors.json")["errors"], REPORTED, strict=True))
)
def test_reported_errors(entry, expected):
    if entry["status"] == 200:
        error = error_in_body(entry["body"])
        assert error.status_code == 502
    else:
        error = error_of(entry["status"], entry["body"])
        assert error.status_code == entry["status"]
    assert type(error) is expected
    told = entry["body"]["error"]
    assert (told if isinstance(told, str) else told["message"]) in str(error)


# Shapes

HTML = (
    "<!DOCTYPE HTML>\n<html><head><title>ERROR: The request\tfailed</title></head><body>model overloaded</body></html>"
)

SHAPES = [
    ({"error": {"message": "m", "type": "t", "param": None, "code": 400}}, "m", "t"),
    ({"error": {"message": "m", "type": "t", "param": None, "code": "c"}}, "m", "c"),
    ({"id": "x", "error": {"message": "m", "type": None, "param": None, "code": None}}, "m", None),
    ({"error": "m", "error_type": "validation"}, "m", "validation"),
    ({"error": "m"}, "m", None),
    ({"error": ["m", "n"]}, "m; n", None),
    ({"error": "m", "warnings": ["w"]}, "m", None),
    ({"error": "m", "estimated_time": 20.0}, "m", None),
    ({"error": "invalid_grant", "error_description": "m"}, "m", "invalid_grant"),
    ({"message": "m", "request_id": "r"}, "m", None),
    ({"object": "error", "message": "m", "type": "t", "param": None, "code": 40301}, "m", "t"),
    ({"detail": [{"type": "missing", "loc": ["body", "x", 0], "msg": "m", "input": "secret prompt"}]}, "body.x.0: m", None),
    ({"detail": "m"}, "m", None),
    ({"errors": [{"message": "m"}, {"message": "n"}]}, "m; n", None),
    ({"choices": None, "error_type": "BadRequestError", "error_message": "m"}, "m", "BadRequestError"),
    ({"type": "error", "error": {"type": "invalid_request_error", "message": "m"}}, "m", "invalid_request_error"),
    ([{"error": {"message": "m", "status": "INVALID_ARGUMENT", "code": 400}}], "m", None),
    ({"error": True, "message": "m"}, "m", None),
    ({"error": {"error": {"message": "m"}}}, "m", None),
    ("m", "m", None),
    (b"plain m", "plain m", None),
    (b'\xef\xbb\xbf{"error":"m"}', "m", None),
    (b"{not json", "{not json", None),
]  # fmt: skip


@pytest.mark.parametrize(("body", "message", "kind"), SHAPES)
def test_every_shape_of_a_body_gives_its_message_and_kind(body, message, kind):
    error = error_of(400, msgspec.json.encode(body) if isinstance(body, str) else body)
    assert type(error) is BadRequestError
    assert error.args[0] == message
    assert error.kind == kind
    assert "secret prompt" not in str(error)


IN_BODY = [shape for shape in SHAPES if not isinstance(shape[0], bytes | str)]


@pytest.mark.parametrize(("body", "message", "kind"), IN_BODY)
def test_the_same_shapes_inside_a_200_answer(body, message, kind):
    error = error_in_body(body, header=headers({"x-request-id": "r-1", "retry-after": "2"}), host=HOST)
    assert (error.args[0], error.kind) == (message, kind)
    assert (error.request_id, error.provider) == ("r-1", HOST)
    assert error.status_code >= 400
    assert error.retry_after == (20.0 if "estimated_time" in body else None)


@pytest.mark.parametrize(
    ("status", "body", "lines", "message"),
    [
        (401, b"", {}, "401 Unauthorized from endpoint.example, with an empty body"),
        (404, b" \n", {}, "404 Not Found from endpoint.example, with an empty body"),
        (
            502,
            HTML,
            {},
            "502 Bad Gateway from endpoint.example, with an HTML page titled 'ERROR: The request failed'",
        ),
        (503, b"<html><h1>503</h1>", {}, "503 Service Unavailable from endpoint.example, with an HTML page"),
        (599, b"", {}, "599 from endpoint.example, with an empty body"),
        (
            500,
            b"{}",
            {},
            "500 Internal Server Error from endpoint.example, with a body that says nothing of the reason",
        ),
        (401, b"", {"x-error-message": "Invalid token"}, "Invalid token"),
    ],
)
def test_a_body_without_words_gets_a_sentence(status, body, lines, message):
    assert error_of(status, body, lines).args[0] == message


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, {"error": {"message": "This model's maximum context length is 4096 tokens. However, you"}}, ContextLengthError),
        (400, {"error": {"message": "m", "type": "invalid_request_error", "code": "context_length_exceeded"}}, ContextLengthError),
        (422, {"error": "Input validation error: `inputs` must have less than 1023 tokens. Given: 2000"}, ContextLengthError),
        (422, {"error": "Input validation error: `top_p` must be > 0.0 and < 1.0", "error_type": "validation"}, BadRequestError),
        (413, b"Failed to buffer the request body: length limit exceeded", BadRequestError),
        (415, b"Expected request with `Content-Type: application/json`", BadRequestError),
        (405, {"error": "json_schema response format is not supported for model: x"}, BadRequestError),
        (405, b"", BadRequestError),
        (422, {"error": {"message": "response_format is not supported by model x"}}, BadRequestError),
        (401, {"error": {"message": "no", "code": "invalid_api_key"}}, AuthenticationError),
        (402, {"error": "You have depleted your monthly included credits. Purchase pre-paid credits"}, PaymentRequiredError),
        (403, {"error": "Access to model x is restricted"}, PermissionDeniedError),
        (404, {"error": {"message": "no", "param": "model"}}, ModelNotFoundError),
        (404, {"error": "The thing is not here"}, NotFoundError),
        (410, {"error": "https://api-inference.huggingface.co is no longer supported. Please use x"}, NotFoundError),
        (410, {"error": "The requested model is deprecated and no longer supported by provider p"}, ModelNotFoundError),
        (408, b"", ServerError),
        (409, b"", ServerError),
        (425, b"", ServerError),
        (424, {"error": "Request failed during generation: CUDA", "error_type": "generation"}, GenerationError),
        (429, {"error": "Model is overloaded", "error_type": "overloaded"}, OverloadedError),
        (429, {"error": {"message": "m", "type": "engine_overloaded_error"}}, OverloadedError),
        (429, b"", RateLimitError),
        (429, {"error": {"message": "m", "type": "insufficient_quota", "code": "insufficient_quota"}}, PaymentRequiredError),
        (429, {"error": {"message": "You exceeded your current quota, please check your plan"}}, PaymentRequiredError),
        (429, {"error": "No credits left"}, PaymentRequiredError),
        (429, {"error": "Your billing is not set up"}, PaymentRequiredError),
        (
            429,
            {"error": {"message": "Rate limit reached on tokens per min. Add a payment method at /account/billing.", "code": "rate_limit_exceeded"}},
            RateLimitError,
        ),
        (500, {"error": "Incomplete generation", "error_type": "incomplete_generation"}, ServerError),
        (501, b"", ServerError),
        (504, HTML, ServerError),
        (522, b"", ServerError),
        (429, {"error": {"message": "You exceeded your current quota, please check your plan and billing. Please retry in 35.8s."}}, RateLimitError),
        (429, {"error": {"message": "You exceeded your current quota. Try again after 3 minutes"}}, RateLimitError),
        (429, {"error": "You have exceeded your monthly included credits. Try again in 12 days"}, PaymentRequiredError),
        (429, {"error": "You have exceeded your monthly included credits for Inference Providers. Subscribe to PRO"}, PaymentRequiredError),
        (429, {"error": {"message": "We're experiencing high traffic right now! Please try again soon.", "type": "too_many_requests_error", "code": "queue_exceeded"}}, OverloadedError),
        (429, {"error": {"message": "Too many requests: the queue is full", "type": "rate_limit"}}, OverloadedError),
        (429, {"object": "error", "message": "Service tier capacity exceeded for this model.", "type": "service_tier_capacity_exceeded"}, OverloadedError),
        (429, {"error": {"message": "m", "code": "model_overloaded"}}, OverloadedError),
        (402, b"", PaymentRequiredError),
        (400, {"error": "Bad Request: Invalid state"}, NotFoundError),
        (400, {"error": "The endpoint is paused, ask a maintainer to restart it"}, NotFoundError),
        (503, {"error": "This endpoint is paused"}, NotFoundError),
        (400, {"error": "Invalid state of the conversation"}, BadRequestError),
        (503, {"error": "503 Service Unavailable"}, OverloadedError),
        (503, b"", OverloadedError),
        (503, b"upstream connect error or disconnect/reset before headers", OverloadedError),
        (503, {"error": {"message": "The engine is currently busy and cannot accept new requests. Please try again later.", "type": "Service Unavailable", "code": 503}}, OverloadedError),
        (503, {"error": {"code": 503, "message": "No slot is free and the queue is full", "type": "unavailable_error"}}, OverloadedError),
        (503, {"error": "Model with name gpt2 is not ready."}, ModelLoadingError),
        (503, {"error": "The model is warming up, please retry"}, ModelLoadingError),
        (503, HTML, OverloadedError),
        (503, {"error": "unhealthy", "error_type": "healthcheck"}, OverloadedError),
        (503, {"error": "Model gpt2 is currently loading", "estimated_time": 20.0}, ModelLoadingError),
        (503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, ModelLoadingError),
        (503, {"error": "later", "estimated_time": 5}, ModelLoadingError),
        (503, {"error": "later", "estimated_time": "5.5"}, ModelLoadingError),
        (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, OverloadedError),
        (530, b"", OverloadedError),
        (418, b"teapot", BadRequestError),
        (451, b"", BadRequestError),
        (0, b"", ServerError),
        (999, b"", ServerError),
        (204, b"", ServerError),
        (200, {"error": "Model is overloaded"}, OverloadedError),
    ],
)  # fmt: skip
def test_status_and_text_decide_the_class(status, body, expected):
    error = error_of(status, body)
    assert type(error) is expected
    assert str(error)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", ROUTE_NOT_FOUND),
        (HTML, ROUTE_NOT_FOUND),
        ({"detail": "Not Found"}, ROUTE_NOT_FOUND),
        ({"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}, ROUTE_NOT_FOUND),
        (b"404 page not found\n", ROUTE_NOT_FOUND),
        ({"error": {"message": "Invalid URL (POST /v1/x)", "type": "invalid_request_error"}}, ROUTE_NOT_FOUND),
        ({"error": {"message": "Adapter missing", "type": "NotFoundError"}}, "NotFoundError"),
    ],
)
def test_a_missing_route_is_told_from_something_else_that_is_missing(body, kind):
    error = error_of(404, body)
    assert type(error) is NotFoundError
    assert error.kind == kind


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"", ROUTE_NOT_FOUND), ({"detail": "Method Not Allowed"}, ROUTE_NOT_FOUND), ({"error": "not for x"}, None)],
)
def test_a_route_that_takes_no_post_is_a_missing_one(body, kind):
    error = error_of(405, body)
    assert type(error) is BadRequestError
    assert error.kind == kind


# Errors inside of 200


@pytest.mark.parametrize(
    ("message", "expected", "status"),
    [
        ("Model is overloaded", OverloadedError, 429),
        ("Input validation error: `temperature` must be strictly positive", BadRequestError, 422),
        ("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 10", ContextLengthError, 422),
        ("Request failed during generation: Server error: CUDA out of memory", GenerationError, 424),
        ("Incomplete generation", ServerError, 500),
        ("Template error: template not found", BadRequestError, 422),
        ("Something that nobody has seen", ServerError, 500),
    ],
)
def test_a_status_that_is_always_422_is_not_believed(message, expected, status):
    error = error_in_body({"error": {"message": message, "http_status_code": 422}})
    assert (type(error), error.status_code, error.args[0]) == (expected, status, message)


@pytest.mark.parametrize(
    ("value", "expected", "status"),
    [
        ({"error": "Model is overloaded", "error_type": "overloaded"}, OverloadedError, 429),
        ({"error": "x", "error_type": "generation"}, GenerationError, 424),
        ({"error": "x", "error_type": "incomplete_generation_stream"}, ServerError, 500),
        ({"error": {"message": "x", "type": "BadRequestError", "param": None, "code": 400}}, BadRequestError, 400),
        ({"error": {"message": "x", "type": "Internal Server Error", "code": 500}}, ServerError, 500),
        ({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, ModelLoadingError, 503),
        ({"choices": [], "error": {"code": 502, "message": "x"}}, ServerError, 502),
        ({"choices": [], "error": {"code": "429", "message": "x"}}, RateLimitError, 429),
        ({"choices": None, "error_type": "BadRequestError", "error_message": "x"}, BadRequestError, 400),
        ({"object": "error", "message": "x", "type": "NotFoundError", "code": 404}, NotFoundError, 404),
        ({"object": "error", "message": "x", "type": "", "code": 40301}, PermissionDeniedError, 403),
        ({"type": "error", "error": {"type": "overloaded_error"}}, OverloadedError, 529),
        ({"type": "error"}, ServerError, 500),
        ({"error": {"message": "x", "type": "insufficient_quota"}}, PaymentRequiredError, 429),
        ({"error": "Model x is currently loading", "estimated_time": 20.0}, ModelLoadingError, 503),
        ({"error": "You have depleted your monthly included credits"}, PaymentRequiredError, 402),
        ({"error": "Rate limit reached"}, RateLimitError, 429),
        ({"error": "This model's maximum context length is 5"}, ContextLengthError, 400),
        ({"error": "Model x does not exist"}, ModelNotFoundError, 404),
        ({"error": "x", "status": 503}, OverloadedError, 503),
        ({"detail": "x"}, ServerError, 500),
        ({"message": "x", "request_id": "1"}, ServerError, 500),
        ([{"generated_text": "a"}, {"error": "x"}], ServerError, 500),
    ],
)
def test_errors_inside_of_200(value, expected, status):
    error = error_in_body(value)
    assert (type(error), error.status_code) == (expected, status)
    assert error.body == msgspec.json.encode(value).decode()
    assert str(error)


def test_a_status_that_was_received_is_kept():
    assert error_in_body({"error": "Model is overloaded"}, status=500).status_code == 500


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "error",
        [],
        [1, 2],
        {},
        {"error": None},
        {"error": ""},
        {"error": {}},
        {"error": []},
        {"error": False},
        {"error": {"message": None, "code": None}},
        {"choices": [{"text": "error"}], "error": None},
        {"generated_text": "x", "detail": "x"},
        {"choices": [], "message": "x", "code": 1},
        {"type": "ping"},
        {"message": "x"},
        {"detail": []},
        {"error_type": None, "error_message": ""},
        [{"generated_text": "error"}],
    ],
)
def test_ordinary_values_are_no_errors(value):
    assert error_in_body(value) is None


# What an error carries


@pytest.mark.parametrize("status", [400, 503])
def test_a_paused_endpoint_is_said_to_be_paused(status):
    error = error_of(status, {"error": "Bad Request: Invalid state"} if status == 400 else {"error": "Endpoint paused"})
    assert error.kind == ENDPOINT_PAUSED
    assert "resume it" in str(error)


def test_facts_from_headers():
    error = error_of(
        429, {"error": "slow down"}, {"x-request-id": "r", "x-inference-provider": "groq", "retry-after": "7"}
    )
    assert (error.request_id, error.provider, error.retry_after) == ("r", "groq", 7.0)
    assert str(error) == "slow down (status 429, from groq, request r, retry after 7 s)"


@pytest.mark.parametrize(
    ("status", "estimated", "lines", "expected"),
    [
        (503, 20.0, {}, 20.0),
        (503, 20.0, {"retry-after": "3"}, 3.0),
        (503, 1e9, {}, 600.0),
        (503, -1, {}, None),
        (503, True, {}, None),
        (503, "soon", {}, None),
        (500, 20.0, {}, None),
    ],
)
def test_an_estimate_is_a_wait_only_where_nothing_else_is_told(status, estimated, lines, expected):
    assert error_of(status, {"error": "x", "estimated_time": estimated}, lines).retry_after == expected


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_names_where_it_leads(status):
    error = error_of(status, b"", {"location": "https://user:word@other.example:8443/path?key=x"})
    assert type(error) is BadRequestError
    assert error.kind == "redirect"
    assert f"redirects ({status}) to https://other.example:8443;" in str(error)
    assert "endpoint_url" in str(error)
    assert "key=x" not in str(error)
    assert "word" not in str(error)


@pytest.mark.parametrize("location", ["/elsewhere", "", "https://[broken", "//x:99999/"])
def test_a_redirect_to_nowhere_in_particular(location):
    assert "redirects (307) to another p" in str(error_of(307, b"", {"location": location}))


KEY = "hf_" + "CANARY" * 5


@pytest.mark.parametrize(
    "key", [KEY, "hf_jwt_abc.def-ghi_jkl", "sk-proj-CANARY_1234", "sk-abcd***wxyz", "Bearer CANARY", "bearer  CANARY"]
)
@pytest.mark.parametrize(
    "shape", ['{{"error":"bad key {}"}}', '{{"error":{{"message":"{}","type":"{}"}}}}', "no {} here"]
)
def test_a_key_that_the_server_quotes_is_not_repeated(key, shape):
    body = shape.format(key, key)
    error = error_of(401, body, {"x-request-id": key, "x-error-message": key})
    secret = key.split()[-1]
    for text in (str(error), repr(error), error.body, error.kind or "", error.request_id or ""):
        assert secret not in text
    assert "[key removed]" in str(error)
    in_body = error_in_body({"error": f"bad key {key}"}, header=headers({"x-request-id": key}))
    assert secret not in str(in_body) + in_body.body


def test_a_key_at_the_edge_of_the_excerpt_is_not_repeated():
    for padding in range(480, 505):
        error = error_of(400, "x" * padding + " " + KEY)
        assert "CANARY" not in str(error) + error.body


def test_words_that_only_look_a_little_like_keys_stay():
    text = "task-oriented risk-free disk-based hf_hub sk- bearer"
    assert without_keys(text) == text


def test_a_value_that_is_no_json_is_still_an_error():
    error = error_in_body({"error": "x", "other": object()})
    assert (str(error), error.body) == ("x (status 500)", "")


def test_excerpts_are_bounded_and_printable():
    error = error_of(400, b'{"error":"' + b"x" * 1_000_000 + b'\\u001b[31m"}', {"x-request-id": "\x1b[0m"})
    assert len(str(error)) < 700
    assert len(error.body) < 700
    assert len(error_of(400, "\x1b[31m" * 10_000).body) < 10_000
    assert error_of(400, "a\x1b[31m\nb").args[0] == "a\\x1b[31m\\nb"


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"error":' * 100_000, b"[" * 900 + b"]" * 900])
def test_deep_nesting_is_no_trouble(body):
    assert type(error_of(400, body)) is BadRequestError


@pytest.mark.parametrize("word", ["model ", "no credit ", "bearer ", "sk-", "hf_", "credits are ", "insufficient a "])
def test_long_texts_take_no_long_time(word):
    for status in (400, 404, 429, 503):
        assert isinstance(error_of(status, word * 50_000), StatusError)


# Anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "error", "errors", "message", "detail", "type", "code", "param", "object", "error_type", "loc", "msg",
                    "error_message", "error_description", "estimated_time", "http_status_code", "choices", "status",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.integers(-10, 1000) | st.sampled_from([200, 400, 404, 429, 503]),
    st.binary(max_size=60) | st.text(max_size=60).map(str.encode) | JSON.map(msgspec.json.encode),
    st.dictionaries(st.sampled_from(["location", "retry-after", "x-request-id", "ratelimit"]), st.text(max_size=30)),
)
def test_any_answer_gives_a_status_error(status, body, lines):
    error = error_of(status, body, lines)
    assert isinstance(error, StatusError)
    assert str(error)
    assert error.retry_after is None or 0 <= error.retry_after <= 600


@settings(max_examples=200, deadline=None, derandomize=True)
@given(JSON)
def test_any_value_is_an_error_or_not(value):
    error = error_in_body(value)
    assert error is None or (isinstance(error, StatusError) and error.status_code >= 400)
    wrapped = error_in_body({"error": "x", "detail": value})
    assert isinstance(wrapped, StatusError)
