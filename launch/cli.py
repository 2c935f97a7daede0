"""`dipole`: one command, one verb a job.

Verbs live in files of their own and are imported when they are called, so that `dipole --help` is quick.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from data_shards.errors import UserError
from launch.failures import TrainingFailedError

EXIT_USER_ERROR = 2

_VERBS = {
    "quickstart": ("launch.quickstart", "Quickstart", "the whole way on this machine, with no download"),
    "shards pairs": ("launch.shards_verbs", "ShardsPairs", "write training shards from JSONL, Parquet, TSV, BEIR"),
    "shards corpus": ("launch.shards_verbs", "ShardsCorpus", "write corpus shards from the same"),
    "shards check": ("launch.shards_look", "ShardsCheck", "verify every byte of a dataset, and look at its texts"),
    "shards stats": ("launch.shards_look", "ShardsStats", "lengths, languages, positives per query, duplicates"),
    "shards sample": ("launch.shards_look", "ShardsSample", "show a few samples"),
    "train": ("launch.train_verbs", "Train", "train by a TOML config; --resume goes on with a stopped run"),
    "mine": ("launch.train_verbs", "Mine", "one refresh of hard negatives, by hand"),
    "negatives show": ("launch.negatives_verbs", "NegativesShow", "versions of mined negatives, and what is in one"),
    "embed": ("launch.embed_verb", "Embed", "embed a corpus, each passage once, whatever is killed"),
    "index build": ("launch.index_verbs", "IndexBuild", "build an index and measure its recall"),
    "index update": ("launch.index_verbs", "IndexUpdate", "add, replace and delete, by a new embedding set"),
    "index delete": ("launch.index_verbs", "IndexDelete", "delete passages by their ids"),
    "index list": ("launch.index_verbs", "IndexList", "list the versions of an index"),
    "index rollback": ("launch.index_verbs", "IndexRollback", "make an older version current"),
    "index check": ("launch.index_verbs", "IndexCheck", "verify an index against its checksums"),
    "watch": ("launch.watch_verb", "Watch", "how a run goes, in the terminal, from its folder alone"),
    "launch local": ("launch.launch_verbs", "LaunchLocal", "run a config's jobs on this machine, in the background"),
    "launch slurm": ("launch.launch_verbs", "LaunchSlurm", "submit a config's jobs to Slurm"),
    "launch ray": ("launch.launch_verbs", "LaunchRay", "submit a config's jobs to a Ray cluster"),
    "launch status": ("launch.launch_verbs", "LaunchStatus", "how the jobs of a launch stand"),
    "launch logs": ("launch.launch_verbs", "LaunchLogs", "what they have printed; -f follows"),
    "launch cancel": ("launch.launch_verbs", "LaunchCancel", "end a launch, with a checkpoint"),
    "launch list": ("launch.launch_verbs", "LaunchList", "all launches"),
    "search": ("launch.search_verbs", "Search", "search an index with a text"),
    "export": ("launch.export_verb", "Export", "an embedding set as Parquet or Lance, or in Milvus or Qdrant"),
    "serve": ("launch.serve_verb", "Serve", "search an index over HTTP, through exchanges of its versions"),
    "evaluate": ("launch.search_verbs", "Evaluate", "nDCG@10, MRR@10, Recall@100 on a BEIR folder"),
}


_STREAMS = ("launch logs",)
"""Verbs that print to stdout while they run, where no `--json` is asked for; what they return is for that alone."""


class Verb(Protocol):
    """A parsed command; a frozen dataclass whose docstring is its help."""

    def run(self) -> dict[str, Any]:
        """Do the job and return what `--json` prints; `exit_code`, and `text` for people, are taken out first.

        A `text` of "" prints nothing.
        """


class TakesOverrides(Protocol):
    """A verb that also takes `--section.field=value`."""

    def run_with(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Do the job with config overrides."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0; 2 after a user's mistake, told in one line; 1 after a failure; 75 after a stop that can be resumed.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        name, rest = _split(words)
    except UserError as error:
        return _mistake(error)
    if name is None:
        print(_overview(rest))
        return 0
    as_json = "--json" in rest
    _set_up_logging()
    try:
        job = _parse(name, [word for word in rest if word != "--json"])
        # Libraries print where they like (DeepSpeed warns on stdout at import): stdout is for the answer alone.
        with contextlib.redirect_stdout(sys.stdout if name in _STREAMS and not as_json else sys.stderr):
            answer = job()
    except UserError as error:
        return _mistake(error)
    except TrainingFailedError as error:
        print(f"dipole: training failed: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("dipole: interrupted", file=sys.stderr)
        return 130
    exit_code = int(answer.pop("exit_code", 0))
    text = answer.pop("text", None)
    try:
        if as_json or text != "":
            print(json.dumps(answer) if as_json else text or _readable(answer), flush=True)
    except BrokenPipeError:
        sys.stderr.close()
    return exit_code


def _parse(name: str, arguments: list[str]) -> Callable[[], dict[str, Any]]:
    """Return the job that the arguments ask for; `--help` prints and exits here."""
    from launch.parsing import parse

    module, kind, _ = _VERBS[name]
    verb = getattr(importlib.import_module(module), kind)
    takes_overrides = hasattr(verb, "run_with")
    plain, overrides = _split_overrides(arguments) if takes_overrides else (arguments, [])
    try:
        parsed: Any = parse(verb, plain, prog=f"dipole {name}")
    except SystemExit:
        print(_help_of_all(takes_overrides))
        raise
    return partial(cast(TakesOverrides, parsed).run_with, overrides) if takes_overrides else cast(Verb, parsed).run


def _help_of_all(takes_overrides: bool) -> str:
    """Return what `--help` says of the arguments that are taken out before a verb's own are parsed."""
    rows = [("--json", "print one JSON object on stdout; logs go to stderr")]
    if takes_overrides:
        rows.append(("--section.key=value", "set a key of the config, on top of its TOML file; any number of these"))
    return "\n".join([" besides", *(f"  {name:<21} {what}" for name, what in rows)])


