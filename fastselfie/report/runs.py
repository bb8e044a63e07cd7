"""A run's folder as a report reads it: settings, logged figures, result. Damage is refused by file and field."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from fastselfie.config import RunConfig
from fastselfie.errors import UserError
from fastselfie.training.config_file import config_of, read_config
from fastselfie.training.reporter import say
from fastselfie.training.run_folder import RunFolder
from fastselfie.training.session import RESULT
from fastselfie.training.starts import Start, read_starts

C = TypeVar("C", bound=RunConfig, covariant=True)
METRICS = (
    "loss", "accuracy", "held_out_accuracy", "accuracy_shuffled", "context_gap", "context_gap_low",
    "context_gap_high", "knn_accuracy", "knn_accuracy_pooler", "test_accuracy", "test_loss", "lr",
    "images_per_second", "data_wait",
)  # fmt: skip
"""What a report reads of a line of metrics.jsonl and of result.json, beside the step."""
_LARGEST = 1e100


@dataclass(frozen=True, kw_only=True)
class Run(Generic[C]):
    """One run, finished or not.

    Attributes:
        path: its folder. name: what the page calls it, no other run's name. config: its settings. images, weights:
            fingerprints of its images, and of the weights that it started from. lines: its metrics in the order of the
            steps. result: what ``result.json`` holds; None while the run is unfinished. starts: what computed which of
            its steps; none of a run that is older than ``starts.jsonl``.
    """

    path: Path
    name: str
    config: C
    images: str
    weights: str
    lines: tuple[dict[str, float], ...]
    result: dict[str, Any] | None
    starts: tuple[Start, ...]

    @property
    def step(self) -> int:
        """Steps done when the newest line was logged."""
        return int(self.lines[-1]["step"])

    def series(self, metric: str) -> list[tuple[int, float]]:
        """Step and value of every line that has ``metric``."""
        return [(int(line["step"]), line[metric]) for line in self.lines if metric in line]

    def figure(self, metric: str) -> float | None:
        """The result's value of ``metric``, or the newest one logged; None if there is none."""
        if self.result is not None and metric in self.result:
            return float(self.result[metric])
        logged = self.series(metric)
        return logged[-1][1] if logged else None

    def median(self, metric: str) -> float | None:
        """Median over the lines that have ``metric``; None if there is none."""
        values = [value for _, value in self.series(metric)]
        return statistics.median(values) if values else None


def read_runs(paths: Sequence[Path]) -> list[Run[RunConfig]]:
    """The runs in the folders ``paths``, in that order; a folder that is named twice counts once.

    One that has logged nothing yet is left out, and the user told.

    Raises:
        UserError: none is named; one is no run's folder, or is damaged; none has logged anything yet.
    """
    if not paths:
        raise UserError("report: name the folder of a run, or of several")
    unique = different_folders(paths)
    runs = [_read(path, name) for path, name in zip(unique, distinct_names(unique), strict=True)]
    logged = [run for run in runs if run.lines]
    if not logged:
        raise UserError(f"{runs[0].path}: has no line in metrics.jsonl yet; wait for its first")
    for run in runs:
        if not run.lines:
            say(f"{run.path}: left out, it has no line in metrics.jsonl yet")
    return logged


def of_kind(runs: Iterable[Run[RunConfig]], kind: type[C]) -> list[Run[C]]:
    """Those of ``runs`` whose settings are of ``kind``."""
    return [cast("Run[C]", run) for run in runs if isinstance(run.config, kind)]


def different_folders(paths: Sequence[Path]) -> list[Path]:
    """``paths`` made absolute, in that order; of those that are one folder the first."""
    return list({path.resolve(): Path(os.path.abspath(path)) for path in reversed(paths)}.values())[::-1]


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """For each of different absolute paths the shortest end of it that no other path has."""

    def name(path: Path) -> str:
        for length in range(1, len(path.parts) + 1):
            end = path.parts[-length:]
            if sum(other.parts[-length:] == end for other in paths) == 1:
                return str(Path(*end))
        return str(path)

    # A page is UTF-8; a folder's name may be any bytes.
    return [os.fsencode(name(path)).decode("utf-8", "replace") for path in paths]


def _read(path: Path, name: str) -> Run[RunConfig]:
    record = read_config(path)
    config = config_of(path, record)
    lines = tuple(read_lines(RunFolder(path).metrics))
    images, weights = (str(record["facts"].get(fact)) for fact in ("images", "weights"))
    result, starts = _result(path / RESULT), tuple(read_starts(path))
    return Run(
        path=path, name=name, config=config, images=images, weights=weights, lines=lines, result=result, starts=starts
    )


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file with a ``step`` each; none where there is no file.

    A last line without its end is left out: the run is writing it, or was killed when it did.

    Raises:
        UserError: the file cannot be read, or a line is damaged; names the line.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); restore the file or leave the run out") from None
    whole = text.split("\n")[:-1]
    return [_line(file, number, line) for number, line in enumerate(whole, 1)]


def _line(file: Path, number: int, text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
        if not isinstance(line, dict) or type(line.get("step")) is not int or not 0 <= line["step"] < 2**63:
            raise ValueError("no object with a step")
        _check_figures(line)
    except (ValueError, RecursionError) as error:
        what = f"{file}: line {number} is damaged ({error})"
        raise UserError(f"{what}; remove the line or leave the run out") from None
    return line


def _result(file: Path) -> dict[str, Any] | None:
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(result, dict):
            raise ValueError("not an object")
        _check_figures(result)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read ({error}); restore the file or leave the run out") from None
    return result


def _check_figures(values: dict[str, Any]) -> None:
    for metric in METRICS:
        value = values.get(metric, 0)
        # Not in range: NaN, infinity, and what would overflow in drawing.
        if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST < value < _LARGEST:
            raise ValueError(f"{metric} is {json.dumps(value)[:40]}, no number that a run logs")
