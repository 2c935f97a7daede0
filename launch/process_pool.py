"""Work spread over processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from data_shards.errors import UserError
from data_shards.parent_death import die_with_parent

_WAITING_PER_WORKER = 2  # enough that none idles; the rest stays with us, so that an error leaves little behind


@contextmanager
def process_pool(workers: int) -> Iterator[Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]]:
    """Yield a function that calls another for each item, in so many processes, and yields results as they come.

    The processes are new ones (spawn), so that no thread or lock of ours is copied. They end with the block, at once
    after an error, and with this process, however that ends. SIGTERM is an error in the block: it exits with 143.

    Raises:
        UserError: a worker was killed.
    """
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(os.getpid(),))

    def run(job: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        rest = iter(items)
        running: set[Future[Any]] = set()
        while True:
            for item in rest:
                running.add(pool.submit(job, item))
                if len(running) >= workers * _WAITING_PER_WORKER:
                    break
            if not running:
                return
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                yield future.result()

    try:
        with _sigterm_raises():
            yield run
        pool.shutdown()
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
            process.join()
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            advice = "if memory ran out, take fewer --workers; run again: what is done is kept"
            raise UserError(f"a worker process was killed; {advice}") from error
        raise


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into an exception: killed outright, we would leave semaphores, and Python would warn of them."""
    if threading.current_thread() is not threading.main_thread():  # no other may set handlers
        yield
        return

    def leave(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt what the first has begun
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _begin(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides
    die_with_parent()
    if os.getppid() != parent:  # it died before the kernel was told
        os._exit(1)
