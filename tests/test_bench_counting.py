"""What the report counts and concludes, held to hand calculations: operations, bytes, live memory, rates, verdicts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bench.report.counting import Traffic, count
from bench.report.machine import Machine
from bench.report.rows import Timing, not_run, row
from bench.report.tables import cells, relate
from bench.report.verdict import Shares, verdict

MACHINE = Machine(matrix={"fp32": 100e9, "bf16": 400e9}, copy=20e9, clocks="by hand")


def traffic(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_operations_and_bytes_of_products() -> None:
    a, b = torch.randn(4, 8), torch.randn(8, 2)
    counts = count(lambda: a @ b)
    assert counts.flops == 2 * 4 * 8 * 2
    assert counts.moved_bytes == 4 * (4 * 8 + 8 * 2 + 4 * 2)
    image, kernel = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3)
    counts = count(lambda: F.conv2d(image, kernel, padding=1))
    assert counts.flops == 2 * (2 * 8 * 8) * 5 * 3 * 9
    assert counts.moved_bytes == traffic(image, kernel) + 4 * 2 * 5 * 8 * 8


def test_a_backward_pass_is_counted() -> None:
    x, weight = torch.randn(6, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    counts = count(lambda: F.linear(x, weight).backward(torch.ones(6, 3)))
    assert counts.flops == 3 * (2 * 6 * 4 * 3)  # the product and both gradients


def test_attention_in_evaluations_is_counted() -> None:
    """2 images of 5 tokens of 8 features: 4 products with 8 x 8 matrices a token, and of 5 with 5 tokens two a head."""
    attention, x = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(2, 5, 8)
    with torch.no_grad():
        counts = count(lambda: attention(x, x, x, need_weights=False))
    assert counts.flops == 2 * (2 * 5 * 4 * 8 * 8) + 2 * (2 * 2 * 2 * 5 * 5 * 4)
    q, k, v = torch.randn(3, 2, 4, 5, 8)  # 2 images, 4 heads
    with torch.no_grad():
        assert count(lambda: F.scaled_dot_product_attention(q, k, v)).flops == 2 * (2 * 4 * 2 * 5 * 5 * 8)


def test_bytes_of_calls_that_change_and_share_memory() -> None:
    x, y = torch.zeros(10, 10), torch.ones(10, 10)
    cases = [
        (lambda: x.add_(y), 3 * 400),  # reads both, writes one
        (lambda: x.copy_(y), 2 * 400),  # does not read what it overwrites
        (lambda: x.zero_(), 400),
        (lambda: torch.add(x, y, out=torch.empty(10, 10)), 3 * 400),
        (lambda: x.t()[2:5].reshape(10, 3).view(-1)[:5], 2 * 120),  # the one copy among views
        (lambda: x.to(torch.bfloat16), 400 + 200),
        (lambda: torch.ones(1).expand(10, 10) + y, 4 + 4 + 2 * 400),  # one value written, read once
        (lambda: torch.zeros_like(x), 400),
        (lambda: torch.empty_like(x), 0),
        (lambda: torch.stack([x, y]), 4 * 400),
    ]
    for step, expected in cases:
        with Traffic() as counted:
            step()
        assert counted.moved_bytes == expected


@pytest.mark.parametrize("way", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_an_optimiser_moves_what_its_arithmetic_needs(way: dict[str, bool]) -> None:
    weights = [torch.randn(50, requires_grad=True) for _ in range(3)]
    for weight in weights:
        weight.grad = torch.randn(50)
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9, **way)
    optimizer.step()
    one_pass = 600 * 5  # weights and momentum read and written, gradients read
    moved = count(optimizer.step).moved_bytes
    # As separate calls: momentum scaled, momentum plus gradient, weights plus momentum.
    assert moved == (one_pass if "fused" in way else 600 * (2 + 3 + 3))


def test_peak_is_what_lives_at_once() -> None:
    x = torch.zeros(1000)

    def step() -> None:
        y = x + 1  # 8,000 bytes live, x and y
        z = y * 2  # 12,000
        del y
        w = z[:500] + 1  # 10,000: a view of z, and w
        del z, w

    assert count(step).peak_bytes == 12_000
    kept = torch.zeros(1000, requires_grad=True)
    # x, exp(x), its square, which saves exp(x): three, and the gradients that come and go one at a time.
    assert count(lambda: (kept.exp() ** 2).sum().backward()).peak_bytes >= 4 * 4_000


def test_rates_and_shares_of_a_row() -> None:
    timing = Timing(
        seconds=[0.3, 0.1, 0.2], dtype="bf16", images=8, flops=40_000_000_000, moved_bytes=1_000_000_000,
        peak_bytes=3 * 2**20, busy_s=0.15, startup_s=1.0,
    )  # fmt: skip
    made = row("section", "side", timing, MACHINE)
    assert made["ms"] == {"median": 200, "lowest": 100, "highest": 300, "n": 3, "all": [300, 100, 200]}
    assert made["images_per_second"] == pytest.approx(8 / 0.2)
    assert (made["gflop"], made["tflops"]) == (40, pytest.approx(0.2))
    assert (made["gbyte"], made["gb_per_s"], made["peak_mib"]) == (1, pytest.approx(5), 3)
    assert made["shares"]["matrix"] == pytest.approx(0.2e12 / 400e9)
    assert made["shares"]["copy"] == pytest.approx(5 / 20)
    assert made["shares"]["idle"] == pytest.approx(1 - 0.15 / 0.2)
    other = row("section", "other", Timing(seconds=[0.5]), MACHINE)
    assert other["tflops"] is other["gb_per_s"] is other["images_per_second"] is None
    relate([not_run("section", "none", "why"), made, other])
    assert (made["time_over_first"], other["time_over_first"]) == (1, pytest.approx(2.5))
    assert cells(made)[:6] == ["side", "200", "100 to 300", "3", "1.00", "40"]
    assert cells(other)[-1] == "not told: no share was measured"


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        (Shares(decode=0.5, matrix=0.7, copy=0.2), "bound by decode (50% waiting for data)"),
        (Shares(decode=0.4, all_reduce=0.45), "bound by all-reduce (45% all-reduce)"),
        (Shares(decode=0.05, matrix=0.7, copy=0.65, idle=0.1), "bound by arithmetic (70% of the matrix rate)"),
        (Shares(matrix=0.3, copy=0.9), "bound by memory (90% of the copy bandwidth)"),
        (Shares(matrix=0.3, copy=0.2, idle=0.5), "bound by launches (50% idle device)"),
        (Shares(matrix=0.3, copy=0.7, idle=0.5), "bound by memory (70% of the copy bandwidth)"),
        (Shares(decoder=0.9), "bound by decode (90% of decoding alone)"),
        (Shares(matrix=0.4, copy=0.5), "nothing dominates (50% of the copy bandwidth, 40% of the matrix rate)"),
        (Shares(), "not told: no share was measured"),
    ],
)  # fmt: skip
def test_verdicts(shares: Shares, told: str) -> None:
    assert verdict(shares) == told
