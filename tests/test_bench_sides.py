"""How a section is measured: sides that run, sides that cannot, sides that fail; and where they lie under the roof."""

from __future__ import annotations

import argparse
import gc
import time
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._C._autograd import DeviceType

from bench import measure as timing
from bench import modes
from bench.report import device_time, whole_step
from bench.report.machine import Machine
from bench.report.rows import Timing, row
from bench.report.settings import Bench, settle
from bench.report.sides import Side, measure
from fastselfie.kernels.dispatch import fused

CPU = torch.device("cpu")
MACHINE = Machine(matrix={"fp32": 100e9, "bf16": 400e9}, copy=20e9, clocks="by hand")
A, B = torch.randn(16, 32), torch.randn(32, 8)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return settle(argparse.Namespace(
        out=tmp_path, recipe="cifar10", width=None, batch_size=None, device="cpu", precision="auto", rounds=3,
        smoke=True, without=["moon"],
    ))  # fmt: skip


def test_sides_that_run_fail_or_lack_something(bench: Bench) -> None:
    def fails() -> Callable[[], object]:
        raise RuntimeError("\n  no such kernel\nand a long trace")

    sides = [
        Side(name="quick", build=lambda: lambda: A @ B, dtype="fp32"),
        Side(name="slow", build=lambda: lambda: time.sleep(0.02), dtype="bf16", counted_as="quick", images=6),
        Side(name="broken", build=fails, dtype="fp32"),
        Side(name="absent", build=fails, dtype="fp32", lacks="needs a moon"),
        Side(name="full moon", build=fails, dtype="fp32"),
    ]
    rows, steps = measure("section", sides, bench, MACHINE, images=3)
    quick, slow, broken, absent, unwanted = rows
    assert [one["side"] for one in rows] == ["quick", "slow", "broken", "absent", "full moon"]
    assert (unwanted["not_run"], unwanted["failed"]) == ("left out by --without moon", False)
    assert list(steps) == ["quick", "slow"]
    assert (broken["not_run"], broken["failed"]) == ("RuntimeError: no such kernel", True)
    assert (absent["not_run"], absent["failed"]) == ("needs a moon", False)
    assert slow["ms"]["n"] == 3
    assert 20 <= slow["ms"]["lowest"] <= slow["ms"]["median"] < 200
    assert slow["images_per_second"] == pytest.approx(6e3 / slow["ms"]["median"])
    assert quick["images_per_second"] == pytest.approx(3e3 / quick["ms"]["median"])
    assert quick["gflop"] == slow["gflop"] == 2 * 16 * 32 * 8 / 1e9
    assert quick["gbyte"] == 4 * (16 * 32 + 32 * 8 + 16 * 8) / 1e9
    assert slow["gbyte"] is None  # what it moves is its own
    assert slow["startup_s"] >= 0.02


def test_a_side_that_fails_in_the_rounds_costs_no_other(bench: Bench) -> None:
    calls = iter(range(100))

    def lasts() -> None:
        if next(calls) > 4:
            raise RuntimeError("overwritten by /tmp/some/where.py")

    sides = [
        Side(name="quick", build=lambda: lambda: A @ B, dtype="fp32"),
        Side(name="short-lived", build=lambda: lasts, dtype="fp32"),
    ]
    (quick, broken), steps = measure("section", sides, bench, MACHINE, images=3)
    assert quick["ms"]["n"] == 3
    assert (broken["not_run"], broken["failed"]) == ("RuntimeError: overwritten by .../where.py", True)
    assert list(steps) == ["quick"]


def test_the_kernels_choice_holds_while_a_side_runs(bench: Bench) -> None:
    asked: dict[str, list[bool]] = {"on": [], "off": []}

    def side(kernels: Any) -> Side:
        def build() -> Callable[[], object]:
            def step() -> torch.Tensor:
                asked[kernels].append(fused("patch_batch", CPU))
                return A @ B

            step()
            return step

        return Side(name=kernels, build=build, dtype="fp32", kernels=kernels)

    on, off = measure("section", [side("on"), side("off")], bench, MACHINE, images=1)[0]
    assert not any(asked["off"])
    assert asked["on"].count(False) == 1  # the step in which operations are counted
    assert on["gflop"] == off["gflop"]
    assert on["gbyte"] is None is on["peak_mib"]


