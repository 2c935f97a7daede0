"""The user's own patterns of what to redact.

They run on RE2, whose time grows linearly with the text whatever the pattern: `(a+)+$`, which holds up Python's `re`
for minutes on thirty letters, is harmless there. What cannot be linear (back references, look-around) RE2 refuses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from data_shards.errors import UserError

_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,31}")


def compile_patterns(patterns: Sequence[str]) -> dict[str, Any]:
    """Compile `NAME=REGULAR EXPRESSION` strings, in their order.

    Raises:
        UserError: one has no proper name, comes twice, is no RE2 pattern, or matches empty text.
    """
    if not patterns:
        return {}
    import re2

    options = re2.Options()
    options.log_errors = False  # it would write to stderr beside the exception
    compiled: dict[str, Any] = {}
    for pattern in patterns:
        name, equals, expression = pattern.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise UserError(f"cannot read {pattern!r} in cleaning.pii_patterns; wanted NAME=REGEX, NAME in capitals")
        if name in compiled:
            raise UserError(f"cleaning.pii_patterns names {name} twice; join them with |")
        try:
            compiled[name] = re2.compile(expression, options)
        except re2.error as error:
            why = error.args[0].decode() if isinstance(error.args[0], bytes) else error
            raise UserError(
                f"pattern {name} in cleaning.pii_patterns is not accepted ({why}); RE2 syntax knows neither "
                "look-around nor back references"
            ) from None
        if compiled[name].search("") is not None:
            raise UserError(f"pattern {name} in cleaning.pii_patterns matches empty text; require a character")
    return compiled
