"""NVIDIA Apex where it is not: what its callers touch."""

from __future__ import annotations

import sys
import types

import pytest
import torch


class ImaginedFusedSGD(torch.optim.SGD):
    """Apex's class as its callers see it: no argument to ``zero_grad``."""

    def zero_grad(self) -> None:  # type: ignore[override]
        super().zero_grad()


def imagine_apex(monkeypatch: pytest.MonkeyPatch, available: bool = True) -> None:
    """Modules in the place of NVIDIA Apex, built with CUDA extensions or without."""
    apex, optimizers, apply = (types.ModuleType(f"apex{name}") for name in ("", ".optimizers", ".multi_tensor_apply"))
    optimizers.FusedSGD = ImaginedFusedSGD  # type: ignore[attr-defined]
    apply.multi_tensor_applier = types.SimpleNamespace(available=available)  # type: ignore[attr-defined]
    for module in (apex, optimizers, apply):
        monkeypatch.setitem(sys.modules, module.__name__, module)
