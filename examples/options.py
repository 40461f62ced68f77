"""The flags that the examples share, and what they stand for: a policy, and a service that rewards it."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from beholder.errors import BeholderError, ConfigurationError
from beholder_training.demo.serving import served
from examples.policies import make_tiny_policy

DEMO = Path("build/demo")


def finish(run: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Run the example; the process's exit status."""
    try:
        run(options)
    except BeholderError as error:
        print(f"{Path(sys.argv[0]).stem}: error: {error}", file=sys.stderr)
        return 1
    return 0


def parser(description: str | None) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = options.add_mutually_exclusive_group()
    source.add_argument("--url", help="a running service")
    source.add_argument("--checkpoint", type=Path, default=DEMO / "proxy_balanced", help="serve it (%(default)s)")
    options.add_argument("--policy", help="a vision-language model; none is a tiny one after a warm start")
    options.add_argument("--base", type=Path, default=DEMO / "prepared/base", help="of the tiny policy (%(default)s)")
    options.add_argument("--warm-steps", type=int, default=500, help="of the tiny policy (%(default)s)")
    options.add_argument("--max-new-tokens", type=int, default=16, help="of a response (%(default)s)")
    options.add_argument("--test", type=int, default=384, help="held-out questions (%(default)s)")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--output", type=Path, default=Path("build/examples"), help="folder (%(default)s)")
    return options


def policy(options: argparse.Namespace) -> str:
    """The name or folder of the policy that training begins with."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if options.policy:
        return str(options.policy)
    folder = options.output / "warm-start"
    make_tiny_policy(options.base, folder, options.warm_steps, options.seed)
    return str(folder)


@contextmanager
def service(options: argparse.Namespace) -> Iterator[str]:
    """The URL that was given, or that of a process that serves the checkpoint meanwhile. Raises ConfigurationError."""
    if options.url:
        yield options.url
        return
    if not (options.checkpoint / "reward.json").is_file():
        raise ConfigurationError(f"{options.checkpoint} is no checkpoint: run `make demo` first, or give --url")
    options.output.mkdir(parents=True, exist_ok=True)
    # For a model this small vLLM's start takes longer than the run.
    os.environ.setdefault("BEHOLDER_ENGINE", "transformers")
    with served(options.checkpoint, options.output / "service.log") as url:
        yield url
