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

# What these find wrong is shown as a test's own assertions are.
pytest.register_assert_rewrite("tests.command", "tests.packing", "tests.kernel_checks", "tests.trunk_cases")
# Triton decides when it is imported, its own functions included: nothing may have imported it before. Torch has not.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(1)
# On a machine for `make gpu-check` the argument parser and what reports need are perhaps not there.
_PARSING = [
    *("test_cli.py", "test_effect.py", "test_pooler_inheritance.py", "test_protocol_plan.py", "test_protocol_run.py"),
    "test_starting_point.py",
]
collect_ignore = [] if importlib.util.find_spec("tyro") else _PARSING
if not all(map(importlib.util.find_spec, ("matplotlib", "PIL", "jinja2"))):
    collect_ignore += ["test_report_page.py", "test_report_pictures.py", "test_report_runs.py"]
    collect_ignore += ["test_report_probes.py"]
    collect_ignore += ["test_protocol_tables.py", "test_protocol_page.py"]
if importlib.util.find_spec("scipy") is None:
    collect_ignore += [path.name for path in Path(__file__).parent.glob("test_protocol_*.py")]
if not all(map(importlib.util.find_spec, ("scipy", "PIL"))):
    collect_ignore += ["test_linear.py", "test_probe.py"]
if importlib.util.find_spec("PIL") is None:
    collect_ignore += [path.name for path in Path(__file__).parent.glob("test_*photo*.py")] + ["test_file_pipeline.py"]
    collect_ignore += ["test_examples.py", "test_export.py", "test_starting_point.py", "test_timm.py"]


@pytest.fixture(autouse=True)
def _exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 is fp32 in cuDNN too, and it tries no algorithms, whatever a run in the test before left."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


@pytest.fixture(autouse=True, scope="session")
def _quick_interpreter() -> None:
    """The tests of kernels take half of the time."""
    if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
        from tests.quick_interpreter import quicken

        quicken()


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


# Files of few tests that take long. Handed out first, none of them keeps one of two workers busy alone at the end.
_LONG = (
    "test_bench_smoke.py", "test_protocol_run.py", "test_distributed.py", "test_footprint.py", "test_resume.py",
    "test_trunk_network.py", "test_kernel_resources.py", "test_kernels_in_training.py", "test_bad_photographs.py",
    "test_bad_input.py", "test_photo_resume.py", "test_full_disk.py", "test_overfit.py", "test_compile.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _LONG.index(item.path.name) if item.path.name in _LONG else len(_LONG))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device; `make gpu-check` runs this on a machine with one"))
