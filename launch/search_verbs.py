"""`dipole search` and `dipole evaluate`: what an encoder finds, and how well."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from launch.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class Search:
    """Search an index with a text."""

    text: tyro.conf.Positional[str]
    """The query."""
    index: Path
    """Folder made by `dipole index build`."""
    model: Path
    """The snapshot that embedded the corpus."""
    corpus: str | None = None
    """The corpus, where it has moved since."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Passages wanted."""
    text_chars: int = 300
    """Shown texts are cut to so many characters; 0 shows all."""

    def run(self) -> dict[str, Any]:
        """Search, and return the passages, best first."""
        from index_build.search import Searcher

        hits = Searcher(self.index, self.model, self.corpus).search([self.text], self.k)[0]
        rows = [{"rank": rank, **asdict(hit)} for rank, hit in enumerate(hits, 1)]
        return {"query": self.text, "hits": [{**row, "text": self._cut(row["text"])} for row in rows]}

    def _cut(self, text: str) -> str:
        return text if self.text_chars == 0 or len(text) <= self.text_chars else text[: self.text_chars] + " …"


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure an encoder on a BEIR folder by exact search: nDCG@10, MRR@10, Recall@100."""

    data: Path
    """BEIR folder."""
    model: Path | None = None
    """Folder of the encoder; without one only baselines are measured."""
    split: str = "test"
    """Which judgements."""
    baselines: tuple[str, ...] = ()
    """To compare with, parted by commas or spaces: `bm25`, `untrained` (the same architecture, fresh weights)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """In which the encoder computes."""

    def run(self) -> dict[str, Any]:
        """Evaluate, and return the metrics by what was measured."""
        from data_shards.errors import UserError
        from index_build.evaluate import evaluate_beir

        baselines = [name.strip() for name in ",".join(self.baselines).split(",") if name.strip()]
        if self.model is None and not baselines:
            raise UserError("nothing to measure; give --model, --baselines bm25, or both")
        with progress_bar("evaluating") as progress:
            metrics = evaluate_beir(
                self.model, self.data, self.split, baselines, precision=self.precision, progress=progress
            )
        return {"data": str(self.data), "split": self.split, "metrics": metrics}
