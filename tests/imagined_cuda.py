"""A CUDA device that is not there: tensors that say they are on it and keep to its rules, computed on the CPU.

An operator raises what CUDA would where a tensor of the CPU meets one of the device, or where the fused update is given
tensors of different strides, and what makes the host wait for the device is written down. Not shown: kernels as
compiled, streams and their order, autocast, and all that `torch.compile` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

DEVICE = torch.device("cuda", 0)
_CROSSING = {"copy_", "_to_copy"}  # operators between devices
_WAITING = {"_local_scalar_dense", "nonzero", "equal", "masked_select"}


class Imagined(Tensor):
    """A tensor of the device. C++ takes it for one of the CPU: so it needs no CUDA to be differentiated."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Imagined:
        made: Imagined = Tensor._make_subclass(cls, held.detach(), False)
        made.held = held.detach()
        return made

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        assert isinstance(value, Imagined)
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.held = value.held

    def __deepcopy__(self, memo: dict[int, object]) -> Tensor:
        copied: Tensor = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied.detach(), self.requires_grad)
        memo[id(self)] = copied
        return copied

    def to(self, *args: Any, **settings: Any) -> Tensor:
        """As Tensor's, to the CPU too."""
        device, dtype, _, layout = torch._C._nn._parse_to(*args, **settings)
        options: dict[str, Any] = {} if layout is None else {"memory_format": layout}
        moved = Tensor.to(self, dtype=dtype or self.dtype, **options)
        return moved.cpu() if device is not None and device.type == "cpu" else moved

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        """A copy, without a graph."""
        WAITED.append("cpu")
        return self.held.clone()

    def tolist(self) -> Any:
        WAITED.append("tolist")
        return self.held.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


WAITED: list[str] = []
"""What the host waited for the device with, in order; whoever looks empties it first."""


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    flat, shape = tree_flatten((args, kwargs))
    there = [value for value in flat if isinstance(value, Imagined)]
    here = [value for value in flat if isinstance(value, Tensor) and not isinstance(value, Imagined) and value.dim()]
    if there and here and name not in _CROSSING:
        raise RuntimeError(f"{name}: expected all tensors to be on one device, found cuda:0 and cpu")
    if there and (name in _WAITING or _picks_by_flags(name, args)):
        WAITED.append(name)
    if name == "_fused_sgd_":
        for group in zip(*(tensors for tensors in args[:3] if tensors), strict=True):
            if len({(tensor.stride(), tensor.dtype) for tensor in group}) > 1:
                raise RuntimeError("_fused_sgd_: parameters, gradients and momentum must be laid out alike")
    on_device = bool(there) or any(isinstance(value, torch.device) and value.type == "cuda" for value in flat)
    plain, settings = tree_unflatten([_computed_with(value) for value in flat], shape)
    owners = {id(value.held): value for value in there}

    def back(result: Tensor) -> Tensor:
        owner = owners.get(id(result))
        if owner is not None:
            return owner
        return Imagined(result) if on_device else result

    return tree_map_only(Tensor, back, func(*plain, **settings))


def _picks_by_flags(name: str, args: Sequence[Any]) -> bool:
    flags = (torch.bool, torch.uint8)
    return name in {"index", "index_put", "index_put_"} and any(i is not None and i.dtype in flags for i in args[1])


def _computed_with(value: Any) -> Any:
    if isinstance(value, Imagined):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) else value


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _tensor(data: Any, *, device: Any = None, **settings: Any) -> Tensor:
    """`torch.tensor` looks for the device itself, past every mode."""
    made: Tensor = _REAL_TENSOR(data, **settings)
    return made if device is None else made.to(device)


def _one_hot(labels: Tensor, classes: int = -1) -> Tensor:
    """Of its own it would make an arange where C++ takes ``labels`` to be."""
    if isinstance(labels, Imagined):
        return Imagined(_REAL_ONE_HOT(labels.held, classes))
    return _REAL_ONE_HOT(labels, classes)


_REAL_TENSOR, _REAL_ONE_HOT = torch.tensor, F.one_hot


@contextmanager
def imagined_cuda(monkeypatch: Any) -> Iterator[None]:
    """Inside, the machine has one such device, an H200."""
    device: dict[str, Any] = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "get_device_name": lambda *_: "NVIDIA H200", "get_device_capability": lambda *_: (9, 0),
        "is_bf16_supported": lambda **_: True, "set_device": lambda *_: None, "_lazy_init": lambda: None,
        "synchronize": lambda *_: None, "max_memory_allocated": lambda *_: 1 << 30,
        "device_of": lambda _: nullcontext(),
    }  # fmt: skip
    with monkeypatch.context() as patch, ExitStack() as stack:
        for name, value in device.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch, "tensor", _tensor)
        patch.setattr(F, "one_hot", _one_hot)
        patch.setattr(Tensor, "pin_memory", lambda self: self)
        patch.setattr(torch.backends.cudnn, "version", lambda: 91900)
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifted)
        stack.enter_context(_Operators())
        yield
