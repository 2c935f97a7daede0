"""Child processes that never outlive the command that started them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

from train.stops import die_with_parent

_FORCED_S = 10.0


class Companion(Protocol):
    """A process, or one that is started again when it dies, as the command watches it."""

    name: str
    log: Path

    def exit_code(self) -> int | None:
        """Return the exit code, or None while it runs."""

    def ask_to_stop(self) -> None:
        """Send the signal that it knows."""

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the end; None when it did not come in time."""

    def end(self, grace_s: float) -> None:
        """Ask, wait, then kill all of it."""

    def last_lines(self, count: int = 15) -> str:
        """Return the end of the log."""


class Child:
    """A process in a session of its own, so that Ctrl-C in the terminal reaches only the command, which decides."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        """Start it.

        Args:
            name: what people call it.
            command: words.
            log: file that both outputs are appended to.
            environment: variables on top of this process's.
            stop_signal: what asks it to stop.
        """
        self.name = name
        self.log = log
        self._stop_signal = stop_signal
        log.parent.mkdir(parents=True, exist_ok=True)
        self._out: IO[bytes] = open(log, "ab")
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    def exit_code(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Signal the process itself; it passes the word on to its own children."""
        if self.exit_code() is None:
            self._process.send_signal(self._stop_signal)

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the end; None when it did not come in time."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def end(self, grace_s: float) -> None:
        """Ask, wait, then kill the whole session. Nothing of it is left afterwards."""
        self.ask_to_stop()
        if self.wait(grace_s) is None and self._stop_signal != signal.SIGTERM:
            self._process.terminate()  # srun, which then ends what it started on other nodes
            self.wait(_FORCED_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._out.close()

    def last_lines(self, count: int = 15) -> str:
        """Return the end of the log."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-count:])
