"""The same bytes whoever does the parts and in whatever order; what is done is not done again, unless it changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_shards.cleaning.config import CleaningConfig
from data_shards.errors import UserError
from data_shards.file_lock import locked
from data_shards.importing.config import ImportConfig, InputConfig, OutputConfig
from data_shards.importing.importers import ImportTools, import_dataset
from data_shards.importing.parts import Conversion, Part
from data_shards.manifest import Manifest
from data_shards.reader import PairDataset
from launch.process_pool import process_pool
from tests.unit.import_helpers import backwards, jsonl

SMALL = ImportConfig(output=OutputConfig(samples_per_shard=40))


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three files of 40 rows with repetitions within and between them, cut into segments of 16."""
    monkeypatch.setattr("data_shards.importing.segments.SEGMENT_ROWS", 16)
    rows = [{"query": f"q{n % 50}", "positive": [f"a{n % 70}", f"b{n}"]} for n in range(120)]
    return [jsonl(tmp_path / f"in{at}.jsonl", rows[40 * at : 40 * at + 40]) for at in range(3)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Stop(Exception):
    """Stands for a kill: nothing of ours handles it."""


class Counted:
    """Does parts here, notes which, and dies behind so many."""

    def __init__(self, die_after: int = 99) -> None:
        self.names: list[str] = []
        self._die_after = die_after

    def __call__(self, job: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        for item in items:
            if isinstance(item, Part):
                if len(self.names) == self._die_after:
                    raise Stop
                work = job.work
                done = (work / f"{item.key}.done.json").exists()
                yield job(item)
                if not done:
                    self.names.append(item.input.name)
            else:
                yield job(item)


def test_order_and_number_of_workers_do_not_change_a_byte(inputs: list[Path], tmp_path: Path) -> None:
    import_dataset("pairs", inputs, tmp_path / "a", SMALL)
    import_dataset("pairs", inputs, tmp_path / "b", SMALL, ImportTools(run_parts=backwards))
    with process_pool(2) as pool:
        import_dataset("pairs", inputs, tmp_path / "c", SMALL, ImportTools(run_parts=pool))
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b") == files_of(tmp_path / "c")
    # By hand: of 240 positives, (q, a) comes again where n % 350 does, so never; (q, b) never.
    assert Manifest.load(tmp_path / "a").report == {"pairs_kept": 120, "pairs_read": 120}


def test_repetitions_are_found_over_parts_and_segments(inputs: list[Path], tmp_path: Path) -> None:
    manifest = import_dataset("pairs", [*inputs, inputs[0], inputs[2]], tmp_path / "out", SMALL)
    assert manifest.report == {
        "pair_without_positive": 80,
        "pairs_kept": 120,
        "pairs_read": 200,
        "repeated_positive": 160,
    }
    assert [pair.positives[1].text for pair in PairDataset(tmp_path / "out")] == [f"b{n}" for n in range(120)]


def test_a_stopped_import_goes_on_with_what_is_not_done(inputs: list[Path], tmp_path: Path) -> None:
    import_dataset("pairs", inputs, tmp_path / "whole", SMALL)
    with pytest.raises(Stop):
        import_dataset("pairs", inputs, tmp_path / "out", SMALL, ImportTools(run_parts=Counted(die_after=2)))
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.import").is_dir()
    second = Counted()
    import_dataset("pairs", inputs, tmp_path / "out", SMALL, ImportTools(run_parts=second))
    assert second.names == ["in2.jsonl"]
    assert not (tmp_path / ".out.import").exists()
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["content", "missing", "record"])
def test_a_done_part_that_was_damaged_is_done_again(inputs: list[Path], tmp_path: Path, damage: str) -> None:
    import_dataset("pairs", inputs, tmp_path / "whole", SMALL)
    with pytest.raises(Stop):
        import_dataset("pairs", inputs, tmp_path / "out", SMALL, ImportTools(run_parts=Counted(die_after=1)))
    work = tmp_path / ".out.import"
    if damage == "record":
        next(work.glob("[!.]*.done.json")).write_text('{"key":')
    else:
        path = sorted(work.glob("*.001.jsonl"))[0]
        path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes().replace(b"q", b"z", 1))
    import_dataset("pairs", inputs, tmp_path / "out", SMALL)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_changed_input_and_other_settings_are_noticed(inputs: list[Path], tmp_path: Path) -> None:
    def stop_before_the_end(config: ImportConfig) -> list[str]:
        counted = Counted(die_after=3)

        def validate(folder: Path) -> None:
            raise Stop

        with pytest.raises(Stop):
            import_dataset(
                "pairs", inputs, tmp_path / "out", config, ImportTools(run_parts=counted, validate=validate)
            )
        return counted.names

    names = ["in0.jsonl", "in1.jsonl", "in2.jsonl"]
    assert stop_before_the_end(SMALL) == names
    assert stop_before_the_end(SMALL) == []
    assert stop_before_the_end(ImportConfig(output=OutputConfig(licence="CC0"))) == []  # the parts are the same
    size = inputs[1].stat().st_size
    inputs[1].write_text(inputs[1].read_text().replace("q7", "Q7"))
    assert inputs[1].stat().st_size == size
    assert stop_before_the_end(SMALL) == ["in1.jsonl"]
    assert stop_before_the_end(ImportConfig(cleaning=CleaningConfig(query_min_length=1))) == names
    assert len(list((tmp_path / ".out.import").glob("*.done.json"))) == 3