def _split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Take `--section.field=value` and `--section.field value` out of the arguments."""
    plain: list[str] = []
    overrides: list[str] = []
    words = iter(arguments)
    for word in words:
        if not word.startswith("--") or "." not in word.partition("=")[0]:
            plain.append(word)
        elif "=" in word:
            overrides.append(word)
        else:
            overrides.append(f"{word}={next(words, '')}")
    return plain, overrides


def _split(words: list[str]) -> tuple[str | None, list[str]]:
    """Find the verb: one word or two. None asks for the overview, of all or of one group."""
    plain = [word for word in words[:2] if not word.startswith("-")]
    for count in (2, 1):
        if len(plain) >= count and (name := " ".join(plain[:count])) in _VERBS and words[:count] == plain[:count]:
            return name, words[count:]
    group = [name for name in _VERBS if words and name.startswith(f"{words[0]} ")]
    if not words or words[0] in ("-h", "--help", "help"):
        return None, []
    if group and (len(words) == 1 or words[1] in ("-h", "--help")):
        return None, [words[0]]
    import difflib

    asked = " ".join(plain) or words[0]
    near = difflib.get_close_matches(asked, list(_VERBS), n=1) or group[:1]
    # The second word may be the verb's own argument: `dipole trian run.toml`.
    near = near or difflib.get_close_matches(words[0], list(_VERBS), n=1)
    hint = f"did you mean `dipole {near[0]}`?" if near else "`dipole --help` lists them"
    raise UserError(f"there is no verb {asked!r}; {hint}")


def _overview(group: list[str]) -> str:
    rows = [(name, row[2]) for name, row in _VERBS.items() if not group or name.startswith(f"{group[0]} ")]
    lines = [f"  dipole {name:<16} {summary}" for name, summary in rows]
    return "\n".join(
        [
            "Trains the bi-encoders behind vector search, and keeps their corpora embedded and indexed.",
            "",
            *lines,
            "",
            "`dipole VERB --help` tells all of a verb. Each takes --json: one object on stdout, logs on stderr.",
        ]
    )


def _set_up_logging() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if not Path("/proc/driver/nvidia").exists():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found no GPU
    for noisy in ("httpx", "faiss", "faiss.loader", "bm25s", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _mistake(error: UserError) -> int:
    print(f"dipole: {' '.join(str(error).split())}", file=sys.stderr)
    return EXIT_USER_ERROR


def _readable(answer: dict[str, Any], indent: str = "") -> str:
    """Show a verb's answer to a person: one line a value, nested ones indented."""
    lines = []
    width = max((len(key) for key, value in answer.items() if not isinstance(value, dict | list)), default=0)
    for key, value in answer.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}", _readable(value, indent + "  ")]
        elif isinstance(value, dict):
            lines.append(f"{indent}{key:<{width}}  none")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(f"{indent}{key}")
            lines += [_bullet(_readable(row, indent + "    ")) for row in value]
        else:
            lines.append(f"{indent}{key:<{width}}  {_short(value)}")
    return "\n".join(line for line in lines if line)


def _bullet(block: str) -> str:
    """Put a dash before the first line of an indented block."""
    stripped = block.lstrip(" ")
    return " " * (len(block) - len(stripped) - 2) + "- " + stripped


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    return str(value)
