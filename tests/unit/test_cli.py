"""The front door: help, suggestions, exit codes, and what goes to which stream."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tyro

from data_shards.errors import UserError
from launch import cli
from launch.cli import main
from tests.unit.tiny import pair, write_pairs

ROOT = Path(__file__).parents[2]
VERBS = list(cli._VERBS)
Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True, kw_only=True)
class Stub:
    """Answer with what came in."""

    word: tyro.conf.Positional[str] = "nothing"
    """What to say."""
    exit_code: int = 0
    """How to end."""

    def run_with(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Chatter on stdout, then answer or fail."""
        print("a library's chatter")
        if self.word == "mistake":
            raise UserError("wanted another\n  word,   came 'mistake'")
        nested = {"word": self.word, "half": 0.5, "rows": [{"a": 1, "b": [2, 3]}, {"a": 4}]}
        return {"overrides": list(overrides), "nested": nested, "exit_code": self.exit_code}


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli._VERBS, "stub", (__name__, "Stub", "answer"))


def refuse(capsys: Capture, words: list[str], message: str) -> None:
    """Expect exit code 2, one line on stderr and nothing on stdout."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dipole: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]], ids=str)
def test_the_overview_lists_every_verb(capsys: Capture, words: list[str]) -> None:
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert [
        line.split("  ")[1].removeprefix("dipole ") for line in out.splitlines() if line.startswith("  ")
    ] == VERBS
    assert err == ""


@pytest.mark.parametrize("words", [["index"], ["index", "--help"]], ids=str)
def test_a_group_lists_its_own_verbs(capsys: Capture, words: list[str]) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.count("  dipole index ") == sum(name.startswith("index ") for name in VERBS) > 2
    assert "dipole train" not in out


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help(capsys: Capture, name: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert f"usage: dipole {name}" in out
    assert len(out.splitlines()) > 5
    assert "\n  --json " in out
    module, kind, _ = cli._VERBS[name]
    takes_overrides = hasattr(getattr(importlib.import_module(module), kind), "run_with")
    assert ("\n  --section.key=value " in out) == takes_overrides
    assert err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian", "run.toml"], "there is no verb 'trian run.toml'; did you mean `dipole train`?"),
        (["shrads", "check", "folder"], "did you mean `dipole shards check`?"),
        (["shards", "chekc"], "there is no verb 'shards chekc'; did you mean `dipole shards check`?"),
        (["index", "qqqqqq"], "did you mean `dipole index build`?"),
        (["zzzzzz"], "there is no verb 'zzzzzz'; `dipole --help` lists them"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_unknown_verb_gets_a_suggestion(capsys: Capture, words: list[str], message: str) -> None:
    refuse(capsys, words, message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "Missing from dipole train: PATH TOML file"),
        (["train", "a.toml", "b.toml"], "Unrecognized options: b.toml"),
        (["train", "a.toml", "--ranks", "two"], "--ranks: no type matching"),
        (
            ["train", "no-such.toml", "--json"],
            "config no-such.toml does not exist; configs/ holds",
        ),
        (["train", str(ROOT / "configs/tldr.toml"), "--batch.batch_sise", "4"], "did you mean batch.batch_size?"),
        (["shards", "check", "no-such-folder", "--json"], "no-such-folder is no dataset: it has no manifest.json"),
        (["mine", "--run", "no-such-run"], "no-such-run is not a run folder; give one that `dipole train` made"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys: Capture, words: list[str], message: str) -> None:
    refuse(capsys, words, message)


def test_a_message_of_several_lines_becomes_one(capsys: Capture, stub: None) -> None:
    assert main(["stub", "mistake"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("dipole: wanted another word, came 'mistake'\n")


def test_json_is_one_object_and_chatter_goes_to_stderr(capsys: Capture, stub: None) -> None:
    assert main(["stub", "word", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["nested"]["word"] == "word"
    assert out.count("\n") == 1
    assert err == "a library's chatter\n"


def test_a_person_gets_lines(capsys: Capture, stub: None) -> None:
    assert main(["stub", "word", "--a.b=1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "overrides  --a.b=1",
        "nested",
        "  word  word",
        "  half  0.5",
        "  rows",
        "    - a  1",
        "      b  2, 3",
        "    - a  4",
    ]


def test_the_answer_carries_the_exit_code_but_does_not_show_it(capsys: Capture, stub: None) -> None:
    assert main(["stub", "--exit-code", "75", "--json"]) == 75
    assert "exit_code" not in json.loads(capsys.readouterr().out)


def test_overrides_are_taken_out_in_both_forms(capsys: Capture, stub: None) -> None:
    main(["stub", "--a.b=1", "word", "--c.d", "2", "--e.f=x=--y.z", "--exit-code", "3", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["overrides"] == ["--a.b=1", "--c.d=2", "--e.f=x=--y.z"]
    assert answer["nested"]["word"] == "word"


def test_a_path_with_a_dot_is_no_override(capsys: Capture, stub: None) -> None:
    main(["stub", "./run.toml", "--json"])
    assert json.loads(capsys.readouterr().out)["nested"]["word"] == "./run.toml"


def test_ctrl_c_is_no_traceback(capsys: Capture, monkeypatch: pytest.MonkeyPatch, stub: None) -> None:
    def interrupted(*_: object) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Stub, "run_with", interrupted)
    assert main(["stub"]) == 130
    assert capsys.readouterr().err == "dipole: interrupted\n"


def test_a_real_verb_answers_in_json(capsys: Capture, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs", (pair(number) for number in range(5)))
    assert main(["shards", "check", str(tmp_path / "pairs"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 5


def test_help_is_quick_it_imports_no_torch() -> None:
    script = (
        "import sys; from launch.cli import main; main(['--help']); main(['trian'])\n"
        "heavy = {'torch', 'transformers', 'ray', 'faiss', 'numpy', 'wandb', 'tyro'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("Trains the bi-encoders behind vector search")
    assert done.stderr.splitlines()[1:] == ["[]"]


def test_the_installed_command_exits_2_after_a_mistake() -> None:
    command = [str(Path(sys.executable).with_name("dipole")), "shards", "chekc"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "dipole: there is no verb 'shards chekc'; did you mean `dipole shards check`?\n"


def test_what_holds_nothing_is_shown_as_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An import without findings, not a heading with nothing under it."""
    (tmp_path / "in.jsonl").write_text(
        '{"query": "how to list files", "positive": "ls lists the files of a folder"}\n'
    )
    assert main(["shards", "pairs", "--input", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out")]) == 0
    assert re.search(r"^findings +none$", capsys.readouterr().out, re.MULTILINE)
