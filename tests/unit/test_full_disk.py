"""A disk that fills up is one line to the user, and what was begun on it is taken away again."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from data_shards.errors import UserError
from data_shards.importing.importers import import_dataset
from data_shards.samples import Passage
from data_shards.writer import ShardWriter
from tests.unit.import_helpers import jsonl
from tests.unit.processes import start_python


def test_a_writer_takes_its_half_dataset_away(small_disk: Path) -> None:
    """Also where closing the shard fails as writing it did."""

    def write() -> None:
        with ShardWriter(small_disk / "c", "corpus") as writer:
            for number in range(3000):
                writer.add(Passage(id=str(number), text="x" * 400))

    with pytest.raises(OSError, match="No space left on device"):
        write()
    assert list(small_disk.iterdir()) == []


def test_marks_of_repetitions_take_their_room_first(small_disk: Path) -> None:
    """Written through a mapping of a file with holes, a full disk would end the process by SIGBUS, without a word."""
    script = """
        import os, sys
        from pathlib import Path
        import numpy as np
        from data_shards.cleaning.config import CleaningConfig
        from data_shards.importing.segments import Segment
        from data_shards.importing.write import find_drops
        work, rows = Path(sys.argv[1]), 50_000
        keys = np.stack([np.arange(rows, dtype=np.uint64) // 2] * 2, axis=1)
        np.save(work / "a.000.keys.npy", keys)
        (work / "filler").write_bytes(bytes(os.statvfs(work).f_bavail * os.statvfs(work).f_bsize))
        try:
            find_drops([Segment(stem="a.000", source="a", rows=rows, positions=rows)], work, CleaningConfig())
        except OSError as error:
            print(error.errno)
        """
    process = start_python(script, small_disk)
    assert process.communicate(timeout=60)[0] == f"{errno.ENOSPC}\n"


def test_a_join_on_a_full_disk_is_one_line(small_disk: Path, tmp_path: Path) -> None:
    """SQLite has an error of its own for it."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    jsonl(folder / "corpus.jsonl", [{"_id": f"d{n}", "text": os.urandom(4000).hex()} for n in range(300)])
    jsonl(folder / "queries.jsonl", [{"_id": "q", "text": "query"}])
    (folder / "qrels" / "train.tsv").write_text("".join(f"q\td{n}\t1\n" for n in range(300)))
    with pytest.raises(UserError, match=r"the disk of .*/\.out\.import is full; free some of it and run again"):
        import_dataset("pairs", [folder], small_disk / "out")
    assert not (small_disk / "out").exists()
