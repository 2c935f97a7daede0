"""A Ray that comes and goes with us: started quietly on this machine, or an existing cluster that we join."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from types import FrameType
from typing import Any

from data_shards.errors import UserError

_log = logging.getLogger(__name__)

# Ray's least is 75 MiB. Vectors are written by the workers; only query texts and vectors pass through the store.
_OBJECT_STORE_BYTES = 128 << 20


@contextmanager
def ray_session(cpus: int, address: str | None, gpus: int = 0) -> Iterator[None]:
    """Start Ray on this machine, or join the cluster at `address`; leave no process of ours behind.

    Inside a process that already uses Ray, that session is used and left as it is.

    Args:
        cpus: for an embedded start: how many CPUs Ray may give out. It is not checked against the machine's.
        address: of an existing cluster, as `ray.init` takes it.
        gpus: for an embedded start: how many GPUs of this machine Ray may give out; others are training's.

    Raises:
        UserError: no cluster answers at `address`.
    """
    if address is not None:
        _refuse_silence(address)
    environment = {} if address else _embedded_environment()
    with _environment(environment):
        import ray  # only now: some of it is read when Ray is imported
    if ray.is_initialized():
        yield
        return
    with ExitStack() as stack:
        stack.callback(ray.shutdown)  # should the start fail half-way
        stack.enter_context(_sigterm_unwinds())
        with _environment(environment):
            family = _start(cpus, address, gpus)
        stack.enter_context(_end_with_this_process(family))
        stack.callback(ray.shutdown)  # still watched: a second signal may cut it short
        yield


def _start(cpus: int, address: str | None, gpus: int) -> list[int]:
    """Start or join Ray; return the processes that were started."""
    import psutil
    import ray

    options: dict[str, Any] = {"address": address}
    if address is None:
        options = {
            "address": "local",  # without it Ray may join another cluster on this host
            "num_cpus": cpus,
            "num_gpus": gpus,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    _keep_off_stdout()
    handler = _sigterm_handler()
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise _no_cluster(address, error) from error
    _set_sigterm_handler(handler)  # Ray's own drains for up to 30 s before it lets the process go
    if address is not None:
        return []
    place = os.path.dirname(ray.__file__)
    daemons = [
        child for child in psutil.Process().children() if any(part.startswith(place) for part in child.cmdline())
    ]
    return [child.pid for daemon in daemons for child in (daemon, *daemon.children(recursive=True))]


def _refuse_silence(address: str) -> None:
    """Refuse an address at which nothing listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():  # `auto` and the like
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0]
    return UserError(f"no Ray cluster at {address!r} ({reason}); leave the address out to use this host")


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
    """Set environment variables for a while: processes of other kinds, started later, do not inherit them."""
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
def _end_with_this_process(pids: list[int]) -> Iterator[None]:
    """Should this process be killed outright, have a shell kill those: two of Ray's stay on for a minute otherwise.

    The shell waits on a pipe whose other end is ours. A line through it means that all is well; its end, that we are
    gone.
    """
    if not pids:
        yield
        return
    command = ["sh", "-c", 'read -r _ || kill -9 "$@" 2>/dev/null', "sh", *map(str, pids)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as watch:
        try:
            yield
        finally:
            watch.communicate(b"\n")


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Let SIGTERM leave the block in order, unless the caller handles it; afterwards it does what it did before."""
    before = _sigterm_handler()
    if before is signal.SIG_DFL:
        _set_sigterm_handler(_unwind)
    try:
        yield
    finally:
        _set_sigterm_handler(before)


def _unwind(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _sigterm_handler() -> Any:
    return signal.getsignal(signal.SIGTERM)


def _set_sigterm_handler(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)


def _keep_off_stdout() -> None:
    """Turn the notes about dead workers, which Ray prints to stdout, into log lines: stdout belongs to `--json`."""
    from ray._private import worker

    def note(data: dict[str, Any], *_: object, **__: object) -> None:
        _log.debug("ray: %s", " ".join(data.get("lines", [])))

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = note
