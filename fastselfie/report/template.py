"""Templates of pages: the frame and the macros that they share, and where all of them are found."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from fastselfie.report.palette import DARK, LIGHT, colour_of, dashes_of


def render(package: str, template: str, style: str | None = None, **values: Any) -> str:
    """The HTML of ``template`` with ``values``, which it escapes.

    Args:
        package: holds the template, and ``style``, a sheet of its own after the common one. What it extends and
            imports lies in this package.
    """

    def load(name: str) -> str:
        return _text(package if name == template else __package__ or "", name)

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(load)
    )
    environment.globals |= {"colour_of": colour_of, "dashes_of": dashes_of, "light": LIGHT, "dark": DARK}
    css = _text(__package__ or "", "page.css") + (_text(package, style) if style is not None else "")
    return environment.get_template(template).render(css=Markup(css), **values)


def _text(package: str, name: str) -> str:
    return (files(package) / name).read_text(encoding="utf-8")
