"""Cells side by side, each on one thread: a second thread makes a tiny model slower, a second cell does not.

A finished cell is a file, so a run that is killed at any time goes on with the others. Workers take one cell after
another, and end when the run does, however it ends.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from tqdm import tqdm

from beholder_training.reproduce.cells import Base, Cell, without_seeing
from beholder_training.reproduce.outcomes import result_path, write_finished
from beholder_training.reproduce.places import Places, prepare

Task = Base | Cell
TEST_STEPS = 100  # optimiser steps that take as long as a cell's tests and its start


def run_cells(cells: Sequence[Cell], places: Places, workers: int) -> None:
    """Run what is not finished yet, a cell after its base. Shows what is done and the time left."""
    cells = list(dict.fromkeys(cells))
    missing = [cell for cell in cells if not result_path(places.root, cell).is_file()]
    if not missing:
        return
    tasks = _with_bases(missing, places)
    prepare(places, tasks)
    total, done = sum(map(cost, tasks)), len(cells) - len(missing)
    bar_format = "{l_bar}{bar}| {n_fmt}/{total_fmt} steps{postfix} [{elapsed} gone, {remaining} left]"
    with tqdm(total=total, desc="reproduce", bar_format=bar_format, smoothing=0) as bar:
        for task in as_finished(tasks, places, workers):
            done += isinstance(task, Cell)
            bar.set_postfix_str(f"{done} of {len(cells)} cells", refresh=False)
            bar.update(cost(task))


def _with_bases(cells: Sequence[Cell], places: Places) -> list[Task]:
    """Every cell in order, and before it the bases that it needs and that are missing."""
    tasks: list[Task] = []
    for cell in cells:
        bases = [without_seeing(cell.base), cell.base]
        tasks += [*[base for base in bases if not places.base(base).is_dir()], cell]
    return list(dict.fromkeys(tasks))


def cost(task: Task) -> int:
    """About how many optimiser steps a task takes, its tests included."""
    return task.steps if isinstance(task, Base) else task.warmup + task.steps + TEST_STEPS


def needed(task: Task) -> Base | None:
    """What must be there before the task."""
    if isinstance(task, Cell):
        return task.base
    return without_seeing(task) if task.steps else None


def as_finished(tasks: Sequence[Task], places: Places, workers: int) -> Iterator[Task]:
    """The tasks as they end, begun in order. An error in one ends the run; what is finished stays."""
    pending, absent = list(tasks), set(tasks)
    running: dict[Future[None], Task] = {}
    with _pool(workers) as pool:
        try:
            while pending or running:
                while len(running) < workers and (task := _first_ready(pending, absent)) is not None:
                    pending.remove(task)
                    running[pool.submit(run_task, places, task)] = task
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    ended = running.pop(future)
                    future.result()
                    absent.remove(ended)
                    yield ended
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _first_ready(pending: Sequence[Task], absent: Set[Task]) -> Task | None:
    """The first task whose base is not among the `absent`."""
    return next((task for task in pending if needed(task) not in absent), None)


def run_task(places: Places, task: Task) -> None:
    """In a worker: make the base, or run the cell and write its file; unless another run has done it meanwhile."""
    from beholder_training.reproduce import training

    if isinstance(task, Base):
        if not places.base(task).is_dir():
            training.make(places, task)
    elif not result_path(places.root, task).is_file():
        write_finished(places.root, training.run(places, task))


def _pool(workers: int) -> ProcessPoolExecutor:
    """Workers with one thread each and no progress bars of their own."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}  # read by the workers when they import torch and tqdm
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)


def _start_worker() -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed run leaves no workers behind."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
