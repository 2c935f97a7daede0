"""Planted near-duplicates of known similarity."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards.cleaning import near_duplicates
from data_shards.cleaning.config import CleaningConfig
from data_shards.cleaning.groups import Groups
from data_shards.cleaning.near_duplicates import banding, near_duplicate_rows, signatures
from data_shards.errors import UserError

WORDS = CleaningConfig(near_duplicates=True, near_shingle=1)
"""A word is a shingle: the similarity of two texts is that of their sets of words."""

GOLDEN_STARTS = [[3244244139, 3332303610], [3399992819, 3248160627], [104289998, 213941833]]
GOLDEN_HASH = "c376cbc371582cead62eb0290851e71c5c15e42c6c9f7ed577caf13e432bf0d6"


def pairs_of_texts(similarity: float, count: int, *, first: int = 0) -> list[str]:
    """Return pairs of texts, next to each other, of 100 words with so much in common; words are numbered on."""
    words, fresh = 100, itertools.count(first)
    shared = round(2 * words * similarity / (1 + similarity))
    texts = []
    for _ in range(count):
        common = [f"w{next(fresh)}" for _ in range(shared)]
        texts += [" ".join(common + [f"w{next(fresh)}" for _ in range(words - shared)]) for _ in range(2)]
    return texts


def drop(tmp_path: Path, texts: list[str], config: CleaningConfig = WORDS, cuts: tuple[int, ...] = (), **more: Any):
    """Return which texts go, their signatures in files cut at these places."""
    parts = []
    for number, block in enumerate(np.split(signatures(texts, config), cuts)):
        parts.append(tmp_path / f"{number}.npy")
        np.save(parts[-1], block)
    return near_duplicate_rows(parts, config, **more)


@pytest.mark.parametrize(
    ("similarity", "least", "most"), [(0.5, 0, 0), (0.7, 0, 0.03), (0.8, 0.35, 0.75), (0.9, 0.99, 1), (0.97, 1, 1)]
)
def test_planted_pairs_are_found_by_their_similarity(tmp_path, similarity, least, most):
    dropped = drop(tmp_path, pairs_of_texts(similarity, 300))
    assert not dropped[::2].any(), "the first of a pair stays, and strangers are not joined"
    assert least <= dropped[1::2].mean() <= most


def test_more_files_than_may_be_open_are_compared(tmp_path):
    """A large import has a file of signatures for every 65,536 texts."""
    texts = pairs_of_texts(0.97, 20)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = drop(tmp_path, texts)
    (tmp_path / "many").mkdir()
    few = len(os.listdir("/proc/self/fd")) + 24
    monkey = near_duplicates._MAPPED_FILES
    near_duplicates._MAPPED_FILES = 2
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
        found = drop(tmp_path / "many", texts, cuts=tuple(range(1, len(texts))))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        near_duplicates._MAPPED_FILES = monkey
    assert found.tolist() == wanted.tolist()


def test_rows_that_are_gone_take_none_along(tmp_path):
    texts = pairs_of_texts(0.97, 2)
    gone = np.array([True, False, False, False])
    assert drop(tmp_path, texts, gone=gone).tolist() == [False, False, False, True]


@pytest.mark.parametrize("similarity", [0.4, 0.6, 0.8, 0.95])
def test_signatures_agree_and_bands_meet_as_the_theory_says(similarity):
    signed = signatures(pairs_of_texts(similarity, 400), WORDS)
    agree = signed[::2] == signed[1::2]
    true = round(200 * similarity / (1 + similarity))
    true /= 200 - true
    assert agree.mean() == pytest.approx(true, abs=0.01)
    assert agree.mean(axis=1).std() <= 1.15 * (true * (1 - true) / 128) ** 0.5
    bands, width = banding(0.8, 128)
    candidates = agree[:, : bands * width].reshape(-1, bands, width).all(axis=2).any(axis=1)
    assert candidates.mean() == pytest.approx(1 - (1 - true**width) ** bands, abs=0.06)


def test_bands_are_the_widest_that_still_catch_the_threshold():
    # 1 - (1 - 0.8^7)^18 = 0.986 and 1 - (1 - 0.8^8)^16 = 0.947; 1 - (1 - 0.5^3)^42 = 0.996, with 4 places 0.873
    assert banding(0.8, 128) == (18, 7)
    assert banding(0.5, 128) == (42, 3)
    assert banding(1.0, 128) == (1, 128)


def test_what_reads_the_same_is_the_same():
    config = CleaningConfig(near_duplicates=True)
    one, other, third = signatures(
        ["The Quick, brown FOX ｊｕｍｐｓ!", "the quick brown fox jumps", "the quick"], config
    )
    assert (one == other).all()
    assert not (one == third).all()


def test_signatures_are_the_same_on_every_machine_and_with_every_version():
    """Other values here mean that a library changed its algorithm: the same import would give another dataset."""
    long = " ".join(f"word{number * number % 977}" for number in range(3000))
    signed = signatures(["the same text on every machine, in every year", "日本語のテキスト", long], CleaningConfig())
    assert signed.dtype == np.uint32
    assert signed[:, :2].tolist() == GOLDEN_STARTS
    assert hashlib.sha256(signed.astype("<u4").tobytes()).hexdigest() == GOLDEN_HASH


def test_texts_without_a_word_are_like_nothing(tmp_path):
    assert (signatures(["", "?!"], WORDS) == 0xFFFFFFFF).all()
    assert drop(tmp_path, ["!!!", "", "???", "!!!"]).tolist() == [False] * 4


def test_short_texts_are_their_own_shingle(tmp_path):
    config = CleaningConfig(near_duplicates=True, near_shingle=5)
    texts = ["two words", "Two words!", "two others", "words two", "one"]
    assert drop(tmp_path, texts, config).tolist() == [False, True, False, False, False]


def test_characters_find_changed_words_in_unspaced_scripts(tmp_path):
    text = (
        "日本語の文章は単語の間に空白を入れないので文字の連なりで比べるほうがよい結果になることが多いと言われている"
    )
    texts = [text, text.replace("多い", "多々ある"), text[::-1]]
    config = CleaningConfig(near_duplicates=True, near_shingle=3, near_shingle_unit="characters")
    assert drop(tmp_path, texts, config).tolist() == [False, True, False]


def test_the_first_of_a_group_stays_wherever_the_files_are_cut(tmp_path):
    one, other = pairs_of_texts(0.95, 1)
    strangers = pairs_of_texts(0.1, 3, first=10_000)
    texts = [strangers[0], one, *strangers[1:4], other, strangers[4], one]
    wanted = [False, False, False, False, False, True, False, True]
    for cuts in ((), (1,), (2, 2, 5), (5, 6, 7)):
        assert drop(tmp_path, texts, cuts=cuts).tolist() == wanted
        assert drop(tmp_path, texts, cuts=cuts, bucket_rows=2).tolist() == wanted


def test_the_result_does_not_depend_on_buckets(tmp_path):
    texts = pairs_of_texts(0.85, 200) + pairs_of_texts(0.95, 100, first=100_000)
    random.Random(1).shuffle(texts)
    whole = drop(tmp_path, texts)
    assert 100 < whole.sum() < 300
    for rows in (50, 600):
        assert (drop(tmp_path, texts, cuts=(11, 300), bucket_rows=rows) == whole).all()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")] == []


def test_what_a_killed_run_left_is_removed(tmp_path):
    (tmp_path / ".tmp-bands-killed").mkdir()
    (tmp_path / ".tmp-bands-killed" / "band-000.u64").write_bytes(b"half")
    drop(tmp_path, ["a text", "a text"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.npy"]


def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many pairs of signatures are compared."""
    sizes: list[int] = []
    similarity = near_duplicates._SignatureFiles.similarity

    def noted(self, left, right):
        sizes.append(len(left))
        return similarity(self, left, right)

    monkeypatch.setattr(near_duplicates._SignatureFiles, "similarity", noted)
    return sizes


