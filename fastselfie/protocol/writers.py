"""One table in three forms: Markdown and LaTeX as a reader sees it, CSV with the raw numbers."""

from __future__ import annotations

import csv
import io
import re

from fastselfie.protocol.cells import Grid, raw

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "−": r"$-$", "–": "--", "×": r"$\times$",
    # A row that begins with a bracket would be an argument of the \\ before it.
    "[": "{[}", "]": "{]}",
}  # fmt: skip


def to_markdown(grid: Grid) -> str:
    """A GitHub table: the caption above it, the notes below."""
    headings = [_markdown(column.heading) for column in grid.columns]
    rules = ["---:" if column.kind.flush_right else "---" for column in grid.columns]
    rows = [headings, rules, *([_markdown(cell) for cell in row] for row in grid.shown())]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return "\n\n".join([f"**{_markdown(grid.caption)}**", table, *map(_markdown, grid.notes)]) + "\n"


def to_csv(grid: Grid) -> str:
    """Shares and differences of shares, not percent, as Python writes a float: read back, they are the same ones.

    What failed is told in columns of text, such as the verdict's; numbers are missing.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.name + part for column in grid.columns for part in column.kind.parts)
    for line in grid.lines:
        row: list[object] = []
        for column, cell in zip(grid.columns, line.cells, strict=True):
            row += raw(column.kind, cell)
        writer.writerow(row)
    return text.getvalue()


def to_latex(grid: Grid) -> str:
    """A ``table`` for LaTeX with the package booktabs; the notes are part of the caption."""
    kinds = "".join("r" if column.kind.flush_right else "l" for column in grid.columns)
    head = [
        r"% \usepackage{booktabs}", r"\begin{table}", r"\centering\footnotesize",
        rf"\caption{{{_latex(' '.join((grid.caption, *grid.notes)))}}}", rf"\label{{tab:{grid.name}}}",
        rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", _latex_row([column.heading for column in grid.columns]),
        r"\midrule",
    ]  # fmt: skip
    body = []
    for line, row in zip(grid.lines, grid.shown(), strict=True):
        body += [r"\midrule"] * line.first + [_latex_row(row)]
    return "\n".join([*head, *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _latex_row(cells: list[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


def _latex(text: str) -> str:
    def escaped(found: re.Match[str]) -> str:
        return "-{}" if found[1] else _LATEX.get(found[0], found[0])

    return re.sub(r"(-)(?=-)|[\W_]", escaped, " ".join(text.split()))  # an option's two hyphens are no dash


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>$#~\[\]])", r"\\\1", " ".join(text.split())).replace("&", "&amp;")
