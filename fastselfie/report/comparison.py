"""Finetuned runs side by side: which of them compare, what pretraining gains, and how far seeds spread."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastselfie.config import FinetuneConfig, PretrainConfig, idle, label_share
from fastselfie.report.runs import Run
from fastselfie.report.tables import NONE, Row, Table, difference, percent, steps
from fastselfie.training.run_folder import FREE

# Settings without influence on a test accuracy, and where the weights come from. Runs that differ in these alone
# compare. Micro-batches change batch norm's groups, so they are not among these.
_BESIDE = (FREE - {"micro_batch_size"}) | {"scratch", "pooler_weights", "log_every", "evaluate_every", "recipe"}
_SEEDS = ("seed", "label_seed")


def finetuning_table(runs: Sequence[Run[FinetuneConfig]], pretraining: Sequence[Run[PretrainConfig]]) -> Table:
    """Every finetuned run in a row: those that compare side by side, the one from scratch first."""
    headings = (
        "run", "encoder", "labels", "labelled images", "weights", "test accuracy", "gain", "steps", "seed",
    )  # fmt: skip
    ordered = sorted(runs, key=lambda run: (_order(run), not run.config.scratch, run.name))
    rows, before = [], None
    for run in ordered:
        config, group = run.config, comparable(run)
        labelled = run.result.get("labelled_images") if run.result is not None else None
        cells = (
            run.name, config.encoder, config.labels, f"{labelled:,}" if isinstance(labelled, int) else NONE,
            origin(run, pretraining), percent(run.figure("test_accuracy")), difference(gain(run, runs)), steps(run),
            str(config.seed),
        )  # fmt: skip
        rows.append(Row(cells=cells, first=before is not None and group != before))
        before = group
    return Table(
        caption="Finetuned runs. Gain: test accuracy above that of the run from scratch with the same settings,"
        " images, labels and seed.",
        headings=headings,
        numbers=frozenset({"labels", "labelled images", "test accuracy", "gain", "steps", "seed"}),
        rows=tuple(rows),
    )


def comparable(run: Run[FinetuneConfig]) -> dict[str, Any]:
    """What two finetuned runs must have in common for their test accuracies to compare."""
    beside = _BESIDE | idle(run.config).keys()
    settings = {name: value for name, value in dataclasses.asdict(run.config).items() if name not in beside}
    return settings | {"images": run.images, "labels": label_share(run.config.labels)}


def gain(run: Run[FinetuneConfig], runs: Sequence[Run[FinetuneConfig]]) -> float | None:
    """Test accuracy above that of the finished run from scratch that compares; None without one, or for itself."""
    accuracy = run.figure("test_accuracy")
    if run.config.scratch or run.result is None or accuracy is None:
        return None
    settings = comparable(run)
    for other in runs:
        if other.config.scratch and other.result is not None and comparable(other) == settings:
            baseline = other.figure("test_accuracy")
            return None if baseline is None else accuracy - baseline
    return None


def origin(run: Run[FinetuneConfig], pretraining: Sequence[Run[PretrainConfig]]) -> str:
    """Where a finetuned run's weights come from: the pretraining run as the page calls it, or its folder's name; and
    whether the pooler's come from there too."""
    if run.config.pretrained is None:
        return "from scratch"
    path = Path(run.config.pretrained)
    known = [other.name for other in pretraining if other.path.resolve() == path.resolve()]
    fresh = ", pooler fresh" if run.config.pooler_weights == "fresh" else ""
    return f"from {known[0] if known else path.name}{fresh}"


def seeds_table(runs: Sequence[Run[FinetuneConfig]], pretraining: Sequence[Run[PretrainConfig]]) -> Table | None:
    """Mean and spread of finished runs that differ in their seeds alone; None where no two do."""
    groups: dict[tuple[str, str, str], dict[tuple[int, int], Run[FinetuneConfig]]] = {}
    for run in sorted(runs, key=lambda run: (_order(run), not run.config.scratch)):
        if run.result is not None and run.figure("test_accuracy") is not None:
            # The same ones twice would make the spread too small.
            seeds = (run.config.seed, 0 if "label_seed" in idle(run.config) else run.config.label_seed)
            kind = _apart_from_seeds(run), origin(run, pretraining), run.weights  # runs of one name may be several
            groups.setdefault(kind, {}).setdefault(seeds, run)
    rows = []
    for (_, weights, _), by_seeds in groups.items():
        group = list(by_seeds.values())
        accuracies = [accuracy for run in group if (accuracy := run.figure("test_accuracy")) is not None]
        if len(accuracies) > 1:
            gains = [value for run in group if (value := gain(run, runs)) is not None]
            config = group[0].config
            fewer = f" ({len(gains)} of {len(group)} runs)" if 0 < len(gains) < len(group) else ""
            cells = (
                config.encoder, config.labels, weights, str(len(group)), percent(statistics.mean(accuracies)),
                percent(statistics.stdev(accuracies)), difference(statistics.mean(gains) if gains else None) + fewer,
            )  # fmt: skip
            rows.append(Row(cells=cells))
    headings = ("encoder", "labels", "weights", "runs", "mean test accuracy", "standard deviation", "mean gain")
    caption = "Finetuned runs over seeds: those that differ in --seed or --label-seed alone."
    numbers = frozenset({"labels", *headings[3:]})
    return Table(caption=caption, headings=headings, numbers=numbers, rows=tuple(rows)) if rows else None


def _apart_from_seeds(run: Run[FinetuneConfig]) -> str:
    return str(sorted((name, str(value)) for name, value in comparable(run).items() if name not in _SEEDS))


def _order(run: Run[FinetuneConfig]) -> tuple[str, float, str, int, int]:
    config = run.config
    return config.encoder, label_share(config.labels), _apart_from_seeds(run), config.seed, config.label_seed
