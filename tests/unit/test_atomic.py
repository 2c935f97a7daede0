"""Files that are whole or absent: after exceptions, kills and full disks."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from data_shards.atomic import atomic_dir, atomic_path, read_json, sha256_file, write_json
from data_shards.errors import UserError

ROOT = Path(__file__).parents[2]


def run_python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state"
    with atomic_path(path) as temporary:
        temporary.write_text("old")
        assert not path.exists()
        assert temporary.parent == path.parent
    with atomic_path(path) as temporary:
        temporary.write_text("new, lon")
        assert path.read_text() == "old"
        temporary.write_text("new, longer")
    assert path.read_text() == "new, longer"
    assert names(path.parent) == ["state"]


def test_threads_that_write_one_file_do_not_share_a_half(tmp_path: Path) -> None:
    """Nor do machines whose processes have the same number."""
    with atomic_path(tmp_path / "state") as first, atomic_path(tmp_path / "state") as second:
        assert first != second
        first.write_text("one")
        second.write_text("two")
    assert names(tmp_path) == ["state"]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("old")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["state"]


def test_a_block_that_writes_nothing_is_an_error_and_not_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "state"):
        pass
    assert names(tmp_path) == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "v1"

    def write() -> None:
        with atomic_dir(place) as folder:
            (folder / "a").write_text("1")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write()
    assert names(tmp_path) == []
    with atomic_dir(place) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("1")
        assert not place.exists()
    assert names(tmp_path) == ["v1"]
    assert (place / "sub" / "a").read_text() == "1"


def test_a_published_folder_is_never_overwritten(tmp_path: Path) -> None:
    with atomic_dir(tmp_path / "v1") as folder:
        (folder / "a").write_text("1")
    with pytest.raises(FileExistsError, match="v1 is there already"), atomic_dir(tmp_path / "v1"):
        pytest.fail("the block must not run")
    assert (tmp_path / "v1" / "a").read_text() == "1"


def test_a_kill_leaves_no_half_file_and_no_half_folder(tmp_path: Path) -> None:
    """The process dies by SIGKILL inside both blocks; the next writer of the folder clears up after it."""
    (tmp_path / "state").write_text("old")
    killed = run_python(
        """
        import os, signal, sys
        from pathlib import Path
        from data_shards.atomic import atomic_dir, atomic_path
        root = Path(sys.argv[1])
        with atomic_path(root / "state") as file, atomic_dir(root / "v1") as folder:
            file.write_text("ne")
            (folder / "a").write_text("1")
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
    )
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "state").read_text() == "old"
    assert not (tmp_path / "v1").exists()
    leftovers = [name for name in names(tmp_path) if name != "state"]
    assert [name.split("-")[0] for name in leftovers] == [".tmp", ".tmp"]
    with atomic_dir(tmp_path / "v1") as folder:
        (folder / "b").write_text("2")
    assert names(tmp_path / "v1") == ["b"]
    assert [name for name in names(tmp_path) if name.endswith("-v1")] == []


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the write fails in the middle either way."""
    write_json(tmp_path / "state.json", {"step": 1})
    result = run_python(
        """
        import resource, sys
        from pathlib import Path
        from data_shards.atomic import write_json
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))
        write_json(Path(sys.argv[1]) / "state.json", {"text": "x" * 100_000})
        """,
        tmp_path,
    )
    assert result.returncode == 1
    assert "OSError: [Errno 27] File too large" in result.stderr
    assert read_json(tmp_path / "state.json") == {"step": 1}
    assert names(tmp_path) == ["state.json"]


def test_json_keeps_order_and_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": "ü", "a": [1]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "b": "ü",\n "a": [\n  1\n ]\n}\n'


def test_json_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match=r"a\.json does not exist"):
        read_json(path)
    path.write_text('{"a": ')
    with pytest.raises(UserError, match=r"a\.json is not valid JSON \(Expecting value.*\); it was damaged or not"):
        read_json(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
        read_json(path)


def test_sha256_of_a_file_larger_than_a_block(tmp_path: Path) -> None:
    """Of "abc" as in FIPS 180-2, appendix B.1, and of a million times "a" as in B.3."""
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "a").write_bytes(b"a" * 1_000_000)
    assert sha256_file(tmp_path / "a") == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
    (tmp_path / "blocks").write_bytes(bytes(range(256)) * 10_000)
    whole = (tmp_path / "blocks").read_bytes()
    assert sha256_file(tmp_path / "blocks") == hashlib.sha256(whole).hexdigest()
