"""``millstream generate``: what it prints, what it sends, what it says when something is wrong."""

from __future__ import annotations

import json
import re

import pytest

from millstream import RetryEvent
from millstream.cli._terminal import RetryNotices
from millstream.testing import FakeEndpoint, Fault

from ..support.servers import unused_port

# -- what is printed ----------------------------------------------------------------------------------------------------


def test_one_prompt(generate, endpoint):
    endpoint.reply = "It is the light."
    assert generate("Why is the sky blue?") == (0, "It is the light.\n", "")
    assert endpoint.requests[0].body["stream"] is True


@pytest.mark.parametrize(("reply", "printed"), [("a\n", "a\n"), ("a\n\n", "a\n\n"), ("", ""), ("\n a", "\n a\n")])
def test_the_text_is_printed_as_it_is_and_ends_with_its_line(generate, endpoint, reply, printed):
    endpoint.reply = reply
    assert generate("x").out == printed


def test_several_prompts_are_printed_in_their_order(generate, endpoint):
    endpoint.reply = lambda prompt: f"to {prompt.strip()}"
    endpoint.fail(Fault.slow(0.05))  # the first one is the last to be answered
    assert generate("one", "two", "three\n  lines") == (
        0,
        "[1] one\nto one\n\n[2] two\nto two\n\n[3] three lines\nto three\n  lines\n",
        "",
    )


def test_several_prompts_run_side_by_side(generate, endpoint):
    endpoint.fail(Fault.slow(0.05, times=3))
    assert generate("a", "b", "c").code == 0
    assert endpoint.connections == 3  # each request has its own while it runs
    assert generate("a", "b", "c", "--max-concurrency", "1").code == 0
    assert endpoint.connections == 4


def test_a_long_prompt_is_shortened_as_title(generate, endpoint):
    endpoint.reply = "x"
    out = generate("y" * 200, "z").out
    assert out.splitlines()[0] == f"[1] {'y' * 76}..."


def test_emoji(generate, endpoint):
    endpoint.reply = "blåbær 😀 光"
    assert generate("höhe 😀").out == "blåbær 😀 光\n"
    assert endpoint.requests[0].body["messages"][0]["content"] == "höhe 😀"


def test_json(generate, endpoint):
    endpoint.reply = lambda prompt: f"é {prompt.strip()}"
    endpoint.fail(Fault.slow(0.05))
    done = generate("--json", "a", "b")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["index"] for line in lines] == [1, 0]  # as they complete
    assert [line["result"]["generations"][0][0]["text"] for line in lines] == ["é b", "é a"]
    assert lines[0]["result"]["usage"] == {"inputTokens": 1, "outputTokens": 3}
    assert (done.code, done.err) == (0, "")


def test_json_of_errors(generate, endpoint):
    endpoint.fail(Fault.status(400, body={"error": "too blue"}))
    done = generate("--json", "a")
    line = json.loads(done.out)
    assert line == {
        "index": 0,
        "error": {"type": "BadRequestError", "message": line["error"]["message"]},
    }
    assert "too blue" in line["error"]["message"]
    assert done.code == 1


# -- what is sent -------------------------------------------------------------------------------------------------------


def test_options_reach_the_server(generate, endpoint):
    endpoint.models = ["mill"]
    sampling = ("--temperature", "0.5", "--top-p", "0.9", "--seed", "7", "--stop", "END", "--stop", "stop")
    assert generate("--model", "mill", "--max-tokens", "3", *sampling, "--system", "Be brief.", "x").code == 0
    (request,) = endpoint.requests
    assert request.path == "/v1/chat/completions"
    sent = {name: request.body[name] for name in ("model", "max_tokens", "temperature", "top_p", "seed", "stop")}
    assert sent == {
        "model": "mill", "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["END", "stop"],
    }  # fmt: skip
    assert [message["content"] for message in request.body["messages"]] == ["Be brief.", "x"]


