"""A result that grows by sections, and its files."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from bench.measure import made_by
from bench.report.machine import Machine
from bench.report.rows import Row, not_run
from bench.report.settings import Bench
from bench.report.sides import one_line
from bench.report.tables import markdown, relate
from fastselfie.files import replace_bytes, replace_json


class Record:
    """``NAME.json``, ``NAME.md`` and perhaps a plot, written after each section: a run that is cut short leaves what
    it has.

    Args:
        plot: a file's name and what makes its bytes of a whole result; left out where matplotlib is not installed.
    """

    def __init__(
        self,
        name: str,
        title: str,
        bench: Bench,
        machine: Machine,
        plot: tuple[str, Callable[[dict[str, Any]], bytes]] | None = None,
    ) -> None:
        self._name, self._title, self._out = name, title, bench.out
        self._plot = plot if importlib.util.find_spec("matplotlib") else None
        self.rows: list[Row] = []
        self.told: dict[str, Any] = {
            "made_by": made_by(bench.device), "settings": bench.settings, "machine": asdict(machine), "rows": self.rows,
        }  # fmt: skip
        self._write()

    def add(self, section: str, work: Callable[[], list[Row]]) -> None:
        """The rows that ``work`` makes, or one that says what it failed with."""
        try:
            rows = work()
        except Exception as error:  # one section's failure must not cost the others
            rows = [not_run(section, "all", one_line(error), failed=True)]
        relate(rows)
        self.rows += rows
        self._write()
        gc.collect()  # networks and their optimisers lie in cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _write(self) -> None:
        """All files, each whole or as it was."""
        replace_json(self._out / f"{self._name}.json", self.told)
        replace_bytes(self._out / f"{self._name}.md", markdown(self._title, self.told).encode())
        if self._plot is not None and self.rows:
            name, draw = self._plot
            replace_bytes(self._out / name, draw(self.told))

    @property
    def failed(self) -> bool:
        """Whether something that was tried did not work."""
        return any(row.get("failed") for row in self.rows)

    def row(self, section: str, side: str) -> Row:
        """That row; empty if it did not run."""
        return next((r for r in self.rows if (r["section"], r["side"]) == (section, side) and "ms" in r), {})
