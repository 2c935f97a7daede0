"""`dipole export`: an embedding set for other systems."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launch.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write an embedding set as Parquet or Lance, or put it into Milvus or Qdrant.

    Interrupted, it is run again: tables are there whole or not at all, stores take each passage under its own key.
    """

    embeddings: Path
    """Folder made by `dipole embed`."""
    to: Literal["parquet", "lance", "milvus", "qdrant"]
    """The form."""
    out: str
    """Folder of the table; of a store its URL, or a file ending in .db (Milvus Lite) or a folder (Qdrant)."""
    collection: str = "dipole"
    """Of a store."""
    replace: bool = False
    """Empty the collection first."""
    texts: bool = False
    """Titles and texts as well."""
    corpus: str | None = None
    """Where these are, if they have moved since they were embedded."""

    def run(self) -> dict[str, Any]:
        """Export, and return what was written."""
        from data_shards.errors import UserError
        from data_shards.remote.transfer import without_secrets
        from index_build.exports.rows import ExportRows
        from index_build.exports.stores import to_store
        from index_build.exports.tables import to_lance, to_parquet

        if self.to in ("parquet", "lance") and "://" in self.out:
            raise UserError(f"--out {without_secrets(self.out)}: tables are written to a folder of this machine")
        with progress_bar("exporting") as progress:
            rows = ExportRows(self.embeddings, texts=self.texts, corpus=self.corpus, progress=progress)
            answer: dict[str, Any] = {"to": self.to, "out": without_secrets(self.out), "rows": len(rows)}
            if self.to == "milvus" or self.to == "qdrant":
                held = to_store(self.to, rows, self.out, self.collection, replace=self.replace)
                return {**answer, "collection": self.collection, "held": held}
            (to_parquet if self.to == "parquet" else to_lance)(rows, Path(self.out))
        return answer
