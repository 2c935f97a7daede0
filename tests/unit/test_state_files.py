"""The pieces of a checkpoint: any range comes back, whoever wrote it, and a hole is never read as numbers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_shards.errors import UserError
from tests.unit.toy_state import KINDS, SHAPES, pieces, value
from train.host_copy import HostCopy
from train.state_files import Piece, StateReader, part_name, read_state, write_part, write_state

CPU = torch.device("cpu")


def write(folder: Path, parts: list[list[Piece]], shapes: dict[str, tuple[int, ...]], **extra: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for rank, part in enumerate(parts):
        write_part(folder, HostCopy(CPU).copy(part), rank=rank, world_size=len(parts))
    head = {"state": {}, "shapes": {name: [*shape] for name, shape in shapes.items()}, "extra": extra}
    write_state(folder, head, world_size=len(parts))
    return folder


def ramp(start: int, stop: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(start, stop, dtype=dtype)


def three_parts(folder: Path) -> Path:
    """Ten values, 0 to 9, cut at 4 and 7; the last rank's part comes first."""
    cuts = [(7, 10), (0, 4), (4, 7)]
    return write(folder, [[Piece("weight", "w", a, ramp(a, b))] for a, b in cuts], {"w": (2, 5)})


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 10), (0, 4), (1, 3), (3, 5), (4, 7), (2, 9), (9, 10), (5, 5), (10, 10)]
)
def test_any_range_is_assembled_over_files(tmp_path: Path, start: int, stop: int) -> None:
    found = StateReader(three_parts(tmp_path / "c")).read("weight", "w", start, stop)
    assert found.tolist() == list(range(start, stop))
    assert found.dtype == torch.float32


def test_a_whole_tensor_has_its_shape_and_is_the_caller_s_own(tmp_path: Path) -> None:
    """What safetensors hands out is a view of the mapped file: whoever trained on it would change the next read."""
    reader = StateReader(three_parts(tmp_path / "c"))
    assert reader.full("weight", "w").tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    reader.read("weight", "w", 7, 10).fill_(-1)
    assert reader.read("weight", "w", 7).tolist() == [7, 8, 9]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 29])
def test_every_tensor_of_every_kind_comes_back(tmp_path: Path, world_size: int) -> None:
    """An empty tensor, a scalar, a name with bars, float64 beside float32; with 29 ranks some hold one value."""
    parts = [list(pieces(3, rank=rank, world_size=world_size)) for rank in range(world_size)]
    reader = StateReader(write(tmp_path / "c", parts, SHAPES))
    assert (reader.names, reader.kinds) == (tuple(SHAPES), frozenset(KINDS))
    for name, shape in SHAPES.items():
        for kind in KINDS:
            full, wanted = reader.full(kind, name), value(3, kind, name)
            assert full.shape == shape
            assert full.dtype == wanted.dtype
            assert torch.equal(full.flatten(), wanted)


def test_overlapping_parts_are_read_once(tmp_path: Path) -> None:
    """As where every rank writes all: the same values twice are no fault."""
    parts = [[Piece("weight", "w", 0, ramp(0, 6))], [Piece("weight", "w", 2, ramp(2, 4))]]
    parts += [[Piece("weight", "w", 5, ramp(5, 10))]]
    reader = StateReader(write(tmp_path / "c", parts, {"w": (10,)}))
    assert reader.read("weight", "w", 1, 9).tolist() == [*range(1, 9)]


def test_only_the_files_that_hold_the_range_are_opened(tmp_path: Path) -> None:
    path = three_parts(tmp_path / "c")
    (path / f"{part_name(0, 3)}.safetensors").unlink()
    reader = StateReader(path)
    assert reader.read("weight", "w", 0, 7).tolist() == [*range(7)]
    with pytest.raises(UserError, match=r"rank-00000-of-00003\.safetensors cannot be read .* or was deleted"):
        reader.read("weight", "w", 6, 8)