@pytest.mark.parametrize(
    ("api", "path"),
    [("chat", "/v1/chat/completions"), ("completions", "/v1/completions"), ("text-generation", "/")],
)
def test_the_dialect(generate, endpoint, api, path):
    assert generate("--api", api, "x").code == 0
    assert [request.path for request in endpoint.requests] == [path]


def test_stop(generate, endpoint):
    endpoint.reply = "one two three"
    assert generate("--stop", "two", "x").out == "one \n"


def test_the_endpoint_of_the_environment(millstream, endpoint, monkeypatch):
    endpoint.reply = "here"
    monkeypatch.setenv("MILLSTREAM_ENDPOINT_URL", endpoint.url)
    assert millstream("generate", "x").out == "here\n"


def test_standard_input(generate, endpoint):
    endpoint.reply = "x"
    assert generate("-", stdin="from a\nfile é\n".encode()).code == 0
    assert endpoint.requests[0].body["messages"][0]["content"] == "from a\nfile é"
    assert generate("-", "b", stdin=b"a\n").out == "[1] a\nx\n\n[2] b\nx\n"


def test_an_empty_prompt_is_a_prompt(generate, endpoint):
    endpoint.reply = "x"
    assert generate("") == (0, "x\n", "")
    assert endpoint.requests[0].body["messages"][0]["content"] == ""


def test_a_prompt_that_looks_like_an_option(generate, endpoint):
    assert generate("--", "--help").code == 0
    assert endpoint.requests[0].body["messages"][0]["content"] == "--help"


# -- keys ---------------------------------------------------------------------------------------------------------------


def test_a_key_by_its_variable(generate, endpoint, monkeypatch):
    endpoint.api_key, endpoint.reply = "secret-1", "in"
    monkeypatch.setenv("MY_KEY", "secret-1")
    assert generate("--api-key-env", "MY_KEY", "x").out == "in\n"


