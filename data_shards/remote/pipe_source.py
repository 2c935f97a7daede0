"""Files that a shell command writes to its standard output: `pipe:COMMAND with {name}`."""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from typing import IO

from data_shards.errors import UserError
from data_shards.remote.transfer import RefusedError, RemoteStat, TransientError, in_a_line

PIPE = "pipe:"

_READ_BYTES = 1 << 20
_TAIL_BYTES = 4096


class PipeSource:
    """Runs the command once for each file."""

    tells_missing = False

    def __init__(self, location: str, timeout_s: float) -> None:
        """Take the command apart.

        Raises:
            UserError: it does not say where the file's name goes.
        """
        self._command = location.removeprefix(PIPE).strip()
        if "{name}" not in self._command:
            raise UserError("a pipe: location wants {name} where the file's name goes, as in pipe:cat /data/{name}")
        self._timeout_s = timeout_s
        # Arguments often carry tokens: the program's name has to do.
        self.location = f"{PIPE}{self._command.split()[0]} …"
        self._version = uuid.uuid4().hex

    def names(self) -> list[str]:
        """Refuse: a command gives files and no list."""
        raise RefusedError("a command does not list files; give shards with a manifest")

    def stat(self, name: str) -> RemoteStat:
        """Say that nothing is known: a copy that no checksum names serves this dataset while it is open."""
        return RemoteStat(size=None, version=self._version)

    def blocks(self, name: str, begin: int, size: int | None) -> Iterator[bytes]:
        """Yield what the command writes, without the first `begin` bytes."""
        with tempfile.TemporaryFile() as complaints:
            process = subprocess.Popen(
                [*_shell(), self._command.replace("{name}", shlex.quote(name))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                start_new_session=True,
            )
            assert process.stdout is not None
            try:
                for block in self._read(process.stdout):
                    kept = block[begin:]
                    begin -= len(block) - len(kept)
                    if kept:
                        yield kept
                status = process.wait(self._timeout_s)
            except subprocess.TimeoutExpired:
                raise TransientError(
                    f"the command did not end within {self._timeout_s:g} s of its last byte"
                ) from None
            finally:
                _end(process)
            if status != 0:
                raise TransientError(f"the command ended with status {status}{_last_line(complaints)}")

    def _read(self, output: IO[bytes]) -> Iterator[bytes]:
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while True:
                if not selector.select(self._timeout_s):
                    raise TransientError(f"the command wrote nothing for {self._timeout_s:g} s")
                if not (block := os.read(output.fileno(), _READ_BYTES)):
                    return
                yield block


def _shell() -> list[str]:
    """Return a shell; bash, where it is, notices a failure in the middle of a pipeline."""
    bash = shutil.which("bash")
    return [bash, "-o", "pipefail", "-c"] if bash else ["/bin/sh", "-c"]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the command with all that it started, where it still runs."""
    if process.stdout is not None:
        process.stdout.close()
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(complaints: IO[bytes]) -> str:
    complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - _TAIL_BYTES))
    lines = complaints.read().decode("utf-8", "replace").strip().splitlines()
    return f": {in_a_line(Exception(lines[-1]))}" if lines else ""
