"""The validation report: what is in a dataset, and what is wrong with it.

One pass over the samples, in memory that does not grow with them: counts and histograms of fixed size, samples of
fixed size, and hashes that go to a temporary file (16 to 20 bytes a text and comparison) and come back sorted.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_shards.atomic import write_json
from data_shards.beir import BeirFolder
from data_shards.errors import UserError
from data_shards.findings.corpus_join import CorpusJoin
from data_shards.findings.duplicates import CorpusDuplicates, PairDuplicates
from data_shards.findings.finding import Example, Finding, Like, Places
from data_shards.findings.near import NearDuplicates
from data_shards.findings.pairs import PairShape
from data_shards.findings.parts import batches, parts_of
from data_shards.findings.seen import Seen
from data_shards.findings.shared import EvaluationSplit, split_of
from data_shards.findings.sides import CountTokens, PartChecks
from data_shards.findings.texts import SYMPTOMS
from data_shards.manifest import Manifest
from data_shards.reader import CorpusDataset, PairDataset
from data_shards.samples import Pair, Passage

VALIDATION_NAME = "validation.json"

_BATCH = 2048
_PARTS = ("query", "positive", "negative", "passage")

FATAL = frozenset(
    {
        "no_sample",
        "id_not_unique",
        "pair_without_positive",
        "positive_not_in_corpus",
        "evaluation_query_in_training",
        "weightless_pair",
        *(f"{name}_{part}" for name, symptom in SYMPTOMS.items() for part in _PARTS if symptom.is_empty),
    }
)
"""Findings that can be fatal, and that `checks.allow` takes."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class ChecksConfig:
    """What is looked for besides what every dataset is checked for, and how much of it is too much."""

    allow: tuple[str, ...] = ()
    """Names of fatal findings to go on with all the same."""
    evaluation: tuple[str, ...] = ()
    """Evaluation data, each `FOLDER:SPLIT` of a folder in BEIR's layout; nothing of it may be trained on."""
    corpus: str = ""
    """Corpus dataset that the positives of pairs should be in."""
    near_duplicates: bool = True
    """Look for passages that are nearly the same."""
    near_duplicate_texts: int = 20_000
    """Among so many distinct ones at most, drawn evenly: half a kilobyte of memory each."""
    sample_texts: int = 5_000
    """Languages and tokens are told from so many distinct texts of each kind, drawn evenly."""
    seed: int = 0
    """Of what is drawn."""
    query_max_tokens: int = 0
    """Warn when the encoder would cut many queries at this length; 0 sets no limit. Needs a tokenizer."""
    passage_max_tokens: int = 0
    """The same for passages."""
    max_empty_share: float = 0.05
    """More blank, placeholder or empty texts, or pairs that weigh nothing, than this are fatal."""
    max_missing_share: float = 0.05
    """More positives that are not in the corpus than this are fatal."""
    max_leaked_share: float = 0.01
    """More of an evaluation split's queries in the training data than this are fatal."""

    def __post_init__(self) -> None:
        """Check names, places and bounds."""
        for name in self.allow:
            if name not in FATAL:
                near = difflib.get_close_matches(name, sorted(FATAL), n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(FATAL))}"
                raise UserError(f"checks.allow holds {name!r}, which is no fatal finding; {hint}")
        for place in self.evaluation:
            split_of(place)
        for name in ("max_empty_share", "max_missing_share", "max_leaked_share"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise UserError(f"checks.{name} is {share:g}, wanted a share from 0 to 1")
        for name in ("near_duplicate_texts", "sample_texts", "query_max_tokens", "passage_max_tokens"):
            if (number := getattr(self, name)) < 0:
                raise UserError(f"checks.{name} is {number}, wanted 0 or more")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that is known of a dataset after a look at every sample."""

    dataset_id: str
    kind: str
    source: str
    """Name of what the dataset was made from."""
    samples: int
    shards: int
    skipped: tuple[str, ...]
    """Shards that were left out, because they are damaged."""
    numbers: dict[str, Any]
    """Lengths, languages, counts, by part; positives and negatives per query; weights and scores."""
    findings: tuple[Finding, ...]
    """The worst first."""

    @property
    def fatal(self) -> list[str]:
        """Names of what is fatal and not allowed."""
        return [finding.name for finding in self.findings if finding.severity == "fatal" and not finding.allowed]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: no place of this machine and no date, so that equal data give equal bytes."""
        row = asdict(self)
        row["findings"] = [finding.to_dict() for finding in self.findings]
        row["skipped"] = list(self.skipped)
        return {"fatal": self.fatal, **row}

    def save(self, folder: Path) -> Path:
        """Write `validation.json`, atomically, and return its place."""
        write_json(folder / VALIDATION_NAME, self.to_dict())
        return folder / VALIDATION_NAME


def check_places(config: ChecksConfig) -> None:
    """Look whether what the config names is there, before anything is read.

    Raises:
        UserError: an evaluation folder, its split, or the corpus is not there.
    """
    for place in config.evaluation:
        folder, split = split_of(place)
        BeirFolder(folder).qrels_path(split)
    if config.corpus:
        CorpusDataset(config.corpus)


def find(
    folder: Path,
    config: ChecksConfig,
    *,
    count_tokens: CountTokens | None = None,
    progress: Progress | None = None,
    skip: Collection[str] = (),
) -> Findings:
    """Look at every sample of a dataset.

    Args:
        folder: the dataset.
        config: what to look for.
        count_tokens: gives the number of tokens of each text; without it only words and characters are counted.
        progress: called with samples done and samples in all.
        skip: names of damaged shards to leave out.

    Raises:
        UserError: the folder is no dataset, or something that the config names is not there or malformed.
        ShardCorruptError: a shard that is not skipped is damaged.
    """
    manifest = Manifest.load(folder)
    dataset = PairDataset(folder) if manifest.kind == "pairs" else CorpusDataset(folder)
    looker = _Looker(manifest, config)
    for numbers in _ranges(manifest, frozenset(skip)):
        looker.look(_read(dataset, numbers), numbers.start)
        if progress is not None:
            progress(numbers.stop, manifest.samples)
    findings = [*looker.findings(lambda number: _read(dataset, range(number, number + 1)))]
    numbers_ = looker.numbers(count_tokens)
    findings += looker.length_findings()
    order = {"fatal": 0, "warning": 1, "note": 2}
    return Findings(
        dataset_id=manifest.dataset_id,
        kind=manifest.kind,
        source=manifest.source,
        samples=manifest.samples,
        shards=len(manifest.shards),
        skipped=tuple(shard.path for shard in manifest.shards if shard.path in skip),
        numbers=numbers_,
        findings=tuple(
            replace(finding, allowed=finding.severity == "fatal" and finding.name in config.allow)
            for finding in sorted(findings, key=lambda finding: (order[finding.severity], -finding.share))
        ),
    )


class _Looker:
    """Hands each batch to everything that looks at it, and collects what they say."""

    def __init__(self, manifest: Manifest, config: ChecksConfig) -> None:
        self._config = config
        self._samples = manifest.samples
        self._places = Places(manifest)
        is_pairs = manifest.kind == "pairs"
        names = ("query", "positive", "negative") if is_pairs else ("passage",)
        self._parts = {name: PartChecks(name, self._places, config.sample_texts, config.seed) for name in names}
        self._pairs = PairDuplicates() if is_pairs else None
        self._corpus = None if is_pairs else CorpusDuplicates()
        self._shape = PairShape(self._places) if is_pairs else None
        self._near = NearDuplicates("positive" if is_pairs else "passage", config.near_duplicate_texts, config.seed)
        self._splits = [EvaluationSplit(name) for name in config.evaluation]
        # Read first, so that a wrong name is told at once and not after hours.
        self._join = CorpusJoin(config.corpus) if is_pairs and config.corpus else None

    def look(self, items: Sequence[Pair] | Sequence[Passage], begin: int) -> None:
        parts = parts_of(items, begin)
        for part in parts:
            self._parts[part.name].look(part)
            if self._config.near_duplicates:
                self._near.look(part)
        for looking in (self._pairs, self._corpus, self._join, *self._splits):
            if looking is not None:
                looking.look(parts)
        if self._shape is not None:
            self._shape.look([item for item in items if isinstance(item, Pair)], begin)

    def findings(self, read: Callable[[int], Sequence[Pair] | Sequence[Passage]]) -> Iterator[Finding]:
        if not self._samples:
            advice = "nothing is there to train on; look at what the import dropped"
            yield Finding(name="no_sample", severity="fatal", count=1, of=1, unit="datasets", advice=advice)
            return
        for checks in self._parts.values():
            yield from checks.findings(self._config.max_empty_share)
        if self._shape is not None:
            yield from self._shape.findings(self._config.max_empty_share)
        for seen in self._seen():
            yield replace(seen.finding, examples=self._examples(seen, read))

    def _seen(self) -> Iterator[Seen]:
        if self._corpus is not None:
            yield from self._corpus.findings()
            for split in self._splits:
                yield from split.findings_of_corpus()
        if self._pairs is not None:
            yield from self._pairs.findings()
            for split in self._splits:
                yield from split.findings_of_pairs(self._config.max_leaked_share)
            if self._join is not None:
                yield from self._join.findings(self._pairs.positive_ids, self._config.max_missing_share)
        if self._config.near_duplicates:
            yield from self._near.findings()

    def _examples(self, seen: Seen, read: Callable[[int], Sequence[Pair] | Sequence[Passage]]) -> tuple[Example, ...]:
        """Read the samples that a finding knows by number, and find its texts there by their keys."""

        def found(place: int, key: int, skip: int = 0) -> Example | None:
            if not 0 <= place < self._samples:
                return None
            part, keys = seen.keys_of(parts_of(read(place), place))
            at = (keys == key).nonzero()[0].tolist()[skip:]
            return self._places.example(place, part.ids[at[0]], part.texts[at[0]]) if at else None

        examples = []
        for spot in seen.spots:
            first = found(spot.first, spot.key)
            example = found(spot.place, spot.key, skip=int(spot.first == spot.place))
            if example is not None:
                like = Like(id=first.id, shard=first.shard, row=first.row) if first else None
                examples.append(replace(example, like=like))
        return tuple(examples)

    def numbers(self, count_tokens: CountTokens | None) -> dict[str, Any]:
        numbers: dict[str, Any] = {}
        for name, checks in self._parts.items():
            if checks.count:
                numbers[name] = checks.numbers(count_tokens)
        return numbers | (self._shape.numbers() if self._shape is not None else {})

    def length_findings(self) -> Iterator[Finding]:
        """Only after `numbers`, which counts the tokens."""
        for name, checks in self._parts.items():
            limit = self._config.query_max_tokens if name == "query" else self._config.passage_max_tokens
            yield from checks.length_findings(limit)


def _ranges(manifest: Manifest, skip: frozenset[str]) -> Iterator[range]:
    begin = 0
    for shard in manifest.shards:
        if shard.path not in skip:
            for numbers in batches(shard.samples, _BATCH):
                yield range(begin + numbers.start, begin + numbers.stop)
        begin += shard.samples


def _read(dataset: PairDataset | CorpusDataset, numbers: range) -> Sequence[Pair] | Sequence[Passage]:
    return dataset.pairs(numbers) if isinstance(dataset, PairDataset) else dataset.passages(numbers)
