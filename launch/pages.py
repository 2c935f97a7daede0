"""Pages of one file each: a template of `launch/templates`, its style inside, nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: str, *, styles: tuple[str, ...] = ("report.css",), **values: Any) -> str:
    """Fill a template; every value is text and no markup, unless it is a `Markup`.

    Args:
        template: file name.
        styles: file names of the style sheets that go into the page, later ones over earlier ones.
        values: what the template names; a missing one is an error.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = "".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in styles)
    return environment.get_template(template).render(style=Markup(style), **values)
