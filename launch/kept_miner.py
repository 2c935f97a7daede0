"""The miner of a run as the command sees it: one that dies is started again, a bounded number of times in a row."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from data_shards.atomic import read_json
from data_shards.negatives import published_versions
from launch.children import Child, Companion
from launch.failures import TrainingFailedError
from train.cadence import RefreshConfig
from train.refresh import failed_path
from train.run_folder import RunFolder

_log = logging.getLogger(__name__)
_FIRST_PAUSE_S = 1.0
_TICK_S = 0.2


class KeptMiner:
    """Looks like one process.

    A miner that was killed is started again: what it has embedded is not lost. One that ended by itself has said why:
    in `phased` the ranks that wait for it end the run with that cause. In `async` they go on with the negatives that
    they have, so it is started again as well, and when that is of no use the run goes on without it.
    """

    name = "miner"

    def __init__(
        self,
        run: RunFolder,
        config: RefreshConfig,
        *,
        once: bool = False,
        environment: Mapping[str, str] | None = None,
        start: Callable[[], Child] | None = None,
    ) -> None:
        """Start the miner.

        Args:
            run: whose requests it serves.
            config: how often it may be started again.
            once: whether it ends when it has served what is asked for.
            environment: variables beside those that every miner gets.
            start: starts it in another way.
        """
        self.log: Path = run.logs / "miner.log"
        self._run, self._config, self._once = run, config, once
        self._start = start or (lambda: _start_miner(run, once=once, environment=environment or {}))
        self._child = self._start()
        self._versions = published_versions(run.negatives)
        self._tries = 0
        self._again_at = 0.0
        self._over = False
        self._missed: int | None = None

    def exit_code(self) -> int | None:
        """Return the exit code of one that is not started again and is missed, else None."""
        code = self._child.exit_code()
        if self._missed is not None or code is None or self._over:
            return self._missed
        if self._once and code == 0:
            self._missed = 0
            return 0
        if (versions := published_versions(self._run.negatives)) != self._versions:
            self._versions, self._tries = versions, 0  # it has done something since
        if self._tries >= self._config.miner_restarts or (code > 0 and self._config.way == "phased"):
            return self._give_up(code)
        self._start_again(code)
        return None

    def ask_to_stop(self) -> None:
        """Send SIGTERM; it is not started again."""
        self._over = True
        self._child.ask_to_stop()

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the end; None when it did not come in time."""
        deadline = time.monotonic() + timeout_s
        while (code := self._child.wait(_TICK_S) if self._over else self.exit_code()) is None:
            if time.monotonic() >= deadline:
                return None
            time.sleep(0 if self._over else _TICK_S)
        return code

    def end(self, grace_s: float) -> None:
        """Ask, wait, then kill the whole session."""
        self._over = True
        self._child.end(grace_s)

    def last_lines(self, count: int = 15) -> str:
        """Return the end of the log."""
        return self._child.last_lines(count)

    def _give_up(self, code: int) -> int | None:
        if self._config.way == "phased":
            self._missed = code
            return code
        self._over = True
        _log.warning(
            "the miner ended %d times in a row (exit code %d), training goes on with the negatives it has; see %s",
            *(self._tries + 1, code, self.log),
        )
        return None

    def _start_again(self, code: int) -> None:
        now = time.monotonic()
        if not self._again_at:
            pause_s = _FIRST_PAUSE_S * 2**self._tries
            _log.warning(
                "the miner ended (exit code %d) and is started again in %.0f s; see %s", code, pause_s, self.log
            )
            self._again_at = now + pause_s
        if now >= self._again_at:
            self._child.end(0)
            self._tries, self._again_at = self._tries + 1, 0.0
            self._child = self._start()


def _start_miner(run: RunFolder, *, once: bool, environment: Mapping[str, str]) -> Child:
    command = [sys.executable, "-m", "launch.miner", str(run.root), *(["--once"] if once else [])]
    own = {"TOKENIZERS_PARALLELISM": "false"}
    return Child("miner", command, log=run.logs / "miner.log", environment={**own, **environment})


def mining_failed(run: RunFolder, version: int, miner: Companion) -> TrainingFailedError:
    """Return why a version was not made: what the miner left word of, else how it ended."""
    failed = failed_path(run, version)
    cause = (
        read_json(failed)["cause"]
        if failed.exists()
        else f"the miner ended (exit code {miner.exit_code()}):\n{miner.last_lines()}"
    )
    return TrainingFailedError(f"negatives version {version} was not made: {cause}\n(log: {miner.log})")
