"""The `beholder` command."""

import argparse
import asyncio
import json
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import beholder.front_watch  # noqa: F401 (processes that vLLM spawns import this module first)
from beholder.errors import BeholderError, ConfigurationError
from beholder.flags import parse_map
from beholder.load_test import command as load_test
from beholder.offline import commands as offline

if TYPE_CHECKING:
    from beholder.client import Ranking
    from beholder.settings import Settings

EXAMPLES = """examples:
  beholder serve runs/fruit/checkpoint --port 8000
  beholder rank "Which fruit is this?" --image apple.jpg --response "An apple." --response "A pear." \\
      --url http://127.0.0.1:8000
  beholder score "Which fruit is this?" --image apple.jpg --response "An apple." --checkpoint runs/fruit/checkpoint
  beholder verify runs/fruit/checkpoint
"""
SERVE_NOTES = """Every setting is also a variable (--max-in-flight: BEHOLDER_MAX_IN_FLIGHT) and a key of the --config
file (max_in_flight). Flags win over variables, variables over the file.

example:
  beholder serve runs/fruit/checkpoint --host 0.0.0.0 --engine-args '{tensor_parallel_size: 2}'
"""

ADOPT_NOTES = """Layouts: a Hugging Face XForSequenceClassification folder (Qwen3-VL, Qwen2.5-VL, InternVL, LLaVA; text
alone: Llama, Mistral, Qwen2, Qwen3); a base model with TRL's or LLaMA-Factory's value head, as Skywork-VL-Reward;
the published InternVL layout, which needs --chat-template, since its own Python code is not run.

examples:
  beholder adopt downloads/Skywork-VL-Reward-7B checkpoints/skywork
  beholder adopt merged checkpoints/rm --head-file run/value_head.safetensors --base-name Qwen/Qwen2.5-VL-7B-Instruct
  beholder adopt InternVL2-reward checkpoints/internvl --chat-template chatml-with-images.jinja
"""