def test_a_key_from_the_environment_goes_to_hugging_face_only(generate, endpoint, monkeypatch):
    endpoint.api_key = "secret-1"
    monkeypatch.setenv("HF_TOKEN", "secret-1")
    code, out, err = generate("x")
    assert (code, out) == (1, "")
    assert "401" in err
    assert "--api-key-env" in err
    assert "secret-1" not in err
    assert err.count("\n") == 1
    assert "authorization" not in endpoint.requests[0].headers


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_without_a_key(generate, monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("hf_secret", value)
    done = generate("--api-key-env", "hf_secret", "x")
    assert done.code == 2
    assert "not set, or empty" in done.err
    assert "hf_secret" not in done.err  # it may be the key itself


def test_hugging_face_needs_a_key(millstream):
    code, out, err = millstream("generate", "--model", "mill/stream", "x")
    assert (code, out) == (2, "")
    assert err.startswith("millstream: router.huggingface.co needs a key: give --api-key-env, or set HF_TOKEN")
    assert err.count("\n") == 1


# -- what goes wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'PROMPT...'"),
        (["--tempreature", "1", "x"], "--tempreature"),
        (["--temperature", "-1", "x"], "'--temperature': -1.0 is not in the range"),
        (["--temperature", "nan", "x"], "temperature must be a finite number"),
        (["--top-p", "0", "x"], "'--top-p'"),
        (["--max-tokens", "0", "x"], "'--max-tokens'"),
        (["--max-tokens", "many", "x"], "'many' is not a valid integer"),
        (["--max-concurrency", "0", "x"], "'--max-concurrency'"),
        (["--max-retries", "-1", "x"], "'--max-retries'"),
        (["--timeout", "0", "x"], "'--timeout'"),
        (["--stop", "", "x"], "a stop text may not be empty"),
        (["--api", "grpc", "x"], "'grpc' is not one of 'auto', 'chat'"),
        (["--model", "a b", "x"], "'a b' can't be a model's name"),
        (["--endpoint", "localhost:8000", "x"], "starts with http:// or https://"),
        (["--endpoint", "http://user:pass@host", "x"], "give the key by --api-key-env"),
        (["--endpoint", "http://host/v1/completions", "--api", "chat", "x"], "so --api 'chat' can't be right"),
        (["-", "-"], "'-' is given more than once"),
        (["\udcff"], "writable as UTF-8"),
    ],
)
def test_wrong_usage(generate, endpoint, arguments, message):
    code, out, err = generate(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert endpoint.requests == []


@pytest.mark.parametrize(("stdin", "message"), [(b"", "no prompt"), (b" \n", "no prompt"), (b"\xff", "no utf-8 text")])
def test_nothing_to_read_from_standard_input(generate, endpoint, stdin, message):
    done = generate("-", stdin=stdin)
    assert done.code == 2
    assert message in done.err
    assert endpoint.requests == []


def test_nobody_listens(millstream):
    url = f"http://127.0.0.1:{unused_port()}"
    code, out, err = millstream("generate", "--endpoint", url, "--max-retries", "0", "x")
    assert (code, out) == (1, "")
    assert err.startswith(f"millstream: no connection to {url}: ")
    assert err.count("\n") == 1


def test_waiting_for_a_retry_is_told(generate, endpoint):
    endpoint.reply = "at last"
    endpoint.fail(Fault.disconnect())
    done = generate("x")
    assert (done.code, done.out) == (0, "at last\n")
    assert re.fullmatch(r"millstream: attempt 1 failed, next in 0\.\d s: ReadError: .*\n", done.err)


def test_notices_of_retries_come_once_a_second(capsys):
    notices = RetryNotices()
    for number in range(1, 31):
        notices.on_retry(
            RetryEvent(run_id="1", time=100 + number / 10, attempt=number, delay=2, reason="ReadError: it\nbroke \x1b")
        )
    assert capsys.readouterr() == (
        "",
        "".join(f"millstream: attempt {n} failed, next in 2.0 s: ReadError: it broke \\x1b\n" for n in (1, 11, 21)),
    )


def test_one_of_several_prompts_fails(generate, endpoint):
    endpoint.reply = "fine"
    endpoint.faults = lambda number: Fault.status(400, body={"error": "too blue"}) if number == 2 else None
    code, out, err = generate("a", "b", "c", "--max-concurrency", "1")
    assert code == 1
    assert out == "[1] a\nfine\n\n[2] b\n\n[3] c\nfine\n"
    assert err.startswith("millstream: prompt 2: too blue (status 400")
    assert err.count("\n") == 1


@pytest.mark.parametrize("prompts", [["a"], ["a", "b"]])
def test_what_came_before_an_error_is_printed(generate, endpoint, prompts):
    endpoint.reply = "one two three"
    endpoint.fail(Fault.error_event(2))
    code, out, err = generate(*prompts, "--max-concurrency", "1")
    assert code == 1
    assert "one two\n" in out
    assert "millstream: " in err


def test_a_model_that_is_not_served(generate, endpoint):
    endpoint.models = ["mill"]
    code, _, err = generate("--model", "wheel", "x")
    assert code == 1
    assert "wheel does not exist" in err


def test_a_server_without_any_known_route(millstream):
    with FakeEndpoint(apis=[]) as endpoint:
        code, _, err = millstream("generate", "--endpoint", endpoint.url, "x")
    assert code == 1
    assert "check --endpoint, or name the dialect by --api" in err


def test_debug_shows_where(generate, endpoint):
    endpoint.fail(Fault.status(400, body={"error": "too blue"}))
    code, _, err = generate("--debug", "x")
    assert code == 1
    assert err.startswith("Traceback (most recent call last):")
    assert "BadRequestError: too blue" in err


# -- harmless text ------------------------------------------------------------------------------------------------------

NASTY = "a\x1b[2Jb\x07\r\x9bc\td"


def test_a_pipe_gets_the_text_as_it_came(generate, endpoint):
    endpoint.reply = NASTY
    assert generate("x").out == f"{NASTY}\n"


def test_a_servers_error_can_not_drive_the_terminal(generate, endpoint):
    endpoint.fail(Fault.status(400, body={"error": NASTY}))
    err = generate("x").err
    assert "a\\x1b[2Jb\\x07" in err
    assert err.strip().isprintable()
