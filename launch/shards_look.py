"""`dipole shards check|stats|sample`: a look at what is in a dataset, and at what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from launch.progress import progress_bar

if TYPE_CHECKING:
    from data_shards.check import Damage
    from data_shards.findings.find import ChecksConfig, Findings

    _Checks = tuple[Callable[[Sequence[str]], list[int]] | None, ChecksConfig]

EXIT_NOT_FIT = 1


@dataclass(frozen=True, kw_only=True)
class _Look:
    dir: tyro.conf.Positional[Path]
    """The dataset."""
    corpus: Path | None = None
    """Corpus dataset that the positives of pairs should be in."""
    evaluation: tuple[str, ...] = ()
    """Evaluation data, each FOLDER:SPLIT of a BEIR folder: are their queries in the training data?"""
    tokenizer: Path | None = None
    """Snapshot or transformers folder: lengths are told in its tokens too, and what it would cut."""
    html: Path | None = None
    """Write the report with its plots to this file too."""

    def _checks(self, *, allow: tuple[str, ...] = ()) -> _Checks:
        """Look whether all that is named is there: now, not after a look at every byte."""
        from data_shards.findings.find import ChecksConfig, check_places

        config = ChecksConfig(allow=allow, evaluation=self.evaluation, corpus=str(self.corpus or ""))
        check_places(config)
        return _with_tokenizer(self.tokenizer, config)

    def _find(self, checks: _Checks, *, skip: Sequence[str] = ()) -> Findings:
        from data_shards.findings.find import find

        count_tokens, config = checks
        with progress_bar("looking at the texts") as progress:
            findings = find(self.dir, config, count_tokens=count_tokens, progress=progress, skip=skip)
        if self.html is not None:
            from launch.data_report import write_data_report

            write_data_report(self.dir, findings, self.html)
        return findings


@dataclass(frozen=True, kw_only=True)
class ShardsCheck(_Look):
    """Verify a dataset: every byte against manifest, checksums and sidecars, then what its texts are like.

    Exits 1 where anything is damaged, or a finding is fatal and not allowed.
    """

    allow: tuple[str, ...] = ()
    """Names of fatal findings that are no failure."""
    bytes_only: bool = False
    """Leave the texts out: are all shards whole?"""

    def run(self) -> dict[str, object]:
        """Check, and return all damages and findings."""
        from data_shards.check import damages_of, summary
        from data_shards.manifest import Manifest
        from launch.data_text import damages_text, findings_text, head_text

        _refuse_remote(self.dir)
        checks = None if self.bytes_only else self._checks(allow=self.allow)
        with progress_bar("checking the bytes") as progress:
            damages = damages_of(self.dir, progress)
        about = summary(self.dir, Manifest.load(self.dir))
        texts = [head_text(about), damages_text(damages, about["samples"])]
        answer = {**about, "whole": not damages, "damages": [damage.to_dict() for damage in damages]}
        bad = bool(damages)
        if checks is not None:
            findings = self._find(checks, skip=_damaged_shards(damages))
            texts.append(findings_text(findings))
            answer["findings"] = findings.to_dict()
            bad = bad or bool(findings.fatal)
        return {**answer, "exit_code": EXIT_NOT_FIT if bad else 0, "text": "\n".join(texts)}


@dataclass(frozen=True, kw_only=True)
class ShardsStats(_Look):
    """Describe a dataset: sizes, lengths, languages, positives per query, repetitions."""

    def run(self) -> dict[str, object]:
        """Read everything once, and return numbers and findings."""
        from data_shards.check import summary
        from data_shards.manifest import Manifest
        from launch.data_text import findings_text, head_text, stats_text

        _refuse_remote(self.dir)
        about = summary(self.dir, Manifest.load(self.dir))
        findings = self._find(self._checks())
        texts = [head_text(about), stats_text(findings.numbers), "", findings_text(findings)]
        report = {"html": str(self.html)} if self.html is not None else {}
        listed = findings.to_dict()["findings"]
        return {**about, **findings.numbers, "findings": listed, **report, "text": "\n".join(texts)}


@dataclass(frozen=True, kw_only=True)
class ShardsSample:
    """Show a few samples, drawn at random."""

    dir: tyro.conf.Positional[Path]
    """The dataset."""
    n: int = 3
    """How many."""
    seed: int = 0
    """The same seed draws the same samples."""

    def run(self) -> dict[str, object]:
        """Draw, and return the samples."""
        from data_shards.check import sample
        from launch.data_text import samples_text

        drawn = sample(self.dir, self.n, self.seed)
        return {"samples": drawn, "text": samples_text(drawn)}


def _refuse_remote(place: Path) -> None:
    """Refuse what lies elsewhere: as a folder it would only be missing."""
    from data_shards.errors import UserError
    from data_shards.storage import is_remote

    if is_remote(place):
        raise UserError(f"{place} is no folder of this machine, and this verb reads no others; copy the dataset here")


def _damaged_shards(damages: Sequence[Damage]) -> list[str]:
    """Return the shards that are damaged themselves or by a sidecar."""
    names = {f"{damage.shard.partition('.tar')[0]}.tar" for damage in damages if ".tar" in damage.shard}
    return sorted(names)


def _with_tokenizer(path: Path | None, config: ChecksConfig) -> _Checks:
    """Load a tokenizer, and take over the length at which it cuts."""
    if path is None:
        return None, config
    from encoder.tokenizer import load_counter

    count_tokens, longest = load_counter(path)
    return count_tokens, replace(config, query_max_tokens=longest, passage_max_tokens=longest)
