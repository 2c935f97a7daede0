"""What a look at a dataset prints for a person."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from data_shards.check import Damage
from data_shards.findings.find import Findings
from data_shards.findings.finding import Finding

PARTS = {"query": "queries", "positive": "positives", "negative": "negatives", "passage": "passages"}
"""Every part of a sample, for many, in the order of tables."""
LENGTH_UNITS = ("tokens", "words", "chars")

_COLUMNS = ("mean", "p5", "p50", "p95", "max")
_EXAMPLE_CHARS = 72
_EXAMPLES = 3
_MOST_LANGUAGES = 5


def head_text(summary: Mapping[str, Any]) -> str:
    """Name a dataset in one line."""
    shards = f"{summary['shards']:,} shard{'s' if summary['shards'] != 1 else ''}"
    samples, size = f"{summary['samples']:,} samples", _size(summary["bytes"])
    return f"{summary['dir']}: {summary['kind']}, {samples} in {shards}, {size}"


def damages_text(damages: Sequence[Damage], samples: int) -> str:
    """List damages, a line each, or say that there is none."""
    if not damages:
        return f"whole: every shard matches its manifest, all {samples:,} samples can be read"
    count = f"{len(damages)} damage{'s' if len(damages) != 1 else ''}"
    return "\n".join([f"NOT WHOLE: {count}", *(f"  {damage}" for damage in damages)])


def findings_text(findings: Findings) -> str:
    """List findings, the worst first, each with what to do and a few examples."""
    lines = [verdict(findings)]
    if findings.skipped:
        lines.append(f"(damaged shards were left out: {', '.join(findings.skipped)})")
    for finding in findings.findings:
        lines += ["", _finding_head(finding), f"           {finding.advice}"]
        for example in finding.examples[:_EXAMPLES]:
            text = " ".join(example.text.split())
            cut = text if len(text) <= _EXAMPLE_CHARS else f"{text[: _EXAMPLE_CHARS - 1]}…"
            lines.append(f"           · {example.shard} row {example.row}, id {example.id}: “{cut}”")
            if example.like is not None:
                like = example.like
                lines.append(f"             as in {like.shard} row {like.row}, id {like.id}")
    return "\n".join(lines)


def verdict(findings: Findings) -> str:
    """Say in one sentence whether the dataset may be used."""
    if findings.skipped and len(findings.skipped) == findings.shards:
        return "Every shard is damaged; their texts were not looked at."
    levels = [finding.severity for finding in findings.findings]
    rest = " and ".join(
        f"{levels.count(level)} {level}{'s' if levels.count(level) != 1 else ''}"
        for level in ("warning", "note")
        if level in levels
    )
    if findings.fatal:
        names = ", ".join(findings.fatal)
        return f"Not fit for use: {names}. Mend it, or allow it by name (--allow here, --checks.allow at import)."
    allowed = [finding.name for finding in findings.findings if finding.allowed]
    if allowed:
        return f"Fatal findings were allowed: {', '.join(allowed)}{f'; besides, {rest}' if rest else ''}."
    return f"Nothing fatal was found{f'; {rest}' if rest else ', and nothing else either'}."


def stats_text(numbers: Mapping[str, Any]) -> str:
    """Show lengths as a table, then languages, positives per query and the like."""
    lines = [f"{'':<12}{'count':>12}  {'unit':<7}" + "".join(f"{key:>9}" for key in _COLUMNS)]
    for part, name in PARTS.items():
        units = [unit for unit in LENGTH_UNITS if unit in numbers.get(part, {})]
        for unit in units:
            row, first = numbers[part][unit], unit == units[0]
            begin = f"{name:<12}{numbers[part]['count']:>12,}" if first else " " * 24
            values = "".join(f"{row[key]:>9,}" for key in _COLUMNS)
            lines.append(f"{begin}  {unit:<7}{values}")
    lines.append("")
    for part, name in PARTS.items():
        if languages := numbers.get(part, {}).get("languages"):
            lines.append(f"languages of {languages['sampled']:,} {name}: {_shares(languages['shares'])}")
    for key in ("positives_per_query", "negatives_per_query"):
        if set(numbers.get(key, {})) - {"0"}:
            counts = ", ".join(f"{value}: {count:,}" for value, count in numbers[key].items())
            lines.append(f"{key.replace('_', ' ')}  {counts}")
    for key in ("weights", "scores"):
        if key in numbers:
            row = numbers[key]
            share = f", effective share {row['effective_share']:.1%}"
            lines.append(f"{key} {row['min']:g} to {row['max']:g}, mean {row['mean']:.4g}{share}")
    if "with_teacher" in numbers:
        lines.append(f"pairs with a teacher's score for every passage: {numbers['with_teacher']:,}")
    if len(sources := numbers.get("sources", {})) > 1:
        lines.append("sources " + ", ".join(f"{name or '(none)'} {count:,}" for name, count in sources.items()))
    return "\n".join(lines)


def samples_text(samples: Sequence[Mapping[str, Any]]) -> str:
    """Show samples one below the other, texts whole."""
    return "\n\n".join(_passage(row) if "query" not in row else _pair(row) for row in samples)


def percent(count: int, of: int) -> str:
    """Write a share so that a little is not nothing and almost all is not all."""
    share = 100 * count / of if of else 0.0
    if 0 < share < 0.01:
        return "<0.01%"
    if 99.9 < share < 100:
        return ">99.9%"
    return f"{share:.2f}%" if share < 1 else f"{share:.1f}%"


def _finding_head(finding: Finding) -> str:
    label = "allowed" if finding.allowed else "FATAL" if finding.severity == "fatal" else finding.severity
    how_much = f"{finding.count:,} of {finding.of:,} {finding.unit}, {percent(finding.count, finding.of)}"
    return f"{label:<10} {finding.name}: {how_much}"


def _shares(shares: Mapping[str, float]) -> str:
    shown = [
        f"{code} {percent(round(1e4 * share), 10_000)}" for code, share in list(shares.items())[:_MOST_LANGUAGES]
    ]
    rest = len(shares) - len(shown)
    return ", ".join([*shown, f"{rest} more"] if rest > 0 else shown)


def _pair(row: Mapping[str, Any]) -> str:
    weight = f"  weight {row['weight']:g}" if row["weight"] != 1 else ""
    lines = [f"query {row['query_id']}{weight}", _indented(row["query"])]
    for name in ("positives", "negatives"):
        for at, passage in enumerate(row[name]):
            score = f"  score {row['scores'][at]:g}" if name == "positives" and row["scores"] else ""
            teacher = f"  teacher {row[f'teacher_{name}'][at]:g}" if row[f"teacher_{name}"] else ""
            lines += [f"  {name.removesuffix('s')} {passage['id']}{score}{teacher}", _passage_body(passage, "    ")]
    return "\n".join(lines)


def _passage(row: Mapping[str, Any]) -> str:
    return f"passage {row['id']}\n{_passage_body(row, '  ')}"


def _passage_body(row: Mapping[str, Any], indent: str) -> str:
    title = f"{indent}[{row['title']}]\n" if row["title"] else ""
    return title + _indented(row["text"], indent)


def _indented(text: str, indent: str = "  ") -> str:
    return "\n".join(indent + line for line in text.splitlines()) or indent.rstrip()


def _size(count: int) -> str:
    power = min(4, int(math.log(max(count, 1), 1024)))
    unit = ("bytes", "KiB", "MiB", "GiB", "TiB")[power]
    return f"{count / 1024**power:,.1f} {unit}" if power else f"{count:,} bytes"
