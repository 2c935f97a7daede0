"""Runs the service in this process until it is told to stop."""

from __future__ import annotations

import errno
import logging
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from data_shards.errors import UserError

_log = logging.getLogger(__name__)
_DRAIN_S = 10


def bind(host: str, port: int) -> socket.socket:
    """Take an address before anything slow is done.

    Raises:
        UserError: it is in use, or not this machine's.
    """
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(kind, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit it. asyncio sets it only on sockets that name their protocol, and without it each answer,
    # head and body being two writes, waits some 40 ms for the client's delayed acknowledgement.
    taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        taken.bind((host, port))
    except (OSError, OverflowError) as error:
        taken.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {host} is in use; choose another --port, or 0 for any") from None
        raise UserError(f"cannot listen on {host}:{port} ({error}); give another --host or --port") from None
    taken.listen(2048)  # before the first request is answered, others may wait
    return taken


def address(taken: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = taken.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def run(app: FastAPI, taken: socket.socket) -> None:
    """Serve; SIGTERM and Ctrl-C answer what is under way, then end."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # queries are people's own
        timeout_graceful_shutdown=_DRAIN_S,
        timeout_keep_alive=30,
        server_header=False,
    )
    before = {number: signal.signal(number, _heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        uvicorn.Server(config).run(sockets=[taken])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _heard(number: int, frame: FrameType | None) -> None:
    """Do nothing: uvicorn has ended in good order for this signal, and raises it once more."""
