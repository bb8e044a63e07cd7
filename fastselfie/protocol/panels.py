"""What a protocol's figures consist of, and how scratch, pretrained and the paper's points look in all of them.

Pretrained is solid with discs, from scratch dashed with squares, each in a colour of its own; the paper's points are
hollow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fastselfie.report import drawing
from fastselfie.report.drawing import Draw
from fastselfie.report.palette import colour_of

WORDS = {True: "pretrained", False: "supervised"}
COLOURS = {True: colour_of(0), False: colour_of(1)}
LINES: dict[bool, Any] = {True: "-", False: (0, (5, 2))}
MARKS = {True: "o", False: "s"}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart. ``description`` tells its values to somebody who does not see it."""

    title: str
    draw: Draw
    description: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Charts that belong together. ``name`` is its file's; ``paper``: the paper has points in it."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    paper: bool = False

    def png(self) -> bytes:
        """A PNG file of its charts side by side; the first says what figure it is."""
        titles = [f"{self.title}: {self.panels[0].title}", *(panel.title for panel in self.panels[1:])]
        return drawing.png({title: panel.draw for title, panel in zip(titles, self.panels, strict=True)}, legend=True)


def slug(text: str) -> str:
    """A part of a file's name: ``8%`` is ``8pct``."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text.replace("%", "pct")).strip("-")
