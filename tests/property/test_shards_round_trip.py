"""What is written is read back, whatever the texts, the sizes and the tar dialect."""

from __future__ import annotations

import io
import tarfile
import tempfile
from itertools import pairwise
from pathlib import Path

import msgspec
from hypothesis import given, settings, strategies as st

from data_shards.reader import CorpusDataset, PairDataset
from data_shards.samples import Pair, Passage
from data_shards.shard_reader import ShardReader
from data_shards.tar import plain_json, read_span, scan_offsets, write_tar
from data_shards.writer import ShardWriter

TEXT = st.text(max_size=60)  # every character but half surrogates, which are no text
PASSAGES = st.builds(Passage, id=TEXT, title=TEXT, text=TEXT)
PAIRS = st.builds(
    Pair,
    query_id=TEXT,
    query=TEXT,
    positives=st.lists(PASSAGES, max_size=3).map(tuple),
    negatives=st.lists(PASSAGES, max_size=3).map(tuple),
    source=TEXT,
    weight=st.floats(0, 1000),
)
SCORED = st.builds(
    lambda pair, scores: msgspec.structs.replace(pair, scores=tuple(scores[: len(pair.positives)])),
    PAIRS,
    st.lists(st.floats(0, 100), min_size=3, max_size=3),
)
TEACHER = st.floats(allow_nan=False, allow_infinity=False)


def taught(pair: Pair, scores: list[float]) -> Pair:
    """Give a pair as many of the scores as it has passages."""
    positives, negatives = len(pair.positives), len(pair.negatives)
    return msgspec.structs.replace(
        pair,
        teacher_positives=tuple(scores[:positives]),
        teacher_negatives=tuple(scores[positives : positives + negatives]),
    )


TAUGHT = st.builds(taught, PAIRS | SCORED, st.lists(TEACHER, min_size=6, max_size=6))
KEY = st.from_regex(r"[a-z0-9é]{1,8}(/[a-z0-9_-]{1,150})?", fullmatch=True)
MEMBERS = st.dictionaries(st.sampled_from(["json", "txt", "seg.png"]), st.binary(max_size=1500), min_size=1)
TARS = st.dictionaries(KEY, MEMBERS, min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(PAIRS | SCORED | TAUGHT, min_size=1, max_size=20),
    samples_per_shard=st.integers(1, 8),
    data=st.data(),
)
def test_pairs_come_back(pairs: list[Pair], samples_per_shard: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "pairs"
        with ShardWriter(folder, "pairs", samples_per_shard=samples_per_shard) as writer:
            for pair in pairs:
                writer.add(pair)
        dataset = PairDataset(folder)
        assert list(dataset) == pairs
        assert dataset.with_teacher == sum(pair.has_teacher for pair in pairs)
        ordinals = data.draw(st.lists(st.integers(0, len(pairs) - 1), max_size=10))
        assert dataset.pairs(ordinals) == [pairs[at] for at in ordinals]
        shards, rows = dataset.locate(ordinals)
        assert (shards * samples_per_shard + rows).tolist() == ordinals


@settings(max_examples=40, deadline=None)
@given(passages=st.lists(PASSAGES, min_size=1, max_size=20), max_bytes=st.integers(1, 5000))
def test_passages_come_back(passages: list[Passage], max_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "corpus"
        with ShardWriter(folder, "corpus", max_bytes=max_bytes) as writer:
            for passage in passages:
                writer.add(passage)
        dataset = CorpusDataset(folder)
        assert list(dataset) == passages
        by_shard = [passage for shard in range(len(dataset.manifest.shards)) for passage in dataset.iter_shard(shard)]
        assert by_shard == passages
        assert dataset.passages(range(len(passages)))[::-1] == passages[::-1]


@settings(max_examples=80, deadline=None)
@given(samples=TARS, dialect=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_any_tar_that_the_standard_library_writes_is_read(samples: dict, dialect: int) -> None:
    """Float dates (a PAX header each), long names, several members a sample, and empty ones."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "plain.tar"
        with tarfile.open(path, "w", format=dialect) as archive:
            for key, members in samples.items():
                for extension, payload in members.items():
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size, info.mtime = len(payload), 1.5 if dialect == tarfile.PAX_FORMAT else 1
                    archive.addfile(info, io.BytesIO(payload))
        reader = ShardReader(path)
        assert {reader.key(row): reader.sample(row) for row in range(len(reader))} == samples
        for begin, end in pairwise(reader.offsets.tolist()):
            span = path.read_bytes()[begin:end]
            quick = plain_json(span)
            assert quick is None or {"json": quick} == read_span(span, path, begin)


@settings(max_examples=40, deadline=None)
@given(samples=TARS)
def test_the_standard_library_reads_what_is_written(samples: dict) -> None:
    members = [(f"{key}.{end}", payload) for key, parts in samples.items() for end, payload in parts.items()]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "ours.tar"
        summary = write_tar(path, members)
        with tarfile.open(path) as archive:
            found = [(info.name, archive.extractfile(info).read()) for info in archive]
        assert found == members
        assert summary.offsets.tolist() == scan_offsets(path).tolist()
