"""What ``--tune`` tried, as a table: every trial, how it ended, and what was chosen."""

from __future__ import annotations

from fastselfie.protocol.cells import COUNT, SHARE, TEXT, Column, Grid, Line
from fastselfie.protocol.measured import Measured

_OUTCOMES = {"complete": "complete", "pruned": "stopped early", "diverged": "diverged"}


def tuning_table(measured: Measured) -> Grid | None:
    """Every setting that was tried, with those that were stopped early and those that were chosen."""
    lines: list[Line] = []
    for task in dict.fromkeys(trial.task for trial in measured.trials):
        for index, trial in enumerate(trial for trial in measured.trials if trial.task == task):
            settings = ", ".join(f"{name} {value:g}" for name, value in trial.settings.items())
            outcome = "chosen" if trial.chosen else _OUTCOMES.get(trial.state) or f"failed: {trial.why}"
            cells = task, settings, trial.validation_accuracy, trial.step, outcome
            lines.append(Line(cells=cells, first=bool(lines) and index == 0))
    columns = (
        Column(name="task", heading="task", kind=TEXT),
        Column(name="settings", heading="settings", kind=TEXT),
        Column(name="validation_accuracy", heading="validation accuracy", kind=SHARE),
        Column(name="step", heading="steps", kind=COUNT),
        Column(name="outcome", heading="outcome", kind=TEXT),
    )
    caption = "Tuning. Accuracy in % on a tenth of the training labels that was held back; no test image was seen."
    notes = _at_an_end(measured)
    return Grid(name="tuning", caption=caption, columns=columns, lines=tuple(lines), notes=notes) if lines else None


def _at_an_end(measured: Measured) -> tuple[str, ...]:
    """A remark where the chosen rate is the lowest or the highest that was tried: a better one may lie beyond."""
    tried: dict[str, set[float]] = {}
    for trial in measured.trials:
        tried.setdefault(trial.task, set()).add(trial.settings["lr"])
    chosen = {trial.task: trial.settings["lr"] for trial in measured.trials if trial.chosen}
    ends = [task for task, lr in chosen.items() if len(tried[task]) > 1 and lr in (min(tried[task]), max(tried[task]))]
    return (
        (f"The chosen rate is an end of those tried, a better one may lie beyond: {'; '.join(ends)}.",) if ends else ()
    )
