"""What torch.compile is kept from doing with our operations."""

from __future__ import annotations

import pytest
import torch
from torch._inductor.exc import MissingOperatorWithoutDecomp, OperatorIssue

from fastselfie.kernels.inductor import spare_descriptions


class Operand:
    """Stands for Inductor's, which tells all that it was made of."""

    def __str__(self) -> str:
        raise AssertionError("nobody asked")


@pytest.mark.parametrize("version", ["2.11.0+cu130", "2.12.1"])
def test_operands_are_not_described(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As it is before the remedy, whatever torch this is; and put back afterwards.
    monkeypatch.setattr(OperatorIssue, "operator_str", staticmethod(lambda target, args, kwargs: str(args[0])))
    with pytest.raises(AssertionError, match="nobody asked"):
        MissingOperatorWithoutDecomp(torch.ops.aten.relu.default, [Operand()], {})
    monkeypatch.setattr(torch, "__version__", version)
    spare_descriptions()
    told = MissingOperatorWithoutDecomp(torch.ops.aten.relu.default, [Operand()], {})
    assert "aten.relu.default" in str(told)


def test_a_torch_without_the_fault_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = OperatorIssue.operator_str
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    spare_descriptions()
    assert OperatorIssue.operator_str is before
