"""Tests marked `gpu` are skipped, with the reason, where there is no CUDA device; all compute with one thread.

The networks of the tests are so small that a second thread costs more than it brings, and rounding stays the same
whatever the machine.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
# On a machine for `make gpu-check` the argument parser and what reports need are perhaps not there.
collect_ignore = [] if importlib.util.find_spec("tyro") else ["test_cli.py"]
if not all(map(importlib.util.find_spec, ("matplotlib", "PIL", "jinja2"))):
    collect_ignore += ["test_report_page.py", "test_report_pictures.py", "test_report_runs.py"]
if importlib.util.find_spec("PIL") is None:
    collect_ignore += [path.name for path in Path(__file__).parent.glob("test_*photo*.py")] + ["test_file_pipeline.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device; `make gpu-check` runs this on a machine with one"))
