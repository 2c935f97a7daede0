"""`dipole train` and `dipole mine`."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from data_shards.errors import UserError
from launch.progress import progress_bar
from train.run_folder import RunFolder

_log = logging.getLogger(__name__)
_LINE_EVERY_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train an encoder by a TOML config, with `--section.field=value` on top of it.

    Ctrl-C or SIGTERM ends after the current step with a checkpoint; --resume goes on from there.
    """

    config: tyro.conf.Positional[Path]
    """TOML file; a run folder's own config.toml runs or resumes that run."""
    ranks: int | None = None
    """Training processes on this machine; the same as --run.ranks."""
    out: Path | None = None
    """The run folder; the same as --run.out."""
    resume: bool = False
    """Go on with the run that the folder holds."""

    def run_with(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Train, showing progress."""
        from launch.config import load_config
        from launch.local import train_here

        extra = [f"--run.ranks={self.ranks}"] if self.ranks is not None else []
        extra += [f"--run.out={self.out}"] if self.out is not None else []
        config = load_config(self.config, [*overrides, *extra])
        with train_progress() as on_event:
            outcome = train_here(config, resume=self.resume, on_event=on_event)
        skipped = _quarantined(outcome.run)
        if skipped:
            _log.warning("%d damaged samples were left out: %s", skipped, outcome.run.quarantine("rank-*"))
        answer: dict[str, Any] = {"run": str(outcome.run.root), "finished": outcome.finished, "steps": outcome.step}
        if outcome.stage == "adapt":
            answer |= {"steps": 0, "adapt_steps": outcome.step}
        answer |= {"quarantined": skipped} if skipped else {}
        if outcome.finished:
            return answer | {"snapshot": str(outcome.run.final)}
        of = " of adapt" if outcome.stage == "adapt" else ""
        _log.info(
            "stopped after %d steps%s; go on with: dipole train %s --resume", outcome.step, of, outcome.run.config
        )
        return answer | {"exit_code": 75}


def _quarantined(run: RunFolder) -> int:
    """Count the damaged samples; in another epoch another rank may come to the same one."""
    lines = (line for path in run.quarantine("any").parent.glob("rank-*") for line in path.read_text().splitlines())
    return len({(row["shard"], row["row"]) for row in map(json.loads, lines)})


@dataclass(frozen=True, kw_only=True)
class Mine:
    """Make one refresh of hard negatives by hand.

    Serves what the run's trainer has asked for and not got; with nothing asked for, mines for the steps ahead by the
    newest snapshot into RUN/mined, which training never reads by itself.
    """

    run_dir: Annotated[Path, tyro.conf.arg(name="run")]
    """Run folder."""

    def run(self) -> dict[str, Any]:
        """Mine once."""
        from launch.config import load_config
        from launch.miner import Miner, request_by_hand
        from train.run_folder import RunFolder

        run = RunFolder(self.run_dir.resolve())
        if not run.identity.exists():
            raise UserError(f"{self.run_dir} is not a run folder; give one that `dipole train` made")
        config = load_config(run.config)
        if not config.data.corpus:
            raise UserError(f"{run.config} sets no data.corpus, so there is nothing to mine from; set it")
        with Miner(run, config) as miner:
            request, root = miner.next_request(), run.negatives
            if request is None:
                root = run.root / "mined"
                request = request_by_hand(run, root, every_steps=miner.every_steps)
            report = miner.serve(request, root)
        return asdict(report)


def _refresh_line(row: dict[str, Any]) -> tuple[Any, ...]:
    line = "step %d  negatives version %d for %d queries in %.1f s"
    return line, row["step"], row["version"], row["queries"], sum(row["seconds"].values())


def _adapt_line(row: dict[str, Any]) -> tuple[Any, ...]:
    line = "adapt: step %d of %d  loss %.3f  %.1f %% of tokens right  %.0f tokens/s"
    return line, row["done"], row["steps"], row["loss"], 100 * row["accuracy"], row["tokens_per_s"]


@contextmanager
def train_progress(label: str = "training") -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a callback for `train_here`: a bar on a terminal, a line now and then elsewhere."""
    with progress_bar(label) as bar:
        shown = time.monotonic()

        def on_event(row: dict[str, Any]) -> None:
            nonlocal shown
            if row["event"] == "step":
                bar(row["step"] + 1, row["steps"])
                if sys.stderr.isatty() or time.monotonic() - shown < _LINE_EVERY_S:
                    return
                shown = time.monotonic()
                rate = f"{row['pairs_per_s']:.0f} pairs/s"
                _log.info("step %d of %d  loss %.3f  %s", row["step"] + 1, row["steps"], row["loss"], rate)
            elif row["event"] == "adapt":
                bar(row["done"], row["steps"])
                if sys.stderr.isatty() or time.monotonic() - shown < _LINE_EVERY_S:
                    return
                shown = time.monotonic()
                _log.info(*_adapt_line(row))
            elif row["event"] == "dev":
                values = ", ".join(f"{name} {value:.4f}" for name, value in row.items() if "@" in name)
                _log.info("step %d  dev %s", row["step"], values)
            elif row["event"] == "refresh":
                _log.info(*_refresh_line(row))
                if not row["queries"]:
                    _log.warning("no negative was left: %s; see [mining]", row["filters"])

        yield on_event
