"""All runs of a study, one after the other or several at once, each by one process.

A run that is finished or failed is not done again; one that another process has is left to it.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_context
from pathlib import Path
from types import FrameType

from smidgen import cluster
from smidgen.errors import SmidgenError, UsageError
from smidgen.files.lock import Held, held
from smidgen.study.design import Design, read_design
from smidgen.study.runs import FAILURE, Run, State, runs_of, states, tuning_of
from smidgen.training.interrupt import SIGNALS, Interrupted, ask_to_stop

TO_DO = ("missing", "begun", "other settings")
Tell = Callable[[str], None]

_ended = threading.Event()  # in a worker that was asked to stop: it does nothing more


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that a process needs to be told of runs that share a training, whatever its working
    folder: the recipe, the study's folder, their places in it, and what to do where there is
    something already.
    """

    source: str
    output: str
    places: tuple[str, ...]
    force: bool
    retry: bool


def run_all(
    design: Design,
    *,
    workers: int = 1,
    part: tuple[int, int] = (1, 1),
    ray: str | None = None,
    force: bool = False,
    retry: bool = False,
    tell: Tell = lambda _: None,
) -> dict[State, int]:
    """Do what is to be done of the part K of N, first the runs that tune; how many runs of the
    study are in which state then. Those that wait for what other parts tune are done by a later
    call. `retry`: also what failed; `force`: also what has other settings. `ray`: the address of a
    Ray cluster that shares the folders, or "local".

    Raises: UsageError for results of other settings without `force`, naming one; SmidgenError.
    """
    for runs in (tuning_of(design), runs_of(design)):
        together: dict[Path, list[Run]] = {}  # each training's are one process's
        for run in runs:
            together.setdefault(run.trained, []).append(run)
        mine = itertools.chain.from_iterable([*together.values()][part[0] - 1 :: part[1]])
        chosen = list(_to_do(mine, force=force, retry=retry))
        tasks = [
            Task(
                source=str(Path(design.source).absolute()),
                output=str(design.output.absolute()),
                places=tuple(run.place for run in group),
                force=force,
                retry=retry,
            )
            for _, group in itertools.groupby(chosen, lambda run: run.trained)
        ]
        names = itertools.chain.from_iterable(_done(tasks, workers, ray, tell))
        for number, name in enumerate(names, 1):
            tell(f"{number}/{len(chosen)} {name}")
    counts: dict[State, int] = {}
    for _, state, _ in states(runs_of(design)):
        counts[state] = counts.get(state, 0) + 1
    return counts


def _to_do(runs: Iterable[Run], *, force: bool, retry: bool) -> Iterator[Run]:
    for run, state, why in states(list(runs)):
        if state == "other settings" and not force:
            raise UsageError(
                f"{run.folder} holds a result of other settings ({why}); give another output, or "
                "do it again with force (--force)"
            )
        if state in TO_DO or (retry and state == "failed" and run.folder.exists()):
            yield run


def _done(tasks: list[Task], workers: int, ray: str | None, tell: Tell) -> Iterator[list[str]]:
    """The names of the runs of each task when it is done."""
    if ray is not None:
        yield from _by_ray(tasks, ray)
    elif workers == 1 or len(tasks) < 2:
        yield from map(do, tasks)
    else:
        yield from _by_pool(tasks, workers, tell)


