"""`beholder load-test`: its flags and what is printed."""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Final, get_args

from beholder.errors import ConfigurationError
from beholder.flags import count, positive
from beholder.load_test.mix import ImageMode, Mix, Route

NOTES: Final = """Prompts have rendered pictures and several responses each, in random order, as concurrent rollouts
send them. Samples are never repeated unless --repeats or --seed says so. Without --rate it is a closed loop:
--concurrency requests at a time. With it requests are due at random moments, whether or not the service keeps up, and
latency counts from then.

examples:
  beholder load-test http://127.0.0.1:8000
  beholder load-test http://127.0.0.1:8000 --route rank --responses 16 --images value --seconds 60
  beholder load-test http://127.0.0.1:8000 --rate 200 --unique-images --images value --json > load.json
"""


def add(add_parser: Callable[..., argparse.ArgumentParser], form: dict[str, Any]) -> None:
    """Add the command to `beholder`'s."""
    parser = add_parser("load-test", help="throughput and latency of a running service", epilog=NOTES, **form)
    parser.add_argument("url", metavar="URL")
    parser.add_argument("--route", choices=get_args(Route), default="score", help="(default: score)")
    parser.add_argument("--model", metavar="NAME", help="which to ask of several (default: the first)")
    parser.add_argument("--concurrency", type=count, default=32, metavar="N", help="connections (default: 32)")
    parser.add_argument("--rate", type=positive, metavar="R", help="requests a second: an open loop")
    parser.add_argument("--seconds", type=positive, default=30, metavar="S", help="(default: 30)")
    parser.add_argument("--requests", type=count, metavar="N", help="stop after so many instead")
    parser.add_argument("--timeout", type=positive, default=330, metavar="S",
                        help="what is not answered within this has failed (default: 330)")  # fmt: skip
    parser.add_argument("--prompts", type=count, default=25, metavar="N", help="different prompts (default: 25)")
    parser.add_argument("--responses", type=count, default=8, metavar="N", help="to each prompt (default: 8)")
    parser.add_argument("--prompt-words", type=count, default=20, metavar="N", help="(default: 20)")
    parser.add_argument("--response-words", type=count, default=60, metavar="N", help="(default: 60)")
    parser.add_argument("--images", choices=get_args(ImageMode), default="reference",
                        help="sent once, then by reference; with each request; none (default: reference)")  # fmt: skip
    parser.add_argument("--unique-images", action="store_true", help="a new picture in every request")
    parser.add_argument("--size", type=_size, default=(336, 252), metavar="WxH", help="of pictures (default: 336x252)")
    parser.add_argument("--repeats", type=count, default=1, metavar="N", help="send each sample N times (default: 1)")
    parser.add_argument("--seed", type=int, metavar="N", help="the same one makes the same samples")
    parser.add_argument("--api-key-file", type=argparse.FileType(), metavar="FILE", help="the service's key")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=load_test)


def load_test(options: argparse.Namespace) -> int:
    """Run it and print the summary; 1 when a request did not get its scores."""
    if find_spec("httptools") is None:
        raise ConfigurationError("load-test needs httptools: pip install '.[service]' in Beholder's checkout")
    from beholder.load_test.running import Load, run
    from beholder.load_test.summary import as_json, as_text, summarise

    seconds = None if options.requests else options.seconds
    load = Load(options.concurrency, options.rate, seconds, options.requests, options.timeout)
    key = options.api_key_file.read().strip() if options.api_key_file else None
    found = asyncio.run(run(options.url, _mix(options), load, api_key=key, progress=sys.stderr.isatty()))
    summary = summarise(found)
    print(json.dumps(as_json(summary), indent=2) if options.json else as_text(summary))
    return 0 if set(summary.statuses) == {"200"} else 1


def _mix(options: argparse.Namespace) -> Mix:
    width, height = options.size
    return Mix(
        route=options.route,
        model=options.model,
        prompts=options.prompts,
        responses=options.responses,
        prompt_words=options.prompt_words,
        response_words=options.response_words,
        images=options.images,
        unique_images=options.unique_images,
        width=width,
        height=height,
        repeats=options.repeats,
        seed=random.randrange(2**32) if options.seed is None else options.seed,
    )


def _size(text: str) -> tuple[int, int]:
    width, separator, height = text.partition("x")
    if not separator or not width.isdecimal() or not height.isdecimal() or not int(width) * int(height):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 336x252")
    return int(width), int(height)