def test_a_path_of_the_machine_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["bench", "report", "--out", "/home/somebody/out", "--data=/data/x", "--smoke", "a/b"]
    )
    assert timing.made_by(CPU)["command"].endswith(" report --out out --data=x --smoke a/b")


def test_a_recorded_graph_keeps_what_it_reads(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's graphs hold what was made while they were recorded, and not the network and the batch from before."""
    networks = []

    def trainer(bench: Bench) -> Any:
        made = whole_step.trainer(bench)
        networks.append(weakref.ref(made.network))
        return made

    class Graph:
        replayed = 0

        def replay(self) -> None:
            Graph.replayed += 1

    monkeypatch.setattr(modes, "trainer", trainer)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(wait_stream=lambda stream: None))
    monkeypatch.setattr(torch.cuda, "current_stream", torch.cuda.Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext())
    on_cpu = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda _, *dtype, **settings: on_cpu("cpu", *dtype, **settings))
    step = modes._graph(bench)
    gc.collect()
    assert networks[0]() is not None
    step()
    assert Graph.replayed == 1
    del step
    gc.collect()
    assert networks[0]() is None


def test_points_under_the_roof_and_their_numbers() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.text import Annotation, Text

    from bench.report.roofline import figure, points

    def made(side: str, seconds: float, gbyte: float | None, section: str = "whole step", like: str = "") -> Any:
        moved = None if gbyte is None else int(gbyte * 1e9)
        return row(section, side, Timing(
            seconds=[seconds], dtype="bf16", flops=20_000_000_000, moved_bytes=moved, counted_as=like
        ), MACHINE)  # fmt: skip

    rows = [
        made("eager", 0.2, 2.0), made("compiled", 0.1, None, like="eager"), made("twin", 0.2, 2.0),
        made("files", 0.25, None, "end to end", "eager"), made("unknown", 0.1, None),
        row("optimiser", "fused", Timing(seconds=[0.1], moved_bytes=10), MACHINE),
        *(made(f"side {index}", 0.2 + index / 1e3, 2.0) for index in range(8)),
    ]  # fmt: skip
    drawn = points(rows)
    assert [one.side for one in drawn][:4] == ["eager", "compiled", "twin", "files"]
    assert len(drawn) == 12  # without dense products, or bytes of anybody, there is no place
    assert [(one.intensity, one.seen) for one in drawn[:2]] == [(10, True), (10, False)]
    assert [one.tflops for one in drawn[:4]] == pytest.approx([0.1, 0.2, 0.1, 0.08])

    told = {"rows": rows, "machine": vars(MACHINE), "settings": {"recipe": "r"}, "made_by": {"device": "d"}}
    made_figure = figure(told)
    made_figure.draw_without_rendering()
    (axes,) = made_figure.axes
    numbers = [text for text in axes.texts if isinstance(text, Annotation) and text.get_text().isdigit()]
    assert [text.get_text() for text in numbers] == [str(number) for number in range(1, 13)]
    boxes = [Text.get_window_extent(text) for text in numbers]
    assert not any(a.overlaps(b) for index, a in enumerate(boxes) for b in boxes[:index])
    assert all(axes.bbox.fully_containsx(box.x0) and axes.bbox.fully_containsx(box.x1) for box in boxes)
    key = [text.get_text() for text in made_figure.texts]
    assert "compiled, 0.2 TFLOP/s" in key
    edges = [text.get_window_extent() for text in made_figure.texts]
    assert all(edge.x1 <= made_figure.bbox.x1 for edge in edges)


@pytest.mark.parametrize("seen", ["an error", "nothing", "two kernels"])
def test_a_device_time_that_cannot_be_told_is_none(seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profiler of no events would else make every side bound by launches."""

    def profiled(*_: object) -> Any:
        if seen == "an error":
            raise RuntimeError("CUPTI_ERROR_NOT_INITIALIZED")
        kernel = SimpleNamespace(device_type=DeviceType.CUDA, is_user_annotation=False, self_device_time_total=1500.0)
        host = SimpleNamespace(device_type=DeviceType.CPU, is_user_annotation=False, self_device_time_total=9e9)
        return SimpleNamespace(key_averages=lambda: [host] + [kernel] * 2 * (seen == "two kernels"))

    monkeypatch.setattr(device_time, "_profiled", profiled)
    found = device_time.busy_s(lambda: None, torch.device("cuda"))
    assert found == (0.003 if seen == "two kernels" else None)
