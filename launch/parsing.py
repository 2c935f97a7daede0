"""Calls tyro so that a mistake is one line and not a box."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from data_shards.errors import UserError

_T = TypeVar("_T")
_FRAME = " │╭╮╰╯─-"
_REST = ("For full helptext", "Argument helptext")


def parse(
    kind: type[_T],
    arguments: Sequence[str],
    *,
    prog: str | None = None,
    config: Sequence[Any] = (),
    default: _T | None = None,
) -> _T:
    """Build a dataclass from command-line arguments, on top of a default; `--help` prints and exits as tyro does.

    Raises:
        UserError: an argument is missing, unknown or of the wrong type.
    """
    out, complaints = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(complaints):
            if default is None:
                return tyro.cli(kind, args=list(arguments), prog=prog, config=tuple(config))
            return tyro.cli(kind, args=list(arguments), prog=prog, config=tuple(config), default=default)
    except SystemExit as exit_:
        if not exit_.code:
            sys.stdout.write(out.getvalue())
            raise
        raise UserError(_one_line(complaints.getvalue() or out.getvalue())) from None


def _one_line(box: str) -> str:
    """Take the frame, the heading, the line breaks and the pointer to --help off tyro's message."""
    lines = [line.strip(_FRAME) if set(line) <= set(_FRAME) else line.strip(" │╭╮╰╯─") for line in box.splitlines()]
    text = " ".join(line for line in lines[1:] if line)
    for rest in _REST:
        text = text.split(rest)[0]
    return (
        " ".join(text.split()).rstrip(" -").removeprefix("Error parsing ") or "the arguments do not fit; see --help"
    )
