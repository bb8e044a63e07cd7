"""A fault of torch.compile's Inductor that our operations bring out, and its remedy."""

from __future__ import annotations

from typing import Any

import torch


def spare_descriptions() -> None:
    """Keep Inductor from describing the operands of operations that it meets for the first time.

    Before torch 2.13 it writes that text for every custom operator, though its log shows it only to who asks. Each
    operand is told with all that it was made of, and a block uses what it is given several times over, so the text
    doubles with every block: compiling the fused trunk did not end. Later versions write it when it is read.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
        from torch._inductor.exc import OperatorIssue

        OperatorIssue.operator_str = staticmethod(_name)  # type: ignore[method-assign]


def _name(target: Any, args: Any, kwargs: Any) -> str:
    return f"  target: {target}"
