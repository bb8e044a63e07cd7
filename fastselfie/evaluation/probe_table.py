"""What a probe found, as a table on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_NETWORKS = {"pretrained": "pretrained", "fresh": "untrained"}
_CLASSIFIERS = {"linear": "linear", "knn": "kNN"}


def show(result: dict[str, Any]) -> None:
    """Print the test accuracies of a ``result.json``: a row for each kind of features."""
    probes = result["probes"]
    columns = [
        (network, classifier)
        for network in _NETWORKS
        for classifier in _CLASSIFIERS
        if any(p["network"] == network and p[classifier] is not None for p in probes)
    ]
    table = Table(
        title=Text(  # which takes brackets in a folder's name for brackets
            f"{result['data']}, {result['labelled_images']} labels, step {result['step']}: accuracy on"
            f" {result['tested_images']} test images; the most frequent class has {result['most_frequent_class']:.3f}",
        ),
        title_justify="left",
    )
    table.add_column("features", no_wrap=True)
    for network, classifier in columns:
        table.add_column(f"{_NETWORKS[network]}, {_CLASSIFIERS[classifier]}", justify="right")
    for kind in dict.fromkeys(p["features"] for p in probes):
        found = {p["network"]: p for p in probes if p["features"] == kind}
        cells = [found[network][classifier] for network, classifier in columns]
        table.add_row(kind, *("" if cell is None else f"{cell:.3f}" for cell in cells))
    Console().print(table)