def _by_pool(tasks: list[Task], workers: int, tell: Tell) -> Iterator[list[str]]:
    """By processes of this machine, each of which keeps its bases. Raises: SmidgenError."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    # spawned: a process that has computed with several threads cannot be forked
    context = get_context("spawn")
    end, kept = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=begin_worker, initargs=(threads, end))
    with end, kept, _ended_by_sigterm(), pool:
        rest = iter(tasks)

        def given(count: int) -> set[Future[list[str]]]:
            _hold(True, *SIGNALS)  # a worker that this starts begins so
            try:
                return {pool.submit(do_as_worker, task) for task in itertools.islice(rest, count)}
            finally:
                _hold(False, *SIGNALS)

        try:
            running = given(workers)
            while running:  # a task is given to who can begin it, so that none waits in the pool
                done, running = wait(running, return_when=FIRST_COMPLETED)
                names = [future.result() for future in done]
                running |= given(len(done))
                yield from names
        except BaseException as error:
            kept.close()  # which the workers wait for
            if isinstance(error, BrokenProcessPool):
                raise SmidgenError(
                    "a worker was killed, most often as memory ran out; give fewer --workers and "
                    "run the same command again, which goes on"
                ) from error
            tell("waiting for what has begun")
            raise


def _by_ray(tasks: list[Task], address: str) -> Iterator[list[str]]:
    """As core tasks of Ray, one process each, which it keeps and with them their bases."""
    with cluster.joined(address) as ray:
        remote = ray.remote(do)
        waiting = [remote.remote(task) for task in tasks]
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            yield from ray.get(done)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM raises, as Ctrl-C does, so that what has begun is told and waited for."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted("stopped; the same command goes on", number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _hold(held: bool, *signals: signal.Signals) -> None:
    """From now on they wait, or come; where the system can do that. New processes inherit it."""
    if hasattr(signal, "pthread_sigmask"):
        how = signal.SIG_BLOCK if held else signal.SIG_UNBLOCK
        signal.pthread_sigmask(how, signals)


def begin_worker(threads: int, end: connection.Connection) -> None:
    """A worker of a pool, which ends once the other side of `end` is closed: by the process that
    started it, or by the end of that, whatever it was. It is started with signals held. Ctrl-C that
    comes before a task, or between two, ends the next; SIGTERM never comes, since a pool sends it
    to all when one is lost, and what has begun saves.
    """
    import torch
    from tqdm import tqdm

    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())  # its own is the system's, and would be left behind
    threading.Thread(target=_end_with, args=(end,), daemon=True).start()


def do_as_worker(task: Task) -> list[str]:
    """`do`, which Ctrl-C ends, and with it what would be the next: a task that waits for a worker
    that starts may come to one that has ended another.
    """
    try:
        _hold(False, signal.SIGINT)
        if _ended.is_set():
            raise KeyboardInterrupt
        return do(task)
    except (KeyboardInterrupt, Interrupted):
        _ended.set()
        raise
    finally:
        _hold(True, signal.SIGINT)


def _end_with(end: connection.Connection) -> None:
    connection.wait([end])
    _ended.set()
    ask_to_stop()
    os._exit(1)


def do(task: Task) -> list[str]:
    """The runs, but those that another process has or has done meanwhile; their names. What is
    finished keeps its deltas and not its checkpoints.
    """
    from smidgen.study.execute import perform

    design = read_design(Path(task.source), Path(task.output))
    runs = {run.place: run for run in (*tuning_of(design), *runs_of(design))}
    mine = [runs[place] for place in task.places]
    trained, names = mine[0].trained, []
    try:
        with held(design.output / "claims" / trained.relative_to(design.output)):
            # of a training that is to be done again, once for all that share it
            force = task.force and any(run.standing[0] == "other settings" for run in mine)
            for run in mine:
                if task.retry:
                    (run.folder / FAILURE).unlink(missing_ok=True)
                if run.standing[0] in TO_DO:
                    perform(run, force=force)
                    force = False
                state, why = run.standing
                names.append(run.name if state == "finished" else f"{run.name}: {state}, {why}")
            # a study has many runs, and a checkpoint of `full` holds the network three times
            together = [run for run in runs.values() if run.trained == trained]
            if all(run.standing[0] == "finished" for run in together):
                for config in mine[0].request.trainings if mine[0].request else ():
                    shutil.rmtree(config.output / "checkpoints", ignore_errors=True)
    except Held:
        names += [f"{run.name} (another process has it)" for run in mine[len(names) :]]
    return names
