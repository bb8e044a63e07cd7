"""Tests marked `gpu` are skipped, with the reason, where there is no CUDA device; all compute with one thread.

Tests of kernels run compiled where there is one, and `make gpu-check` runs them too; elsewhere Triton interprets them.

The networks of the tests are so small that a second thread costs more than it brings, and rounding stays the same
whatever the machine.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Triton decides when it is imported, its own functions included: nothing may have imported it before. Torch has not.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(1)
# On a machine for `make gpu-check` the argument parser and what reports need are perhaps not there.
collect_ignore = [] if importlib.util.find_spec("tyro") else ["test_cli.py"]
if not all(map(importlib.util.find_spec, ("matplotlib", "PIL", "jinja2"))):
    collect_ignore += ["test_report_page.py", "test_report_pictures.py", "test_report_runs.py"]
if not all(map(importlib.util.find_spec, ("sklearn", "scipy", "PIL"))):
    collect_ignore += ["test_linear.py", "test_probe.py"]
if importlib.util.find_spec("PIL") is None:
    collect_ignore += [path.name for path in Path(__file__).parent.glob("test_*photo*.py")] + ["test_file_pipeline.py"]


@pytest.fixture(autouse=True)
def _exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 is fp32 in cuDNN too, whatever a run in the test before left."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(autouse=True)
def _in_bounds(request: pytest.FixtureRequest) -> Iterator[None]:
    """Interpreted kernels fail where they touch memory that is not theirs: wrong values need not come of it."""
    if torch.cuda.is_available() or not request.path.name.startswith(("test_kernel_", "test_trunk_")):
        yield
        return
    pytest.importorskip("triton")
    from tests.interpreted_memory import in_bounds

    with in_bounds():
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device; `make gpu-check` runs this on a machine with one"))
