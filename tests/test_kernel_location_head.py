"""The kernels of `location_head`, forward and backward, against its formula in fp64.

Shapes: B images, N places, m masked patches, D features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fastselfie.kernels import location_head, using
from tests.kernel_checks import DEVICE, assert_kernel, generator, orders

pytest.importorskip("triton")
NAMES = "loss u positions h"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Questions, on `DEVICE`, in which a masked patch somewhat resembles its place."""

    B: int = 3
    N: int = 16
    m: int = 4
    D: int = 64
    scale: float = 0.125
    dtype: torch.dtype = torch.float32  # of h
    others: torch.dtype = torch.float32  # of u and the position vectors

    def places(self) -> Tensor:
        return orders(self.B, self.N)[:, : self.m].to(DEVICE)  # no contiguous rows

    def leaves(self) -> list[Tensor]:
        """u, e and h."""
        random = generator(self.m + self.N)
        u, e = torch.randn(self.B, self.D, generator=random), torch.randn(self.N, self.D, generator=random)
        noise = torch.randn(self.B, self.m, self.D, generator=random)
        h = noise + 2.4 * self.D**-0.5 * e[self.places().cpu()]
        return [u.to(DEVICE, self.others), e.to(DEVICE, self.others), h.to(DEVICE, self.dtype)]

    def __call__(self, u: Tensor, e: Tensor, h: Tensor) -> Sequence[Tensor]:
        return [location_head(u, e, self.places(), h, self.scale)[0]]

    def truth(self, u: Tensor, e: Tensor, h: Tensor) -> Sequence[Tensor]:
        """The formula in the leaves' dtype, which is fp64: the reference would compute in fp32."""
        scores = self.scale * torch.einsum("bjd,bkd->bjk", u[:, None] + e[self.places()], h)
        own = scores.diagonal(dim1=1, dim2=2)
        return [(scores.logsumexp(dim=2) - own).mean()]

    def right(self) -> int:
        """The number of right answers, by the first of the largest scores in fp64."""
        u, e, h = (leaf.double() for leaf in self.leaves())
        scores = torch.einsum("bjd,bkd->bjk", u[:, None] + e[self.places()], h).tolist()
        return sum(row.index(max(row)) == j for image in scores for j, row in enumerate(image))

    def check(self, leaves: Sequence[Tensor] | None = None, upstream: float = 1.0) -> list[Tensor]:
        """Loss and gradients of the kernel, compared, and the number of right answers."""
        leaves = self.leaves() if leaves is None else leaves
        found = assert_kernel(self, leaves, [torch.tensor(upstream, device=DEVICE)], NAMES, self.truth)
        with using("on"):
            right = location_head(leaves[0], leaves[1], self.places(), leaves[2], self.scale)[1]
        assert (right.dtype, right.shape) == (torch.int64, ())
        assert int(right) == self.right()
        return found


SIZES = [  # B, N, m, D
    (3, 16, 1, 16),
    (3, 16, 2, 64),
    (3, 16, 4, 64),
    (2, 16, 8, 96),  # D is no multiple of the block of 64
    (3, 16, 12, 16),
    (1, 49, 12, 64),
    (2, 49, 25, 96),
    (2, 64, 25, 64),  # the largest grid
    (2, 64, 64, 64),  # and the largest question
    (34, 16, 4, 16),  # more images than the backward has stretches
    (70, 16, 2, 16),
    (1, 16, 12, 1024),
]


@pytest.mark.parametrize(("B", "N", "m", "D"), SIZES)
def test_loss_right_answers_and_gradients(B: int, N: int, m: int, D: int) -> None:
    case = Case(B=B, N=N, m=m, D=D, scale=D**-0.5)
    case.check()
    if m > 1:
        assert 0 < case.right() < B * m  # a count of nothing or everything would show little


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("others", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype, others: torch.dtype) -> None:
    found = Case(N=49, m=12, dtype=dtype, others=others).check()
    assert [tensor.dtype for tensor in found] == [torch.float32, others, others, dtype]


@pytest.mark.parametrize("upstream", [0.0, -3.5, 1024.0])
def test_any_upstream_gradient(upstream: float) -> None:
    Case().check(upstream=upstream)


@pytest.mark.parametrize("layout", ["last patches of more", "first features of more", "transposed", "images inside"])
def test_features_of_any_strides(layout: str) -> None:
    case = Case(m=5)
    u, e, h = case.leaves()
    if layout == "last patches of more":
        h = torch.cat([h + 9, h], dim=1)[:, 5:]
    elif layout == "first features of more":
        h = torch.cat([h, h + 9], dim=2)[..., :64]
    elif layout == "transposed":
        h = h.transpose(1, 2).contiguous().transpose(1, 2)
    else:
        h = h.transpose(0, 1).contiguous().transpose(0, 1)
    assert not h.is_contiguous()
    case.check([u, e, h])


