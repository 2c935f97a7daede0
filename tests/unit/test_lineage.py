"""What was made from what survives kills and resumes; and the version of the code that made it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from train import lineage
from train.lineage import append_lineage, code_version, read_lineage

ROOT = Path(__file__).parents[2]


def add(root: Path, identity: str, path: Path | None = None, **uses: str) -> bool:
    return append_lineage(root, "snapshot", path or root / "a", identity=identity, step=4, uses=uses) is not None


def test_a_row_is_added_once_and_another_beside_it(tmp_path: Path) -> None:
    assert add(tmp_path, "x", pairs="p")
    assert not add(tmp_path, "x", pairs="p")
    assert add(tmp_path, "y", pairs="p")
    assert add(tmp_path, "x", pairs="q")
    assert [(row["id"], row["uses"]) for row in read_lineage(tmp_path)] == [
        ("x", {"pairs": "p"}),
        ("y", {"pairs": "p"}),
        ("x", {"pairs": "q"}),
    ]


def test_a_line_cut_off_by_a_kill_takes_no_other_along(tmp_path: Path) -> None:
    add(tmp_path, "x")
    with open(tmp_path / "lineage.jsonl", "a") as file:
        file.write('{"kind": "snap')
    assert add(tmp_path, "y")
    assert [row["id"] for row in read_lineage(tmp_path)] == ["x", "y"]


def test_places_outside_of_the_run_keep_their_whole_path(tmp_path: Path) -> None:
    add(tmp_path / "run", "x", Path("/corpus/pairs"))
    assert read_lineage(tmp_path / "run")[0]["path"] == "/corpus/pairs"


def test_the_code_is_named_by_its_commit_only_where_it_is_that_checkout_s(tmp_path: Path) -> None:
    """Installed below somebody else's checkout, git would answer with that one's commit."""
    checkout, package = tmp_path / "theirs", tmp_path / "theirs" / ".venv" / "train"
    package.mkdir(parents=True)
    shutil.copy(lineage.__file__, package / "lineage.py")
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    program = f"import sys; sys.path.insert(0, {str(package)!r}); import lineage; print(lineage.code_version())"

    def found() -> str:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        return done.stdout

    assert "dipole" in found()
    assert "commit" not in found()
    subprocess.run([*git, "add", "-f", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "ours"], check=True)
    assert "'changed': False" in found()
    with open(package / "lineage.py", "a") as file:
        file.write("# changed\n")
    assert "'changed': True" in found()


def test_without_git_the_version_alone_is_told(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert list(code_version()) == ["dipole"]
