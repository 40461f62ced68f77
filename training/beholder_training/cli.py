"""`beholder-train`: the command line of training. Each command is one call into the library."""

import argparse
import inspect
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from beholder.errors import BeholderError
from beholder_training.errors import TrainingInterrupted

EXAMPLES = """examples:
  beholder-train make-world build/world
  beholder-train make-base build/base --architecture qwen3_vl
  beholder-train train --base Qwen/Qwen3-VL-2B-Instruct --train vlfeedback.jsonl --validation held_out.jsonl --output rm
  beholder-train train --config run.yaml --output rm --seed 1
  beholder-train check-data vlfeedback.jsonl rlhf-v.parquet --base Qwen/Qwen3-VL-2B-Instruct
  torchrun --nproc-per-node 8 -m beholder_training.cli train --config run.yaml --set fsdp=true
  beholder-train evaluate rm test.jsonl
  beholder-train evaluate standard rm test.jsonl other.jsonl --output report
"""
SIGTERM_STATUS = 143  # 128 + 15: a supervisor sees that the run did not finish, and starts it again


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a BeholderError becomes one line and exit status 1, or 143 after SIGTERM."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except TrainingInterrupted as error:
        print(f"beholder-train: {error}", file=sys.stderr)
        return SIGTERM_STATUS
    except BeholderError as error:
        print(f"beholder-train: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("beholder-train: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="beholder-train",
        description="Train multimodal reward models that look at the picture.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    _add_check_data(commands)
    _add_evaluate(commands)
    _add_make_world(commands)
    _add_make_base(commands)
    return parser


def _add_train(commands: Any) -> None:
    command = commands.add_parser(
        "train",
        help="preferences and a base model -> a checkpoint to serve",
        epilog=_settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--config", type=Path, help="YAML file of settings; flags win over it")
    files = "preferences: .jsonl, .json, .parquet"
    for setting in ("--train", "--validation"):
        command.add_argument(setting, type=Path, nargs="+", action="extend", help=files)
    command.add_argument("--base", help="folder or hub name of the vision-language model to start from")
    command.add_argument("--output", type=Path, help="folder of the checkpoint; must not exist yet")
    assigned = "any of the settings below, as in YAML"
    command.add_argument("--set", nargs="*", action="extend", default=[], metavar="NAME=VALUE", help=assigned)
    for name, kind in (("algorithm", str), ("steps", int), ("seed", int), ("learning-rate", float)):
        command.add_argument(f"--{name}", type=kind)
    command.set_defaults(run=_train)


def _settings_help() -> str:
    """What the settings mean, and their defaults."""
    from beholder_training.config import TrainingConfig

    defaults = []
    for each in fields(TrainingConfig):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        defaults.append(each.name if default is MISSING else f"{each.name}={default}")
    meanings = inspect.cleandoc(str(TrainingConfig.__doc__)).partition("\n\n")[2]
    return f"settings:\n{meanings}\n\ndefaults:\n{textwrap.fill(', '.join(defaults), 120)}"


def _train(parsed: argparse.Namespace) -> None:
    from beholder.errors import DataError
    from beholder_training.config import load_config, read_assignments
    from beholder_training.evaluation.statistics import with_interval
    from beholder_training.pipeline import train_and_export

    flags = ("train", "validation", "base", "output", "algorithm", "steps", "seed", "learning_rate")
    overrides = {name: value for name in flags if (value := getattr(parsed, name)) is not None}
    assigned = read_assignments(parsed.set)
    if twice := sorted(set(overrides) & set(assigned)):
        raise DataError(f"{twice[0]} is given by a flag and by --set: leave one of them out")
    if (finished := train_and_export(load_config(parsed.config, overrides | assigned))) is None:
        return  # another process of the run reports
    checkpoint = finished[0]
    evaluation = checkpoint.manifest.evaluation
    accuracy = with_interval(f"{evaluation['held_out_accuracy']:.3f}", evaluation["half_width_95"])
    print(
        f"{checkpoint.folder}: held-out accuracy {accuracy} over {evaluation['pairs']} pairs\n"
        f"serve it: beholder serve {checkpoint.folder}"
    )


def _add_check_data(commands: Any) -> None:
    command = commands.add_parser("check-data", help="read everything once and report every bad record by line")
    command.add_argument("files", type=Path, nargs="+", help="preferences: .jsonl, .json, .parquet")
    command.add_argument("--image-root", type=Path, help="folder of the images' paths (default: each file's own)")
    command.add_argument("--image-cache", type=Path, help="where images embedded in parquet are kept")
    command.add_argument("--base", help="folder or hub name of the base: also find prompts that are too long for it")
    length = "with --base: tokens of a sequence, images included (4096)"
    command.add_argument("--max-length", type=int, help=length)
    options = "with --base: the run's image_options, such as max_patches=6; values as in YAML"
    command.add_argument("--image-options", nargs="+", action="extend", metavar="NAME=VALUE", help=options)
    proxy = "with --base: also find what is too long for a proxy that sees this"
    command.add_argument("--proxy-input", choices=["text_only", "blank_image"], help=proxy)
    command.add_argument("--proxy-base", help="folder or hub name of the proxy's base (default: --base)")
    command.set_defaults(run=_check_data)


def _check_data(parsed: argparse.Namespace) -> None:
    from beholder.errors import DataError
    from beholder.records.problems import counts
    from beholder_training.checking import Examine, PictureCheck, check_files
    from beholder_training.config import ProxyInput, read_assignments
    from beholder_training.data import ImagePlaces

    for name in ("max_length", "image_options", "proxy_input", "proxy_base"):
        if getattr(parsed, name) is not None and not parsed.base:
            raise DataError(f"--{name.replace('_', '-')} measures sequences for a base: give --base too")
    examine: list[Examine] = [PictureCheck()]
    if parsed.base:
        from beholder_training.measuring import LengthCheck

        length = 4096 if parsed.max_length is None else parsed.max_length
        options = read_assignments(parsed.image_options or [])
        examine.append(LengthCheck(parsed.base, length, image_options=options))
        if parsed.proxy_input or parsed.proxy_base:
            seen: ProxyInput = parsed.proxy_input or "text_only"
            own = {} if parsed.proxy_base else options  # as in a run: image_options are those of its base
            examine.append(LengthCheck(parsed.proxy_base or parsed.base, length, seen, own))
    checked = check_files(parsed.files, ImagePlaces(parsed.image_root, parsed.image_cache), examine)
    for problem in checked.problems:
        print(problem)
    print(checked)
    if checked.problems:
        raise DataError(f"{len(checked.problems)} problems: {counts(checked.problems)}")
    if not checked.records:
        raise DataError("no record is usable")


def _add_evaluate(commands: Any) -> None:
    command = commands.add_parser("evaluate", help="what checkpoints get right, and why, on preference files")
    command.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="checkpoints (folders), test sets (files)")
    command.add_argument("--output", type=Path, help="folder for report.html, PNG figures and evaluation.json")
    command.add_argument(
        "--text-only", type=Path, metavar="FOLDER", help="text-only reward model (default: each proxy/)"
    )
    home = "test set of a model's own training distribution, by the names printed; its others are then o.o.d."
    command.add_argument("--iid", nargs="+", action="extend", default=[], metavar="MODEL=TEST", help=home)
    command.add_argument("--image-root", type=Path, help="folder of the images' paths (default: each file's own)")
    command.add_argument("--batch-prompts", type=int, default=64, help="most prompts in a forward (%(default)s)")
    tokens = "most tokens in a forward, padding included; 0 is no limit (%(default)s)"
    command.add_argument("--token-budget", type=int, default=32_768, help=tokens)
    command.set_defaults(run=_evaluate)


def _evaluate(parsed: argparse.Namespace) -> None:
    from beholder.errors import DataError
    from beholder.records.problems import counts
    from beholder_training.evaluation.inputs import home_sets, read_models, read_tests, split_paths
    from beholder_training.evaluation.suite import evaluate
    from beholder_training.report.evaluation import check_output, write_report

    folders, files = split_paths(parsed.paths)
    if parsed.batch_prompts < 1 or parsed.token_budget < 0:
        raise DataError("--batch-prompts must be positive and --token-budget not negative")
    if parsed.output is not None:
        check_output(parsed.output)
    tests = read_tests(files, parsed.image_root)
    for test in tests:
        if test.left_out:
            print(f"{test.file}: left out: {counts(test.left_out)}", file=sys.stderr)
    models = read_models(folders, parsed.text_only)
    for branch in filter(None, (branch for model in models for branch in (model.branch, model.text_only))):
        branch.batch_prompts, branch.token_budget = parsed.batch_prompts, parsed.token_budget
    evaluation = evaluate(models, tests, home_sets(parsed.iid, models, tests), ablate=parsed.output is not None)
    for result in evaluation.results:
        print(f"{result.model} on {result.test}: accuracy {result.accuracy} over {result.accuracy.count} pairs")
    for each in evaluation.differences:
        print(f"{each.model} - {each.reference} on {each.test}: {each.difference}")
    if parsed.output is not None:
        write_report(evaluation, parsed.output)
        print(f"wrote {parsed.output}/report.html")


def _add_make_world(commands: Any) -> None:
    command = commands.add_parser("make-world", help="write the built-in data: scenes, questions, cued responses")
    command.add_argument("folder", type=Path)
    command.add_argument("--seed", type=int, default=0)
    for name in ("seeing", "train", "test"):
        command.add_argument(f"--{name}", type=int, help=f"number of {name} scenes")
    command.set_defaults(run=_make_world)


def _make_world(parsed: argparse.Namespace) -> None:
    from beholder_training.worlds import WorldSize, make_world

    given = {name: value for name in ("seeing", "train", "test") if (value := getattr(parsed, name)) is not None}
    make_world(parsed.folder, WorldSize(**given), parsed.seed)
    print(f"wrote {parsed.folder}")


def _add_make_base(commands: Any) -> None:
    command = commands.add_parser("make-base", help="write a tiny vision-language base with random weights")
    command.add_argument("folder", type=Path)
    command.add_argument("--architecture", default="qwen3_vl", help="qwen3_vl, qwen2_5_vl, internvl or llava")
    command.add_argument("--benchmark", action="store_true", help="about 80M parameters instead of half a million")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=_make_base)


def _make_base(parsed: argparse.Namespace) -> None:
    from beholder_training.bases import BENCHMARK_80M, TINY, make_base

    make_base(parsed.folder, parsed.architecture, BENCHMARK_80M if parsed.benchmark else TINY, parsed.seed)
    print(f"wrote {parsed.folder}")


if __name__ == "__main__":
    sys.exit(main())