def test_other_inputs_of_any_strides() -> None:
    case = Case()
    u, e, h = case.leaves()
    strided = [u.t().contiguous().t(), e.repeat_interleave(2, dim=0)[::2], h]
    assert not any(tensor.is_contiguous() for tensor in (*strided[:2], case.places()))
    case.check(strided)


@pytest.mark.parametrize(("elsewhere", "expected"), [(1, 3), (0, 2)])
def test_the_first_of_equal_scores_is_the_answer(elsewhere: int, expected: int) -> None:
    """Patches 0 and 1 are equal. One of their questions has another answer; the other is right if it is the first."""
    h = torch.eye(4, 16)
    h[1] = h[0]
    e = torch.zeros(16, 16)
    e[:4] = h
    e[elsewhere] = h[3]
    given = [tensor.to(DEVICE) for tensor in (torch.zeros(1, 16), e, torch.arange(4)[None], h[None])]
    with using("on"):
        loss, right = location_head(given[0], given[1], given[2], given[3], 1.0)
    assert int(right) == expected
    scores = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    scores[elsewhere] = [0, 0, 0, 1]
    losses = [math.log(sum(math.exp(score) for score in row)) - row[j] for j, row in enumerate(scores)]
    assert float(loss) == pytest.approx(sum(losses) / 4, rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_feature(value: float) -> None:
    """The loss is NaN, and no question about that image is right; the other images' still count."""
    case = Case(B=2, m=4)
    u, e, h = case.leaves()
    h[0, 2, 5] = value
    h[1] = 100 * e[case.places()[1]]  # all right
    with using("on"):
        loss, right = location_head(u, e, case.places(), h, case.scale)
    with using("off"):
        plain_loss, plain_right = location_head(u, e, case.places(), h, case.scale)
    assert math.isnan(float(loss)) or float(loss) == float(plain_loss) == math.inf
    assert 4 <= int(right) <= int(plain_right)


@pytest.mark.parametrize("size", [1e4, 1e6])
def test_huge_scores(size: float) -> None:
    """Scores of a size of which exp() would overflow by far."""
    case = Case(scale=size / 16)
    found = case.check()
    assert found[0].isfinite()
    assert found[0] > 100


def test_only_some_inputs_require_a_gradient() -> None:
    case = Case(B=2, m=2)
    upstream = [torch.tensor(2.0, device=DEVICE)]
    for i, name in enumerate(NAMES.split()[1:]):
        rest = case.leaves()

        def function(leaf: Tensor, i: int = i, rest: list[Tensor] = rest, run: Any = case) -> Sequence[Tensor]:
            others = [tensor.to(leaf.dtype) for tensor in rest]
            return run(*others[:i], leaf, *others[i + 1 :])

        def truth(leaf: Tensor, function: Any = function) -> Sequence[Tensor]:
            return function(leaf, run=case.truth)

        assert_kernel(function, [rest[i]], upstream, f"loss {name}", truth)


@pytest.mark.parametrize("wanted", [True, False])
def test_scores_are_kept_for_a_backward_alone(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastselfie.kernels.fused import location_head as launcher

    kept, operator = [], launcher._location_head

    def watched(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        outputs = operator(*arguments)
        kept.append(tuple(outputs[2].shape))
        return outputs

    monkeypatch.setattr(launcher, "_location_head", watched)
    case = Case()
    leaves = [leaf.requires_grad_() for leaf in case.leaves()]
    with using("on"):
        with torch.set_grad_enabled(wanted):
            loss = case(*leaves)[0]
        case(*(leaf.detach() for leaf in leaves))
    assert kept == [(3 if wanted else 0, 16, 16), (0, 16, 16)], "all places, and four questions padded to a tile"
    assert float(loss.detach()) == pytest.approx(
        float(case.truth(*(leaf.detach().double() for leaf in leaves))[0]), rel=1e-6
    )


def test_an_empty_batch() -> None:
    case = Case(B=0)
    leaves = [leaf.requires_grad_() for leaf in case.leaves()]
    with using("on"):
        loss, right = location_head(leaves[0], leaves[1], case.places(), leaves[2], 1.0)
        gradients = torch.autograd.grad(loss, leaves)
    assert math.isnan(loss.item())  # as of a mean of nothing
    assert int(right) == 0
    assert [tuple(gradient.shape) for gradient in gradients] == [(0, 64), (16, 64), (0, 4, 64)]
    assert not gradients[1].any()
