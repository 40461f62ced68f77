"""`beholder score-file` and `beholder select`: flags and what is printed."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from beholder.errors import ConfigurationError
from beholder.flags import count, fraction, parse_map

if TYPE_CHECKING:
    from beholder.offline.scoring import Backend
    from beholder.settings import Settings

SCORE_NOTES: Final = """IN holds prompts and responses: to score, pairs or rated completions, as JSONL, JSON or
Parquet. OUT has one row a response, in order. A run that ended early goes on where it was with the same command, but
without --restart. Settings other than those below come from BEHOLDER_* variables or --config, as for `beholder serve`;
with --url they are the services'.

examples:
  beholder score-file candidates.jsonl scores.jsonl --checkpoint runs/fruit/checkpoint
  beholder score-file candidates.parquet scores.parquet --url http://10.0.0.1:8000 --url http://10.0.0.2:8000
  beholder score-file candidates.jsonl scores.jsonl --checkpoint /shared/checkpoint --ray auto
"""
SELECT_NOTES: Final = """examples:
  beholder select candidates.jsonl scores.jsonl best.jsonl --best-of-n 16
  beholder select sft.jsonl scores.jsonl kept.jsonl --top-fraction 0.5
  beholder select candidates.jsonl scores.jsonl pairs.jsonl --pairs --min-score 1.0
"""
_SETTINGS: Final = ("engine", "engine_args", "dtype", "max_model_len", "max_images")


def add(add_parser: Callable[..., argparse.ArgumentParser], form: dict[str, Any]) -> None:
    """Add both commands to `beholder`'s."""
    _add_score_file(add_parser("score-file", help="score a file of responses", epilog=SCORE_NOTES, **form))
    _add_select(add_parser("select", help="best-of-N, filters and pairs by score", epilog=SELECT_NOTES, **form))


def _add_score_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, metavar="IN")
    parser.add_argument("output", type=Path, metavar="OUT", help="JSONL, or Parquet by its name")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="load it here")
    source.add_argument("--url", action="append", metavar="URL", help="a running service; repeat for replicas")
    parser.add_argument("--model", metavar="NAME", help="of the services' several; default: their first")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="the services' key")
    parser.add_argument("--image-root", type=Path, metavar="FOLDER", help="of image paths (default: IN's folder)")
    parser.add_argument("--on-error", choices=("row", "stop"), default="row",
                        help="a bad record becomes a row with its error, or ends the run (default: row)")  # fmt: skip
    parser.add_argument("--in-flight", type=count, default=256, metavar="N",
                        help="responses at a time, for each engine (default: 256)")  # fmt: skip
    parser.add_argument("--engines", type=count, default=1, metavar="N",
                        help="for a small model: transformers engines, each a process (default: 1)")  # fmt: skip
    parser.add_argument("--restart", action="store_true",
                        help="score anew, whatever was scored or written before; to go on, leave it out")  # fmt: skip
    parser.add_argument("--ray", nargs="?", const="", metavar="ADDRESS",
                        help="score on a Ray cluster, an engine a GPU (no address: this machine's)")  # fmt: skip
    parser.add_argument("--ray-engines", type=count, metavar="N", help="default: one a GPU, else one a node")
    parser.add_argument("--no-progress", action="store_true")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    for name in _SETTINGS:
        parser.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, metavar="VALUE",
                            help="as for `beholder serve`")  # fmt: skip
    parser.set_defaults(run=_score_file)


def _add_select(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="IN", help="what was scored")
    parser.add_argument("scores", type=Path, metavar="SCORES", help="what score-file wrote")
    parser.add_argument("output", type=Path, metavar="OUT", help="JSONL, or Parquet by its name")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--best-of-n", nargs="?", type=count, const=0, metavar="N",
                      help="the best of each record's first N responses, or of all")  # fmt: skip
    kind.add_argument("--pairs", action="store_true", help="the best as chosen, the worst as rejected")
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--min-score", type=float, metavar="X", help="from this score (of pairs: margin) upwards")
    limit.add_argument("--top-fraction", type=fraction, metavar="F", help="this share with the highest scores")
    parser.add_argument("--image-root", type=Path, metavar="FOLDER", help="of IN's image paths (default: its folder)")
    parser.set_defaults(run=_select)


def _score_file(options: argparse.Namespace) -> int:
    from beholder.offline.scoring import Job, score_file

    job = Job(
        options.input,
        options.output,
        image_root=options.image_root,
        in_flight=options.in_flight,
        stop_on_error=options.on_error == "stop",
        restart=options.restart,
        progress=not options.no_progress,
    )
    summary = score_file(job, _backend(options))
    print(f"{options.output}: {summary}", file=sys.stderr)
    return 0


def _backend(options: argparse.Namespace) -> "Backend":
    from beholder.offline.backends import EngineBackend, ServiceBackend
    from beholder.offline.engines import EnginesBackend

    if options.engines > 1 and (options.url or options.ray is not None):
        raise ConfigurationError("--engines loads them on this machine: give --checkpoint, and --ray-engines on Ray")
    if options.model and not options.url:
        raise ConfigurationError("--model names one of a service's models: give --url")
    if options.url:
        if options.ray is not None:
            raise ConfigurationError("--ray loads the checkpoint on the cluster: give --checkpoint, not --url")
        if given := [name for name in ("config", *_SETTINGS) if getattr(options, name, None) is not None]:
            raise ConfigurationError(f"--{given[0].replace('_', '-')} is for a checkpoint: the services have their own")
        return ServiceBackend(options.url, _api_key(options.api_key_file), options.model)
    settings = _settings(options)
    if options.engines > 1 and settings.engine == "auto":
        settings = settings.model_copy(update={"engine": "transformers"})
    if settings.chosen_engine == "fake":
        print("beholder: the fake engine's scores mean nothing", file=sys.stderr)
    if options.ray is None:
        return EngineBackend(settings) if options.engines == 1 else EnginesBackend(settings, options.engines)
    from beholder.offline.ray_scoring import RayBackend

    return RayBackend(settings, options.ray or None, options.ray_engines)


def _settings(options: argparse.Namespace) -> "Settings":
    from beholder.settings import load_settings

    flags = {name: getattr(options, name) for name in _SETTINGS if hasattr(options, name)}
    if "engine_args" in flags:
        flags["engine_args"] = parse_map(flags["engine_args"])
    return load_settings({"checkpoint": options.checkpoint, "log_level": "error", **flags}, options.config)


def _api_key(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text().split()[0]
    except (OSError, IndexError) as error:
        raise ConfigurationError(f"--api-key-file {path}: no key ({error})") from None


def _select(options: argparse.Namespace) -> int:
    from beholder.offline.selection import Choose, best_and_worst, best_of, every_response, select

    choose: Choose = every_response
    if options.pairs:
        choose = best_and_worst
    elif options.best_of_n is not None:
        choose = best_of(options.best_of_n or None)
    seen, written = select(
        options.data, options.scores, options.output, choose, options.min_score, options.top_fraction,
        options.image_root,
    )  # fmt: skip
    print(f"{options.output}: {written} of {seen}", file=sys.stderr)
    return 0
