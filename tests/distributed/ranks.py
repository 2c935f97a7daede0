"""Starts real ranks that talk over gloo, with a hard limit on how long they may take."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TIMEOUT_S = 150


def run_ranks(function: Callable[..., Any], world_size: int, folder: Path, *arguments: Any) -> list[Any]:
    """Call `function(*arguments)` in every rank and return what each returned, in rank order.

    The ranks see what torchrun would set; the process group is theirs to start. A rank that raises, dies or hangs
    fails the test with the first rank's traceback.
    """
    context = multiprocessing.get_context("spawn")
    port = _free_port()
    processes = [
        context.Process(target=_one_rank, args=(function, rank, world_size, port, folder, arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(TIMEOUT_S)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    failures = sorted(folder.glob("rank-*.failed"), key=lambda path: path.stat().st_mtime)
    assert not failures, failures[0].read_text()
    assert [process.exitcode for process in processes] == [0] * world_size
    # Written by ourselves a moment ago; test results only.
    return [pickle.loads((folder / f"rank-{rank}.pickle").read_bytes()) for rank in range(world_size)]


def _one_rank(
    function: Callable[..., Any], rank: int, world_size: int, port: int, folder: Path, arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu",
    }
    torch.set_num_threads(1)
    try:
        result = function(*arguments)
        (folder / f"rank-{rank}.pickle").write_bytes(pickle.dumps(result))
    except BaseException:
        (folder / f"rank-{rank}.failed").write_text(f"rank {rank}\n{traceback.format_exc()}")
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    # The result is written. What is left is the interpreter's end, at which gloo's threads now and then abort.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
