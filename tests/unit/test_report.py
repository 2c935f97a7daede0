"""The report: one file, nothing from elsewhere, the numbers that were given, no text taken for markup."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from launch.report import default_commands, write_report
from launch.report_data import History, duration, oldest_use, read_history, refresh_verdict, separation, summary
from tests.unit.page_outline import Outline, assert_offline

HOSTILE = '<script>alert("x")</script> & $\\frac{1}{2}$ \'" {{ 7 * 7 }}'


def metric(ndcg: float) -> dict[str, float]:
    return {"ndcg@10": ndcg, "mrr@10": ndcg - 0.011, "recall@100": ndcg + 0.301}


def full_result() -> dict:
    return {
        "seconds": 252.4,
        "pairs": 5467,
        "passages": 6704,
        "steps": 4,
        "world_size": 2,
        "negatives_versions": 1,
        "metrics": {"bm25": metric(0.222), "untrained": metric(0.041), "trained": metric(0.237)},
        "index": {"factory": "Flat", "ntotal": 6704, "recall@10": 0.987},
        "wandb_dir": "run/wandb",
        "snapshot": "run/my snapshot",
        "index_dir": "index",
        "similarity": {
            "before": {"positive": [0.9, 0.95], "negative": [0.9, 0.85]},
            "after": {"positive": [0.8, 0.9, 0.7, 1.0], "negative": [0.1, 0.75]},
        },
        "examples": [
            {
                "query": "open a file",
                "relevant": ["io:open"],
                "hits": [
                    {"id": "os:open", "title": "os.open", "score": 0.7123, "relevant": False},
                    {"id": "io:open", "title": "io.open", "score": 0.6987, "relevant": True},
                ],
            },
            {
                "query": "never found",
                "relevant": ["lost:passage"],
                "hits": [{"id": "a:b", "title": "", "score": 0.5, "relevant": False}],
            },
        ],
    }


def write_metrics(run_dir: Path) -> None:
    refresh = {"event": "refresh", "step": 2, "version": 1, "from_step": 2, "to_step": 4, "waited_s": 10.25}
    refresh |= {
        "seconds": {"embed_corpus": 7.31, "index": 0.24},
        "filters": {"known_positive": 5461, "margin": 21044},
    }
    step = {"event": "step", "negatives_version": 0, "negatives_age_steps": None}
    rows = [
        step | {"step": 0, "loss": 5.1},
        step | {"step": 1, "loss": 4.2},
        {"event": "dev", "step": 2, "ndcg@10": 0.1234},
        refresh,
        step | {"step": 2, "loss": 3.9, "negatives_version": 1, "negatives_age_steps": 0},
        step | {"step": 3, "loss": 3.3, "negatives_version": 1, "negatives_age_steps": 1},
        {"event": "dev", "step": 4, "ndcg@10": 0.2345},
    ]
    run_dir.mkdir(exist_ok=True)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    write_metrics(folder)
    write_report(folder, full_result(), folder / "report.html", title="A run")
    return (folder / "report.html").read_text(encoding="utf-8")


def test_nothing_comes_from_elsewhere(page):
    assert_offline(page)


def test_references_inside_figures_resolve(page):
    parsed = Outline(page)
    ids = {value for name, value in parsed.attributes if name == "id"}
    used = [value[1:] for name, value in parsed.attributes if name == "xlink:href"]
    used += re.findall(r"url\(#([^)]+)\)", page)
    assert used
    assert set(used) <= ids


def test_numbers_shown_are_the_ones_given(page):
    texts = set(Outline(page).texts)
    assert {"0.237", "0.041", "0.222", "0.226", "0.538"} <= texts  # bars: nDCG, MRR 0.011 less, Recall 0.301 more
    assert {"4 min 12 s", "5,467", "6,704"} <= texts
    assert {"v1", "7.3", "0.2", "10.2", "5,461", "21,044"} <= texts  # the refresh
    assert {"0.987", "Flat", "0.712", "0.699"} <= texts  # index and hits
    assert "0.234" in texts  # last dev value


def test_each_figure_is_there_for_wide_and_narrow_pages(page):
    assert page.count('<svg class="wide"') == page.count('<svg class="narrow"') == 3


def test_figures_are_drawn_in_the_pages_colours_alone(page):
    figures = "".join(re.findall(r"<figure>.*?</figure>", page, flags=re.DOTALL))
    colours = set(re.findall(r"(?:fill|stroke): ?([^;\"]+)", figures))
    assert colours <= {"none"} | {
        f"var(--{name})" for name in ("ink", "muted", "rule", "accent", "soft", "warm", "pale")
    }


def test_the_right_passage_is_marked_and_a_missing_one_named(page):
    assert re.search(r'<li class="right"><span class="title">io\.open <em>right</em>', page)
    assert page.count("<em>right</em>") == 1
    assert "Not among the first 1: lost:passage" in Outline(page).texts
    assert "a:b" in Outline(page).texts  # without a title the id stands for it


def test_similarities_are_put_into_words(page):
    # Before: 0.9 beats 0.85 and ties 0.9, 0.95 beats both: 3.5 of 4. After: only 0.7 < 0.75 loses: 7 of 8.
    assert "87.5% of the time before training, 87.5% of the time after training." in " ".join(Outline(page).texts)


def test_hostile_text_stays_text(tmp_path):
    result = full_result()
    result["examples"][0]["query"] = HOSTILE
    result["examples"][0]["hits"][0] |= {"id": HOSTILE, "title": HOSTILE}
    result["examples"][1]["relevant"] = [HOSTILE]
    result["index"]["factory"] = HOSTILE
    result["metrics"]["<b>$x$"] = metric(0.1)
    commands = [(HOSTILE, f"echo {HOSTILE}")]
    run = tmp_path / "run"
    run.mkdir()
    rows = [{"event": "step", "step": 0, "loss": 1.0}]
    rows += [
        {"event": "refresh", "step": 0, "version": HOSTILE, "from_step": 0, "to_step": 1, "filters": {HOSTILE: 1}}
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report(run, result, tmp_path / "r.html", title=HOSTILE, about=HOSTILE, commands=commands)
    page = (tmp_path / "r.html").read_text()
    assert "<script" not in page
    parsed = Outline(page)
    assert parsed.texts.count(HOSTILE) >= 6
    assert "<b>$x$" in parsed.texts
    assert "49" not in parsed.texts


def test_a_result_with_little_in_it_still_makes_a_page(tmp_path):
    write_report(tmp_path / "nowhere", {"metrics": {"trained": metric(0.3)}}, tmp_path / "r.html")
    texts = Outline((tmp_path / "r.html").read_text()).texts
    assert "0.300" in texts
    assert "Training" not in texts
    assert "Refreshes" not in texts


def test_the_index_manifest_adds_interval_and_latency(tmp_path):
    manifest = {"factory": "IVF64,SQ8", "ntotal": 6704, "dim": 128, "search": {"nprobe": 16}}
    manifest |= {"recall@10": {"value": 0.9615, "low": 0.951, "high": 0.9708}}
    manifest |= {"latency_ms": {"median": 0.214, "p95": 0.34, "threads": 2}}
    write_report(tmp_path, full_result(), tmp_path / "r.html", index=manifest)
    texts = Outline((tmp_path / "r.html").read_text()).texts
    assert {"0.962", "95% interval 0.951 – 0.971", "0.21 ms", "nprobe 16", "128 dimensions"} <= set(texts)


def test_the_same_run_gives_the_same_bytes(tmp_path, page):
    write_metrics(tmp_path)
    write_report(tmp_path, full_result(), tmp_path / "again.html", title="A run")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_commands_quote_paths():
    commands = dict(default_commands(full_result()))
    assert "--model 'run/my snapshot'" in commands["Search the corpus"]
    assert commands["Send the run to Weights & Biases"] == "wandb sync run/wandb"
    assert default_commands({}) == []


def test_separation_counts_ties_half():
    assert separation([2.0, 3.0], [1.0, 2.0]) == 0.875
    assert separation([1.0], [1.0]) == 0.5
    assert separation([0.0], [1.0, 2.0]) == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (7265, "2 h 01 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_oldest_use_is_the_largest_age_logged_for_a_version(tmp_path):
    write_metrics(tmp_path)
    history = read_history(tmp_path / "metrics.jsonl")
    assert oldest_use(history, 1) == 1
    assert oldest_use(history, 2) is None


@pytest.mark.parametrize(
    ("bm25", "place"), [(0.2, "ranks above BM25"), (0.3, "is level with BM25"), (0.4, "stays below BM25")]
)
def test_summary_places_the_encoder_against_bm25(bm25, place):
    metrics = {"trained": metric(0.3), "untrained": metric(0.05), "bm25": metric(bm25)}
    assert summary(metrics) == f"The trained encoder reaches 6.0 times the nDCG@10 of the untrained one and {place}."


@pytest.mark.parametrize(
    ("plain", "interval", "heading"),
    [
        (None, None, "Not compared"),
        (0.2, None, "They helped"),
        (0.4, None, "They hurt"),
        (0.305, None, "They made no difference that can be told from chance"),
        (0.295, [0.001, 0.009], "They helped"),
        (0.2, [-0.01, 0.21], "They made no difference that can be told from chance"),
    ],
)
def test_the_verdict_on_mined_negatives_is_honest(plain, interval, heading):
    result: dict = {"metrics": {"trained": metric(0.3)}}
    if plain is not None:
        result["metrics"]["no_refresh"] = metric(plain)
    if interval is not None:
        result["comparison"] = {"interval": interval}
    history = History(
        steps=[], dev=[], refreshes=[{"seconds": {"embed": 60.0, "search": 12.0}}, {"seconds": {"embed": 3.0}}]
    )
    said, reason = refresh_verdict(result, history)
    assert said == heading
    assert "The refreshes took 1 min 15 s of work." in reason
    if plain is not None:
        assert f"nDCG@10 is 0.300 with refreshes and {plain:.3f} in the same training without them" in reason
