"""The cache's promises: copies whole or absent, filled once, within the budget; also after kills and full disks."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from data_shards.errors import UserError
from data_shards.remote.cache import ShardCache
from tests.unit.processes import start_python

SIZE = 1000


def key(number: int) -> str:
    return f"{number:064x}"


def writes(content: bytes) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        file.write(content)

    return write


def never(file: BinaryIO) -> None:
    raise AssertionError("there is a copy: nothing is to be fetched")


def put(cache: ShardCache, number: int, size: int = SIZE) -> Path:
    """Ask for a file; where it is not there it is made of its number."""
    with cache.hold(key(number), f"{number}.tar", size=size, fill=writes(bytes([number]) * size)) as path:
        assert path is not None
        assert path.read_bytes() == bytes([number]) * size
        return path


def kept(cache: ShardCache) -> list[int]:
    return sorted(int(path.stem) for path in cache.folder.glob("*/[0-9]*.tar"))


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    """Room for three files, and their locks."""
    return ShardCache(tmp_path / "cache", 3 * SIZE)


def test_a_copy_is_filled_once(cache: ShardCache) -> None:
    path = put(cache, 7)
    with cache.hold(key(7), "7.tar", size=SIZE, fill=never) as again:
        assert again == path
    assert sorted(file.name for file in path.parent.iterdir()) == ["7.tar", "lock"]


def test_a_copy_of_another_size_is_filled_anew(cache: ShardCache) -> None:
    path = put(cache, 7)
    path.write_bytes(b"half")
    assert put(cache, 7) == path


def test_the_least_recently_used_goes_first_with_its_sidecar(cache: ShardCache) -> None:
    for number in (1, 2, 3):
        path = put(cache, number)
        path.with_name(f"{number}.tar.idx").write_bytes(b"")
        for file in (path, path.with_name(f"{number}.tar.idx")):
            os.utime(file, (number, number))
    put(cache, 1)  # used again: now 2 is the oldest
    put(cache, 4)
    assert kept(cache) == [1, 3, 4]
    assert not (cache.folder / key(2)).exists()
    put(cache, 5, 2 * SIZE)
    assert kept(cache) == [4, 5]  # 3 from the year 1970, then 1


def test_sidecars_count(cache: ShardCache) -> None:
    path = put(cache, 1)
    (path.parent / "1.tar.idx").write_bytes(bytes(SIZE))
    put(cache, 2)
    assert kept(cache) == [1, 2]
    put(cache, 3)
    assert kept(cache) == [2, 3]


def test_what_is_held_stays(cache: ShardCache) -> None:
    os.utime(put(cache, 1), (1, 1))
    with cache.hold(key(1), "1.tar", size=SIZE, fill=never) as held:
        assert held is not None
        os.utime(held, (1, 1))
        for number in (2, 3, 4):
            put(cache, number)
        assert kept(cache) == [1, 3, 4]
    put(cache, 5)
    assert kept(cache) == [3, 4, 5] or kept(cache) == [1, 4, 5]


def test_bytes_stay_readable_through_an_open_file(cache: ShardCache) -> None:
    with open(put(cache, 1), "rb") as file:
        put(cache, 5, 3 * SIZE)
        assert kept(cache) == [5]
        assert file.read() == bytes([1]) * SIZE


def test_who_will_not_wait_gets_none(cache: ShardCache) -> None:
    full = 3 * SIZE
    with cache.hold(key(1), "1.tar", size=full, fill=writes(bytes(full))) as path:
        assert path is not None
        with cache.hold(key(1), "1.tar", size=full, fill=never, wait=False) as busy:
            assert busy is None
        with cache.hold(key(2), "2.tar", size=SIZE, fill=never, wait=False) as no_room:
            assert no_room is None
    assert kept(cache) == [1]
    assert not list(cache.folder.rglob(".tmp-*"))


def test_who_waits_for_room_gets_it(cache: ShardCache) -> None:
    full = 3 * SIZE
    with cache.hold(key(1), "1.tar", size=full, fill=writes(bytes(full))):
        waiting = threading.Thread(target=put, args=(cache, 2))
        waiting.start()
        time.sleep(0.15)
        assert kept(cache) == [1]
    waiting.join(10)
    assert kept(cache) == [2]


def test_room_is_taken_before_the_first_byte(cache: ShardCache) -> None:
    """Else two fillers would count on the same room."""

    def fill(file: BinaryIO) -> None:
        assert os.fstat(file.fileno()).st_size == 2 * SIZE
        with cache.hold(key(2), "2.tar", size=2 * SIZE, fill=never, wait=False) as second:
            assert second is None
        file.write(bytes(2 * SIZE))

    with cache.hold(key(1), "1.tar", size=2 * SIZE, fill=fill) as path:
        assert path is not None


def test_a_size_that_nobody_knew_counts_afterwards(cache: ShardCache) -> None:
    for number in (1, 2, 3):
        os.utime(put(cache, number), (number, number))
    with cache.hold(key(4), "4.tar", size=None, fill=writes(bytes(2 * SIZE))):
        assert kept(cache) == [3, 4]
    too_much = cache.hold(key(5), "5.tar", size=None, fill=writes(bytes(4 * SIZE)))
    with pytest.raises(UserError, match=r"5\.tar has 4000 bytes, more than the whole budget"), too_much:
        pytest.fail("the block must not run")
    assert kept(cache) == [3, 4]


def test_a_budget_below_one_shard_is_one_clear_line(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 1 << 20)
    wanted = cache.hold(key(1), "a.tar", size=3 << 30, fill=never)
    line = (
        "a.tar has 3221225472 bytes, more than the whole budget of the shard cache (1048576); set cache.budget_gib to"
    )
    with pytest.raises(UserError, match=re.escape(f"{line} 3.0 at least")), wanted:
        pytest.fail("the block must not run")


def test_an_error_while_filling_leaves_nothing(cache: ShardCache) -> None:
    def breaks(file: BinaryIO) -> None:
        file.write(b"half")
        raise UserError("the store went away")

    with pytest.raises(UserError, match="the store went away"), cache.hold(key(1), "1.tar", size=SIZE, fill=breaks):
        pytest.fail("the block must not run")
    assert [path.name for path in (cache.folder / key(1)).iterdir()] == ["lock"]


def test_a_second_try_that_is_shorter_leaves_nothing_of_the_first(cache: ShardCache) -> None:
    def fill(file: BinaryIO) -> None:
        file.write(b"x" * 1500)
        file.seek(0)
        file.write(b"y" * 500)

    with cache.hold(key(1), "1.tar", size=None, fill=fill) as path:
        assert path is not None
        assert path.read_bytes() == b"y" * 500


def test_an_error_in_the_block_is_not_the_caches(cache: ShardCache) -> None:
    def use() -> None:
        with cache.hold(key(1), "1.tar", size=SIZE, fill=writes(bytes(SIZE))):
            raise PermissionError("mine")

    with pytest.raises(PermissionError, match="mine"):
        use()
    put(cache, 2)


def test_folders_of_others_are_left_alone(cache: ShardCache) -> None:
    for name in ("photos", key(9)):
        (cache.folder / name).mkdir(parents=True)
        (cache.folder / name / "mine.jpg").write_bytes(bytes(10 * SIZE))
    put(cache, 1, 3 * SIZE)
    put(cache, 2, 3 * SIZE)
    assert len(list(cache.folder.glob("*/mine.jpg"))) == 2


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = ShardCache(tmp_path / "file" / "cache", SIZE)
    with pytest.raises(
        UserError, match=r"shard cache .*/file/cache cannot be used \(Not a directory\); set cache\.dir"
    ):
        put(cache, 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="wants root, to become a user without rights")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o555)
    script = """
        import os, sys
        from pathlib import Path
        from data_shards.errors import UserError
        from data_shards.remote.cache import ShardCache
        os.setegid(65534); os.seteuid(65534)
        try:
            with ShardCache(Path(sys.argv[1]), 10).hold("0" * 64, "a.tar", size=1, fill=lambda file: None):
                pass
        except UserError as error:
            print(error)
        """
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    out, err = start_python(script, tmp_path / "cache").communicate(timeout=30)
    assert "cannot be used (Permission denied); set cache.dir to a folder that can be written" in out, err


def test_a_full_disk_empties_the_cache_and_then_says_so(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = ShardCache(small_disk / "cache", 1 << 30)  # the budget does not know how small the disk is
    for number in (1, 2):
        put(cache, number, 400 << 10)
    put(cache, 3, 600 << 10)
    assert kept(cache) == [3]
    assert "is full: the cache is emptied" in caplog.text
    line = (
        r"the disk of the shard cache .*/cache is full: no room for 4\.tar \(2097152 bytes\) even with the cache empt"
    )
    with pytest.raises(UserError, match=line):
        put(cache, 4, 2 << 20)
    assert kept(cache) == []
    assert not list(small_disk.rglob(".tmp-*"))
    put(cache, 5, 600 << 10)


def test_a_disk_that_fills_up_on_the_way_is_noticed_too(small_disk: Path) -> None:
    """A file of unknown size cannot reserve its room."""
    cache = ShardCache(small_disk / "cache", 1 << 30)
    too_much = cache.hold(key(1), "1.tar", size=None, fill=writes(bytes(2 << 20)))
    with pytest.raises(UserError, match=r"no room for 1\.tar even with the cache emptied"), too_much:
        pytest.fail("the block must not run")
    assert not list(small_disk.rglob(".tmp-*"))


FILL_FOR_EVER = """
    import sys, time
    from pathlib import Path
    from data_shards.remote.cache import ShardCache
    def fill(file):
        file.write(b"half")
        file.flush()
        print("filling", flush=True)
        time.sleep(60)
    with ShardCache(Path(sys.argv[1]), 3000).hold("0" * 63 + "1", "1.tar", size=1000, fill=fill):
        pass
    """


def test_a_killed_filler_leaves_the_cache_sound(cache: ShardCache) -> None:
    """The next one neither waits for the dead nor takes its half file."""
    filler = start_python(FILL_FOR_EVER, cache.folder)
    assert filler.stdout is not None
    assert filler.stdout.readline() == "filling\n"
    with cache.hold(key(1), "1.tar", size=SIZE, fill=never, wait=False) as busy:
        assert busy is None
    filler.send_signal(signal.SIGKILL)
    filler.wait(10)
    assert list(cache.folder.rglob(".tmp-*"))
    put(cache, 1)
    assert not list(cache.folder.rglob(".tmp-*"))


def test_what_a_killed_filler_left_makes_room(cache: ShardCache) -> None:
    filler = start_python(FILL_FOR_EVER, cache.folder)
    assert filler.stdout is not None
    assert filler.stdout.readline() == "filling\n"
    filler.kill()
    filler.wait(10)
    for number in (2, 3, 4):
        put(cache, number)
    assert kept(cache) == [2, 3, 4]
    assert not (cache.folder / key(1)).exists()


def test_many_processes_fill_each_file_once(tmp_path: Path) -> None:
    script = """
        import os, sys
        from pathlib import Path
        from data_shards.remote.cache import ShardCache
        folder, log = Path(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for number in range(20):
            def fill(file):
                os.write(log, f"{number}\\n".encode())
                file.write(bytes([number]) * 1000)
            with ShardCache(folder, 1 << 20).hold(f"{number:064x}", "a.tar", size=1000, fill=fill) as path:
                assert path.read_bytes() == bytes([number]) * 1000
        """
    processes = [start_python(script, tmp_path / "cache", tmp_path / "log") for _ in range(4)]
    for process in processes:
        assert process.wait(30) == 0, process.communicate()[1]
    filled = [int(line) for line in (tmp_path / "log").read_text().split()]
    assert sorted(filled) == list(range(20))


def test_many_processes_in_a_cache_of_two_never_see_a_torn_or_missing_file(tmp_path: Path) -> None:
    """Files are removed all the time here, and never from under the one that holds them."""
    script = """
        import random, sys
        from pathlib import Path
        from data_shards.remote.cache import ShardCache
        cache, dice = ShardCache(Path(sys.argv[1]), 2000), random.Random(int(sys.argv[2]))
        for _ in range(60):
            number = dice.randrange(6)
            fill = lambda file: file.write(bytes([number]) * 1000)
            with cache.hold(f"{number:064x}", "a.tar", size=1000, fill=fill) as path:
                assert path.read_bytes() == bytes([number]) * 1000
                assert len(list(cache.folder.glob("*/a.tar"))) <= 2
        """
    processes = [start_python(script, tmp_path / "cache", seed) for seed in range(3)]
    for process in processes:
        assert process.wait(60) == 0, process.communicate()[1]
