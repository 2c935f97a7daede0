"""The config of an import: `dipole shards pairs|corpus --config import.toml --section.field=value`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_shards.cleaning.config import CleaningConfig
from data_shards.findings.find import ChecksConfig
from data_shards.importing.columns import Columns
from data_shards.importing.config import ImportConfig, InputConfig, OutputConfig
from launch.sections import load_sections


@dataclass(frozen=True, kw_only=True)
class ImportSections:
    """Everything that an import is told."""

    input: InputConfig = field(default_factory=InputConfig)
    columns: Columns = field(default_factory=Columns)
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    checks: ChecksConfig = field(default_factory=ChecksConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def for_data_shards(self) -> ImportConfig:
        """Return what the import itself reads; the checks are run by the front door."""
        return ImportConfig(input=self.input, columns=self.columns, cleaning=self.cleaning, output=self.output)


def load_import_config(path: Path | None, overrides: Sequence[str] = ()) -> ImportSections:
    """Read a TOML file and put `--section.field=value` on top of it; see `launch.sections.load_sections`."""
    return load_sections(ImportSections, path, overrides)
