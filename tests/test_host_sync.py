"""Between log lines nothing in a training step reads a tensor's value on the host: on a GPU that would stall it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastselfie.config import FinetuneConfig, PretrainConfig
from fastselfie.evaluation.finetune import finetuning_job
from fastselfie.evaluation.labels import divide as divide_labels
from fastselfie.pipelines.synthetic import synthetic_source
from fastselfie.training.job import Job
from fastselfie.training.pretrain import divide, pretraining_job
from fastselfie.training.run_folder import RunFolder
from fastselfie.training.trainer import Trainer
from fastselfie.training.world import World

STEPS = 6
SMALL: dict[str, Any] = {
    "recipe": "test", "width": 0.0625, "heads": 4, "batch_size": 8, "micro_batch_size": 4, "steps": STEPS,
    "precision": "fp32", "compile": "off",
}  # fmt: skip
READING_OPERATORS = frozenset({"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select"})
READING_METHODS = frozenset({"tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"})


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Beside other work, threads that wait for each other make such small steps a hundred times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class _Operators(TorchDispatchMode):
    """Operators whose result, or its shape, the host must wait for."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        indexed_by_flags = name in {"index", "index_put", "index_put_"} and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in READING_OPERATORS or indexed_by_flags:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    """Methods that hand values to Python; on a CPU some of them call no operator."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in READING_METHODS:
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def reads() -> Iterator[list[str]]:
    """Names of everything by which the host reads a value while the block runs."""
    seen: list[str] = []
    with _Operators(seen), _Methods(seen):
        yield seen


def pretraining(device: torch.device) -> Job:
    settings: dict[str, Any] = {**SMALL, "device": device.type}
    config = PretrainConfig(**settings, held_out=4)
    parts = divide(config, synthetic_source(32, train=20, test=10))
    return pretraining_job(config, World(rank=0, size=1, device=device), parts)


def ablated(device: torch.device) -> Job:
    settings: dict[str, Any] = {**SMALL, "device": device.type, "masks": "batch", "pooler": "max"}
    config = PretrainConfig(**settings, held_out=4)
    parts = divide(config, synthetic_source(32, train=20, test=10))
    return pretraining_job(config, World(rank=0, size=1, device=device), parts)


def finetuning(device: torch.device) -> Job:
    settings: dict[str, Any] = {**SMALL, "device": device.type}
    config = FinetuneConfig(**settings, scratch=True, encoder="resnet36-attention", positions="both")
    world = World(rank=0, size=1, device=device)
    source = synthetic_source(32, train=20, test=10)
    return finetuning_job(config, world, source, divide_labels(config, source)[1], torch.arange(0, 20, 2), None)


def trainer(make: Callable[[torch.device], Job], device: torch.device, folder: Path) -> Trainer:
    return Trainer(make(device), World(rank=0, size=1, device=device), RunFolder(folder))


@pytest.mark.parametrize("make", [pretraining, ablated, finetuning])
def test_steps_read_nothing(make: Callable[[torch.device], Job], tmp_path: Path) -> None:
    run = trainer(make, torch.device("cpu"), tmp_path)
    with reads() as seen:
        for step in range(3):
            run.step(step)
    assert seen == []
    with reads() as seen:
        figures = run.window.take()
    assert seen, "the detector sees the one place that reads"
    assert set(figures) == {"loss", "accuracy"}


@pytest.mark.parametrize(
    "read", [float, bool, torch.Tensor.tolist, torch.Tensor.nonzero, lambda x: x.equal(x), lambda x: x[x > 0]]
)
def test_the_detector(read: Callable[[torch.Tensor], object]) -> None:
    value = torch.ones(1)
    with reads() as seen:
        value.add(1).mul_(2)
    assert seen == []
    with reads() as seen:
        read(value)
    assert seen


@pytest.mark.gpu
@pytest.mark.parametrize("make", [pretraining, ablated, finetuning])
def test_steps_do_not_stall_the_gpu(make: Callable[[torch.device], Job], tmp_path: Path) -> None:
    run = trainer(make, torch.device("cuda", 0), tmp_path)
    for step in range(3):
        run.step(step)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3, STEPS):
            run.step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
