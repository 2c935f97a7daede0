"""`dipole quickstart`: the whole way on this machine, each part done by the verb that does it alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.errors import UserError

if TYPE_CHECKING:
    from data_shards.docstrings import DocstringData
    from index_build.index_manifest import IndexManifest
    from launch.config import RunConfig
    from launch.local import Outcome

_log = logging.getLogger(__name__)

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "quickstart.toml"
_TINY_PAIRS = 600
_TINY = ("--train.steps=12", "--batch.batch_size=64", "--dev.every_steps=6", "--train.checkpoint_every_steps=6")
_TINY_MINING = ("--refresh.first_step=6", "--refresh.every_steps=3", "--index.factory=IVF16,SQ8")
# A pretrained encoder is larger and has less to learn: fewer, gentler steps, or two cores take an hour.
_PRETRAINED = (
    "--train.epochs=1",
    "--optimizer.learning_rate=5e-5",
    "--refresh.first_step=8",
    "--refresh.every_steps=6",
)


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """Train, refresh, embed, index and evaluate on this machine, on data that every Python carries.

    Queries are the first paragraphs of the standard library's docstrings, passages the code that they document. Takes
    `--section.field=value` as `dipole train` does, on top of configs/quickstart.toml.
    """

    out: Path = Path("runs/quickstart")
    """A new folder for everything: data, run, embeddings, index, result.json, report.html."""
    model: str = ""
    """Start from this encoder (a folder, or a hub name) instead of from nothing."""
    compare: bool = False
    """Train a second time without refreshed negatives, and say which was better."""
    tiny: bool = False
    """A tenth of the data and a few steps: a minute that shows that everything works. Its numbers mean nothing."""
    ranks: int = 2
    """Training processes."""

    def run_with(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Go the whole way."""
        from launch.quickstart_report import finish
        from launch.quickstart_show import show

        began = time.monotonic()
        out = self.out.absolute()
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{self.out} is there already and is never overwritten; choose another --out")
        config = self._config(out, overrides)
        _stage(1, "data: docstrings and code of the standard library")
        data = self._data(out)
        _stage(2, f"training on {config.run.ranks} ranks, refreshing hard negatives on the way")
        outcome = _train(config, "training")
        if not outcome.finished:
            return _stopped(outcome)
        plain = None
        if self.compare:
            _log.info("the same once more, without refreshed negatives")
            plain = _train(without_refresh(config), "training without refresh")
            if not plain.finished:
                return _stopped(plain)
        _stage(3, "embedding the corpus, each passage once")
        index = _embed_and_index(config, outcome, data, out)
        _stage(5, "evaluating on modules that training never saw")
        result = finish(out, config, data, outcome, plain, index, began=began)
        return result | {"text": show(result)}

    def _config(self, out: Path, overrides: Sequence[str]) -> RunConfig:
        from encoder.snapshot import load_encoder
        from launch.config import load_config

        data = out / "data"
        arguments = [f"--run.out={out / 'run'}", f"--run.ranks={self.ranks}"]
        arguments += [
            f"--data.pairs={data / 'train'}",
            f"--data.corpus={data / 'corpus'}",
            f"--dev.data={data / 'beir'}",
        ]
        if self.model:
            load_encoder(self.model)  # a wrong name should not first cost the time of making the data
            arguments += [f"--encoder.model={self.model}", *_PRETRAINED]
        if self.tiny:
            arguments += [*_TINY, *_TINY_MINING]
        return load_config(CONFIG, [*arguments, *overrides])

    def _data(self, out: Path) -> DocstringData:
        from data_shards.docstrings import write_docstring_data

        data = write_docstring_data(out / "data", max_pairs=_TINY_PAIRS if self.tiny else None)
        counts = ", ".join(f"{count} {split}" for split, count in data.queries.items())
        _log.info("%d passages; queries: %s", data.passages, counts)
        return data


def without_refresh(config: RunConfig) -> RunConfig:
    """Return the same training, but with the given negatives alone."""
    return replace(
        config,
        run=replace(config.run, out=f"{config.run.out}-no-refresh"),
        refresh=replace(config.refresh, first_step=0, every_steps=0),
    )


def _train(config: RunConfig, label: str) -> Outcome:
    from launch.local import train_here
    from launch.train_verbs import train_progress

    with train_progress(label) as on_event:
        return train_here(config, on_event=on_event)


def _embed_and_index(config: RunConfig, outcome: Outcome, data: DocstringData, out: Path) -> IndexManifest:
    from data_shards.beir import BeirFolder
    from index_build.index import build_index
    from index_build.ray_pool import EmbedPool
    from launch.progress import progress_bar

    with (
        EmbedPool(workers=config.workers.count, threads_per_worker=config.workers.threads) as pool,
        progress_bar("embedding") as progress,
    ):
        vectors = pool.embed_corpus(outcome.run.final, data.corpus, out / "embeddings", progress)
        beir = BeirFolder(data.beir)
        judged = beir.qrels("dev")
        texts = [text for name, text in beir.queries().items() if name in judged]
        queries = pool.embed_texts(outcome.run.final, texts, "query")
    _stage(4, "building an index and measuring its recall")
    index = build_index(vectors, out / "index", config.index, queries)
    recall = index.recall
    _log.info("%s over %d vectors, recall@%d %.3f", index.factory, index.ntotal, recall.k, recall.value)
    return index


def _stopped(outcome: Outcome) -> dict[str, Any]:
    config = outcome.run.config
    _log.info("stopped after %d steps; the training goes on with: dipole train %s --resume", outcome.step, config)
    return {"run": str(outcome.run.root), "finished": False, "steps": outcome.step, "exit_code": 75}


def _stage(number: int, what: str) -> None:
    _log.info("[%d/5] %s", number, what)
