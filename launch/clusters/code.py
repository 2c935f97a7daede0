"""Which code a launch was made with: a commit and what differs from it, or the files themselves."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path
from typing import Any

from data_shards.errors import UserError

_HOUSE = Path(__file__).parents[2]
_ROOMS = ("data_shards", "encoder", "train", "index_build", "launch", "configs")
_MOST_UNTRACKED_BYTES = 1 << 20
_TIMEOUT_S = 120


def snapshot_code(folder: Path) -> dict[str, Any]:
    """Write what tells the code apart into a folder.

    Returns:
        For a git checkout its `commit`, and `diff` with the file that holds what is not committed, new files of ours
        included; else `archive`, all modules in a tar.
    """
    commit = _git("rev-parse", "HEAD")
    if commit is None or _git("ls-files", "--error-unmatch", "launch/cli.py") is None:
        return {"archive": _archive(folder / "code.tar.gz")}
    found: dict[str, Any] = {"commit": commit.strip()}
    new = (_git("ls-files", "--others", "--exclude-standard", *_ROOMS) or "").splitlines()
    texts = [_git("diff", "HEAD", "--", *_ROOMS, "pyproject.toml") or ""]
    texts += [_git_new_file(name) for name in new if (_HOUSE / name).stat().st_size <= _MOST_UNTRACKED_BYTES]
    if diff := "".join(texts):
        (folder / "code.diff").write_text(diff, encoding="utf-8")
        found["diff"] = "code.diff"
    return found


def _git(*words: str) -> str | None:
    """Run git in the project's folder; None where it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(_HOUSE), *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        raise UserError(f"git gave no answer in {_TIMEOUT_S} s in {_HOUSE}") from None
    return done.stdout if done.returncode == 0 else None


def _git_new_file(name: str) -> str:
    """Return a file that git does not know as a diff; `git apply` makes it."""
    words = ["git", "-C", str(_HOUSE), "diff", "--no-index", "--", "/dev/null", name]
    return subprocess.run(
        words, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
    ).stdout


def _archive(path: Path) -> str:
    with tarfile.open(path, "w:gz") as tar:
        for room in _ROOMS:
            for file in sorted((_HOUSE / room).rglob("*")):
                if file.is_file() and "__pycache__" not in file.parts:
                    tar.add(file, arcname=str(file.relative_to(_HOUSE)))
    return path.name