EXIT_S: Final = 3
"""Time for threads to end by themselves, once everything was answered and the engines have stopped."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the process's exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except BeholderError as error:
        print(f"beholder: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    form: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(
        prog="beholder", description="Serve and use reward models.", epilog=EXAMPLES, **form
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve a checkpoint over HTTP", epilog=SERVE_NOTES, **form)
    serve.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", nargs="?", help="its folder, else by setting")
    serve.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    _add_settings(serve)
    serve.set_defaults(run=_serve)
    for name, help_text in (("rank", "rank responses to one prompt"), ("score", "score one response")):
        command = commands.add_parser(name, help=help_text, epilog=EXAMPLES, **form)
        _add_sample(command)
        command.set_defaults(run=_rank if name == "rank" else _score)
    verify = commands.add_parser("verify", help="check a checkpoint's files and scores", epilog=EXAMPLES, **form)
    verify.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    verify.add_argument("--no-engine", action="store_true", help="compare the hashes only")
    verify.set_defaults(run=_verify)
    _add_adopt(commands.add_parser("adopt", help="make a checkpoint of another trainer's reward model",
                                   epilog=ADOPT_NOTES, **form))  # fmt: skip
    offline.add(commands.add_parser, form)
    load_test.add(commands.add_parser, form)
    return parser


def _add_adopt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the reward model as its trainer saved it")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the checkpoint to write; must not exist")
    parser.add_argument("--base-name", metavar="NAME", help="the base model, for the record (default: the config's)")
    parser.add_argument("--head-file", type=Path, metavar="FILE", help="the head, where it is apart from the model")
    parser.add_argument("--chat-template", type=Path, metavar="FILE", help="Jinja, instead of the folder's own")
    inputs = ("image", "text", "blank_image")
    help_text = "what it was trained on of a sample's images; text: nothing (default: as FOLDER says, else image)"
    parser.add_argument("--input", choices=inputs, help=help_text)
    parser.set_defaults(run=_adopt)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """A flag for every setting, so that none is missing."""
    from beholder.settings import Settings

    help_text = "serve this one too, as NAME; repeat for more (--config and BEHOLDER_MODELS set more of each)"
    parser.add_argument("--model", action="append", default=[], metavar="NAME=CHECKPOINT", help=help_text)

    for name, field in Settings.model_fields.items():
        if name in ("checkpoint", "models"):
            continue
        shown = "none" if field.default is None else field.get_default(call_default_factory=True)
        text = " ".join(filter(None, [field.description, f"(default: {shown})"])).replace("%", "%%")
        parser.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, metavar="VALUE", help=text)


def _add_sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT")
    parser.add_argument("--image", action="append", default=[], type=Path, metavar="FILE", help="repeat for more")
    parser.add_argument("--response", action="append", required=True, metavar="TEXT", help="repeat for more")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--url", help="a running service")
    source.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="load it here, without a service")
    parser.add_argument("--model", metavar="NAME", help="which to ask of several (default: the first)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _serve(options: argparse.Namespace) -> int:
    from beholder.server import serve
    from beholder.settings import Settings, load_settings, misspelt_variables

    given = {name: value for name, value in vars(options).items() if value is not None}
    flags = {name: value for name, value in given.items() if name in Settings.model_fields}
    if "engine_args" in flags:
        flags["engine_args"] = parse_map(flags["engine_args"])
    if options.model:
        flags["models"] = dict(map(_named_checkpoint, options.model))
    settings = load_settings(flags, options.config)
    for line in misspelt_variables(os.environ):
        print(f"beholder: warning: {line}", file=sys.stderr)
    status = serve(settings)
    _leave_within(EXIT_S, status)
    return status


def _leave_within(seconds: float, status: int) -> None:
    """Python waits at its end for every thread. One that verifies files or decodes cannot be interrupted, and nobody
    waits for what it does any more: the process ends without it."""
    timer = threading.Timer(seconds, os._exit, [status])  # no flush: nobody may read what is written to
    timer.daemon = True
    timer.start()


def _named_checkpoint(text: str) -> tuple[str, dict[str, str]]:
    """What one --model says."""
    name, _, folder = text.partition("=")
    if not (name and folder):
        raise ConfigurationError(f"--model {text}: write NAME=CHECKPOINT")
    return name, {"checkpoint": folder}


def _score(options: argparse.Namespace) -> int:
    if len(options.response) != 1:
        raise ConfigurationError("score takes one --response; `beholder rank` takes several")
    ranking = _ranking(options)
    print(json.dumps(asdict(ranking)) if options.json else _cells(ranking, 0))
    return 0


def _rank(options: argparse.Namespace) -> int:
    ranking = _ranking(options)
    if options.json:
        print(json.dumps(asdict(ranking)))
        return 0
    for rank, index in enumerate(ranking.order):
        print(f"{rank}  {_cells(ranking, index)}  {options.response[index]}")
    return 0


def _cells(ranking: "Ranking", index: int) -> str:
    normalized = f"  {ranking.normalized[index]:+9.4f}" if ranking.normalized else ""
    cut = "  (prompt truncated)" if ranking.truncated[index] else ""
    return f"{ranking.scores[index]:10.6f}{normalized}{cut}"


def _ranking(options: argparse.Namespace) -> "Ranking":
    if options.url is None:
        if options.model:
            raise ConfigurationError("--model names one of a service's models: give --url")
        from beholder.local import rank_locally

        settings = _local_settings(options.checkpoint)
        return asyncio.run(rank_locally(settings, options.prompt, options.image, options.response))
    from beholder.client import RewardClient

    with RewardClient(options.url, model=options.model, retries=2) as client:
        return client.rank(options.prompt, options.image, options.response)


def _verify(options: argparse.Namespace) -> int:
    from beholder.checkpoint import read_checkpoint, verify_files

    checkpoint = read_checkpoint(options.checkpoint)
    verify_files(checkpoint)
    print(f"files    {len(checkpoint.manifest.files)} match their sha256, fingerprint {checkpoint.fingerprint}")
    if options.no_engine:
        return 0
    from beholder.golden import require_passed
    from beholder.local import golden_locally

    results = asyncio.run(golden_locally(_local_settings(options.checkpoint)))
    width = max(len(result.id) for result in results)
    print(f"{'golden':<{width}}  {'trained':>12}  {'served':>12}  {'difference':>10}  {'tolerance':>9}")
    for result in results:
        verdict = "" if result.passed else "  FAILED"
        print(
            f"{result.id:<{width}}  {result.trained:12.6f}  {result.served:12.6f}  "
            f"{abs(result.served - result.trained):10.2e}  {result.tolerance:9.2e}{verdict}"
        )
    require_passed(results)
    return 0


def _adopt(options: argparse.Namespace) -> int:
    if find_spec("torch") is None:
        raise ConfigurationError(
            "adopting computes rewards with torch: pip install '.[transformers]' in Beholder's checkout"
        )
    from beholder.adopting.adopt import adopt

    checkpoint = adopt(
        options.folder,
        options.output,
        base_name=options.base_name,
        head_file=options.head_file,
        chat_template=options.chat_template,
        model_input=options.input,
    )
    print(f"{checkpoint.folder}: {checkpoint.manifest.architecture}, fingerprint {checkpoint.fingerprint}")
    print(f"next: beholder verify {checkpoint.folder}")
    return 0


def _local_settings(checkpoint: Path) -> "Settings":
    from beholder.settings import load_settings

    return load_settings({"checkpoint": checkpoint, "log_level": "error"})


if __name__ == "__main__":
    sys.exit(main())
