"""A probe's folder as a report reads it, and the table of what frozen features are worth (`fastselfie probe`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastselfie.errors import UserError
from fastselfie.report.runs import different_folders, distinct_names
from fastselfie.report.tables import Row, Table, percent
from fastselfie.training.config_file import read_config
from fastselfie.training.reporter import say
from fastselfie.training.session import RESULT

_CLASSIFIERS = ("linear", "knn")


@dataclass(frozen=True, kw_only=True)
class ProbedFeatures:
    """One kind of features: test accuracies, by network and classifier, of those that were asked for."""

    kind: str
    accuracies: dict[tuple[str, str], float]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A finished probe.

    Attributes:
        name: what the page calls it. network: the pretraining run that it looked at, and after which step. labels: the
        share of them. most_frequent_class: share of the test images that it has. features: in the order of the probe.
    """

    name: str
    network: str
    labels: str
    most_frequent_class: float
    features: tuple[ProbedFeatures, ...]


def is_probe(path: Path) -> bool:
    """Whether ``path`` is the folder of a probe. Raises `UserError`: it is no run's, or its config.json is damaged."""
    return read_config(path)["command"] == "probe"


def read_probes(paths: Sequence[Path]) -> list[Probe]:
    """The probes in the folders ``paths``, in that order; one without a result is left out, and the user told.

    Raises:
        UserError: a result is damaged; names the file.
    """
    unique = different_folders(paths)
    found = []
    for path, name in zip(unique, distinct_names(unique), strict=True):
        if (path / RESULT).exists():
            found.append(_read(path / RESULT, name))
        else:
            say(f"{path}: left out, the probe has no result yet")
    return found


def _read(file: Path, name: str) -> Probe:
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        return Probe(
            name=name,
            network=f"{Path(str(result['pretrained'])).name}, step\N{NO-BREAK SPACE}{int(result['step']):,}",
            labels=str(result["labels"]),
            most_frequent_class=_share(result["most_frequent_class"]),
            features=tuple(_features(result["probes"])),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{file}: cannot be read ({reason}); restore the file or leave the probe out") from None


def _features(probes: Sequence[dict[str, Any]]) -> Iterator[ProbedFeatures]:
    for kind in dict.fromkeys(str(probe["features"]) for probe in probes):
        accuracies = {
            (str(probe["network"]), classifier): _share(probe[classifier])
            for probe in probes
            for classifier in _CLASSIFIERS
            if probe["features"] == kind and probe.get(classifier) is not None
        }
        yield ProbedFeatures(kind=kind, accuracies=accuracies)


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{json.dumps(value)[:40]} is no share")
    return float(value)


def probes_table(probes: Sequence[Probe]) -> Table:
    """A row for each kind of features of each probe."""
    headings = {
        ("pretrained", "linear"): "linear", ("pretrained", "knn"): "kNN",
        ("fresh", "linear"): "untrained, linear", ("fresh", "knn"): "untrained, kNN",
    }  # fmt: skip
    asked = {column for probe in probes for features in probe.features for column in features.accuracies}
    columns = [column for column in headings if column in asked]
    numbers = (*(headings[column] for column in columns), "most frequent class")
    rows = tuple(
        Row(
            cells=(
                probe.name, probe.network, probe.labels, features.kind,
                *(percent(features.accuracies.get(column)) for column in columns), percent(probe.most_frequent_class),
            ),
            first=index == 0,
        )
        for probe in probes
        for index, features in enumerate(probe.features)
    )  # fmt: skip
    return Table(
        caption="Test accuracy of classifiers on frozen features, of the pretrained network and of an untrained one of"
        " its shape and seed.",
        headings=("probe", "network", "labels", "features", *numbers),
        numbers=frozenset(numbers),
        rows=rows,
        row_header="probe",
    )
