"""Datasets of the Hugging Face hub, through `datasets`, which fetches them once and keeps them as Arrow files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import UserError

_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_COMMIT = re.compile(r"@([0-9a-f]{40})/")


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """One split of a dataset, as files on this machine."""

    name: str
    version: str
    """The commit; where the library does not tell, its fingerprint of the data."""
    files: list[Path]
    """Arrow streams."""


def hub_dataset(name: str, split: str) -> HubDataset:
    """Fetch a dataset, or find it among those fetched before.

    Args:
        name: `OWNER/NAME` or `OWNER/NAME:CONFIG`.
        split: such as `train`.

    Raises:
        UserError: the library is not installed, the hub cannot be reached, or there is no such dataset or split.
    """
    try:
        import datasets
    except ImportError:
        raise UserError("hf: inputs need the datasets library; pip install 'dipole[hub]'") from None
    repository, _, config = name.partition(":")
    if not _NAME.fullmatch(repository):
        raise UserError(f"input hf:{name} names no dataset; wanted hf:OWNER/NAME or hf:OWNER/NAME:CONFIG")
    datasets.disable_progress_bars()  # it would draw over ours
    try:
        dataset = datasets.load_dataset(repository, config or None, split=split)
    except Exception as error:  # the library's own, the hub client's, the network's: there is no common base
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"input hf:{name}, split {split}, cannot be had ({reason}); check name and network"
        ) from error
    files = [Path(str(file["filename"])) for file in dataset.cache_files]
    if not files:
        raise UserError(
            f"input hf:{name} is kept in memory by the datasets library; unset HF_DATASETS_IN_MEMORY_MAX_SIZE"
        )
    sources = " ".join(map(str, dataset.info.download_checksums or {}))
    commit = _COMMIT.search(sources)
    version = commit.group(1) if commit else str(dataset._fingerprint)
    return HubDataset(name=repository, version=version, files=files)
