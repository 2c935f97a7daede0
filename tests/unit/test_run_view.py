"""What `dipole watch` says of a run, by the files in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_shards.errors import UserError
from launch.metrics_tail import last_rows
from launch.run_view import look
from launch.watch_verb import Watch
from train.run_folder import RunFolder


def step(number: int, **more: Any) -> dict[str, Any]:
    row = {"event": "step", "step": number, "time": 1000.0 + 2 * number, "loss": 4.0 - number / 10, "steps": 40}
    speed = {
        "pairs_per_s": 100.0,
        "tokens_per_s": 9000.0,
        "data_wait_share": 0.01,
        "peak_memory_gib": 1.5,
        "epoch": 0.1,
    }
    return {**row, **speed, "negatives_version": 2, "negatives_age_steps": 7, **more}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    found = RunFolder(tmp_path)
    rows = [step(number) for number in range(10)]
    rows.insert(5, {"event": "dev", "step": 5, "time": 1009.0, "ndcg@10": 0.25, "mrr@10": 0.2, "seconds": 1})
    rows.append({"event": "refresh", "step": 10, "time": 1020.0, "seconds": {"embed_corpus": 3.0, "search": 1.5}})
    found.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"event": "st')
    found.identity.write_text("{}")
    return found


def test_a_run_that_goes_on(run: RunFolder) -> None:
    view = look(run, now=1021.0)
    facts = view.facts
    assert facts["state"] == "running"
    assert (facts["step"], facts["steps"], facts["loss"]) == (10, 40, 3.1)
    assert facts["left_s"] == 60.0  # 30 steps of 2 s
    assert facts["dev"] == {"ndcg@10": 0.25, "mrr@10": 0.2}
    assert facts["refresh_s"] == 4.5
    text = view.text(width=80)
    assert "step      10 of 40" in text
    assert "25%, 60 s left" in text
    assert "version 2, 7 steps old; mining it took 4.5 s" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("file", "content", "state", "why"),
    [
        ("done.json", {"steps": 40}, "done", None),
        ("failure.json", {"cause": "rank 1 ran out of memory"}, "failed", "rank 1 ran out of memory"),
        ("stopped.json", {"step": 10, "reason": "signal SIGTERM"}, "stopped", "signal SIGTERM"),
        ("mining.json", {"version": 3}, "mining", None),
    ],
)
def test_how_a_run_stands(run: RunFolder, file: str, content: dict[str, Any], state: str, why: str | None) -> None:
    (run.root / file).write_text(json.dumps(content))
    facts = look(run, now=1021.0).facts
    assert (facts["state"], facts.get("why")) == (state, why)
    assert "left_s" not in facts


def test_one_that_says_nothing_any_more(run: RunFolder) -> None:
    facts = look(run, now=1020.0 + 500).facts
    assert (facts["state"], facts["why"]) == ("silent", "nothing logged for 8 min")


def test_only_the_end_of_a_long_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(step(number)) + "\n" for number in range(1000)))
    rows = last_rows(path, most_bytes=2_000)
    assert [row["step"] for row in rows] == [*range(1000 - len(rows), 1000)]
    assert 2 < len(rows) < 12
    assert last_rows(tmp_path / "none") == []


def test_mistakes(tmp_path: Path, run: RunFolder) -> None:
    with pytest.raises(UserError, match="does not exist; give the run folder"):
        Watch(run_dir=tmp_path / "none").run()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not a run folder"):
        Watch(run_dir=tmp_path / "empty").run()
    answer = Watch(run_dir=run.root, once=True).run()
    assert answer["step"] == 10
    assert answer["text"].startswith(str(run.root))
