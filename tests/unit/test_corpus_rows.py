"""Passages by row and by id, and a sample of a corpus that holds what it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import UserError
from data_shards.reader import CorpusDataset
from data_shards.samples import id_hash
from index_build.corpus_rows import CorpusRows, write_positives, write_sample
from tests.unit.tiny import passage, write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> CorpusDataset:
    return CorpusDataset(write_corpus(tmp_path / "corpus", (passage(f"p{number}") for number in range(50))))


def test_rows_are_found_by_id_and_by_content(corpus: CorpusDataset) -> None:
    rows = CorpusRows.scan(corpus)
    assert len(rows) == 50
    ids = np.array([id_hash(name) for name in ("p7", "nobody", "p0", "p49")])
    assert rows.with_ids(ids).tolist() == [7, -1, 0, 49]
    asked = [passage("p7"), passage("p7", "another text"), passage("nobody"), passage("p49")]
    assert rows.of(asked).tolist() == [7, -1, -1, 49]
    assert rows.hashes.ids[7] == id_hash("p7")


def test_a_sample_holds_what_is_drawn_and_every_positive_once(corpus: CorpusDataset, tmp_path: Path) -> None:
    positives = [passage("p3"), passage("foreign"), passage("p3"), passage("foreign", "again")]
    sample = write_sample(corpus, positives, tmp_path / "a", size=10, key="0 1")
    ids = [one.id for one in sample]
    assert len(ids) == len(set(ids))
    assert {"p3", "foreign"} <= set(ids)
    assert len(set(ids) - {"p3", "foreign"}) in (9, 10)
    again = write_sample(corpus, positives, tmp_path / "b", size=10, key="0 1")
    assert again.dataset_id == sample.dataset_id
    other = write_sample(corpus, positives, tmp_path / "c", size=10, key="0 2")
    assert other.dataset_id != sample.dataset_id


def test_a_sample_of_everything_is_everything(corpus: CorpusDataset, tmp_path: Path) -> None:
    sample = write_sample(corpus, [], tmp_path / "a", size=500, key="0")
    assert [one.id for one in sample] == [f"p{number}" for number in range(50)]


def test_positives_alone_in_the_order_of_the_corpus(corpus: CorpusDataset, tmp_path: Path) -> None:
    ids = np.unique([id_hash(name) for name in ("p40", "p3", "nobody", "p49")])
    found = write_positives(corpus, ids, tmp_path / "a")
    assert [one.id for one in found] == ["p3", "p40", "p49"]


def test_a_corpus_without_any_positive_is_refused_and_leaves_nothing(corpus: CorpusDataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^no passage of .* has the id of a training pair's positive"):
        write_positives(corpus, np.array([id_hash("nobody")]), tmp_path / "a")
    assert not (tmp_path / "a").exists()
