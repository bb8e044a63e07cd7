"""`python -m bench.kernels` at tiny sizes on the CPU: its file, its bytes, and that a wrong kernel is not timed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import kernels
from bench.kernel_cases import LocationHead, PatchBatch, PatchTokens
from bench.kernel_results import row as row_of
from bench.recipe_shapes import shape_of
from fastselfie.kernels import reference
from fastselfie.kernels.dispatch import lacks
from tests.command import run_module

CPU = torch.device("cpu")
HEAD = LocationHead(label="hand", B=2, N=16, m=4, D=32, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of the CIFAR-10 shapes; with TRITON_INTERPRET=1 in the environment the kernels are in it."""
    out = tmp_path_factory.mktemp("kernels") / "kernels.json"
    settings = ["--device", "cpu", "--smoke", "--only", "cifar10", "--rounds", "2", "--backend", "aot_eager"]
    kernels.main([*settings, "--out", str(out)])
    return json.loads(out.read_text())


def test_every_operation_and_direction_has_its_row(result: dict[str, Any]) -> None:
    assert [(row["operation"], row["direction"]) for row in result["rows"]] == [
        ("patch_batch", "forward"),
        ("patch_tokens", "forward"), ("patch_tokens", "backward"),
        ("location_head", "forward"), ("location_head", "backward"),
    ]  # fmt: skip
    keys = [["patch_batch", [32, 8]], ["patch_tokens", [1024, 2, 2]], ["location_head", [4, 1024]]]
    assert [row["key"] for row in result["rows"]][::2] == keys
    ran = {"plain", "compiled"} | (set() if lacks("cpu") else {"kernel"})
    assert all(row["sides"].keys() == ran for row in result["rows"])
    assert result["interpreted"] == ("kernel" in ran)
    assert result["wrong"] == []
    assert result["slower_than_compiled"] == []  # an interpreted kernel's time says nothing
    assert {"command", "torch", "git_commit"} <= result["made_by"].keys()


def test_figures_follow_from_the_values_in_the_file(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        for side in row["sides"].values():
            assert len(side["all_ms"]) == side["n"] == 2
            assert side["median_ms"] == statistics.median(side["all_ms"]) > 0
            assert (side["lowest_ms"], side["highest_ms"]) == (min(side["all_ms"]), max(side["all_ms"]))
            assert side["gb_per_s"] == pytest.approx(row["bytes"] / 1e9 / (side["median_ms"] / 1e3))
            assert side["share_of_copy"] == pytest.approx(side["gb_per_s"] / result["copy_gb_per_s"])


def test_speedups_are_ratios_of_the_medians() -> None:
    row = row_of(HEAD, "forward", 1000, {"kernel": [2.0, 3.0, 9.0], "plain": [6.0], "compiled": [1.5]}, 100.0)
    assert (row["speedup_over_plain"], row["speedup_over_compiled"]) == (2.0, 0.5)


def test_bytes_are_those_counted_by_hand() -> None:
    u, e, h, places = 2 * 32 * 4, 16 * 32 * 4, 2 * 4 * 32 * 2, 2 * 4 * 8
    assert HEAD.forward_bytes == u + e + h + places + 4 + 8
    assert HEAD.backward_bytes == 4 + u + e + h + places + u + e + h

    cifar = shape_of("cifar10", batch=2)
    pixels, patches = 2 * 32 * 32 * 3, 2 * 32 * 32 * 3 * 2
    assert PatchBatch(shape=cifar, dtype=torch.bfloat16).forward_bytes == pixels + patches + 2 * (16 * 8 + 8 + 16 + 1)

    maps, tokens, features = 2 * 16 * 1024 * 4 * 2, 2 * 13 * 1024 * 4, 2 * 4 * 1024 * 2
    vectors = 3 * 1024 * 4 + 16 * 1024 * 4  # weight, bias, u0, positions
    case = PatchTokens(shape=cifar, dtype=torch.bfloat16)
    sums, normalised = maps + 2 * 1024 * 8, maps + 2 * 1024 * 4 + vectors + 2 * 16 * 8 + tokens + features
    assert case.forward_bytes == sums + normalised
    assert case.backward_bytes == 2 * (maps + tokens + features) + maps + vectors


@pytest.mark.parametrize("case", [HEAD, PatchBatch(shape=shape_of("cifar10", batch=16), dtype=torch.float32)])
def test_inputs_are_random_and_of_the_bytes_that_are_counted(case: Any) -> None:
    first, again, other = (case.inputs(CPU, seed) for seed in (0, 0, 1))
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert name in ("mean", "std") or not torch.equal(tensor, other[name])
    written = sum(tensor.nbytes for tensor in case.run(reference, first))
    counted = sum(tensor.nbytes for name, tensor in first.items() if name not in ("mean", "std"))
    assert case.forward_bytes == counted + written


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_a_wrong_kernel_is_not_timed(wrong: str) -> None:
    def location_head(u: Any, e: Any, places: Any, h: Any, scale: float) -> Any:
        loss, right = reference.location_head(u, e, places, h, scale)
        return (loss * 1.01, right) if wrong == "loss" else (loss + 1e-2 * (u.sum() - u.sum().detach()), right)

    broken = SimpleNamespace(location_head=location_head)
    case = LocationHead(label="hand", B=2, N=16, m=4, D=32, dtype=torch.float32)

    def plain(inputs: Any) -> Any:
        return case.run(reference, inputs)

    def kernel(inputs: Any) -> Any:
        return case.run(broken, inputs)

    inputs = case.inputs(CPU, 0)
    assert kernels.errors(case, {"plain": plain, "kernel": plain}, inputs) == {"kernel": 0}
    with pytest.raises(ValueError, match=r"^kernel's result \d is off"):
        kernels.errors(case, {"plain": plain, "kernel": kernel}, inputs)


def test_a_case_that_fails_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a half of it kept: a kernel that is slower in one direction alone would be taken for faster."""
    measure = kernels.measure

    def failing(case: Any, *arguments: Any) -> Iterator[Any]:
        rows = measure(case, *arguments)
        yield next(rows)
        if case.operation == "location_head":
            raise MemoryError("out of it")
        yield from rows

    monkeypatch.setattr(kernels, "measure", failing)
    out = tmp_path / "kernels.json"
    with pytest.raises(SystemExit, match="1"):
        kernels.main(
            [
                "--device",
                "cpu",
                "--smoke",
                "--only",
                "cifar10",
                "--rounds",
                "1",
                "--backend",
                "eager",
                "--out",
                str(out),
            ]
        )
    told = json.loads(out.read_text())
    assert told["wrong"] == ["location_head cifar10 B=2 m=4: MemoryError: out of it"]
    assert {row["operation"] for row in told["rows"]} == {"patch_batch", "patch_tokens"}


def test_inputs_take_turns_and_results_stay() -> None:
    given: list[int] = []
    step = kernels.rotating(given.append, [1, 2, 3])
    for _ in range(5):
        step()
    assert given == [1, 2, 3, 1, 2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_it_says_so(tmp_path: Path) -> None:
    done = run_module("bench.kernels", "--out", tmp_path / "kernels.json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "sees no CUDA device" in done.stderr
    assert not (tmp_path / "kernels.json").exists()
