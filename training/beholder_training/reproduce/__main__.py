"""Run the cells of a family that are missing, then write its summary and report from those that are there."""

import argparse
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from beholder.errors import BeholderError
from beholder_training.reproduce.families import FAMILIES
from beholder_training.reproduce.places import Places
from beholder_training.reproduce.running import run_cells
from beholder_training.reproduce.writing import write_results


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m beholder_training.reproduce", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/reproduce"))
    parser.add_argument("--family", choices=FAMILIES, nargs="+", action="extend", help="(main)")
    parser.add_argument("--workers", type=int, default=2, help="cells side by side, one thread each")
    parser.add_argument("--photos", type=Path, help="folder of the grocery data, for --family grocery")
    parser.add_argument("--report-only", action="store_true", help="summarise what is finished; run nothing")
    parsed = parser.parse_args()
    try:
        for family in parsed.family or ["main"]:
            run(family, Places(parsed.output, parsed.photos), parsed.workers, parsed.report_only)
    except BeholderError as error:
        print(f"reproduce: error: {error}", file=sys.stderr)
        return 1
    except BrokenProcessPool:
        print("reproduce: error: a worker was killed (out of memory?); the same command goes on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("reproduce: interrupted; the same command goes on from the finished cells", file=sys.stderr)
        return 130
    return 0


def run(family: str, places: Places, workers: int, report_only: bool) -> None:
    """One family, from its cells to its report."""
    started = time.monotonic()
    cells = FAMILIES[family]()
    if not report_only:
        run_cells(cells, places, workers)
    write_results(family, cells, places)
    print(f"{family}: this run took {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
