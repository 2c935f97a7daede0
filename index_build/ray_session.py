"""A Ray that comes and goes with us: started quietly on this machine, or an existing cluster that we join."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from data_shards.errors import UserError

_log = logging.getLogger(__name__)

# Ray's least is 75 MiB. Vectors are written by the workers; only query texts and vectors pass through the store.
_OBJECT_STORE_BYTES = 128 << 20


@contextmanager
def ray_session(cpus: int, address: str | None) -> Iterator[None]:
    """Start Ray on this machine, or join the cluster at `address`; leave no process of ours behind.

    Inside a process that already uses Ray, that session is used and left as it is.

    Args:
        cpus: for an embedded start: how many CPUs Ray may give out. It is not checked against the machine's.
        address: of an existing cluster, as `ray.init` takes it.

    Raises:
        UserError: no cluster answers at `address`.
    """
    with _environment({} if address else _embedded_environment()):
        import ray  # only now: what is set above is read when Ray is imported

        if ray.is_initialized():
            yield
            return
        options: dict[str, Any] = {"address": address}
        if address is None:
            options = {
                "address": "local",  # without it Ray may join another cluster on this host
                "num_cpus": cpus,
                "num_gpus": 0,
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
            }
        _keep_off_stdout()
        with _sigterm_kept():
            try:
                ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
            except ConnectionError as error:
                first_line = str(error).strip().splitlines()[0]
                raise UserError(
                    f"no Ray cluster at {address!r} ({first_line}); leave the address out to use this host"
                ) from error
    try:
        yield
    finally:
        ray.shutdown()


@cache
def _token() -> str:
    """One token a process: Ray caches the first that it sees."""
    return secrets.token_hex(32)


def _embedded_environment() -> dict[str, str]:
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        # On loopback (this switch's other effect), and by token: nobody else on the host may submit work.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _token(),
    }


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables; processes that are started afterwards do not inherit them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Undo the SIGTERM handler that Ray installs: it drains for up to 30 s before it lets the process go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _keep_off_stdout() -> None:
    """Turn the notes about dead workers, which Ray prints to stdout, into log lines: stdout belongs to `--json`."""
    from ray._private import worker

    def note(data: dict[str, Any], *_: object, **__: object) -> None:
        _log.debug("ray: %s", " ".join(data.get("lines", [])))

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = note
