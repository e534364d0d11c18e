"""Where points are run: in this process, in processes of this machine, or on a dask cluster.

All three are a `concurrent.futures.Executor`, and how many points it should be given at a time.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import wait as wait_for
from typing import Any, NamedTuple, TypeVar

from simulator.errors import InputError

Made = TypeVar("Made")

ANSWER_S = 10.0
"""How long a scheduler may take to answer, and then to have a worker."""


def _always() -> bool:
    return True


class Pool(NamedTuple):
    """An executor, and how many points are handed to it at a time: enough that nobody waits.

    alive: whether it can still answer.
    """

    executor: Executor
    ahead: int
    alive: Callable[[], bool] = _always


Maker = Callable[[], AbstractContextManager[Pool]]
"""Makes a pool; called again when the one before broke."""


class Inline(Executor):
    """Runs what it is given at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future that is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def maker(workers: int | None, scheduler: str | None) -> Maker:
    """What makes the pool that is asked for; raises InputError for arguments that do not go
    together, and if `scheduler` does not answer when the pool is made.
    """
    if scheduler is not None:
        if workers is not None:
            raise InputError("--workers: goes without --scheduler, which has workers of its own")
        return lambda: cluster(scheduler)
    if workers == 0:
        raise InputError("--workers 0: at least one process")
    count = workers or len(os.sched_getaffinity(0))
    return inline if count == 1 else lambda: processes(count)


@contextmanager
def inline() -> Iterator[Pool]:
    """No pool: points run here, one after the other."""
    yield Pool(Inline(), 1)


@contextmanager
def processes(count: int) -> Iterator[Pool]:
    """So many processes, which end with this one, however it ends."""
    # Imported once here, not in each process where those are forked.
    import simulator.api
    import simulator.engine.serving.simulate
    import simulator.engine.simulate
    import simulator.results.analyzer
    import simulator.results.serving  # noqa: F401

    before = multiprocessing.active_children()
    executor = ProcessPoolExecutor(count, initializer=_begin)
    try:
        yield Pool(executor, count + 2)
        executor.shutdown()
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            if process not in before:
                process.terminate()
        raise


def _begin() -> None:
    """In a new process: Ctrl-C is for the one that waits for us, and if that one dies we go too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)


@contextmanager
def cluster(address: str) -> Iterator[Pool]:
    """The workers of a dask.distributed scheduler that is running already.

    Raises InputError if it does not answer within `ANSWER_S`, or has no worker.
    """
    try:
        from distributed import Client
    except ImportError:
        raise InputError(
            "--scheduler needs dask.distributed: pip install 'moe-cluster-simulator[distributed]'"
        ) from None
    # What goes wrong is told in one line by us.
    for name in ("distributed", "tornado", "asyncio", *logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("distributed", "tornado", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = _within(
            ANSWER_S, lambda: Client(address, timeout=0.9 * ANSWER_S, set_as_default=False)
        )
    except (OSError, ValueError, TimeoutError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"--scheduler {address}: does not answer: {said}") from None
    try:
        try:
            client.wait_for_workers(1, timeout=ANSWER_S)
        except TimeoutError:
            raise InputError(f"--scheduler {address}: has no workers; start some") from None
        threads = sum(client.nthreads().values())
        executor = client.get_executor(pure=False)
        try:
            yield Pool(executor, 2 * threads + 2, lambda: client.status != "closed")
        finally:
            # All is done, or what is under way is not wanted any more.
            executor.shutdown(wait=False)
    finally:
        client.close(timeout=ANSWER_S)


def _within(limit_s: float, make: Callable[[], Made]) -> Made:
    """What `make` returns, or what it raises; TimeoutError if it is not done in time: the client's
    own limit does not hold where something takes the connection and then says nothing.
    """
    made: Future[Made] = Future()

    def work() -> None:
        try:
            made.set_result(make())
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return made.result(limit_s)
    except TimeoutError:
        if made.done():
            raise
        raise TimeoutError(f"nothing was heard for {limit_s:g} s") from None