def test_an_input_that_changes_while_it_is_read_is_refused(inputs: list[Path], tmp_path: Path) -> None:
    def meddling(job: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        yield from map(job, items)
        if isinstance(job, Conversion):
            inputs[1].write_text("{}")

    with pytest.raises(UserError, match=r"in1\.jsonl was changed while it was imported"):
        import_dataset("pairs", inputs, tmp_path / "out", SMALL, ImportTools(run_parts=meddling))


def test_two_imports_to_one_place_do_not_meet(inputs: list[Path], tmp_path: Path) -> None:
    with locked(tmp_path / ".out.import" / "lock"), pytest.raises(UserError, match="another import is writing .*out"):
        import_dataset("pairs", inputs, tmp_path / "out", SMALL)
    import_dataset("pairs", inputs, tmp_path / "out", SMALL)
    with pytest.raises(UserError, match="already holds a dataset"):
        import_dataset("pairs", inputs, tmp_path / "out", SMALL)


def test_a_malformed_row_keeps_the_parts_that_are_done(inputs: list[Path], tmp_path: Path) -> None:
    good = inputs[2].read_text()
    inputs[2].write_text(good + "broken\n")
    with pytest.raises(UserError, match=r"in2\.jsonl, line 41: not JSON"):
        import_dataset("pairs", inputs, tmp_path / "out", SMALL)
    inputs[2].write_text(good)
    second = Counted()
    import_dataset("pairs", inputs, tmp_path / "out", SMALL, ImportTools(run_parts=second))
    assert second.names == ["in2.jsonl"]


def test_the_folder_one_stands_in_can_be_the_output(
    inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.` has no name: the work folder lay in it, and when all was done it was found not to be empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    import_dataset("pairs", inputs, Path("."), SMALL)
    assert (tmp_path / "here" / "manifest.json").is_file()
    assert not list(tmp_path.glob(".*"))


def test_what_validation_refuses_is_not_published(inputs: list[Path], tmp_path: Path) -> None:
    def validate(folder: Path) -> None:
        assert folder.name == "out"
        assert len(PairDataset(folder)) == 120
        raise UserError("not fit")

    with pytest.raises(UserError, match="not fit"):
        import_dataset("pairs", inputs, tmp_path / "out", SMALL, ImportTools(validate=validate))
    assert not (tmp_path / "out").exists()


def test_large_files_are_cut_into_parts(tmp_path: Path) -> None:
    """Two parts of a mebibyte and a rest; a mistake is named by its line in the whole file."""
    lines = [json.dumps({"query": f"q{n}", "positive": "x" * 1000}) for n in range(2500)]
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(lines))
    config = ImportConfig(input=InputConfig(part_mib=1))
    counted = Counted()
    import_dataset("pairs", [path], tmp_path / "out", config, ImportTools(run_parts=counted))
    assert counted.names == ["in.jsonl"] * 3
    assert [pair.query for pair in PairDataset(tmp_path / "out")] == [f"q{n}" for n in range(2500)]
    lines[2300] = "broken"
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"in\.jsonl, line 2301: not JSON"):
        import_dataset("pairs", [path], tmp_path / "again", config)