def test_what_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    reader = StateReader(three_parts(tmp_path / "c"))
    assert reader.has("weight", "w")
    assert not reader.has("ema", "w")
    with pytest.raises(UserError, match="holds no ema of w from 0 to 10, of 10 values"):
        reader.full("ema", "w")
    with pytest.raises(UserError, match="holds no parameter v; it was written for another encoder"):
        reader.shape("v")
    with pytest.raises(ValueError, match="weight of w has 10 values, asked were 3 to 11"):
        reader.read("weight", "w", 3, 11)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"w": (5, 2)}, r"w is \(2, 5\) there and \(5, 2\) here; set the \[encoder\] section back"),
        ({}, r"w is \(2, 5\) there and missing here"),
        ({"w": (2, 5), "head": (3,)}, r"head is missing there and \(3,\) here"),
    ],
)
def test_another_encoder_is_refused(tmp_path: Path, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    reader = StateReader(three_parts(tmp_path / "c"))
    reader.check_shapes({"w": (2, 5)})
    with pytest.raises(UserError, match=message):
        reader.check_shapes(shapes)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            [(0, 4), (5, 10)],
            "weight of w do not make its 10 values of one dtype: 0 to 4 float32 by rank-00000-of-00002",
        ),
        ([(0, 4), (4, 9)], "0 to 4 float32 by rank-00000-of-00002, 4 to 9"),
        ([(1, 10)], "do not make its 10 values"),
        ([], "weight of w do not make its 10 values"),
    ],
    ids=["hole", "short", "late", "none"],
)
def test_a_hole_is_found_before_the_commit(tmp_path: Path, parts: list[tuple[int, int]], message: str) -> None:
    """Found when it is read, weeks later, it would be too late."""
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "c", [[Piece("weight", "w", a, ramp(a, b))] for a, b in parts] or [[]], {"w": (10,)})
    assert not (tmp_path / "c" / "state.json").exists()


def test_two_dtypes_or_an_unknown_parameter_are_refused_too(tmp_path: Path) -> None:
    mixed = [[Piece("weight", "w", 0, ramp(0, 5))], [Piece("weight", "w", 5, ramp(5, 10, torch.float64))]]
    with pytest.raises(ValueError, match="of one dtype"):
        write(tmp_path / "a", mixed, {"w": (10,)})
    with pytest.raises(ValueError, match="pieces came of ema of v, which has no shape"):
        write(tmp_path / "b", [[Piece("weight", "w", 0, ramp(0, 1)), Piece("ema", "v", 0, ramp(0, 1))]], {"w": (1,)})


