"""Processes that end with the one that started them, however that ends."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent dies, even by SIGKILL: no worker outlives its launcher (Linux).

    Also fit to run between fork and exec: it loads nothing.
    """
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
