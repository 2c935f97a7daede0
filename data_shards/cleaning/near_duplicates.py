"""Texts that are nearly the same: MinHash signatures, candidates by banding, verdict on the signatures.

Two texts' share of equal signature places estimates the Jaccard similarity of their sets of shingles. Signatures are
cut into bands of `r` places; texts that agree in a whole band become candidates, which a pair of similarity `s` does
with probability 1 - (1 - s^r)^b. Candidates are compared over all places; similar ones are joined in groups, and of
each group the first text stays.

Source: Broder, "On the resemblance and containment of documents" (1997); Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets", chapter 3, for the banding; Dahlgaard, Knudsen and Thorup, "Fast Similarity Sketching" (2017), for
the signatures, which rensa computes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.cleaning.config import CleaningConfig
from data_shards.cleaning.groups import Groups
from data_shards.cleaning.words import UINT64, HashArray, folded_words, hashes_of, mix, run_hashes
from data_shards.errors import UserError

Signatures = NDArray[np.uint32]

BUCKET_ROWS = 1 << 22
"""Rows whose band keys are sorted at once: some 100 MB."""
_TEXTS_AT_ONCE = 1024
_ROWS_AT_ONCE = 1 << 16
_PAIRS_AT_ONCE = 1 << 14
_MAPPED_FILES = 128
_LEADERS = 16  # of one band's bucket: what is like none of so many is left to the other bands
_SEED = 42
_SCRATCH = ".tmp-bands-"
_NO_SHINGLES = np.uint32(0xFFFFFFFF)
_NO_KEY = UINT64(0xFFFFFFFFFFFFFFFF)
_CANDIDATE_PROBABILITY = 0.95


def signatures(texts: Sequence[str], config: CleaningConfig) -> Signatures:
    """Return each text's MinHash signature.

    Returns:
        uint32 [texts, near_permutations], the same on every machine; all bits set where a text has no word at all.
    """
    made = np.empty((len(texts), config.near_permutations), dtype=np.uint32)
    for begin in range(0, len(texts), _TEXTS_AT_ONCE):
        shingles = [_shingles(text, config) for text in texts[begin : begin + _TEXTS_AT_ONCE]]
        made[begin : begin + len(shingles)] = _min_hashes(shingles, config.near_permutations)
    return made


def near_duplicate_rows(
    parts: Sequence[Path],
    config: CleaningConfig,
    *,
    gone: NDArray[np.bool_] | None = None,
    bucket_rows: int = BUCKET_ROWS,
) -> NDArray[np.bool_]:
    """Tell which rows are near-duplicates of an earlier one.

    Memory: 9 bytes a row, and 100 MB (more only where over four million rows agree in a band). Disk, beside the first
    part, while it runs: 8 bytes a row and band.

    Args:
        parts: .npy files of `signatures`, in the order of the texts.
        config: the one that the signatures were made with.
        gone: rows that go in any case, so that no other may go for their sake.
        bucket_rows: see `BUCKET_ROWS`.

    Returns:
        bool [rows of all parts], True for what should go: all but the first of each group.

    Raises:
        UserError: a part is no file of such signatures.
    """
    if not parts:
        return np.zeros(0, dtype=np.bool_)
    files = _SignatureFiles(parts, config.near_permutations)
    groups = Groups(files.rows)
    bands, width = banding(config.near_threshold, config.near_permutations)
    for leftover in parts[0].parent.glob(f"{_SCRATCH}*"):  # of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=parts[0].parent, prefix=_SCRATCH) as scratch:
        for path in _write_band_keys(files, bands, width, Path(scratch)):
            for rows, keys in _buckets(path, files.rows, bucket_rows, gone):
                _join_alike(rows, keys, files, groups, config.near_threshold)
    return groups.followers()


def banding(threshold: float, permutations: int) -> tuple[int, int]:
    """Return how many bands, of how many places each.

    The widest bands, so the fewest candidates, with which a pair at the threshold still is a candidate at 95 %.
    """
    for width in range(permutations, 1, -1):
        bands = permutations // width
        if 1 - (1 - threshold**width) ** bands >= _CANDIDATE_PROBABILITY:
            return bands, width
    return permutations, 1


def _shingles(text: str, config: CleaningConfig) -> HashArray:
    words = folded_words(text)
    if config.near_shingle_unit == "words":
        return run_hashes(hashes_of(words), config.near_shingle)
    characters = np.frombuffer(" ".join(words).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return run_hashes(mix(characters.astype(UINT64)), config.near_shingle)


def _min_hashes(shingles: list[HashArray], permutations: int) -> Signatures:
    from rensa import RMinHash

    ends = np.cumsum([0, *map(len, shingles)], dtype=UINT64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(shingles), ends, permutations, _SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32)


class _SignatureFiles:
    """Signature files, read as one table; a few at a time are mapped into memory, since each takes a descriptor."""

    def __init__(self, paths: Sequence[Path], permutations: int) -> None:
        self._paths, self._permutations = paths, permutations
        self._mapped: OrderedDict[int, Signatures] = OrderedDict()
        self.starts = np.cumsum([0, *(len(_load(path, permutations)) for path in paths)])
        self.rows = int(self.starts[-1])

    def _part(self, number: int) -> Signatures:
        part = self._mapped.pop(number, None)
        if part is None:
            part = _load(self._paths[number], self._permutations)
        self._mapped[number] = part
        if len(self._mapped) > _MAPPED_FILES:
            self._mapped.popitem(last=False)
        return part

    def blocks(self) -> Iterator[Signatures]:
        for path in self._paths:
            part = _load(path, self._permutations)
            for begin in range(0, len(part), _ROWS_AT_ONCE):
                yield part[begin : begin + _ROWS_AT_ONCE]

    def similarity(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """Estimate the similarity of pairs of rows."""
        found = np.empty(len(left))
        for begin in range(0, len(left), _PAIRS_AT_ONCE):
            block = slice(begin, begin + _PAIRS_AT_ONCE)
            found[block] = (self._take(left[block]) == self._take(right[block])).mean(axis=1)
        return found

    def _take(self, rows: NDArray[np.int64]) -> Signatures:
        taken = np.empty((len(rows), self._permutations), dtype=np.uint32)
        of_part = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(of_part).tolist():
            here = of_part == number
            taken[here] = self._part(number)[rows[here] - self.starts[number]]
        return taken


def _load(path: Path, permutations: int) -> Signatures:
    try:
        part: Signatures = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no file of signatures ({error}); remove it and import again") from None
    if part.dtype != np.uint32 or part.ndim != 2 or part.shape[1] != permutations:
        wanted = f"wanted uint32 [rows, {permutations}]"
        raise UserError(f"{path} holds {part.dtype} {list(part.shape)}, {wanted}; remove it and import again")
    return part


def _write_band_keys(files: _SignatureFiles, bands: int, width: int, scratch: Path) -> list[Path]:
    """Write one file a band: the key of every row, in order. Signatures, the bulk, are read once for all bands."""
    paths = [scratch / f"band-{band:03d}.u64" for band in range(bands)]
    with ExitStack() as stack:
        outs = [stack.enter_context(open(path, "wb")) for path in paths]
        for block in files.blocks():
            wordless = (block == _NO_SHINGLES).all(axis=1)
            for band, out in enumerate(outs):
                places = block[:, band * width : (band + 1) * width]
                keys = np.full(len(block), UINT64(band), dtype=UINT64)
                for place in range(width):
                    keys = mix(keys ^ places[:, place])
                keys[wordless] = _NO_KEY
                out.write(keys.tobytes())
    return paths


def _buckets(
    path: Path, total: int, bucket_rows: int, gone: NDArray[np.bool_] | None
) -> Iterator[tuple[NDArray[np.int64], HashArray]]:
    """Yield the rows and keys of a band in buckets by the key's leading bits, so that equal keys come together."""
    if total == 0:
        return
    all_keys = np.memmap(path, dtype=UINT64, mode="r")
    bits = max(0, (total - 1) // bucket_rows).bit_length()
    for bucket in range(1 << bits):
        rows, keys = [], []
        for begin in range(0, total, bucket_rows):
            block = np.asarray(all_keys[begin : begin + bucket_rows])
            chosen = block != _NO_KEY
            if gone is not None:
                chosen &= ~gone[begin : begin + bucket_rows]
            if bits:
                chosen &= (block >> UINT64(64 - bits)) == bucket
            rows.append(np.flatnonzero(chosen) + begin)
            keys.append(block[chosen])
        yield np.concatenate(rows), np.concatenate(keys)


def _join_alike(
    rows: NDArray[np.int64], keys: HashArray, files: _SignatureFiles, groups: Groups, threshold: float
) -> None:
    """Join the similar among the rows that share a key.

    Each row is compared with the first of its key, the leader; those unlike it choose a leader among themselves, and
    so on, a bounded number of times: a key that a million rows share costs millions of comparisons, not their square.
    """
    order = np.argsort(keys, kind="stable")  # stable: a key's rows stay in order, on every machine
    rows, keys = rows[order], keys[order]
    for _ in range(_LEADERS):
        rows, keys = _without_single_keys(rows, keys)
        if not len(rows):
            return
        is_leader = np.append(True, keys[1:] != keys[:-1])
        leaders = rows[is_leader][np.cumsum(is_leader) - 1]
        rows, keys, leaders = rows[~is_leader], keys[~is_leader], leaders[~is_leader]
        apart = groups.roots(rows) != groups.roots(leaders)
        rows, keys, leaders = rows[apart], keys[apart], leaders[apart]
        alike = files.similarity(leaders, rows) >= threshold
        groups.join(leaders[alike], rows[alike])
        rows, keys = rows[~alike], keys[~alike]


def _without_single_keys(rows: NDArray[np.int64], keys: HashArray) -> tuple[NDArray[np.int64], HashArray]:
    """Leave out rows whose key, of sorted ones, no neighbour has."""
    shared = np.zeros(len(keys), dtype=np.bool_)
    shared[1:] = keys[1:] == keys[:-1]
    shared[:-1] |= shared[1:]
    return rows[shared], keys[shared]
