"""What each command takes. What it does is in a module of its own."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import click

import millstream
from millstream.cli import _generate, _serve

_EXIT_FAILED, _EXIT_USAGE, _EXIT_INTERRUPTED = 1, 2, 130

ENDPOINT_HELP = (
    "URL of the server, or 'local' for the embedded model. Default: MILLSTREAM_ENDPOINT_URL, else Hugging Face."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(millstream.__version__, prog_name="millstream")
def commands() -> None:
    """Prompts in, text out: LLM inference on Hugging Face and OpenAI-compatible endpoints."""


@commands.command()
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...")
@click.option("--endpoint", "endpoint_url", metavar="URL", help=ENDPOINT_HELP)
@click.option("--model", help="Model id. May be left out where the endpoint serves one model.")
@click.option("--provider", help="Who of Hugging Face's Inference Providers is to serve.")
@click.option("--api", type=click.Choice(["auto", "chat", "completions", "text-generation"]), help="The dialect.")
@click.option("--system", help="Instructions, sent as a system message.")
@click.option("--max-tokens", type=int, default=256, show_default=True, help="Output tokens at the most.")
@click.option("--temperature", type=float, help="0: always the likeliest token.")
@click.option("--top-p", type=float, help="Nucleus sampling: over 0, up to 1.")
@click.option("--seed", type=int, help="The same seed and prompt give the same output, where the server keeps that.")
@click.option("--stop", multiple=True, help="A text that ends the output; may be given several times.")
@click.option("--max-concurrency", type=int, default=64, show_default=True, help="Prompts in flight at the most.")
@click.option("--timeout", type=float, default=600.0, show_default=True, help="Seconds a prompt, retries included.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON result a line, as they complete.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def generate(**given: Any) -> int:
    """Print what the model writes for each PROMPT, as it is written. '-' reads a prompt from standard input.

    Several prompts run side by side and are printed in their order. The key is read from HF_TOKEN.
    """
    return _run(partial(_generate.generate, _generate.Asked(**_without_debug(given))), debug=given["debug"])


@commands.command()
@click.option("--port", type=int, default=0, metavar="PORT", help="Default: any free one.")
@click.option("--slots", type=int, default=4, show_default=True, help="Prompts that are worked on at a time.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def local(port: int, slots: int, debug: bool) -> int:
    """Serve the embedded model (SmolLM2-135M) on this machine until Ctrl-C. Needs the extra [local]."""
    return _run(partial(_serve.local, port=port, slots=slots), debug=debug)


@commands.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=int, default=0, metavar="PORT", help="Default: any free one.")
@click.option("--model", "models", multiple=True, help="A model to serve (several may be given). Default: any name.")
@click.option("--server", type=click.Choice(["tgi", "vllm", "llamacpp"]), default="tgi", show_default=True)
@click.option("--first-token", type=float, default=0.2, show_default=True, help="Seconds to the first token.")
@click.option("--inter-token", type=float, default=0.02, show_default=True, help="Seconds between tokens.")
@click.option("--slots", type=int, help="Prompts that are worked on at a time. Default: no bound.")
@click.option("--max-queue", type=int, help="Prompts that may wait for a slot. Default: no bound.")
@click.option("--requests-per-minute", type=int, help="Answer 429 above that.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def sim(debug: bool, **given: Any) -> int:
    """Serve a simulated endpoint (no model: made-up words) until Ctrl-C. Speaks all three dialects."""
    return _run(partial(_serve.sim, **given), debug=debug)


def _without_debug(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != "debug"}


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code. Nothing but an error of Millstream's own is a traceback."""
    try:
        result = commands.main(arguments, prog_name="millstream", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return _EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        return _EXIT_INTERRUPTED
    return result if isinstance(result, int) else 0


def _run(command: Callable[[], Awaitable[int]], *, debug: bool) -> int:
    try:
        return anyio.run(command)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read us has gone; Python would complain about that at exit
        return _EXIT_FAILED
    except (millstream.MillstreamError, OSError) as error:
        if debug:
            traceback.print_exception(error)
        else:
            print(f"millstream: {' '.join(str(error).split())}", file=sys.stderr)
        return _EXIT_USAGE if isinstance(error, millstream.UsageError) else _EXIT_FAILED
