"""The page's colours on light and on dark. Tests hold them to the contrast that readers need."""

from __future__ import annotations

LIGHT = {
    "page": "#f5f4f1", "card": "#ffffff", "ink": "#1b1b1a", "muted": "#5f5e5a", "rule": "#dddbd5",
    "series-1": "#0a63b0", "series-2": "#c1440e", "series-3": "#0b7d5a", "series-4": "#9c2f80", "series-5": "#80640a",
}  # fmt: skip
DARK = {
    "page": "#151514", "card": "#1f1f1e", "ink": "#ecebe7", "muted": "#a8a69f", "rule": "#3a3936",
    "series-1": "#62b0f4", "series-2": "#f58a54", "series-3": "#41c497", "series-4": "#e788cb", "series-5": "#d9b84a",
}  # fmt: skip
COLOURS = sum(name.startswith("series-") for name in LIGHT)
"""How many runs have a colour of their own; those after them repeat the colours with dashes."""
# On and off in line widths. The first is solid.
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))


def colour_of(run: int) -> str:
    """The name of the colour of a section's run number ``run``, from 0."""
    return f"series-{run % COLOURS + 1}"


def dashes_of(run: int) -> tuple[float, ...]:
    """The dashes of a section's run number ``run``, from 0; empty for a solid line."""
    return DASHES[run // COLOURS % len(DASHES)]
