"""What each command takes. What it does is in a module of its own."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import anyio
import click

import millstream
from millstream.cli import _generate, _serve
from millstream.cli._terminal import tell, told
from millstream.testing import FakeEndpoint, Latency

_EXIT_FAILED, _EXIT_USAGE, _EXIT_INTERRUPTED = 1, 2, 130

_ENDPOINT_HELP = (
    "URL of the server, or 'local' for the embedded model. Default: MILLSTREAM_ENDPOINT_URL, else Hugging Face."
)
_KEY_HELP = "Environment variable that holds the key for the endpoint. Default: HF_TOKEN, for Hugging Face only."

_PORT = click.IntRange(0, 65535)
_SECONDS = click.FloatRange(min=0)
_COUNT = click.IntRange(min=1)


def _key_of(context: click.Context, _option: click.Parameter, variable: str | None) -> str | None:
    """The key itself is no argument: everybody on this machine can read those."""
    if variable is None:
        return None
    key = click.Option(["--api-key"], envvar=variable).resolve_envvar_value(context)
    if key is None:  # the value is not repeated: it may be a key
        raise click.BadParameter("it is not set, or empty; give the variable's name here, not the key")
    return key


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Try it: millstream generate --endpoint local "Why is the sky blue?"',
)
@click.version_option(millstream.__version__, prog_name="millstream", message="%(prog)s %(version)s")
def commands() -> None:
    """Prompts in, text out: LLM inference on Hugging Face and OpenAI-compatible endpoints."""


@commands.command(
    short_help="Print what a model writes for one or more prompts.",
    epilog="Exit codes: 0 all went well, 1 a prompt failed, 2 wrong usage, 130 Ctrl-C.",
)
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...")
@click.option("--endpoint", "endpoint_url", metavar="URL", help=_ENDPOINT_HELP)
@click.option("--model", metavar="ID", help="Model id. May be left out where the endpoint serves one model.")
@click.option("--provider", metavar="NAME", help="Who of Hugging Face's Inference Providers is to serve.")
@click.option(
    "--api",
    type=click.Choice(["auto", "chat", "completions", "text-generation"]),
    default="auto",
    show_default=True,
    help="The dialect of the endpoint; auto finds it out.",
)
@click.option("--api-key-env", "api_key", metavar="NAME", callback=_key_of, help=_KEY_HELP)
@click.option("--system", metavar="TEXT", help="Instructions, sent as a system message.")
@click.option(
    "--max-tokens", type=_COUNT, metavar="N", default=256, show_default=True, help="Output tokens at the most."
)
@click.option("--temperature", type=click.FloatRange(min=0), metavar="X", help="0: always the likeliest token.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), metavar="X", help="Nucleus sampling; 1: off.")
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", help="For the same output each time, where the server can."
)
@click.option("--stop", metavar="TEXT", multiple=True, help="Ends the output, and is not printed; repeatable.")
@click.option(
    "--max-concurrency", type=_COUNT, metavar="N", help="Prompts in flight. Default: what the endpoint serves best."
)
@click.option(
    "--max-retries",
    type=click.IntRange(min=0),
    metavar="N",
    default=6,
    show_default=True,
    help="Of failed attempts; 0: try once.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=600,
    show_default=True,
    help="For each prompt, retries included.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON result a line, in order of completion.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def generate(prompts: Sequence[str], debug: bool, **given: Any) -> int:
    """Print what the model writes for each PROMPT, while it writes.

    Several prompts run side by side and are printed in their order. '-' is the prompt on standard input.
    """
    asked = _generate.Asked(prompts=_read(prompts), **given)
    return _run(partial(_generate.generate, asked), debug=debug)


def _read(prompts: Sequence[str]) -> list[str]:
    """Standard input for '-', before the event loop starts: Ctrl-C must end the waiting for it."""
    if prompts.count("-") > 1:
        raise click.UsageError("Standard input can be one prompt only: '-' is given more than once.")
    return [_standard_input() if prompt == "-" else prompt for prompt in prompts]


def _standard_input() -> str:
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"Standard input is no {error.encoding} text: {error.reason}.") from None
    if not text.strip():
        raise click.UsageError("There is no prompt on standard input.")
    return text.removesuffix("\n")


@commands.command(short_help="Serve the embedded model on this machine.")
@click.option("--port", type=_PORT, default=0, metavar="PORT", help="Default: any free one.")
@click.option(
    "--slots", type=_COUNT, metavar="N", default=4, show_default=True, help="Prompts that are worked on at a time."
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def local(port: int, slots: int, debug: bool) -> int:
    """Serve the embedded model (SmolLM2-135M) on this machine until Ctrl-C; that ends it with exit code 0.

    Needs the extra [local]; only this machine can reach it.
    """
    return _run(partial(_serve.local, port=port, slots=slots), debug=debug, interrupted=0)


@commands.command(short_help="Serve a simulated endpoint: made-up words, no model.")
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=_PORT, default=0, metavar="PORT", help="Default: any free one.")
@click.option("--model", "models", metavar="ID", multiple=True, help="A model to serve; repeatable. Default: any.")
@click.option(
    "--server",
    type=click.Choice(["tgi", "vllm", "llamacpp"]),
    default="tgi",
    show_default=True,
    help="Which server to be like. Only tgi has text-generation; all have chat and completions.",
)
@click.option(
    "--first-token", type=_SECONDS, metavar="SECONDS", default=0.2, show_default=True, help="To the first token."
)
@click.option(
    "--inter-token", type=_SECONDS, metavar="SECONDS", default=0.02, show_default=True, help="From token to token."
)
@click.option("--slots", type=_COUNT, metavar="N", help="Prompts that are worked on at a time. Default: no bound.")
@click.option(
    "--max-queue", type=click.IntRange(min=0), metavar="N", help="Prompts that may wait for a slot. Default: no bound."
)
@click.option("--requests-per-minute", type=_COUNT, metavar="N", help="More are answered 429. Default: no limit.")
@click.option("--tokens-per-minute", type=_COUNT, metavar="N", help="The same for tokens. Default: no limit.")
@click.option(
    "--rate-limit-headers",
    type=click.Choice(["retry-after", "ratelimit", "x-ratelimit", "none"]),
    default="retry-after",
    show_default=True,
    help="How both limits are told.",
)
@click.option("--scale-up", type=_SECONDS, metavar="SECONDS", help="Start scaled to zero; so long to be up.")
@click.option("--loading", type=_SECONDS, metavar="SECONDS", help="Start without the model; so long to load it.")
@click.option("--seed", type=int, metavar="N", default=0, show_default=True, help="Of the words that are made up.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def sim(debug: bool, models: Sequence[str], first_token: float, inter_token: float, **given: Any) -> int:
    """Serve a simulated endpoint until Ctrl-C; that ends it with exit code 0.

    There is no model: it makes up words, as fast or slowly as you say, and the same for the same prompt.
    """
    latency = Latency(first_token=first_token, inter_token=inter_token)
    endpoint = FakeEndpoint(models=list(models) or None, latency=latency, **given)
    return _run(partial(_serve.sim, endpoint), debug=debug, interrupted=0)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code. Only an error in Millstream itself is a traceback."""
    try:
        result = commands.main(arguments, prog_name="millstream", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return _EXIT_USAGE
    except click.Abort:  # what click makes of Ctrl-C
        return _EXIT_INTERRUPTED
    return result if isinstance(result, int) else 0


def _run(command: Callable[[], Awaitable[int]], *, debug: bool, interrupted: int = _EXIT_INTERRUPTED) -> int:
    try:
        return anyio.run(command)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return interrupted
    except BrokenPipeError:
        raise  # whoever read us has gone: click ends the process without noise
    except (millstream.MillstreamError, OSError) as error:
        if debug:
            traceback.print_exception(error)
        else:
            tell(told(error))
        return _EXIT_USAGE if isinstance(error, millstream.UsageError) else _EXIT_FAILED