def test_some_parameters_may_have_no_optimiser_state_but_none_has_half(tmp_path: Path) -> None:
    frozen = [Piece("weight", name, 0, ramp(0, 4)) for name in ("w", "frozen")]
    reader = StateReader(
        write(tmp_path / "a", [[*frozen, Piece("exp_avg", "w", 0, ramp(0, 4))]], {"w": (4,), "frozen": (4,)})
    )
    assert (reader.has("exp_avg", "w"), reader.has("exp_avg", "frozen")) == (True, False)
    with pytest.raises(ValueError, match="exp_avg of w do not make its 4 values"):
        write(tmp_path / "b", [[*frozen, Piece("exp_avg", "w", 0, ramp(0, 3))]], {"w": (4,), "frozen": (4,)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a|b", "w", 0, torch.zeros(2)), "a kind without '|'"),
        (("weight", "w", -1, torch.zeros(2)), "a start of at least 0"),
        (("weight", "w", 0, torch.zeros(2, 2)), r"float32 or float64; came torch.float32 \[2, 2\]"),
        (("weight", "w", 0, torch.zeros(2, dtype=torch.bfloat16)), "came torch.bfloat16"),
    ],
)
def test_a_piece_is_flat_and_in_full_precision(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Piece(*arguments)


def test_the_files_are_what_the_format_says(tmp_path: Path) -> None:
    path = write(tmp_path / "c", [[Piece("weight", "w", 0, ramp(0, 3))]], {"w": (3,)}, temperature=0.05)
    tensors = load_file(path / "rank-00000-of-00001.safetensors")
    assert {key: flat.tolist() for key, flat in tensors.items()} == {"weight|w|0": [0, 1, 2]}
    part = json.loads((path / "rank-00000-of-00001.json").read_text())
    assert part["pieces"] == [{"kind": "weight", "name": "w", "start": 0, "length": 3, "dtype": "float32"}]
    row = json.loads((path / "state.json").read_text())
    assert row["files"].keys() == {"rank-00000-of-00001.json", "rank-00000-of-00001.safetensors"}
    assert row["files"]["rank-00000-of-00001.safetensors"] == part["sha256"]
    assert StateReader(path).extra == {"temperature": 0.05}


def test_a_file_that_is_shorter_here_than_its_rank_wrote_it_is_not_committed(tmp_path: Path) -> None:
    write_part(tmp_path, [Piece("weight", "w", 0, ramp(0, 3))], rank=0, world_size=1)
    file = tmp_path / "rank-00000-of-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="is not as long as its rank wrote it; is the disk shared"):
        write_state(tmp_path, {"shapes": {"w": [3]}}, world_size=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row["shapes"].update(w=[4]), "is damaged: its checksum does not match"),
        (lambda row: row.pop("checksum"), "is damaged"),
        (lambda row: row.update(format=1), "has format 1, this dipole reads 2"),
        (lambda row: row.pop("format"), "has format 1, this dipole reads 2"),
    ],
)
def test_a_changed_state_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    """A digit that flips leaves valid JSON."""
    path = write(tmp_path / "c", [[Piece("weight", "w", 0, ramp(0, 3))]], {"w": (3,)})
    row = json.loads((path / "state.json").read_text())
    change(row)
    (path / "state.json").write_text(json.dumps(row))
    with pytest.raises(UserError, match=message):
        read_state(path)


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    """Whoever can write the file can make its checksum right, too."""
    from train.state_files import _checksum

    path = write(tmp_path / "c", [[Piece("weight", "w", 0, ramp(0, 3))]], {"w": (3,)})
    row = json.loads((path / "state.json").read_text())
    row.pop("checksum")
    row["files"]["../rank-00001-of-00002.json"] = "0" * 64
    (path / "state.json").write_text(json.dumps({**row, "checksum": _checksum(row)}))
    with pytest.raises(UserError, match="names files that are no rank's"):
        StateReader(path)


def test_ten_thousand_parameters(tmp_path: Path) -> None:
    shapes = {f"encoder.layer.{k}.attention.self.query.weight": (2, 3) for k in range(10_000)}
    parts = [list(pieces(1, rank=rank, world_size=2, shapes=shapes)) for rank in range(2)]
    reader = StateReader(write(tmp_path / "c", parts, shapes))
    for name in random.Random(0).sample(list(shapes), 50):
        assert torch.equal(reader.read("exp_avg_sq", name), value(1, "exp_avg_sq", name, shapes))


def test_a_copy_is_apart_from_what_it_was_made_of_and_reuses_its_memory() -> None:
    host = HostCopy(CPU)
    weight = torch.arange(5.0)
    given = [
        Piece("weight", "w", 0, weight),
        Piece("weight", "empty", 0, weight[:0]),
        Piece("ema", "w", 2, weight[2:]),
    ]
    first = host.copy(given)
    weight.fill_(-1)
    assert [(piece.key, piece.flat.tolist()) for piece in first] == [
        ("weight|w|0", [0, 1, 2, 3, 4]),
        ("ema|w|2", [2, 3, 4]),
    ]
    second = host.copy(given)
    assert [piece.flat.data_ptr() for piece in second] == [piece.flat.data_ptr() for piece in first]
    assert second[0].flat.tolist() == [-1] * 5


def test_pieces_of_all_sizes_never_share_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs of 256 bytes: pieces that fill one, that do not fit the rest of one, and that are larger than one."""
    monkeypatch.setattr("train.host_copy._SLAB_BYTES", 256)
    sizes = [1, 16, 64, 48, 1, 200, 3, 64, 65, 15]
    host = HostCopy(CPU)
    for turn in range(3):
        dtype = torch.float64 if turn == 1 else torch.float32
        random.Random(turn).shuffle(sizes)
        given = [Piece("weight", str(k), 0, torch.full((size,), k, dtype=dtype)) for k, size in enumerate(sizes)]
        for k, (piece, size) in enumerate(zip(host.copy(given), sizes, strict=True)):
            assert piece.flat.tolist() == [k] * size