def test_the_same_text_many_times_is_compared_once_each(tmp_path, monkeypatch):
    sizes = compared(monkeypatch)
    signed = np.repeat(signatures(["the same boilerplate on every page of the site"], WORDS), 20_000, axis=0)
    np.save(tmp_path / "0.npy", signed)
    dropped = near_duplicate_rows([tmp_path / "0.npy"], WORDS)
    assert np.flatnonzero(~dropped).tolist() == [0]
    assert sum(sizes) == 19_999


def test_many_different_texts_in_one_bucket_do_not_become_quadratic(tmp_path, monkeypatch):
    """All agree in the first band and in nothing else: 10 million pairs, if each were compared."""
    sizes = compared(monkeypatch)
    signed = np.random.default_rng(0).integers(0, 1 << 32, (5_000, 128), dtype=np.uint32)
    signed[:, :7] = 3
    np.save(tmp_path / "0.npy", signed)
    assert not near_duplicate_rows([tmp_path / "0.npy"], WORDS).any()
    assert sum(sizes) <= 16 * 5_000


def test_two_alike_find_each_other_behind_a_stranger_in_their_bucket(tmp_path):
    """They meet in the first band alone, where an earlier text, like neither, meets them too."""
    signed = np.random.default_rng(0).integers(0, 1 << 32, (3, 128), dtype=np.uint32)
    signed[:, :7] = 3
    signed[2] = signed[1]
    signed[2, 7:126:7] += 1  # one place in each other band: 17 of 128, so the similarity is 0.87
    np.save(tmp_path / "0.npy", signed)
    assert near_duplicate_rows([tmp_path / "0.npy"], WORDS).tolist() == [False, False, True]


@pytest.mark.parametrize("content", ["not signatures", np.zeros((3, 64), np.uint32), np.zeros((3, 128))])
def test_a_foreign_file_is_named(tmp_path, content):
    path = tmp_path / "0.npy"
    path.write_text(content) if isinstance(content, str) else np.save(path, content)
    with pytest.raises(UserError, match=r"0.npy (is no file of signatures|holds .*wanted uint32 \[rows, 128\])"):
        near_duplicate_rows([path], WORDS)


def test_nothing_in_nothing_out(tmp_path):
    assert near_duplicate_rows([], WORDS).tolist() == []
    assert signatures([], WORDS).shape == (0, 128)
    assert drop(tmp_path, []).tolist() == []


def test_groups_join_over_others():
    groups = Groups(8)
    groups.join(np.array([5, 6, 5, 2]), np.array([6, 7, 3, 6]))
    assert groups.roots(np.arange(8)).tolist() == [0, 1, 2, 2, 4, 2, 2, 2]
    assert groups.followers().tolist() == [False, False, False, True, False, True, True, True]


def test_groups_equal_the_plain_algorithm():
    draw = np.random.default_rng(3)
    for _ in range(50):
        left, right = draw.integers(0, 40, (2, int(draw.integers(1, 60))))
        groups, plain = Groups(40), list(range(40))
        for half in np.array_split(np.arange(len(left)), 2):
            groups.join(left[half], right[half])
        for a, b in zip(left, right, strict=True):
            low, high = sorted((plain[a], plain[b]))
            plain = [low if root == high else root for root in plain]
        assert groups.roots(np.arange(40)).tolist() == plain
