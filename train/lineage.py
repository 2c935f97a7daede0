"""What was made from what: one JSON object a line in the run folder, with or without an account anywhere.

lineage.jsonl    {"kind": "snapshot", "id": "sha256:…", "step": 40, "path": "snapshots/step-0000040", "uses": {…}}
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_GIT_TIMEOUT_S = 10


def append_lineage(
    root: Path, kind: str, path: Path, *, identity: str, step: int, uses: Mapping[str, str]
) -> dict[str, Any] | None:
    """Write down that something was made; a resumed run that makes the same again adds nothing.

    Args:
        root: the run folder.
        kind: snapshot, negatives, checkpoint, …
        path: where it is; inside the run folder it is kept relative to it.
        identity: a hash or a version, such as `sha256:…`.
        step: of training.
        uses: what it was made from: a name, such as `pairs` or `negatives`, and the identity of each.

    Returns:
        The row, or None where it is there already.
    """
    place = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    row = {"kind": kind, "id": identity, "step": step, "path": place, "uses": dict(uses)}
    file = root / "lineage.jsonl"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    known = [{name: old[name] for name in row if name in old} for old in read_lineage(root)]
    if row in known:
        return None
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a", encoding="utf-8") as out:
        # A line cut off by a kill must not take this one along.
        out.write("\n" * (text[-1:] not in ("", "\n")) + json.dumps({**row, "time": round(time.time(), 3)}) + "\n")
    return row


def read_lineage(root: Path) -> list[dict[str, Any]]:
    """Return all whole lines."""
    file = root / "lineage.jsonl"
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def code_version() -> dict[str, Any]:
    """Return the version of Dipole, and where it runs from a git checkout its commit and whether that was changed."""
    try:
        found: dict[str, Any] = {"dipole": version("dipole")}
    except PackageNotFoundError:
        found = {"dipole": "not installed"}
    # Installed below somebody else's checkout, git would answer for that one: this file has to be a tracked one.
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is not None:
        found["commit"] = _git("rev-parse", "HEAD")
        found["changed"] = bool(_git("status", "--porcelain", "--untracked-files=no"))
    return found


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
