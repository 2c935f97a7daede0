"""The config of an import: sections, several values in one key, and flags on top."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from data_shards.cleaning.config import CleaningConfig
from data_shards.errors import UserError
from data_shards.importing.columns import Columns
from data_shards.importing.config import OutputConfig
from launch.cli import main
from launch.import_config import ImportSections, load_import_config
from launch.sections import load_sections, to_toml
from tests.unit.import_helpers import jsonl

ROOT = Path(__file__).parents[2]


def test_the_example_of_the_repository_loads_and_names_every_section() -> None:
    text = (ROOT / "configs" / "import.toml").read_text()
    config = load_import_config(ROOT / "configs" / "import.toml")
    assert config.columns.weight == "clicks"
    assert config.cleaning.pii == ("email", "phone")
    assert all(f"[{section}]" in text for section in ("input", "columns", "cleaning", "checks", "output"))


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("--cleaning.pii=email", ("email",)),
        ("--cleaning.pii=email,ip", ("email", "ip")),
        ('--cleaning.pii=["email", "ip"]', ("email", "ip")),
        ("--cleaning.pii=[email, ip]", ("email", "ip")),
        ("--cleaning.pii=[]", ()),
    ],
)
def test_several_values_are_given_as_toml_writes_them_or_by_commas(
    override: str, wanted: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "import.toml"
    path.write_text('[cleaning]\npii = ["phone", "card"]\n')
    assert load_import_config(path).cleaning.pii == ("phone", "card")
    assert load_import_config(path, [override]).cleaning.pii == wanted


def test_a_written_config_comes_back(tmp_path: Path) -> None:
    config = ImportSections(
        columns=Columns(query="-q", text="a b"),
        cleaning=CleaningConfig(pii_patterns=("STAFF=--[a-z]+, ?[0-9]", "OTHER=-x"), decontaminate=("a:b", "c.txt")),
        output=OutputConfig(source="[x]", weight=0.5),
    )
    path = tmp_path / "import.toml"
    path.write_text(to_toml(config))
    assert load_import_config(path) == config


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no key columns\.qwery; did you mean columns\.query\?$"):
        load_import_config(None, ["--columns.qwery=x"])
    with pytest.raises(UserError, match=r"invalid choice 'mail' for argument"):
        load_import_config(None, ["--cleaning.pii=mail"])
    with pytest.raises(UserError, match=r"invalid choice 'skip' for argument.*'error', 'quarantine'"):
        load_import_config(None, ["--input.on_error=skip"])


def test_flags_stand_above_the_file_and_overrides_above_flags(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from data_shards.manifest import Manifest

    jsonl(tmp_path / "in.jsonl", [{"ask": "what is it", "yes": "a thing"}])
    path = tmp_path / "import.toml"
    path.write_text(
        f'[input]\npaths = ["{tmp_path / "in.jsonl"}"]\n[columns]\nquery = "none"\npositive = "none"\n'
        '[output]\nsource = "file"\nlicence = "file"\n'
    )
    arguments = ["shards", "pairs", "--config", str(path), "--out", str(tmp_path / "out")]
    arguments += ["--query-column", "ask", "--licence", "flag", "--source", "flag", "--output.source=override"]
    assert main([*arguments, "--columns.positive", "yes"]) == 0
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.source, manifest.licence, manifest.samples) == ("override", "flag", 1)
    assert (tmp_path / "out" / "validation.json").is_file()
    assert (tmp_path / "out" / "validation.html").is_file()


def test_fatal_findings_stop_the_import_unless_allowed_by_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [{"query": f"question {n}", "positive": "N/A" if n % 2 else f"text {n}"} for n in range(40)]
    path = jsonl(tmp_path / "in.jsonl", rows)
    arguments = ["shards", "pairs", "--input", str(path), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("dipole: fatal findings: placeholder_positive (20 of 40); see ")
    assert line.endswith("--checks.allow=placeholder_positive")
    assert not (tmp_path / "out").exists()
    assert Path(line.partition("see ")[2].partition(",")[0]).is_file()
    assert main([*arguments, "--checks.allow=[placeholder_positive]"]) == 0
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


@pytest.mark.parametrize("setting", ["--checks.corpus=nowhere", "--cleaning.tokenizer=nowhere"])
def test_what_is_not_there_is_told_before_all_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the import has begun")

    monkeypatch.setattr("data_shards.importing.importers.import_dataset", never)
    path = jsonl(tmp_path / "in.jsonl", [{"query": "q", "positive": "a"}])
    assert main(["shards", "pairs", "--input", str(path), "--out", str(tmp_path / "out"), setting]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_no_input_and_no_workers_are_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["shards", "corpus", "--out", str(tmp_path / "out")]) == 2
    assert "no input was given" in capsys.readouterr().err
    assert main(["shards", "corpus", "--input", "x", "--out", str(tmp_path / "out"), "--workers", "0"]) == 2
    assert "--workers must be at least 1, came 0" in capsys.readouterr().err


@dataclass(frozen=True, kw_only=True)
class _Section:
    names: tuple[str, ...] = ("default",)


@dataclass(frozen=True, kw_only=True)
class _Config:
    section: _Section = field(default_factory=_Section)


def test_given_values_take_the_place_of_default_ones() -> None:
    assert load_sections(_Config, None).section.names == ("default",)
    assert load_sections(_Config, None, ["--section.names=a", "--section.names=b,c"]).section.names == ("b", "c")
    assert load_sections(_Config, None, ["--section.names=[]"]).section.names == ()
