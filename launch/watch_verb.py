"""`dipole watch RUN`: what W&B shows of a run, in a terminal and from its folder alone."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Show how a run goes: steps, loss, dev metrics, negatives, speed, who waits for whom. Needs no W&B.

    On a terminal it goes on until the run ends or Ctrl-C; elsewhere it shows once.
    """

    run_dir: tyro.conf.Positional[Path]
    """Run folder."""
    every_s: float = 2.0
    """Seconds between two looks."""
    once: Annotated[bool, tyro.conf.arg(help="Show once and end.")] = False

    def run(self) -> dict[str, Any]:
        """Watch, and return the last that was seen."""
        from data_shards.errors import UserError
        from launch.run_view import look
        from train.run_folder import RunFolder

        run = RunFolder(self.run_dir.resolve())
        if not run.root.is_dir():
            raise UserError(f"{self.run_dir} does not exist; give the run folder")
        if not run.identity.exists() and not run.metrics.exists():
            raise UserError(f"{self.run_dir} is not a run folder; give one that `dipole train` made")
        if self.every_s <= 0:
            raise UserError(f"--every-s is {self.every_s}, wanted above 0")
        if not self.once and sys.__stdout__ is not None and sys.__stdout__.isatty():
            self._live(run)
        view = look(run)
        return {**view.facts, "text": view.text(width=100)}

    def _live(self, run: Any) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        from launch.run_view import look

        console = Console(file=sys.__stdout__)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            try:
                while True:
                    view = look(run)
                    live.update(Text(view.text(width=console.width)), refresh=True)
                    if view.is_over:
                        return
                    time.sleep(self.every_s)
            except KeyboardInterrupt:
                return
